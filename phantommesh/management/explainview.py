# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer to GET /v1/routes/explain: which way traffic to one destination goes, and why."""

from __future__ import annotations

from typing import Literal

import msgspec

from phantommesh.management.wayview import WayKind

Leads = Literal[
    "member", "self", "carried", "refused", "host", "conflict", "own", "offered", "asked", "uncertified",
    "unclaimed", "elsewhere",
]  # fmt: skip
"""``member``: to a member's overlay addresses. ``self``: it is this node. ``carried``: into a prefix that a
member carries. ``refused``: into one that this node took and nobody carries now. ``host``: a part of such a
prefix that the host has itself. ``conflict``: into a prefix that cannot be taken. ``own``: into one that this
node advertises. ``offered``: a member routes the prefix, and this node does not take it. ``asked``: a member
asks to route it, and no authority has approved that (only an authority knows). ``uncertified``: a member says
that it routes it, and its certificate does not. ``unclaimed``: an overlay address that no member has.
``elsewhere``: none of these."""


class ExplainedWay(msgspec.Struct, frozen=True, kw_only=True):
    """One dimension to the member. What `views.PathView` has too means the same here."""

    dimension: int
    interface: str
    state: Literal["closed", "proving", "up", "dark"]
    way: WayKind
    via: str | None
    endpoint: str | None
    rtt_s: float | None
    jitter_s: float
    loss: float
    weight: float
    cost_s: float | None
    """What it costs traffic that waits for answers: round trip, jitter, and for what is lost the time until
    it is sent again. None where it may carry nothing or is not measured."""
    smoothed_s: float | None
    """The cost as it is compared, where traffic takes the quickest dimension."""
    why: str


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A member that may not pass on this node's packets, and the key of the configuration that says so."""

    name: str
    key: str


class ExplainedRelay(msgspec.Struct, frozen=True, kw_only=True):
    """A relay that offers to forward to the member."""

    name: str
    node_id: str
    near_s: float
    """The round trip from this node to it, as this node measures it."""
    far_s: float
    """The one from it to the member, by its own word."""
    cost_s: float
    """What is compared: both together."""
    dimensions: list[int]
    """Those that it was chosen for; none where it was not taken."""
    aside_s: float
    """For so long it is chosen only if no other offers, as nothing came through by it; 0: not at all."""


class ExplainedClass(msgspec.Struct, frozen=True, kw_only=True):
    """One class of the traffic to the member; a packet is of the first that it matches."""

    name: str
    """The intent's; ``rest`` for what matches none."""
    matches: str
    goal: str
    key: str
    """The key of the configuration that sets the goal."""
    scheduler: str
    dimension: int | None
    """The one that has all of its traffic."""
    shares: list[float]
    """The share of each dimension by the map in force, 0 to 1; empty where there is no map."""
    choice: str
    constraints: list[str] = []
    """The keys of its intent that say by which members its packets may go, with values."""
    allowed: list[int] = []
    """The dimensions that these let it take, as the ways of now are; empty where there are no constraints,
    too."""
    refused: list[Refused] = []
    """At most 16 members whom they refuse."""
    refused_total: int = 0
    closed: bool = False
    """Its packets are dropped."""


class ExplainedChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The quickest dimension, for traffic of the goal ``latency``."""

    dimension: int | None
    """None while nothing is measured."""
    reason: str
    since_s: float | None
    changes: int


class ExplainedRouter(msgspec.Struct, frozen=True, kw_only=True):
    """One router of the prefix, in order of preference."""

    name: str
    node_id: str
    answers: bool
    works: bool
    """It answers, and says that its own route to the prefix works."""
    carries: bool
    back_in_s: float | None
    """Until it takes the prefix back from a router that is liked less."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """``answer`` is a sentence that says it all. Where traffic goes to a member (``leads`` is ``member`` or
    ``carried``), ``peer`` is that member, and the lists from ``classes`` on are about the way there."""

    dest: str
    leads: Leads
    answer: str
    peer: str | None = None
    node_id: str | None = None
    address: str | None = None
    """The address that was asked for; else the member's overlay address."""
    prefix: str | None = None
    """The prefix beyond the mesh that holds the address."""
    routers: list[ExplainedRouter] = []
    classes: list[ExplainedClass] = []
    quickest: ExplainedChoice | None = None
    ways: list[ExplainedWay] = []
    relays: list[ExplainedRelay] = []
    """The relays that offer to forward, the cheapest first; none where no relay is wanted. Only the end with
    the lower node id chooses and asks them."""
    constraints: list[str] = []
    """The keys of the configuration that say which members may pass on this node's packets, with values."""
    refused: list[Refused] = []
    """At most 16 members whom they refuse."""
    refused_total: int = 0
    would_change: list[str] = []
    """Sentences: what would have the traffic go another way."""
