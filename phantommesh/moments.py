# SPDX-License-Identifier: GPL-3.0-or-later
"""Moments and spans of time as text."""

from datetime import UTC, datetime


def rfc3339(moment: float, *, milliseconds: bool = False) -> str:
    """Write a moment, in Unix seconds, to the second or the millisecond (RFC 3339 section 5.6)."""
    unit = "milliseconds" if milliseconds else "seconds"
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec=unit).replace("+00:00", "Z")


def span(seconds: float) -> str:
    """A time in its largest unit, rounded down: ``3 h``."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
