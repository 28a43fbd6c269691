# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that list something of a running node: one `Listing` each, all shown the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from phantommesh.cli.base import Options, client_of, json_option
from phantommesh.cli.output import age, ago, emit, moment, say, size
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.views import (
        Event,
        LinkView,
        PathView,
        PeerView,
        ProofDirection,
        ProofsView,
        ScatterClass,
        ScatterView,
    )

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Listing(Generic[Item]):
    """``view``: the items' type, by its name in `phantommesh.management.views`, which is slow to import.
    ``rows`` are those of one item; ``order`` sorts the items of a table. ``--json`` has them in the API's
    order. ``first`` are the columns that a narrow terminal has beside each other, ``empty`` says why there is
    nothing and what to do."""

    path: str
    view: str
    columns: tuple[str, ...]
    rows: Callable[[Item], Sequence[Sequence[object]]]
    order: Callable[[Item], Any] | None
    first: tuple[str, ...]
    empty: str

    def fetch(self, options: Options, query: Mapping[str, str] | None = None) -> list[Item]:
        """Ask the node for all. Raises NodeNotRunningError or ApiError."""
        from phantommesh.management import views

        found: list[Item] = client_of(options).get_all(self.path, getattr(views, self.view), query)
        return found

    def show(self, options: Options, items: list[Item], *, empty: str = "") -> None:
        """Print one JSON document or a table; where there is nothing, ``empty`` or else the usual hint."""
        if options.json:
            from phantommesh.management.views import Page

            emit(Page(items=items, next_cursor=None))
            return
        if not items:
            say(empty or self.empty, err=True)
            return
        ordered = items if self.order is None else sorted(items, key=self.order)
        table(self.columns, [row for item in ordered for row in self.rows(item)], self.first)

    def verb(self, name: str, text: str) -> click.Command:
        """Return a verb that shows all."""

        @click.command(name, help=text)
        @json_option
        @click.pass_obj
        def command(options: Options) -> None:
            self.show(options, self.fetch(options))

        return command


def _standing(peer: PeerView) -> str:
    """Gossip's word on a member, or by which way alone it is reached."""
    if peer.through:
        return f"via {', '.join(peer.through)}"
    ways = {"elsewhere": "from its side", "traffic": "by traffic"}
    return ways.get(peer.reached, peer.membership) if peer.membership == "alive" else peer.membership


def _peer(peer: PeerView) -> Sequence[Sequence[object]]:
    handshakes = (d.last_handshake_s for d in peer.dimensions if d.last_handshake_s is not None)
    return [
        (
            peer.name,
            peer.role,
            peer.region or None,
            _standing(peer),
            peer.state,
            peer.ip4,
            peer.ip6,
            peer.endpoint,
            ago(min(handshakes, default=None)),
            size(peer.rx_bytes),
            size(peer.tx_bytes),
        )
    ]


def _link(link: LinkView) -> Sequence[Sequence[object]]:
    return [
        (
            link.peer,
            link.epoch,
            link.state,
            link.role,
            f"{link.dimensions}/7",
            ago(link.handshake_age_s),
            age(link.psk_age_s),
            link.last_error,
        )
    ]


def _path(view: PathView) -> Sequence[Sequence[object]]:
    return [
        (
            view.peer,
            view.dimension,
            view.state,
            ago(view.since_s),
            None if view.rtt_s is None else f"{1000 * view.rtt_s:.1f} ms",
            None if view.rtt_s is None else f"{1000 * view.jitter_s:.1f} ms",
            None if view.state == "closed" else f"{100 * view.loss:.1f}%",
            f"{view.weight:g}",
            via(view.way, view.via),
            view.mtu,
            view.endpoint,
            view.why or None,
        )
    ]


def via(way: str, relay: str | None) -> str:
    """A way as one word, or with the relay's name behind it."""
    return way if relay is None or way == "none" else f"{way} by {relay}"


def _scatter(view: ScatterView) -> Sequence[Sequence[object]]:
    dimensions = view.dimensions
    return [
        _dealt(
            view, view, view.peer, [one.weight for one in dimensions], [one.packets for one in dimensions]
        ),
        *(
            _dealt(view, part, f"{view.peer}: {part.name}", part.weights, part.packets, closed=part.closed)
            for part in view.classes
        ),
    ]


def _dealt(
    view: ScatterView,
    part: ScatterView | ScatterClass,
    name: str,
    weights: Sequence[float],
    packets: Sequence[int],
    *,
    closed: bool = False,
) -> Sequence[object]:
    """The row of all traffic to a peer, or of a class of it."""
    return (
        name,
        part.goal,
        part.scheduler,
        f"{view.link_epoch}.{view.epoch}",
        age(view.epoch_age_s),
        None if part.entropy_bits is None else f"{part.entropy_bits:.3f}",
        "closed" if closed else " ".join(f"{100 * weight:.1f}%" for weight in weights),
        sum(packets),
    )


