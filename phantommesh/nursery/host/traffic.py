# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes that interfaces have sent so far, by one read of a file: no lock of the kernel's, no thread."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

COUNTERS = Path("/proc/net/dev")  # proc(5): of this process's network namespace

_SENT = 8  # the ninth number of a line: bytes sent


def sent(names: Collection[str]) -> int | None:
    """Bytes that these interfaces have sent, together; None where the counters cannot be read. An interface
    that is not there has sent nothing."""
    try:
        return parse_sent(COUNTERS.read_text(), names)
    except (OSError, ValueError):
        return None


def parse_sent(text: str, names: Collection[str]) -> int:
    """Read the counters out of the file's text. Raises ValueError for a line of ours without a number."""
    total = 0
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        if name.strip() in names:
            fields = numbers.split()
            if len(fields) <= _SENT:
                raise ValueError(f"a line without counters: {line!r}")
            total += int(fields[_SENT])
    return total
