# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a node's two parts of relays: what it lends to others, and what it borrows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from phantommesh.config.sections import Config
from phantommesh.dimensions import master_name
from phantommesh.link.machine import Links
from phantommesh.membership.machine import Membership
from phantommesh.node.bridging import Bridges
from phantommesh.node.lacking import round_trip
from phantommesh.node.peers import Peers
from phantommesh.node.relaying import Named
from phantommesh.nursery.dataplane.borrowing import Borrower
from phantommesh.nursery.dataplane.lending import Lending
from phantommesh.nursery.dataplane.paths import PathDriver
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members.bridging import Bridging
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.members.own import OwnRecord
from phantommesh.nursery.members.places import Places
from phantommesh.nursery.sockets.wgports import WireguardPorts
from phantommesh.paths.effects import PathView
from phantommesh.records.record import NodeRecord
from phantommesh.routing.ways import Ways
from phantommesh.state.start import NodeState
from phantommesh.trust.identity import NodeId


def make_relays(
    config: Config, state: NodeState, keeper: RosterKeeper, peers: Peers, places: Places, caller: Caller,
    links: Links, ways: Ways, paths: PathDriver, membership: Membership, own: OwnRecord,
    ports: WireguardPorts, *, changed: Callable[[NodeId], None],
) -> tuple[Lending, Borrower]:  # fmt: skip
    """Make both. ``changed`` is called with a peer to whom another way is to be taken."""
    me = state.identity.node_id

    def views(peer: NodeId) -> Sequence[PathView]:
        return paths.paths.view(peer, trio.current_time())

    def far(peer: NodeId) -> float | None:
        return round_trip(views(peer), ways.taken(peer))

    def record() -> NodeRecord | None:
        entry = keeper.roster.get(me)
        return None if entry is None else entry.record

    def keyed(peer: NodeId) -> int:
        return 0 if peers.get(peer) is None else links.bound(peer)

    lending = Lending(config, me, peers, places, caller, far=far, publish=own.publish)
    borrower = Borrower(
        me, config.relay, master_name(config.wireguard.prefix),
        peers=peers, ways=ways, caller=caller, ports=ports, record=record, own_ports=lambda: own.ports,
        where=places.of, views=views, down=membership.gone, keyed=keyed, changed=changed,
    )  # fmt: skip
    own.relays = lambda: lending.offer
    return lending, borrower


def make_bridging(config: Config, me: NodeId, peers: Peers, caller: Caller, lending: Lending) -> Bridging:
    """Make what joins connections for others: a node that relays does."""
    section = config.relay
    among = Named(section.members, peers) if section.members else None
    bridges = Bridges(me, lambda: peers.standing, among, section.rate, section.quota)
    return Bridging(bridges, caller, lambda: lending.offer is not None)
