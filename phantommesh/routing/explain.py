# SPDX-License-Identifier: GPL-3.0-or-later
"""Why traffic to a member goes the way it goes, and what would have it go another way, in words. Pure.

Each sentence says what the code that decides does: the figures are its constants, the moments its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from heapq import nsmallest
from itertools import pairwise
from math import inf
from typing import Final, assert_never

from phantommesh.config.sections import IntentSection, RelaySection
from phantommesh.paths import quickest
from phantommesh.paths.cost import MARGIN, SHARE, least_saving
from phantommesh.paths.quickest import Quickest, Reason
from phantommesh.paths.state import MOST_FLAPS, PROVE, PROVE_PLANNED, SHED_FROM, SHED_RATIO, PathState
from phantommesh.routable import is_exit
from phantommesh.routing import choice
from phantommesh.routing.constraints import Constraints, constraints_of, relay_key
from phantommesh.routing.failover import Standing as Router
from phantommesh.routing.leading import Lead
from phantommesh.routing.search import Standing, State
from phantommesh.routing.ways import Kind
from phantommesh.scatter.goals import Schedule

# Tuning.
NEAR: Final = 3  # names that an error offers
LONGER: Final = 3  # characters at most that they are longer or shorter than the one that was given
# Names that a mistyped one is compared with, roughly and closely: a node does nothing else meanwhile.
COMPARED, CLOSELY = 2000, 16

ENOUGH: Final = f"{1000 * MARGIN:.0f} ms and {100 * SHARE:.0f}%"
"""What a change has to save of the cost."""

NO_ROUTE: Final = "no route of the mesh leads there"
UNMAPPED: Final = "nothing is dealt now"
CLOSED: Final = "nothing of it is sent: no way that carries traffic now is allowed"
UNHOOKED: Final = 'all of it takes dimension 0, as scatter.hook is "off"'

_REASONS: Final[dict[Reason, str]] = {
    "first": "it cost least when the first choice was made",
    "unusable": "the one before may carry nothing any more",
    "slow": "the one before became slower",
    "lossy": "the one before began to lose packets",
    "cheaper": f"it had cost less than the one before, by more than {ENOUGH}, for {quickest.PATIENT:g} s",
}


def names_near(wanted: str, names: Iterable[str]) -> list[str]:
    """The names that are most like a mistyped one."""
    alike, given = {name for name in names if abs(len(name) - len(wanted)) <= LONGER}, _pairs(wanted[:64])
    likely = nsmallest(CLOSELY, sorted(alike)[:COMPARED], key=lambda name: len(given ^ _pairs(name)))
    return get_close_matches(wanted, likely, NEAR)


def _pairs(name: str) -> set[str]:
    return set(map("".join, pairwise(name)))


def about(intent: IntentSection) -> str:
    """Which packets an intent is for."""
    parts = []
    if intent.protocol is not None:
        parts.append(f"protocol {intent.protocol}")
    if intent.ports:
        parts.append(f"ports {', '.join(map(str, intent.ports))}")
    if intent.dscp is not None:
        parts.append(f"DSCP {intent.dscp}")
    if intent.user is not None:
        parts.append(f"user {intent.user}")
    if intent.cgroup is not None:
        parts.append(f"cgroup {intent.cgroup}")
    return "; ".join(parts)


def dimension_of(schedule: Schedule, found: Quickest | None, scores: Sequence[float]) -> int | None:
    """The one dimension that takes all traffic scattered so; None where it is dealt over several."""
    chosen = None if found is None or not schedule.quickest else found.chosen
    return chosen if chosen is not None and scores[chosen] else None


def dealt(schedule: Schedule, dimension: int | None) -> str:
    """How traffic of a schedule is dealt over the dimensions. ``dimension`` is as of `dimension_of`."""
    if dimension is not None:
        return f"all of it takes dimension {dimension}, the quickest"
    if schedule.quickest:
        return "no quickest dimension is known yet: flows are dealt over all that may carry traffic"
    match schedule.scheduler:
        case "flow" if schedule.splits:
            return "each flow keeps to one dimension, and is split while its path is what limits it"
        case "flow":
            return "each flow keeps to one dimension"
        case "flowlet":
            return "a flow may take another dimension after a pause"
        case "batch":
            return "packets are dealt in batches over the dimensions" + (
                ", by shares far from equal that change each epoch" if schedule.unequal else ""
            )
        case "deck" | "packet":
            return "packets are dealt over the dimensions by capacity and loss; delay does not count"
        case _:
            assert_never(schedule.scheduler)


def reason_of(found: Quickest) -> str:
    """Why the quickest dimension is the one it is."""
    return "nothing is measured yet" if found.reason is None else _REASONS[found.reason]


def quickest_changes(found: Quickest, scores: Sequence[float], now: float) -> Iterator[str]:
    """What would have another dimension be the quickest. ``scores``: what each may carry."""
    held = found.chosen
    if held is None or held not in found.costs:
        yield (
            "a quickest dimension is chosen once all that may carry traffic have answered, and at most "
            f"{quickest.SETTLE:g} s after the first has"
        )
        return
    if sum(map(bool, scores)) < 2:
        yield f"no dimension but {held} may carry traffic: another is taken once it may and costs less"
        return
    cost = found.costs[held]
    wait = max(0.0, found.free_at - now)
    if found.cheaper is not None:
        other, since = found.cheaper
        left = max(wait, quickest.PATIENT - (now - since), 0.0)
        yield f"dimension {other} costs less by enough: it is taken in {_span(left)} if that stays so"
    else:
        least = cost - least_saving(cost)
        later = f", and not before {_span(wait)} have passed" if wait else ""
        yield (
            f"another dimension is taken once it costs less than {_ms(least)} for {quickest.PATIENT:g} s, "
            f"loses nothing for sure and has no probe unanswered{later}"
            if least > 0.0
            else f"dimension {held} costs too little for another to be worth a change"
        )
    yield (
        f"dimension {held} is left at once if it may carry no traffic, and soon if its loss is sure, or if "
        f"its round trips rise by {1000 * MARGIN:.0f} ms and another costs less, by more than {ENOUGH}"
    )


def state_changes(states: Sequence[PathState], weights: Sequence[float]) -> Iterator[str]:
    """What would have dimensions that carry nothing carry traffic. ``weights``: what each may carry."""
    if closed := _numbered(state is PathState.CLOSED for state in states):
        yield f"{closed}: traffic once keys are agreed; see `phantommesh links`"
    if dark := _numbered(state is PathState.DARK for state in states):
        yield (
            f"{dark}: traffic again after {PROVE_PLANNED} to {PROVE << MOST_FLAPS} answers to probes in a "
            "row, the more the more often it fell silent"
        )
    if proving := _numbered(state is PathState.PROVING for state in states):
        yield f"{proving}: probes are answered, and traffic follows after some more answers in a row"
    ups = zip(states, weights, strict=True)
    if idle := _numbered(state is PathState.UP and not weight for state, weight in ups):
        yield (
            f"{idle}: up without traffic; each has some once it loses less, lets larger packets through, or "
            "is given back by the end that took it out of use, whichever is the reason"
        )


def share_changes() -> str:
    """What changes the shares of dimensions over which traffic is dealt."""
    return (
        f"a dimension gets less while it surely loses more than {SHED_RATIO:g} times what the best one at "
        f"most loses and {100 * SHED_FROM:g}% more; delay changes no share"
    )


def way_changes(kinds: Sequence[Kind | None], search: State, again_at: float, now: float) -> Iterator[str]:
    """What would have dimensions take a better way. ``kinds``: the way of each that is open, None where it
    has none; ``again_at``: when the search for direct ways begins again, infinity for never."""
    if any(kind is not Kind.DIRECT for kind in kinds) and search.wanted:
        match search.standing:
            case Standing.AGREEING | Standing.TRYING:
                yield "a direct way: NAT traversal is under way"
            case Standing.IDLE | Standing.FOUND | Standing.SILENT | Standing.APART | Standing.NOWHERE:
                if again_at < inf:
                    yield f"a direct way: NAT traversal is tried again in {_span(again_at - now)}"
            case _:
                assert_never(search.standing)
    if Kind.RELAYED in kinds:
        yield (
            f"another relay: the end with the lower node id takes one that costs less by more than {ENOUGH}, "
            f"{choice.HOLD:g} s after the last change at the earliest; and at once if this one is gone"
        )
    if Kind.FRAMED in kinds:
        yield "TCP is left as soon as a way over UDP is found, direct or by a relay"


def constraint_lines(section: RelaySection) -> list[str]:
    """The keys that say who may pass on this node's packets, with their values; none where all may."""
    found = [] if section.use else ["relay.use = false"]
    found += ["relay.direct_only = true"] if section.direct_only else []
    for key in ("only", "never", "regions", "never_regions"):
        if values := getattr(section, key):
            found.append(f"relay.{key} = {', '.join(values)}")
    return found


