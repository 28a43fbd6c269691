# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this host's kernel forwards, and turning that on for single interfaces. Blocks: small reads and
writes of /proc/sys.

IPv4 has a switch for each interface that packets come in by. The switch of all interfaces sets them all, so
what another program (a container engine) turns on later shows there. IPv6 has the switch of all alone, which
also ends what the host learns from routers: that is left to the operator.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_SYSCTL = Path("/proc/sys/net")


def forwards(version: int) -> bool:
    """Whether the host forwards packets of IPv4 (4) or IPv6 (6) from all interfaces. False where the kernel
    cannot say."""
    path = _SYSCTL / ("ipv4/conf/all/forwarding" if version == 4 else "ipv6/conf/all/forwarding")
    try:
        return path.read_text().strip() != "0"
    except OSError:
        return False


def closed(interfaces: Iterable[str]) -> list[str]:
    """Which of these interfaces do not forward IPv4 packets that come in by them."""
    found = list[str]()
    for name in interfaces:
        try:
            if _switch(name).read_text().strip() == "0":
                found.append(name)
        except OSError:
            continue
    return found


def open_for(interfaces: Iterable[str]) -> list[str]:
    """Turn on the forwarding of IPv4 packets that come in by these interfaces. Returns those where it was
    off, which `close_for` is to be given. Raises OSError."""
    opened = list[str]()
    try:
        for name in interfaces:
            path = _switch(name)
            if path.read_text().strip() == "0":
                path.write_text("1")
                opened.append(name)
    except OSError:
        close_for(opened)
        raise
    return opened


def close_for(interfaces: Iterable[str]) -> None:
    """Turn it off again, unless the host forwards from all interfaces by now: somebody else has need of it.
    An interface that is gone is fine."""
    if forwards(4):
        return
    for name in interfaces:
        try:
            _switch(name).write_text("0")
        except OSError:
            continue


def _switch(name: str) -> Path:
    return _SYSCTL / "ipv4" / "conf" / name / "forwarding"
