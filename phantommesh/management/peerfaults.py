# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges whether traffic flows between a node and its peers, by end-to-end evidence: a probe that came back.

A WireGuard handshake shows only that two WireGuards reach each other, and gossip only that two control ports
do. Either can be well while a packet filter drops all that comes out of the interfaces. So a peer is up if
some dimension brought a probe back of late, and not otherwise. Handshakes and gossip say *why* it is not.

Starting, joining, replacing a key and leaving are states, not faults. A state ends: what has not come about
within its time is a fault. All here is pure; ages are in seconds.
"""

import errno
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from phantommesh.faults import Fault, FaultKind
from phantommesh.management.views import Flow, LinkView, MemberState, PathView, Reached

TRAFFIC_STOPPED = FaultKind("traffic-stopped", "critical")
PEER_DARK = FaultKind("peer-dark", "high")
PEER_GONE = FaultKind("peer-gone", "medium")
LINK_INCOMPLETE = FaultKind("link-incomplete", "medium")
CONTROL_SILENT = FaultKind("control-silent", "medium")
DIMENSIONS_DARK = FaultKind("dimensions-dark", "medium")
PARTLY_REACHABLE = FaultKind("peer-partly-reachable", "medium")

FILTERED = os.strerror(errno.EPERM)
LOOK = "look for the rule of another packet filter that drops it (`nft list ruleset`, `iptables -S`)"

# Tuning.
MAX_NAMED = 8  # peers named in one line, and lines about peers that are partly reachable
RENEWAL = 15.0  # s that a dimension may have no keys, or prove itself, before it is called a fault
JOINING = 15.0  # s that a peer may take to get keys, after it became known or lost them
HEARD = 15.0  # s within which a probe of the peer's has come in: it asks every 10 s where nothing flows
# s that a dimension with new keys may take to carry its first probe. A WireGuard whose first handshake packet
# was lost repeats it after 5 s and 10 s (REKEY_TIMEOUT: WireGuard paper, section 6.1).
FIRST = 12.0


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """All that this node sees of one peer at one moment."""

    link: LinkView
    paths: Sequence[PathView]
    """One a dimension; none for a peer that the interfaces do not have."""
    standing: MemberState
    """Gossip's word."""
    known_s: float
    """Since this run of the node knows the peer, or since it heard that the peer started again or came back:
    then it has other keys, and the old ones carry nothing until both ends have the new."""
    control_s: float | None = None
    """Since its control port last answered; None: never in this run."""
    handshake_s: float | None = None
    """Since WireGuard's newest handshake with it on any dimension; None: never."""
    through: Sequence[str] = ()
    """The members by way of whom alone gossip reaches it."""
    reached: Reached = "direct"
    """How gossip reaches it while it is not down."""
    unsent: Sequence[str] = ()
    """By dimension: why this host did not let the newest probe out; empty: it did."""

    @property
    def dark_s(self) -> float:
        """Since no dimension brings a probe back."""
        return min((path.since_s for path in self.paths), default=self.known_s)

    @property
    def control_answers(self) -> bool:
        """Whether its control port has answered since no dimension brings a probe back."""
        return self.control_s is not None and self.control_s < self.dark_s

    @property
    def control_silent(self) -> bool:
        """Whether gossip has asked it in vain."""
        return self.standing in ("suspect", "dead")


class Starts:
    """Since when each peer's present start is known (`PeerSeen.known_s`). ``now`` is in seconds on any clock.

    A start gives a peer time anew only if traffic with it has flowed since it was given time last. So a peer
    that crashes over and over, or says so, is called dark all the same.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[float, int, bool]] = {}  # since when, newest start, up since then

    def look(self, node: bytes, start: int, *, left: bool, up: bool, now: float) -> float:
        """Return the seconds since the peer is known by its newest ``start``, or came back."""
        since, newest, was_up = self._known.get(node, (now, start, False))
        if left or (start > newest and was_up):
            since, was_up = now, False
        self._known[node] = since, max(start, newest), (was_up or up) and not left
        return now - since

    def retain(self, nodes: Collection[bytes]) -> None:
        """Forget all but these."""
        self._known = {node: known for node, known in self._known.items() if node in nodes}


@dataclass(frozen=True, slots=True)
class Here:
    """What the judgement needs to know of this node. ``measured``: it can send probes at all. ``ports`` are
    its WireGuard's UDP ports, as text."""

    control_port: int
    ports: str = "of WireGuard"
    measured: bool = True


