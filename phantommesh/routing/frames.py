# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames: datagrams of WireGuard and of gossip on a TCP connection, for two members between whom no UDP
passes. Sans-I/O.

A batch is what one sealed message of the channel holds: frames one behind the other, of different kinds.

::

    0      1         3          3 + length
    | kind | length  | datagram | kind | ...

The kind is a dimension (0 to 6), or `GOSSIP`. The length has two bytes, the first one the higher.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import MAX_DATAGRAM
from phantommesh.errors import DecodeError

# Specification (docs/protocol.md, "Frames over TCP").
GOSSIP: Final = 8
HEADER: Final = 3  # bytes before each datagram
MAX_WIREGUARD: Final = 9000 + 32 + 15  # the largest MTU, WireGuard's header and tag, its padding
MAX_BATCH: Final = 60 * 1024  # bytes of frames; with its seal within `control.channel.MAX_REQUEST`

# Tuning. A queue that is longer only makes packets old: TCP inside the tunnel has to see the loss soon.
QUEUE_BYTES: Final = 256 * 1024


class FrameError(DecodeError):
    """The bytes are not a batch of frames."""


def limit(kind: int) -> int:
    """The longest datagram of a kind, in bytes. Raises `FrameError` for a kind that is none."""
    if kind == GOSSIP:
        return MAX_DATAGRAM
    if kind < DIMENSIONS:
        return MAX_WIREGUARD
    raise FrameError("kind")


def frame(kind: int, datagram: bytes) -> bytes:
    """Return a datagram as a frame. Raises `FrameError` for one that is too long, or of no kind."""
    if len(datagram) > limit(kind):
        raise FrameError("length")
    return bytes((kind, len(datagram) >> 8, len(datagram) & 0xFF)) + datagram


def unpack_untrusted(batch: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the kind and the datagram of each frame. Raises `FrameError` at the first that is none; those
    before it have been yielded."""
    at, end = 0, len(batch)
    while at < end:
        if at + HEADER > end:
            raise FrameError("header")
        kind, size = batch[at], batch[at + 1] << 8 | batch[at + 2]
        at += HEADER
        if size > limit(kind) or at + size > end:
            raise FrameError("length")
        yield kind, batch[at : at + size]
        at += size


class Queue:
    """The frames that wait for one connection. Where there is no room the oldest is dropped, and counted in
    ``dropped``: of two packets that wait the older is worth less."""

    def __init__(self, dropped: Counter[str], most: int = QUEUE_BYTES) -> None:
        self._frames: deque[bytes] = deque()
        self._dropped, self._most = dropped, most
        self.size = 0  # bytes

    def __bool__(self) -> bool:
        return bool(self._frames)

    def put(self, kind: int, datagram: bytes) -> None:
        """Add a datagram. One that makes no frame is dropped, and counted too."""
        try:
            framed = frame(kind, datagram)
        except FrameError:
            self._dropped["frame-length"] += 1
            return
        self._frames.append(framed)
        self.size += len(framed)
        while self.size > self._most:
            self.size -= len(self._frames.popleft())
            self._dropped["frame-queue"] += 1

    def take(self) -> bytes:
        """Take out as many frames as one batch holds; none where there are none."""
        taken, size, frames = list[bytes](), 0, self._frames
        while frames and size + len(frames[0]) <= MAX_BATCH:
            one = frames.popleft()
            size += len(one)
            taken.append(one)
        self.size -= size
        return b"".join(taken)
