# SPDX-License-Identifier: GPL-3.0-or-later
"""The view of where a node is reached, as `status` shows it."""

from __future__ import annotations

from typing import Literal

import msgspec

Found = Literal["own", "mapped", "seen", "other"]


class CandidateView(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate of this node's record. ``found``: how it is known; ``wireguard``: how many of the seven
    WireGuard ports are known there."""

    endpoint: str
    found: Found
    uplink: int
    wireguard: int


class WitnessView(msgspec.Struct, frozen=True, kw_only=True):
    """One member's word on where it sees this node."""

    peer: str
    endpoint: str
    age_s: float
    wireguard: list[str | None]
    """The same of the seven WireGuard ports."""


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """Where this node is reached: the endpoints and candidates of its record, and what peers see of it."""

    endpoints: list[str] = []
    candidates: list[CandidateView] = []
    witnesses: list[WitnessView] = []
