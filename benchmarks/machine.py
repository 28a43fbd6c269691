# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine that a benchmark ran on: figures mean nothing without it."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    fields = dict(line.partition(":")[::2] for line in text.splitlines())
    for name, value in fields.items():
        if name.strip() in ("model name", "Processor", "Hardware") and value.strip():
            return value.strip()
    return platform.machine()


def describe() -> dict[str, str | int]:
    """Return the CPU's model, the cores this process may use, the kernel and the Python."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
