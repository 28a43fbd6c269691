# SPDX-License-Identifier: GPL-3.0-or-later
"""The seven dimensions: their number, sets of them as bitmaps, their interfaces, the slots a map deals."""

from collections.abc import Iterable, Mapping
from typing import Final

DIMENSIONS: Final = 7  # WireGuard interfaces a node, pm0 to pm6
ALL: Final = (1 << DIMENSIONS) - 1  # of them, as a bitmap

# A scheduler's map has so many slots, and a proof's plan so many cards: older proofs do not survive a change.
SLOTS: Final[Mapping[str, int]] = {  # those of hashes are powers of two, for a mask
    "packet": 256,
    "batch": 128,  # runs; each is `scatter.batch` cards long
    "deck": 1022,  # 146 hands of seven; what one netlink message holds with ease
    "flow": 256,
    "flowlet": 256,
}
MIN_BATCH: Final = 2  # packets that `batch` sends one way in a row
MAX_BATCH: Final = 32


def bits(flags: Iterable[bool]) -> int:
    """The bitmap of those dimensions whose flag is true; the flags are by dimension."""
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def has(bitmap: int, dimension: int) -> bool:
    """Whether a dimension is in a bitmap."""
    return bool(bitmap >> dimension & 1)


def only(dimension: int) -> int:
    """The bitmap of one dimension."""
    return 1 << dimension


def without(bitmap: int, others: int) -> int:
    """The dimensions of a bitmap that are not in the other one."""
    return bitmap & ~others


def interface_names(prefix: str) -> tuple[str, ...]:
    """The names of the seven dimensions."""
    return tuple(f"{prefix}{i}" for i in range(DIMENSIONS))


def master_name(prefix: str) -> str:
    """The name of the interface that the overlay's routes point at, from which packets are scattered."""
    return prefix.rstrip("0123456789") or prefix


def all_names(prefix: str) -> tuple[str, ...]:
    """The names of all interfaces that a node makes."""
    return master_name(prefix), *interface_names(prefix)