def _proofs(view: ProofsView) -> Sequence[Sequence[object]]:
    return [_direction(view.peer, "sent", view.sent), _direction(view.peer, "received", view.received)]


def _direction(peer: str, name: str, direction: ProofDirection) -> Sequence[object]:
    kept = (peer, name, direction.kept, direction.countersigned)
    if (newest := direction.newest) is None:
        return (*kept, *[None] * 6)
    return (
        *kept,
        f"{newest.link_epoch}.{newest.epoch}",
        sum(newest.packets),
        size(sum(newest.bytes)),
        f"{newest.entropy_bits:.3f}",
        None if newest.p_value is None else f"{newest.p_value:.2g}",
        newest.problem,
    )


def _event(event: Event) -> Sequence[Sequence[object]]:
    return [happened(event)]


def happened(event: Event) -> tuple[str, str, str | None, str]:
    """When, what kind, which node, and the rest in a line."""
    return moment(event.time), event.type, event.node, _says(event)


def _says(event: Event) -> str:
    """The event's data, without what stands beside it already."""
    shown = {key: value for key, value in event.data.items() if key not in {"peer", "node_id"}}
    return " ".join(f"{key}={_plain(value)}" for key, value in shown.items() if value not in (None, ""))


def _plain(value: object) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


PEERS: Listing[PeerView] = Listing(
    "/v1/peers", "PeerView",
    ("NAME", "ROLE", "REGION", "NODE", "LINK", "IPV4", "IPV6", "ENDPOINT", "HANDSHAKE", "RX", "TX"),
    _peer, lambda peer: peer.name,
    ("NAME", "NODE", "LINK", "HANDSHAKE", "IPV4", "ROLE", "REGION"),
    "no peers yet: `phantommesh invite` on an authority prints the line with which another machine joins",
)  # fmt: skip
LINKS: Listing[LinkView] = Listing(
    "/v1/links", "LinkView",
    ("PEER", "EPOCH", "STATE", "ROLE", "DIMENSIONS", "HANDSHAKE", "PSK AGE", "LAST ERROR"),
    _link, lambda link: link.peer,
    ("PEER", "STATE", "DIMENSIONS", "HANDSHAKE"),
    "no links yet: there is one with each other member; see `phantommesh peers` for who there is",
)  # fmt: skip
PATHS: Listing[PathView] = Listing(
    "/v1/paths", "PathView",
    (
        "PEER", "DIMENSION", "STATE", "SINCE", "RTT", "JITTER", "LOSS", "WEIGHT", "WAY", "MTU", "ENDPOINT",
        "WHY",
    ),
    _path, lambda view: (view.peer, view.dimension),
    ("PEER", "DIMENSION", "STATE", "WAY", "RTT", "LOSS", "MTU"),
    "no paths yet: there are seven to each other member; see `phantommesh peers` for who there is",
)  # fmt: skip
SCATTER: Listing[ScatterView] = Listing(
    "/v1/scatter", "ScatterView",
    ("PEER", "GOAL", "SCHEDULER", "EPOCH", "AGE", "ENTROPY", "WEIGHTS", "PACKETS"),
    _scatter, lambda view: view.peer,
    ("PEER", "SCHEDULER", "ENTROPY", "EPOCH", "GOAL", "AGE", "PACKETS"),
    "nothing is scattered: either no peer has keys yet (see `phantommesh links`), or all traffic takes "
    "dimension 0 (scatter.hook in `phantommesh config show`)",
)  # fmt: skip
PROOFS: Listing[ProofsView] = Listing(
    "/v1/proofs", "ProofsView",
    (
        "PEER", "DIRECTION", "KEPT", "SIGNED BY BOTH", "NEWEST", "PACKETS", "BYTES", "ENTROPY", "P",
        "PROBLEM",
    ),
    _proofs, lambda view: view.peer,
    ("PEER", "DIRECTION", "KEPT", "SIGNED BY BOTH", "NEWEST"),
    "no scatter proofs yet: the first come when an epoch of scattered traffic has ended; see `phantommesh "
    "scatter`",
)  # fmt: skip
EVENTS: Listing[Event] = Listing(
    "/v1/events", "Event", ("TIME", "TYPE", "NODE", "WHAT"), _event, None,
    ("TIME", "TYPE", "NODE"),
    "no events yet: `phantommesh events --follow` shows each as it happens",
)  # fmt: skip

peers = PEERS.verb("peers", "List the other members of the mesh.")
links = LINKS.verb("links", "List the post-quantum links.")
paths = PATHS.verb(
    "paths",
    "Show every dimension of every peer: whether it answers, how fast, what it loses, and its way: direct, "
    "relayed by a member, or in frames over TCP, and why.",
)
scatter = SCATTER.verb("scatter", "Show how traffic to each peer is scattered over the dimensions.")