def class_constraints(intent: IntentSection) -> list[str]:
    """The keys that say which members may pass on the packets of an intent, with their values; none where all
    may."""
    where = f"intent.{intent.name}"
    found = [f"{where}.direct_only = true"] if intent.direct_only else []
    found += [
        f"{where}.{key} = {', '.join(values)}"
        for key in ("relays", "never_relays", "regions", "never_regions")
        if (values := getattr(intent, key))
    ]
    return [*found, *([f"{where}.hands = {intent.hands}"] if intent.hands > 1 else [])]


def refusals(section: RelaySection, members: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str]]:
    """The names of the ``members`` (each with its region and its node id as text) that may not pass on this
    node's packets, and by which key."""
    constraints: Constraints = constraints_of(section)
    for name, region, node_id in members:
        if (rule := constraints.refuses(name, region, node_id)) is not None:
            yield name, relay_key(rule)


def router_changes(routers: Sequence[Router], names: Mapping[bytes, str], now: float) -> Iterator[str]:
    """What would have another router carry a prefix."""
    at = next((at for at, one in enumerate(routers) if one.carries), None)
    if at is None:
        yield "the first of its routers that answers, and says that its own route works, carries it at once"
        return
    for one in routers[:at]:
        if one.back_at < inf:
            yield f"{names[one.router]} takes it back in {_span(one.back_at - now)} if it works until then"
        elif one.hold:
            yield f"{names[one.router]} takes it back once its route has worked for {_span(one.hold)}"
        else:
            yield f"{names[one.router]} takes it once it answers, and says that its route works"
    after = next((names[one.router] for one in routers if one.works and not one.carries), None)
    yield (
        f"{'what is for it is refused here' if after is None else f'{after} carries it'} once "
        f"{names[routers[at].router]} is silent for {routers[at].silence:.1f} s, or says that its route does "
        "not work"
    )


