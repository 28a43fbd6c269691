# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer to GET /v1/topology: the mesh as its members measure it, and what is weak about it."""

from __future__ import annotations

import msgspec


class StationView(msgspec.Struct, frozen=True, kw_only=True):
    """One member. ``between``: the share of the shortest ways between others that lead through it, 0 to 1."""

    name: str
    node_id: str
    region: str
    relay: bool
    """Whether it relays for others."""
    nat: bool
    """Whether it is behind a NAT, as its record has it."""
    links: int
    """How many of the links below are its own."""
    between: float


class MeasuredLink(msgspec.Struct, frozen=True, kw_only=True):
    """One pair, as the worse of both ends measures it. ``capacity`` is bytes a second, 0: not known."""

    one: str
    two: str
    way: str
    rtt_s: float
    jitter_s: float
    loss: float
    capacity: int
    via: list[str] = []


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """One weakness. ``members`` are those that it is about, ``cut`` those that would be cut off."""

    kind: str
    members: list[str]
    text: str
    fix: str
    cut: list[str] = []


class TopologyView(msgspec.Struct, frozen=True, kw_only=True):
    """What the newest survey found. ``age_s``: None where there was none yet; then the rest says nothing.
    ``heard`` of ``asked`` other members have told their links."""

    age_s: float | None = None
    asked: int = 0
    heard: int = 0
    sweep_s: float = 0.0
    """How long it took to ask them."""
    analysis_s: float = 0.0
    members: list[StationView] = []
    links: list[MeasuredLink] = []
    """At most 2,000, the slowest first."""
    links_total: int = 0
    """In a large mesh a sample is measured: some 24 a member."""
    advice: list[Advice] = []
    """The worst first."""
