# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that runs holds the names of its interfaces, by an abstract socket (unix(7)): it belongs to the
network namespace and ends with the process."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def owned(device: str) -> Iterator[bool]:
    """Hold the names of the node whose scattering interface is ``device``, and say whether that was possible:
    it is not while a node with that interface runs here."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as held:
        try:
            held.bind(f"\0phantommesh-interfaces-{device}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            free = False
        else:
            free = True
        yield free