def answer(found: Lead, names: Mapping[bytes, str]) -> str:
    """A sentence on an address that is no member's. ``names`` are those of the routers, by node id."""
    by, single = " and ".join(names[one] for one in found.routers), len(found.routers) == 1
    routes, asks, claims = ("routes", "asks", "claims") if single else ("route", "ask", "claim")
    match found.leads:
        case "carried":
            place = found.routers.index(found.carrier) if found.carrier in found.routers else 0
            rank = f"the first of {len(found.routers)}" if len(found.routers) > 1 else "the only one"
            why = rank if not place else f"no. {place + 1} of {len(found.routers)}: none before it is ready"
            return f"{names[found.carrier]} carries it, a router of {found.prefix} ({why})"
        case "refused" if found.stale and found.prefix is not None and is_exit(found.prefix):
            return (
                "it is refused here: all is to leave by an exit, and no member that routes.exit names has it"
            )
        case "refused" if found.stale:
            return f"it is refused here: {found.prefix} was taken, and nobody offers it any more"
        case "refused":
            return f"it is refused here: no router carries {found.prefix}"
        case "host":
            return f"it goes by this host's own routes: the host has this part of {found.prefix} itself"
        case "unclaimed":
            return "no member has this address of the mesh"
        case "conflict":
            return f"{NO_ROUTE}: {found.prefix}, which {by} {routes}, is not taken: {found.why}"
        case "own":
            said = f"{NO_ROUTE}: this node advertises {found.prefix} itself, and takes it of nobody"
            return f"{said}; {found.why}" if found.why else said
        case "offered":
            return f"{NO_ROUTE}: {by} {routes} {found.prefix}, and this node does not take it"
        case "asked":
            return f"{NO_ROUTE}: {by} {asks} to route {found.prefix}, which no authority has approved"
        case "uncertified":
            whose = "its certificate does" if single else "their certificates do"
            return f"{NO_ROUTE}: {by} {claims} {found.prefix}, and {whose} not have that"
        case "elsewhere":
            return f"{NO_ROUTE}: no member is known to route it"
        case "member" | "self":
            raise ValueError("a member's address")
        case _:
            assert_never(found.leads)


def lead_changes(found: Lead, names: Mapping[bytes, str]) -> Iterator[str]:
    """What would have an address that is no member's lead somewhere else."""
    first = names[found.routers[0]] if found.routers else ""
    match found.leads:
        case "refused" if found.stale and found.prefix is not None and is_exit(found.prefix):
            yield (
                f"a member that routes.exit names and that routes {found.prefix}; or empty routes.exit and "
                "start the node again to have it go by other ways"
            )
        case "offered" if found.prefix is not None and is_exit(found.prefix):
            yield f"leave by it: put {first} into routes.exit, and start the node again"
        case "refused" if found.stale:
            yield (
                "a member that routes it again; or take it out of routes.accept and send the node SIGHUP to "
                "have it go by other ways"
            )
        case "conflict":
            yield "renumber one of the two networks, or leave the prefix out of routes.accept"
        case "offered":
            yield f"accept it: put {found.prefix} into routes.accept, and send the node SIGHUP"
        case "asked" | "uncertified":
            yield (
                f"approve it, if {first} should route it: `phantommesh route approve {first} {found.prefix}` "
                "on an authority"
            )
        case _:
            pass


def member_answer(ways: Iterable[tuple[str, str | None]]) -> str:
    """A sentence on the ways to a member: of each dimension the kind, and the member that relays."""
    counts = Counter(f"{kind} by {via}" if via is not None else kind for kind, via in ways if kind != "none")
    if not counts:
        return "nothing comes back in any dimension"
    return ", ".join(f"{n} {'dimension' if n == 1 else 'dimensions'} {way}" for way, n in counts.items())


def scatter_changes(name: str, hook: str, *, mapped: bool) -> Iterator[str]:
    """What would have the traffic to a member dealt otherwise."""
    if hook == "off":
        yield "another hook: set scatter.hook, and start the node again; goals count from then on"
    elif not mapped:
        yield "nothing is dealt before there are keys and rules: see `phantommesh links` and `status`"
    else:
        yield f"another goal: set scatter.peers.{name}, scatter.goal or an [[intent]]; a running node follows"


def _numbered(which: Iterable[bool]) -> str:
    found = [str(i) for i, wanted in enumerate(which) if wanted]
    return f"dimension{'s' * (len(found) > 1)} {', '.join(found)}" if found else ""


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _span(seconds: float) -> str:
    return f"{max(0.0, seconds):.0f} s"
