# SPDX-License-Identifier: GPL-3.0-or-later
"""Who began a TCP connection that the kernel's connection tracking has not seen begin. Pure.

Connection tracking takes whoever sends first for the one that began. It begins with the first rule that
denies, and its entries end (a RST, a pause, somebody's flush), so it meets connections under way. The host's
sockets say more. A connection at a port that the host listens on was begun by the other side, or is taken to
be: the kernel itself gives such a port to no connection that the host begins (inet_hashtables.c,
``__inet_hash_connect``). A socket at another port is a connection that the host began.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from phantommesh.acl.rules import IpAddress

# Tuning.
MAX_STANDING: Final = 16_384  # connections that are told to the kernel: below 2 MB there


class Connection(NamedTuple):
    """The ends of a TCP connection: the host's own address and port, then the other side's."""

    here: IpAddress
    port: int
    there: IpAddress
    their_port: int


@dataclass(frozen=True, slots=True)
class TcpSockets:
    """A host's TCP sockets: the ports that it listens on, and its connections."""

    listening: frozenset[int] = frozenset()
    connected: frozenset[Connection] = frozenset()


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a host's sockets. ``served`` are the ports that it listens on or has listened on:
    sessions outlive the program that took them. ``begun`` are the connections that the host had begun before
    the kernel looked at who begins, and that are still open."""

    served: frozenset[int] = frozenset()
    begun: frozenset[Connection] = frozenset()

    def look(self, now: TcpSockets, own: Collection[IpAddress], *, fresh: bool) -> Standing:
        """What is known after another look. ``own`` are the node's overlay addresses. ``fresh``: the kernel
        has not looked at who begins until now."""
        served = self.served | now.listening
        begun = {one for one in now.connected if one.here in own and one.port not in served}
        if not fresh:
            begun &= self.begun
        if len(begun) > MAX_STANDING:
            begun = set(sorted(begun, key=lambda one: (one.port, one.their_port))[:MAX_STANDING])
        return Standing(served, frozenset(begun))
