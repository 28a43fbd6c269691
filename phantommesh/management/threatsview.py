# SPDX-License-Identifier: GPL-3.0-or-later
"""The answers to GET /v1/threats, and to what is asked of /v1/bans."""

from __future__ import annotations

from typing import Literal

import msgspec

from phantommesh.faults import Severity

By = Literal["own", "operator", "hinted"]


class ThreatView(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of offence from one source. ``count`` is the most at a time, of offences of the last ten
    seconds or so; times are RFC 3339."""

    kind: str
    severity: Severity
    source: str
    proved: list[str]
    """What shows that the source gets what is sent to it: ``cookie``, ``tcp``, ``neighbour``. None: it may be
    forged, and is no evidence for a ban."""
    count: float
    first: str
    last: str
    banned: bool


class BanView(msgspec.Struct, frozen=True, kw_only=True):
    """One ban. ``by``: this node's own evidence, its own with other members' hints, or an operator;
    ``kinds`` are those of the evidence; ``times``: how often the network was banned of late, this time
    included; ``packets``: how many were dropped, None where the kernel's counter is not known."""

    network: str
    by: By
    since: str
    until: str
    left_s: float
    why: str
    kinds: list[str]
    times: int
    packets: int | None


class ThreatsView(msgspec.Struct, frozen=True, kw_only=True):
    """Attacks that this node has seen, and what it does against them. ``unknown_s``, ``shed_s`` and ``odd_s``
    are datagrams a second, now: of sources that are no members' and no seeds' to the control port, those of
    them that are shed, and datagrams at WireGuard's ports that are none of WireGuard's. ``shed_above``: so
    many a second of the first are let through; None: all."""

    unknown_s: float
    shed_s: float
    odd_s: float
    shed_above: float | None
    threats: list[ThreatView]
    bans: list[BanView]


class BansView(msgspec.Struct, frozen=True, kw_only=True):
    """The bans that stand."""

    bans: list[BanView]


class BanResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The ban that stands now; of a dry run, the one that would."""

    ban: BanView
    dry_run: bool = False
    notes: list[str] = []
    """What the operator may not have meant: members that are there now."""


class UnbanResult(msgspec.Struct, frozen=True, kw_only=True):
    """The bans that were lifted, or in a dry run would be. ``notes``: wider bans that hold on."""

    lifted: list[BanView]
    notes: list[str] = []
    dry_run: bool = False
