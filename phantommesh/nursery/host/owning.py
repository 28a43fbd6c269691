# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that one process holds at a time, each by an abstract socket (unix(7)): it belongs to the network
namespace and ends with the process. A node that runs holds the names of its interfaces."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


def owned(device: str) -> AbstractContextManager[bool]:
    """Hold the names of the node whose scattering interface is ``device``, and say whether that was possible:
    it is not while a node with that interface runs here."""
    return held(f"interfaces-{device}")


@contextmanager
def held(name: str) -> Iterator[bool]:
    """Hold a name, and say whether that was possible: it is not while another process holds it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        try:
            holder.bind(f"\0phantommesh-{name}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            free = False
        else:
            free = True
        yield free
