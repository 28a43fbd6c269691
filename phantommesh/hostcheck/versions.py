# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions with known faults: a dated list, which the package ships as known_faults.toml.

A version counts as faulty where the list says so for sure. Distributions mend old versions without a new
number: of a kernel, only what names the upstream release is judged (`upstream`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from phantommesh.errors import DecodeError
from phantommesh.faults import Severity
from phantommesh.hostcheck.finding import Finding, Rule

if TYPE_CHECKING:
    from phantommesh.hostcheck.seen import HostSeen

FAULTY_LIBRARY = Rule("library-faulty", "high", "A library has a known vulnerability")
FAULTY_WIREGUARD = Rule("wireguard-faulty", "medium", "This WireGuard has a known fault")
FAULTY_KERNEL = Rule("packet-filter-faulty", "high", "The kernel's packet filter has a known vulnerability")
RULES: Final = (FAULTY_LIBRARY, FAULTY_WIREGUARD, FAULTY_KERNEL)

_RULE_OF: Final = {
    "kernel WireGuard": FAULTY_WIREGUARD,
    "wireguard-go": FAULTY_WIREGUARD,
    "nf_tables": FAULTY_KERNEL,
}
_MOST_NAMED: Final = 3
_DEBIAN: Final = re.compile(r"\bDebian (\d+\.\d+\.\d+)-")
_PLAIN: Final = re.compile(r"Linux version (\d+\.\d+\.\d+) ")

Version = tuple[int, ...]


class KnownFault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fault of one component. ``since``: the first version that has it; ``fixed``: the first version
    without, of each series (the first two numbers) that was mended, in their order. ``source`` is where that
    is said, and ``what`` completes "has a fault: ..."."""

    component: str
    id: str
    severity: Severity
    what: str
    since: str
    fixed: tuple[str, ...]
    source: str


class _List(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dated: str
    fault: tuple[KnownFault, ...]


def parse_list(text: str) -> tuple[str, tuple[KnownFault, ...]]:
    """Read the list: its date, and its faults. Raises DecodeError."""
    try:
        found = msgspec.convert(tomllib.loads(text), _List)
    except (ValueError, msgspec.ValidationError) as error:
        raise DecodeError(f"the list of known faults: {error}") from None
    return found.dated, found.fault


def parse(text: str) -> Version | None:
    """The numbers at the head of a version; None where there are none."""
    found = re.match(r"v?(\d{1,9}(?:\.\d{1,9}){0,5})", text.strip())
    return None if found is None else tuple(int(part) for part in found[1].split("."))


def upstream(proc_version: str, ubuntu: str = "") -> str:
    """The kernel's upstream release, by /proc/version and Ubuntu's /proc/version_signature; empty where a
    distribution's own number hides it."""
    if ubuntu.strip():
        return ubuntu.split()[-1]
    found = _DEBIAN.search(proc_version) or _PLAIN.match(proc_version)
    return "" if found is None else found[1]


def has(fault: KnownFault, version: Version) -> bool:
    """Whether a version has a fault. A series that nobody mended has it, if a later series was mended."""
    fixed = sorted(known for text in fault.fixed if (known := parse(text)) is not None)
    since = parse(fault.since)
    if since is None or not fixed or version < since:
        return False
    for first in fixed:
        if len(first) > 2 and first[:2] == version[:2]:
            return version < first
    return version < fixed[-1]


def findings(seen: HostSeen) -> Iterator[Finding]:
    """Say which versions have known faults: one finding a component."""
    for component, text in sorted(seen.versions.items()):
        version = parse(text)
        if version is None:
            continue
        faults = [one for one in seen.known_faults if one.component == component and has(one, version)]
        if not faults:
            continue
        worst = faults[0]
        names = ", ".join(one.id for one in faults[:_MOST_NAMED])
        more = f" and {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
        yield _RULE_OF.get(component, FAULTY_LIBRARY).found(
            f"{component} {text} has a fault: {worst.what} ({names}{more})",
            f"install a version that has it mended: {', '.join(worst.fixed)} or later; see {worst.source}",
            subject=component,
        )
