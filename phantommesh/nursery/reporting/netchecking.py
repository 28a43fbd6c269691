# SPDX-License-Identifier: GPL-3.0-or-later
"""What `netcheck` shows of a running node: its host's network, and how members reach the node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, assert_never

import msgspec
import trio

from phantommesh.control import messages
from phantommesh.dimensions import all_names
from phantommesh.endpoint import format_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Fault
from phantommesh.management.netview import (
    ClockView,
    Family,
    FeatureView,
    NatKind,
    NatView,
    NetCheck,
    ReachedView,
    RelayView,
    UplinkView,
)
from phantommesh.node.lifetimes import NEVER, Scope
from phantommesh.node.natkind import SURE, Nat, nat_of
from phantommesh.nursery.due import moment
from phantommesh.nursery.host.features import read_features
from phantommesh.nursery.host.uplinks import read_uplinks
from phantommesh.nursery.members.checking import ask_others
from phantommesh.nursery.parts import Parts
from phantommesh.nursery.reporting.portmapping import portmap_view
from phantommesh.trust.identity import NodeId

_VERSIONS: Final[tuple[tuple[int, Family], ...]] = ((4, "ipv4"), (6, "ipv6"))

# Tuning.
LATELY: Final = 10.0  # s since a member's datagram within which UDP passes
KEPT: Final = 60.0  # s that members' words on TCP are kept: each member checks once a minute


class NetChecks:
    """Looks when asked."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._asking = trio.Lock()
        self._told: tuple[float, dict[NodeId, messages.TcpChecked]] = (float("-inf"), {})

    async def look(self, name: str, faults: list[Fault]) -> NetCheck:
        """Look at the host, and ask members for their word. ``name`` is this node's."""
        parts, unknown = self._parts, list[str]()
        ours = all_names(parts.config.wireguard.prefix)
        uplinks: list[UplinkView] = []
        try:
            uplinks = await trio.to_thread.run_sync(read_uplinks, ours)
        except PhantomMeshError as error:
            unknown.append(f"uplinks: {error}")
        features = await trio.to_thread.run_sync(read_features)
        tcp = await self._tcp()
        nats = [_nat_view(family, nat, parts) for family, nat in nats_of(parts, uplinks)]
        unknown += [f"NAT for {nat.family}: {nat.why}" for nat in nats if nat.kind == "unknown"]
        reached = [self._udp(), tcp]
        unknown += [f"{one.transport.upper()}: {one.why}" for one in reached if one.reached is None]
        hairpin = _hairpin(parts)
        if hairpin is None:
            unknown.append("hairpin: not tried yet, or there is no NAT")
        ahead, members = parts.gossip.news.clocks.ahead(moment())
        if ahead is None:
            unknown.append("clock: no member has said what time it is")
        fits = [parts.paths.fitting.fit(peer.node_id) for peer in parts.peers.reached() if peer.ready]
        return NetCheck(
            node=name,
            uplinks=uplinks,
            nat=nats,
            portmap=portmap_view(parts.mapping.states(), on=parts.mapping.on),
            hairpin=hairpin,
            overlay_mtu=parts.config.wireguard.mtu,
            least_mtu=min(fits, default=None),
            relays=_relays(parts),
            reached=reached,
            clock=ClockView(ahead_s=None if ahead is None else round(ahead, 1), members=members),
            features=[self._feature(feature) for feature in features],
            faults=faults,
            unknown=unknown,
        )

    def _feature(self, feature: FeatureView) -> FeatureView:
        """What is known of a feature by its being in use."""
        scattering = self._parts.scattering
        used = feature.name == f"{self._parts.backend.name} WireGuard"
        if used:
            return msgspec.structs.replace(feature, there=True, why="in use")
        if feature.name == "netdev egress hook" and scattering.problem is None:
            hooked = scattering.hook == "egress"
            why = "in use" if hooked else "packets are scattered by marks"
            return msgspec.structs.replace(feature, there=True if hooked else feature.there, why=why)
        return feature

    def _udp(self) -> ReachedView:
        """By this node's own ears: members' datagrams come every second, a witness's word once a minute."""
        parts, now = self._parts, trio.current_time()
        ages = {
            entry.member.node_id: now - when
            for entry in parts.peers.entries
            for address, when in parts.gossip.gossip.seen(entry.member.node_id, now)
            if address.transport == "udp"
        }
        if lately := [member for member, age in ages.items() if age <= LATELY]:
            why = "members' datagrams come in"
            return ReachedView(transport="udp", reached=True, by=self._names(lately), why=why)
        if parts.gossip.quiet():
            return ReachedView(transport="udp", reached=None, by=[], why="no member is heard at all")
        silence = f"for {min(ages.values()):.0f} s" if ages else "yet"
        others = self._names(ages or [entry.member.node_id for entry in parts.peers.entries])
        why = f"no datagram of a member has come in by UDP {silence}, and by TCP members are heard"
        return ReachedView(transport="udp", reached=False, by=others, why=why)

    async def _tcp(self) -> ReachedView:
        parts = self._parts
        if not parts.config.control.tcp:
            return ReachedView(transport="tcp", reached=False, by=[], why="control.tcp is off here")
        async with self._asking:
            now = trio.current_time()
            if now >= self._told[0] + KEPT:
                first = sorted(parts.finding.whereabouts.witnesses(now))
                self._told = now, await ask_others(parts.caller, first)
        said = self._told[1]
        if yes := {member: word for member, word in said.items() if word.reached}:
            at = ", ".join(sorted({word.endpoint for word in yes.values()}))
            return ReachedView(transport="tcp", reached=True, by=self._names(yes), why=f"at {at}")
        if said:
            why = next(iter(said.values())).why
            return ReachedView(transport="tcp", reached=False, by=self._names(said), why=why)
        return ReachedView(transport="tcp", reached=None, by=[], why="no member could be asked")

    def _names(self, members: Iterable[NodeId]) -> list[str]:
        found = (self._parts.keeper.roster.get(member) for member in members)
        return sorted(entry.member.name for entry in found if entry is not None)


