# SPDX-License-Identifier: GPL-3.0-or-later
"""Network namespaces for tests that run code of ours in them, without a whole node."""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_NEWNET = 0x40000000  # CLONE_NEWNET, linux/sched.h


def within(space: str, act: Callable[[], T]) -> T:
    """Run something in a namespace, in a thread of its own: a socket made there stays there."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        with Path("/run/netns", space).open() as handle:
            if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        try:
            results.append(act())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def run(space: str, *command: str, script: str | None = None) -> str:
    """Run a program in a namespace; return its output."""
    argv = ["ip", "netns", "exec", space, *command]
    return subprocess.run(argv, input=script, check=True, capture_output=True, text=True).stdout


@contextmanager
def spaces(names: Collection[str]) -> Iterator[None]:
    """Namespaces for as long as the block takes."""
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for name in names:
            run(name, "ip", "link", "set", "lo", "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=True)


def cable(one: str, name: str, two: str, other: str) -> None:
    """Join two namespaces by a pair of interfaces of these names, both up."""
    link = ["ip", "link", "add", name, "netns", one, "type", "veth"]
    subprocess.run([*link, "peer", "name", other, "netns", two], check=True)
    for space, interface in ((one, name), (two, other)):
        run(space, "ip", "link", "set", interface, "up")
