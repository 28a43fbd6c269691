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
from dataclasses import dataclass
from math import sqrt
from typing import Final

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import MAX_DATAGRAM
from phantommesh.errors import DecodeError

# Specification (docs/protocol.md, "Frames over TCP").
GOSSIP: Final = 8
HEADER: Final = 3  # bytes before each datagram
MAX_WIREGUARD: Final = 9000 + 32 + 15  # the largest MTU, WireGuard's header and tag, its padding
MAX_BATCH: Final = 60 * 1024  # bytes of frames; with its seal within `control.channel.MAX_REQUEST`

# Tuning. What waits long is worth nothing: TCP inside the tunnel has to see the loss soon.
QUEUE_BYTES: Final = 256 * 1024
BATCH_SENT: Final = 16 * 1024  # bytes of a batch of ours: the other end opens none before it is whole
GOSSIP_BYTES: Final = 32 * 1024  # bytes of gossip that wait
AGE: Final = 0.3  # s after which a datagram of WireGuard is not sent any more
GOSSIP_AGE: Final = 2.0  # s for gossip: a question that is older has been given up
# CoDel (RFC 8289 section 4.2). The target is above the 5 ms there: the event loop's turns take milliseconds.
TARGET: Final = 0.02  # s that a datagram may wait for good
INTERVAL: Final = 0.1  # s


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


@dataclass(slots=True)
class _CoDel:
    """When to drop what waits too long, though there is room (RFC 8289 section 5). ``above``: since when all
    that was taken out had waited for more than `TARGET`."""

    above: float | None = None
    dropping: bool = False
    count: int = 0
    before: int = 0  # ``count`` when it last began to drop
    due: float = 0.0  # the next drop

    def drops(self, waited: float, behind: int, now: float) -> bool:
        """Whether to drop the frame that was taken out: it has waited so long, with so many bytes behind."""
        if waited < TARGET or behind < BATCH_SENT:
            self.above, self.dropping = None, False
            return False
        self.above = now if self.above is None else self.above
        if self.dropping:
            if now < self.due:
                return False
            self.count += 1
            self.due += INTERVAL / sqrt(self.count)
            return True
        if now < self.above + INTERVAL:
            return False
        lately = now < self.due + 16 * INTERVAL
        self.count, self.dropping = max(1, self.count - self.before) if lately else 1, True
        self.before, self.due = self.count, now + INTERVAL / sqrt(self.count)
        return True


class Queue:
    """The frames that wait for one connection, gossip before all others. Of two packets that wait the older
    is worth less. So the oldest is dropped where there is no room, where it has waited for too long
    (`AGE`), or where the queue stays long (CoDel). Each drop is counted in ``dropped``. Times are in s, on
    the caller's clock."""

    def __init__(self, dropped: Counter[str], most: int = QUEUE_BYTES) -> None:
        self._frames: deque[tuple[float, bytes]] = deque()
        self._gossip: deque[tuple[float, bytes]] = deque()
        self._dropped, self._most = dropped, most
        self._codel = _CoDel()
        self.size = 0  # bytes, without gossip
        self._gossip_size = 0

    def __bool__(self) -> bool:
        return bool(self._frames or self._gossip)

    def put(self, kind: int, datagram: bytes, now: float) -> None:
        """Add a datagram. One that makes no frame is dropped, and counted too."""
        try:
            framed = frame(kind, datagram)
        except FrameError:
            self._dropped["frame-length"] += 1
            return
        if kind == GOSSIP:
            self._gossip.append((now, framed))
            self._gossip_size += len(framed)
            while self._gossip_size > GOSSIP_BYTES:
                self._gossip_size -= len(self._gossip.popleft()[1])
                self._dropped["frame-queue"] += 1
            return
        self._frames.append((now, framed))
        self.size += len(framed)
        while self.size > self._most:
            self.size -= len(self._frames.popleft()[1])
            self._dropped["frame-queue"] += 1

    def take(self, now: float) -> bytes:
        """Take out what is to be sent in one batch; nothing where nothing is."""
        taken, size = list[bytes](), 0
        while self._gossip and size + len(self._gossip[0][1]) <= BATCH_SENT:
            since, one = self._gossip.popleft()
            self._gossip_size -= len(one)
            if now > since + GOSSIP_AGE:
                self._dropped["frame-late"] += 1
                continue
            size += len(one)
            taken.append(one)
        while self._frames and size + len(self._frames[0][1]) <= BATCH_SENT:
            since, one = self._frames.popleft()
            self.size -= len(one)
            if now > since + AGE or self._codel.drops(now - since, self.size, now):
                self._dropped["frame-late"] += 1
                continue
            size += len(one)
            taken.append(one)
        return b"".join(taken)
