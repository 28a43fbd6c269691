# SPDX-License-Identifier: GPL-3.0-or-later
"""Features of the kernel and of this machine that the node needs, as `netcheck` shows them. They block."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from phantommesh.management.netview import FeatureView
from phantommesh.nursery.host.kernel import kernel_has_wireguard
from phantommesh.nursery.host.userspace import PROGRAMS

_NET_ADMIN, _NET_RAW = 12, 13  # linux/capability.h
_EGRESS_SINCE: Final = (5, 16)  # Linux; nft's netdev family has the hook `egress` from then on


def read_features() -> list[FeatureView]:
    """Say what this process and this kernel have."""
    held = _capabilities()
    kernel = kernel_has_wireguard() if held is not None and held >> _NET_ADMIN & 1 else None
    program = next((name for name in PROGRAMS if shutil.which(name)), None)
    tun = Path("/dev/net/tun").exists()
    return [
        _feature("kernel WireGuard", kernel, "fast", "only root can ask the kernel", "`modprobe wireguard`"),
        FeatureView(
            name="userspace WireGuard",
            there=program is not None and tun,
            why=f"{program}: slower, where the kernel has none" if program and tun
            else "/dev/net/tun is missing: `modprobe tun`" if program
            else "for a kernel without WireGuard: install wireguard-go",
        ),
        _feature("nft", shutil.which("nft") is not None, "guards and scatters", "", "install nftables"),
        egress(_release()),
        _capability("CAP_NET_ADMIN", _NET_ADMIN, held, "makes the interfaces"),
        _capability("CAP_NET_RAW", _NET_RAW, held, "NAT traversal from WireGuard's own ports"),
    ]  # fmt: skip


def egress(release: tuple[int, ...]) -> FeatureView:
    """The netdev egress hook by the kernel's release, as far as that says."""
    new = None if not release else release >= _EGRESS_SINCE
    return FeatureView(
        name="netdev egress hook",
        there=False if new is False else None,
        why="Linux has it from 5.16 on; packets are scattered by marks here" if new is False
        else "shown by a node that scatters",
    )  # fmt: skip


def _feature(name: str, there: bool | None, good: str, unknown: str, fix: str) -> FeatureView:
    return FeatureView(name=name, there=there, why={True: good, None: unknown, False: fix}[there])


def _capability(name: str, bit: int, held: int | None, what: str) -> FeatureView:
    there = None if held is None else bool(held >> bit & 1)
    return FeatureView(name=name, there=there, why=what if there else f"{what}; run as root to have it")


def _capabilities() -> int | None:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return None if found is None else int(found[1], 16)


def _release() -> tuple[int, ...]:
    try:
        text = Path("/proc/sys/kernel/osrelease").read_text()
    except OSError:
        return ()
    found = re.match(r"(\d+)\.(\d+)", text)
    return () if found is None else (int(found[1]), int(found[2]))
