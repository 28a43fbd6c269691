# SPDX-License-Identifier: GPL-3.0-or-later
"""What a path or a link costs traffic that waits for answers, and when another one is worth a change."""

from __future__ import annotations

from typing import Final

# Tuning.
MARGIN: Final = 0.010  # s of round trip that a change has to save,
SHARE: Final = 0.2  # and the share of the round trip
JITTERS: Final = 2.0  # times its jitter that a packet may be late
RESEND: Final = 0.2  # s until a lost packet is sent again, at least: RFC 6298 rule 2.4 as Linux has it


def cost(rtt: float, jitter: float, loss: float) -> float:
    """Return the cost in seconds: the round trip, its jitter, and for what is lost the time until it is sent
    again. ``rtt`` and ``jitter`` are in seconds, ``loss`` is from 0 to 1."""
    return rtt + JITTERS * jitter + loss * (RESEND + rtt)


def least_saving(now: float) -> float:
    """What a change has to save, and more, from a way that costs ``now``."""
    return max(MARGIN, SHARE * now)


def worth(now: float, other: float) -> bool:
    """Whether a way that costs ``other`` saves enough to leave one that costs ``now``."""
    return now - other > least_saving(now)
