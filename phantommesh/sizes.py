# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers that parts which do not import each other must agree on."""

from collections.abc import Mapping
from typing import Final

DIMENSIONS: Final = 7  # WireGuard interfaces a node, pm0 to pm6

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

# FIPS 203, table 3: ML-KEM-1024.
EK_SIZE: Final = 1568
CT_SIZE: Final = 1568