def nats_of(parts: Parts, uplinks: Sequence[UplinkView] = ()) -> list[tuple[Family, Nat]]:
    """The NATs before this node, for each family of which it has an address or a witness."""
    known, now = parts.finding.whereabouts, trio.current_time()
    own, seen = {one.address for one in known.own}, list(known.witnesses(now).values())
    found = []
    for version, family in _VERSIONS:
        nat = nat_of(own, parts.config.control.port, parts.own.ports, seen, version)
        held = any((":" in text) is (version == 6) for uplink in uplinks for text in uplink.addresses)
        if held or nat.kind != "unknown":
            found.append((family, nat))
    return found


def _hairpin(parts: Parts) -> bool | None:
    """Whether this node reached itself at its public address, if it was measured in a network that it is
    in."""
    found = [known.hairpin for _, known in parts.lifetimes.known() if known is not None]
    return next((one for one in found if one is not None), None)


def _nat_view(family: Family, nat: Nat, parts: Parts) -> NatView:
    public = [format_endpoint(str(place.address), place.port) for place in nat.public]
    why = said(nat.kind)
    if nat.kind == "other-port" and nat.witnesses < SURE:
        why = "one member sees another port; a second one would show whether it is the same for all"
    lifetimes, version = parts.lifetimes.lifetimes, 4 if family == "ipv4" else 6
    scopes = [Scope(version, beside) for beside in (False, True)]
    scope = next((one for one in scopes if lifetimes.known(one) is not None), scopes[0])
    known, keepalive = lifetimes.known(scope), lifetimes.keepalive(scope)
    return NatView(
        family=family,
        kind=nat.kind,
        public=public,
        witnesses=nat.witnesses,
        why=why,
        open=None if known is None else known.open,
        lives_s=None if known is None or known.open else known.good,
        keepalive_s=keepalive if 0 < keepalive < NEVER else None,
    )


def said(kind: NatKind) -> str:
    """What a kind of NAT means, in words."""
    match kind:
        case "none":
            return "members see this host's own address"
        case "port-preserving":
            return "members see another address with this node's own ports"
        case "other-port":
            return "members see another address with another port, the same for all"
        case "random":
            return "each member sees another port, so none can tell others where to send"
        case "unknown":
            return "no member has said yet where it sees this node"
        case _:
            assert_never(kind)


def _relays(parts: Parts) -> RelayView:
    offer = parts.lending.offer
    return RelayView(
        port=None if offer is None else offer.port,
        leases=len(parts.lending.leases),
        offered=sorted(e.member.name for e in parts.peers.entries if e.record.relay is not None),
    )
