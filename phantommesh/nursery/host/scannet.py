# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what the scan of this host judges of its network: settings, sockets, packet filters. All block."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, Literal

import msgspec

from phantommesh.hostcheck import firewall
from phantommesh.hostcheck.firewall import Chain
from phantommesh.hostcheck.seen import Listener
from phantommesh.nursery.host.whose import program_of

OUR_TABLES: Final = "phantommesh"  # what the names of all tables of ours begin with

# Tuning.
CHILD_SECONDS: Final = 20.0  # s until a child counts as hung; a ruleset of a thousand rules takes 0.1
MOST_RULES_BYTES: Final = 8 * 1024 * 1024  # of a ruleset as text; what is longer is not judged
MOST_NEEDED: Final = 24  # uplinks and interfaces whose settings are read

_SETTINGS: Final = (
    "rp_filter", "accept_redirects", "accept_source_route", "forwarding", "route_localnet", "proxy_arp",
    "src_valid_mark",
)  # fmt: skip
_SYSCTL: Final = Path("/proc/sys")
_LISTEN: Final = "0A"  # TCP_LISTEN, linux/tcp_states.h
_NFT_TABLES: Final = ("filter", "nat", "mangle", "raw", "security")  # those that iptables-nft makes


def read_settings(interfaces: Iterable[str]) -> dict[str, int]:
    """Read the settings of these interfaces, of ``all`` and of ``default``, by their path in /proc/sys."""
    found = {}
    for name in ("all", "default", *list(interfaces)[:MOST_NEEDED]):
        for setting in _SETTINGS:
            path = f"net/ipv4/conf/{name}/{setting}"
            try:
                found[path] = int((_SYSCTL / path).read_text())
            except (OSError, ValueError):
                continue
    return found


def is_read_only() -> bool:
    """Whether the kernel's network settings are on a file system that cannot be written."""
    try:
        return bool(os.statvfs(_SYSCTL / "net/ipv4/conf/all/rp_filter").f_flag & os.ST_RDONLY)
    except OSError:
        return False


def read_listeners() -> list[Listener]:
    """Read the listening TCP sockets."""
    found = []
    for fields in _sockets("tcp"):
        if fields[3] == _LISTEN:
            address, port = _address(fields[1])
            found.append(Listener("tcp", address, port))
    return found


def read_taken(ports: Collection[int]) -> list[Listener]:
    """Read which of these UDP ports are bound, and by which program."""
    found: dict[int, str] = {}
    for fields in _sockets("udp"):
        address, port = _address(fields[1])
        if port in ports:
            found.setdefault(port, address)
    return [Listener("udp", address, port, program_of(port)) for port, address in sorted(found.items())]


def _sockets(protocol: Literal["tcp", "udp"]) -> Iterator[list[str]]:
    for name in (protocol, f"{protocol}6"):
        try:
            lines = Path("/proc/thread-self/net", name).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        yield from (fields for line in lines if len(fields := line.split()) > 9)


def _address(text: str) -> tuple[str, int]:
    """Decode an address of /proc/net: words of 32 bits in the machine's own order."""
    host, _, port = text.rpartition(":")
    words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    address = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address), int(port, 16)


def read_chains(unknown: list[str]) -> list[Chain]:
    """Read the packet filters of others: nf_tables, and iptables in either of its kinds."""
    if os.geteuid() != 0:
        unknown.append("packet filters: only root can read them")
        return []
    chains: list[Chain] = []
    if (text := _said("nft", "--json", "--terse", "list", "ruleset", unknown=unknown)) is not None:
        try:
            chains = firewall.read_nft(msgspec.json.decode(text), OUR_TABLES)
        except (msgspec.DecodeError, RecursionError) as error:
            unknown.append(f"packet filters: nft's answer is no JSON ({error})")
    found = list[Chain]()
    families: tuple[tuple[str, Literal["ip", "ip6"]], ...] = (("iptables", "ip"), ("ip6tables", "ip6"))
    for program, family in families:
        if _has_legacy(family):
            legacy = _said(f"{program}-legacy-save", unknown=unknown)
            found += firewall.read_iptables((legacy or "").splitlines(), family)
        theirs = {f"{family} {name}" for name in _NFT_TABLES}
        if any(chain.table in theirs for chain in chains):
            newer = _said(f"{program}-nft-save", unknown=unknown)
            if newer is not None:  # it says what nft cannot translate
                chains = [chain for chain in chains if chain.table not in theirs]
                found += firewall.read_iptables(newer.splitlines(), family)
    return chains + found


def _has_legacy(family: Literal["ip", "ip6"]) -> bool:
    """Whether the kernel has tables of the old iptables; asking the program itself might make some."""
    try:
        return bool(Path("/proc/thread-self/net", f"{family}_tables_names").read_text("ascii").strip())
    except OSError:
        return False


def _said(program: str, *arguments: str, unknown: list[str]) -> str | None:
    """What a program prints; None where it is not there or fails."""
    if shutil.which(program) is None:
        unknown.append(f"packet filters: {program} is not installed")
        return None
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            timeout=CHILD_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        unknown.append(f"packet filters: {program}: {type(error).__name__}")
        return None
    if done.returncode != 0:
        unknown.append(f"packet filters: {program} failed")
        return None
    if len(done.stdout) > MOST_RULES_BYTES:
        unknown.append(f"packet filters: {program} lists more than {MOST_RULES_BYTES >> 20} MiB of rules")
        return None
    return done.stdout.decode("utf-8", "replace")
