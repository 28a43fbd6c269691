# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is never banned, whose datagrams are not counted or shed, and what of this host is protected: read from
the parts of the node that know it, each time that it is asked for.

An address counts as a member's where the member has shown that it gets what is sent there. Its mere word (its
record, where it seems to be heard, where WireGuard calls it) counts too, but not for a source that offended
before: else a member could set anybody free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv6Network, ip_network
from typing import Final

import trio

from phantommesh.acl.banrules import Ports
from phantommesh.acl.bans import Shield
from phantommesh.config.sections import Config
from phantommesh.dimensions import interface_names, master_name
from phantommesh.endpoint import Address, parse_endpoint
from phantommesh.nursery.host.operators import read_operators
from phantommesh.nursery.members.finding import Finding
from phantommesh.nursery.members.gossip import GossipDriver
from phantommesh.nursery.members.own import OwnRecord
from phantommesh.nursery.members.places import Places
from phantommesh.nursery.members.seeing import seen_at
from phantommesh.reachable import IpAddress
from phantommesh.records.roster import Entry
from phantommesh.routable import Network
from phantommesh.trust.certificates import Role
from phantommesh.wireguard.device import DeviceState

# Addresses that mean this host or its link, wherever one asks (`reachable` has their sources).
_HERE: Final[tuple[Network, ...]] = tuple(
    map(ip_network, ("127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "ff00::/8"))
)
# RFC 6052, RFC 8215 (hosts of IPv4 behind a translator) and RFC 4380 (Teredo): one /64 is many hosts' there.
_SHARED: Final[tuple[Network, ...]] = tuple(map(ip_network, ("64:ff9b::/64", "64:ff9b:1::/48", "2001::/32")))

# Tuning.
MOST_PARSED: Final = 16_384  # addresses that are remembered parsed, at some 400 bytes each


class Shielding:
    """The answers for one node. ``entries`` are the members, ``actual`` the interfaces as last read."""

    def __init__(
        self, config: Config, own: OwnRecord, places: Places, finding: Finding, gossip: GossipDriver, *,
        entries: Callable[[], Iterable[Entry]], actual: Callable[[], Mapping[str, DeviceState]],
        overlay: Callable[[], Sequence[Network]],
    ) -> None:  # fmt: skip
        self._config, self._own, self._places = config, own, places
        self._finding, self._gossip = finding, gossip
        self._entries, self._actual, self._overlay = entries, actual, overlay
        self._operators: list[tuple[IpAddress, str]] = []
        self.offended: Callable[[str], bool] = lambda host: False
        """Whether the block of a host was banned of late."""

    async def refresh(self) -> None:
        """Read where operators are logged in from, and this host's resolvers and gateways."""
        listen = self._config.api.listen
        ports = () if listen is None else (parse_endpoint(listen)[1],)
        self._operators = await trio.to_thread.run_sync(lambda: list(read_operators(ports)))

    def ports(self) -> Ports:
        """What the table protects."""
        wireguard, host = self._config.wireguard, self._places.reach.host
        ours = {device.index for device in self._actual().values()}
        near = {network for network, index in host.connected if index not in ours and network.version == 4}
        return Ports(
            master_name(wireguard.prefix),
            interface_names(wireguard.prefix),
            self._config.control.port,
            tuple(sorted(self._own.ports)),
            tuple(sorted(near, key=str)),
        )

    def known(self) -> list[Network]:
        """The addresses at which members and seeds are known."""
        return list({*(network for network, _ in self._members()), *map(_network, self._seeds())})

    def shield(self) -> Shield:
        """Who is never banned, as things are now."""
        return Shield(self._always(), self._members())

    def _always(self) -> Iterator[tuple[Network, str]]:
        reach = self._places.reach
        for network in (*_HERE, *reach.host.own):
            yield network, "an address of this host itself, or of its link"
        for network, _ in reach.host.connected:
            if isinstance(network, IPv6Network):
                yield network, "a network of this host's own links, and its /64 everybody's there"
        for network in _SHARED:
            yield network, "a prefix in which a translator has many hosts in one /64"
        for network in self._overlay():
            yield network, "the overlay itself"
        for address, why in self._operators:
            yield ip_network(address), why
        for host in self._seeds():
            yield _network(host), "a seed of this node"
        for entry in self._entries():
            member = entry.member
            if member.role is Role.RELAY or member.role is Role.AUTHORITY or member.routes:
                what = "a router" if member.routes else f"a {member.role.value}"
                for network in self._networks(entry):
                    yield network, f"an address of {member.name}, {what} of the mesh"

    def _seeds(self) -> set[str]:
        return {address.host for address in self._places.seeds()}

    def _members(self) -> Iterator[tuple[Network, str]]:
        """The addresses at which members are, or were of late."""
        for entry in self._entries():
            for network in self._networks(entry):
                yield network, f"an address of {entry.member.name}"
        for device in self._actual().values():
            for peer in device.peers.values():
                if peer.endpoint is not None and not self.offended(peer.endpoint.host):
                    yield _network(peer.endpoint.host), "an address at which WireGuard has a member"

    def _networks(self, entry: Entry) -> set[Network]:
        member = entry.member.node_id
        proved = {*_hosts(seen_at(self._finding, self._gossip, member)), *self._places.heard(member)}
        said = {*_hosts(self._places.of(entry)), *_hosts(self._gossip.heard_at(member))} - proved
        hosts = (*proved, *(host for host in said if not self.offended(host)))
        return {_network(host) for host in hosts}


# All of these are read again every few seconds, and a thousand members have four thousand addresses.
@lru_cache(maxsize=MOST_PARSED)
def _network(host: str) -> Network:
    return ip_network(host)


def _hosts(addresses: Iterable[Address]) -> Iterator[str]:
    return (address.host for address in addresses if address.transport != "via")