def flow(peer: PeerSeen, *, measured: bool = True) -> Flow:
    """Say how traffic with a peer stands."""
    if peer.standing == "left":
        return "left"
    if any(path.answers for path in peer.paths):
        return "up"
    if not measured:  # WireGuard's word is all that there is
        return "up" if peer.link.dimensions else _unkeyed(peer)
    opened = [path for path in peer.paths if path.state != "closed"]
    if not opened:
        return _unkeyed(peer)
    return "dark" if peer.known_s >= FIRST and all(map(_given_up, opened)) else "joining"


def judge(here: Here, peers: Sequence[PeerSeen]) -> Iterator[Fault]:
    """Yield what is wrong between this node and its peers."""
    flows = [(peer, flow(peer, measured=here.measured)) for peer in peers]
    stopped = [peer for peer, state in flows if state in ("dark", "unkeyed")]
    flowing = any(state in ("up", "joining") for _, state in flows)
    everything = None if flowing or not stopped else _everything(here, stopped)
    if everything is not None:
        yield everything
    for peer, state in flows:
        if state == "up":
            yield from _up(here, peer)
        elif everything is None and state in ("dark", "unkeyed") and not peer.through:
            yield _stopped(here, peer)
    yield from partly_reachable(
        [
            (peer.link.peer, peer.through)
            for peer, state in flows
            if peer.through and state not in ("up", "joining")
        ],
        here.control_port,
    )


def _unkeyed(peer: PeerSeen) -> Flow:
    return "joining" if min(peer.known_s, peer.dark_s) < JOINING else "unkeyed"


def _given_up(path: PathView) -> bool:
    """Whether enough probes were lost in a row that a dimension is known to carry nothing."""
    new = path.answered_s is None and path.opened_s is not None and path.opened_s < FIRST
    return path.state == "dark" and not new


# --- nothing flows at all


def _everything(here: Here, stopped: Sequence[PeerSeen]) -> Fault | None:
    """Traffic with every peer has stopped: say so as one fault of this node, where it is one. A single peer
    that answers in no way may simply be switched off: then this returns None."""
    refused = _refused(stopped)
    answering = [peer for peer in stopped if peer.control_answers]
    if refused is None and not answering and len(stopped) < 2:
        return None
    names = _names([peer.link.peer for peer in stopped])
    text = f"no traffic flows with any peer ({names})"
    if refused is not None:
        return TRAFFIC_STOPPED.fault(f"{text}: {refused[0]}", refused[1])
    if answering:
        why, fix = _why(here, answering)
        return TRAFFIC_STOPPED.fault(f"{text}, though {_answer(answering)}: {why}", fix)
    return TRAFFIC_STOPPED.fault(
        f"{text}, and none answers at its control port: this host is cut off, or was put out of the mesh",
        "check the uplink, its address and its default route (`ip route`), and whether something drops UDP",
    )


def _refused(stopped: Sequence[PeerSeen]) -> tuple[str, str] | None:
    """Why this host lets no probe out to any of these peers, and the fix; None where it lets some out."""
    reasons = [reason for peer in stopped for reason in peer.unsent]
    if not reasons or not all(reasons):
        return None
    if FILTERED in reasons:  # what a packet filter's verdict makes of a send: man 2 send has no other cause
        return f"a packet filter of this host drops what is sent on the interfaces: {FILTERED}", LOOK
    return (
        f"this host does not let out what is sent on the interfaces: {reasons[0]}",
        "see the other faults, and `ip link` and `ip route` for what became of the interfaces",
    )


def _answer(peers: Sequence[PeerSeen]) -> str:
    names = _names([peer.link.peer for peer in peers])
    said = f"{names} {'answers' if len(peers) == 1 else 'answer'} at the control port"
    if all(peer.reached == "elsewhere" for peer in peers):
        said += ", reachable only from the other side: not at the address in the record"
    return said


def _why(here: Here, peers: Sequence[PeerSeen]) -> tuple[str, str]:
    """Return the likely cause, and the fix, where control ports answer and dimensions do not."""
    if any(
        path.heard_s is not None and path.heard_s < min(p.dark_s, HEARD) for p in peers for path in p.paths
    ):
        why = "what the other end sends arrives here, and what is sent from here does not arrive there"
        return why, "look for a packet filter that drops it, on the way or at the other end"
    if all(path.state == "closed" for p in peers for path in p.paths):
        if all(p.link.state in ("fresh", "unsure") for p in peers):
            return (
                "the interfaces do not have the keys that are agreed",
                "see the other faults, and `ip link`",
            )
        errors = [f": {p.link.last_error}" for p in peers if p.link.last_error]
        why = f"no keys are agreed{errors[0] if errors else ''}"
        return why, "see `phantommesh links`, and whether the clocks of both ends are right"
    if any(p.handshake_s is not None and p.handshake_s < p.dark_s for p in peers):
        why = "WireGuard's handshakes still succeed, so something drops what the interfaces carry"
        fix = (
            "look for the rule of another packet filter, here and at the other end (`nft list ruleset`, "
            "`iptables -S`), and for rp_filter = 1 (`sysctl net.ipv4.conf.all.rp_filter`)"
        )
        return why, fix
    why = "no probe comes back: something drops what the interfaces carry, or WireGuard's UDP"
    fix = (
        "look for the rule of another packet filter on the interfaces (`nft list ruleset`, `iptables -S`); "
        f"let UDP through on the ports {here.ports}, here, on the way and at the other end"
    )
    return why, fix


