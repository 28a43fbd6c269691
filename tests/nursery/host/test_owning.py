# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that one process holds at a time, also where another user of the machine wants them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from phantommesh.nursery.host.owning import held

# Binds a name as this user, says so, and ends with its standard input.
HOLDER = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
    holder.bind(b"\\0phantommesh-" + sys.argv[1].encode())
    print("bound", flush=True)
    sys.stdin.read()
"""
NAME = f"test-{os.getpid()}"


@contextmanager
def bound_by(user: int) -> Iterator[None]:
    command = [sys.executable, "-c", HOLDER, NAME, str(user)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "bound\n"
        yield
        assert other.stdin is not None
        other.stdin.close()


def test_a_name_is_one_holders_at_a_time() -> None:
    with held(NAME) as first, held(NAME) as second:
        assert first and not second
    with bound_by(os.geteuid()), held(NAME) as free:
        assert not free


def test_a_name_that_another_user_has_bound_stops_no_node() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
    with bound_by(65_533), held(NAME) as free:
        assert free
