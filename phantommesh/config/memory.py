# SPDX-License-Identifier: GPL-3.0-or-later
"""The section `[memory]`: what this node remembers of attackers, and whether it shares that."""

from typing import Annotated

import msgspec
from msgspec import Meta

from phantommesh.config.kinds import Switch


class MemorySection(msgspec.Struct, frozen=True):
    """`megabytes` bounds the memory of threat patterns: 8 hold 43,000. `half_life_seconds`: the strength of a
    pattern halves in that time, so that a pattern seen once is forgotten after four of them. `hints`: this
    node tells others of attackers, and what they tell lowers its thresholds."""

    megabytes: Annotated[int, Meta(ge=1, le=64, description="a number of megabytes from 1 to 64")] = 8
    half_life_seconds: Annotated[
        float, Meta(ge=3600, le=7_776_000, description="seconds from 3600 to 7776000 (90 days)")
    ] = 172_800.0
    hints: Switch = True