# --- one peer


def _stopped(here: Here, peer: PeerSeen) -> Fault:
    name, dark = peer.link.peer, any(path.state != "closed" for path in peer.paths)
    if peer.control_silent:
        return PEER_GONE.fault(
            f"peer {name} does not answer: neither probes inside the dimensions nor its control port",
            f"check that its machine and its node run, and that its control port {here.control_port} and its "
            "WireGuard ports are reachable by UDP from here",
            subject=name,
        )
    if not dark:
        error = f": {peer.link.last_error}" if peer.link.last_error else ""
        return LINK_INCOMPLETE.fault(
            f"peer {name} {_keyed(peer.link)}, so nothing can be sent to it{error}",
            "check that it runs and that its UDP ports are reachable from here, and that both clocks are "
            "right",
            subject=name,
        )
    refused = _refused([peer])
    if refused is not None:
        return PEER_DARK.fault(f"no traffic flows with peer {name}: {refused[0]}", refused[1], subject=name)
    why, fix = _why(here, [peer])
    answers = f", though {_answer([peer])}" if peer.control_answers else ""
    return PEER_DARK.fault(f"no traffic flows with peer {name}{answers}: {why}", fix, subject=name)


def _up(here: Here, peer: PeerSeen) -> Iterator[Fault]:
    name = peer.link.peer
    dark = [path.dimension for path in peer.paths if here.measured and _is_dark(path)]
    if dark and peer.known_s >= FIRST:
        yield DIMENSIONS_DARK.fault(
            f"dark: {', '.join(map(str, dark))} of the dimensions of peer {name}: probes get no answer, "
            "its traffic takes the others",
            "check the uplink, and the UDP ports at both ends",
            subject=name,
        )
    silent = peer.standing == "dead" or peer.reached == "traffic"
    # Where traffic goes over TCP, no UDP passes, and `udp-blocked` says so.
    if silent and not peer.through and not any(path.way == "tcp" for path in peer.paths):
        yield CONTROL_SILENT.fault(
            f"traffic flows with peer {name}, but its control port does not answer: new keys and news get "
            "through late or not at all",
            f"let UDP and TCP through to its control port {here.control_port} from here",
            subject=name,
        )
    elif peer.link.state == "stale":
        error = f": {peer.link.last_error}" if peer.link.last_error else ""
        yield LINK_INCOMPLETE.fault(
            f"peer {name} is stale: its paths answer, but its keys are not renewed{error}",
            f"check that its control port {here.control_port} is reachable from here, and that both clocks "
            "are right",
            subject=name,
        )


def partly_reachable(through: Sequence[tuple[str, Sequence[str]]], control_port: int) -> Iterator[Fault]:
    """Faults of the peers that gossip reaches only by way of others and with which no traffic flows.
    ``through`` has each peer's name with the names of those others. Where traffic flows, NATs keep the two
    control ports apart and nothing is wrong."""
    for name, via in sorted(through)[:MAX_NAMED]:
        yield PARTLY_REACHABLE.fault(
            f"peer {name} is partly reachable: its node answers by way of {', '.join(via)}, not from here, "
            "and nobody carries traffic",
            "see WHY in `phantommesh paths`. Where NATs are between the two, have a member that both reach "
            "relay: set relay.offer = true and open its relay.port there. Else let UDP through, both ways, "
            f"to control port {control_port} and the WireGuard ports",
            subject=name,
        )
    if len(through) > MAX_NAMED:
        yield PARTLY_REACHABLE.fault(
            f"and {len(through) - MAX_NAMED} more peers are partly reachable", "see `phantommesh peers`"
        )


def _is_dark(path: PathView) -> bool:
    """Whether a dimension of a peer that answers on others carries nothing, or has long been proving
    itself."""
    return _given_up(path) or (path.state == "proving" and path.since_s >= RENEWAL)


def _keyed(link: LinkView) -> str:
    """What keeps anything from being sent to a peer all of whose dimensions are closed."""
    match link.state:
        case "none":
            return "has no keys agreed with this node"
        case "fresh" | "unsure":  # closed all the same: WireGuard has no address to send to
            return "has keys agreed with this node, and no address at which it is reached"
        case _:
            return f"is {link.state}"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
