# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory on disk: what was written last stands behind what it changes, and damage costs what it hits.

The file is `HEADER` and then frames (`diskframes.py`). The payload of each is a msgpack `Batch` of patterns
and of what is held of hinters, each whole as it was at that moment. So a later item makes the earlier ones of
its key void, a frame that is lost costs the changes in it, and no frame depends on another.

A file is made whole and put in its place by a rename (`encode`), and grows at its end (`added`) until it has
grown too much. A crash may cut the last addition off, and a power cut may leave any of its pages out: then
its checksum does not hold. `decode` leaves out what it cannot read, and counts it. A file of which something
is left out is written anew before anything is added to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Final, TypeVar

import msgspec

from phantommesh.diskframes import OVERHEAD, Framing
from phantommesh.mnemonic.memory import MOST_KEY, STATE_BYTES, Item
from phantommesh.mnemonic.reputation import Reputation

HEADER: Final = b"phantommesh memory 1\n"

# Tuning.
BATCH: Final = 256  # items of a frame: what a damaged sector costs at most
_MOST_ITEM: Final = MOST_KEY + STATE_BYTES + 64
_FRAMING: Final = Framing(b"\xc1PMm", 2 * BATCH * _MOST_ITEM)  # msgpack uses the byte 0xc1 for nothing
MOST_MISSES: Final = 1_024  # marks without a frame behind them: each may cost a checksum over a whole payload
# The file may grow to twice what it holds, or by so many bytes where that is more. Then it is written anew.
GROWTH: Final = 2
SLACK: Final = 256 * 1024


T = TypeVar("T")
_Text = Annotated[str, msgspec.Meta(max_length=MOST_KEY)]
_State = Annotated[bytes, msgspec.Meta(max_length=STATE_BYTES)]


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """One frame's items."""

    patterns: Annotated[tuple[tuple[_Text, _State], ...], msgspec.Meta(max_length=BATCH)] = ()
    hinters: Annotated[tuple[Reputation, ...], msgspec.Meta(max_length=BATCH)] = ()


_DECODER: Final = msgspec.msgpack.Decoder(Batch)


@dataclass(frozen=True, slots=True)
class Content:
    """A file that was read: its items in their order. ``lost`` bytes could not be read; ``torn`` of them are
    at the end, as a crash leaves them."""

    patterns: list[Item] = field(default_factory=list)
    hinters: list[Reputation] = field(default_factory=list)
    lost: int = 0
    torn: int = 0


def encode(patterns: Iterable[Item], hinters: Iterable[Reputation]) -> bytes:
    """Return a whole file."""
    return HEADER + added(patterns, hinters)


def added(patterns: Iterable[Item], hinters: Iterable[Reputation]) -> bytes:
    """Return what is added to a file for these changes."""
    frames = [_frame(Batch(patterns=some)) for some in _parts(patterns)]
    frames += [_frame(Batch(hinters=some)) for some in _parts(hinters)]
    return b"".join(frames)


def most_size(size: int) -> int:
    """How large a file may grow that had ``size`` bytes when it was written whole."""
    return max(GROWTH * size, size + SLACK)


def decode(data: bytes) -> Content:
    """Read what `encode` and `added` wrote; raises nothing."""
    content, view, misses = Content(), memoryview(data), 0
    at = end = len(HEADER) if data.startswith(HEADER) else 0
    lost = 0
    while 0 <= at < len(data):
        payload = _FRAMING.payload_at(view, at)
        batch = None if payload is None else _open(payload)
        if payload is None or batch is None:
            misses += data.startswith(_FRAMING.mark, at)
            at = data.find(_FRAMING.mark, at + 1) if misses <= MOST_MISSES else -1
            continue
        content.patterns.extend(batch.patterns)
        content.hinters.extend(batch.hinters)
        lost += at - end
        at = end = at + OVERHEAD + len(payload)
    torn = len(data) - end
    return Content(content.patterns, content.hinters, lost + torn, torn)


def _parts(items: Iterable[T]) -> Iterator[tuple[T, ...]]:
    left = iter(items)
    while part := tuple(islice(left, BATCH)):
        yield part


def _open(payload: memoryview) -> Batch | None:
    try:
        return _DECODER.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _frame(batch: Batch) -> bytes:
    return _FRAMING.frame(msgspec.msgpack.encode(batch))
