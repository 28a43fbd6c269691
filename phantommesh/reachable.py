# SPDX-License-Identifier: GPL-3.0-or-later
"""Which addresses that come from others this node may send to: the one filter for all of them. Pure.

A member chooses what its record says, what its names resolve to, and (by forging) where a datagram seems to
come from. Such an address may be one that only this host reaches: its loopback, a cloud's metadata service,
a container bridge. Or it may be an overlay address: then the outer WireGuard packets are routed into the
overlay and encrypted again, without end. docs/decisions/0003-addresses-of-others.md has the rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

IpAddress = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Why(Enum):
    """Why an address is refused: the label of the counter, and what a person is told."""

    NO_ADDRESS = "malformed", "not an address"
    UNSPECIFIED = "unspecified", "an address of no host"
    LOOPBACK = "loopback", "a loopback address"
    LINK_LOCAL = "link-local", "a link-local address"
    MULTICAST = "multicast", "a multicast address"
    RESERVED = "reserved", "a reserved address"
    BROADCAST = "broadcast", "a broadcast address of this host's own network"
    METADATA = "metadata", "a cloud's metadata service"
    TRANSLATOR = "translator", "an address that each host with a translator to IPv6 has"
    OWN = "own", "an address of this host itself"
    OVERLAY = "overlay", "an address of the overlay itself"
    HOST_NETWORK = "host-network", "in a network that only this host has, where the peer was never heard"

    @property
    def label(self) -> str:
        """The reason as a word, for `phantommesh_dropped_total`."""
        return self.value[0]

    @property
    def text(self) -> str:
        """The reason after "it is"."""
        return self.value[1]


# The IANA registries of special-purpose addresses (RFC 6890), as far as no other host can have the address.
_SPECIAL: Final[tuple[tuple[Network, Why], ...]] = tuple(
    (ip_network(network), why)
    for network, why in (
        ("0.0.0.0/8", Why.UNSPECIFIED),  # RFC 1122, section 3.2.1.3; Linux sends 0.0.0.0 to itself
        ("127.0.0.0/8", Why.LOOPBACK),  # RFC 1122, section 3.2.1.3
        ("169.254.0.0/16", Why.LINK_LOCAL),  # RFC 3927; clouds have their metadata services there
        ("192.0.0.0/29", Why.TRANSLATOR),  # RFC 7335: the IPv4 of a host on IPv6 alone (464XLAT, DS-Lite)
        ("224.0.0.0/4", Why.MULTICAST),  # RFC 1112
        ("240.0.0.0/4", Why.RESERVED),  # RFC 1112; with 255.255.255.255, RFC 919
        ("::/128", Why.UNSPECIFIED),  # RFC 4291, section 2.5.2
        ("::1/128", Why.LOOPBACK),  # RFC 4291, section 2.5.3
        ("::/96", Why.RESERVED),  # IPv4-compatible, deprecated: RFC 4291, section 2.5.5.1
        ("fe80::/10", Why.LINK_LOCAL),  # RFC 4291, section 2.5.6
        ("ff00::/8", Why.MULTICAST),  # RFC 4291, section 2.7
        # Metadata services outside of 169.254.0.0/16, from the clouds' own manuals.
        ("100.100.100.200/32", Why.METADATA),  # Alibaba
        ("168.63.129.16/32", Why.METADATA),  # Azure
        ("192.0.0.192/32", Why.METADATA),  # Oracle
        ("fd00:ec2::254/128", Why.METADATA),  # AWS
        ("fd20:ce::254/128", Why.METADATA),  # Google
    )
)

# Many sites have the same: RFC 1918, RFC 6598, RFC 4193; and RFC 2544, of which proxies take an address for
# an interface with a default route.
_SITE: Final[tuple[Network, ...]] = tuple(
    map(
        ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7"),
    )
)

_LAST_32: Final = tuple(
    IPv6Network(network)
    for network in (
        "::ffff:0:0/96",  # IPv4-mapped, RFC 4291, section 2.5.5.2
        "::ffff:0:0:0/96",  # IPv4-translated, RFC 2765, section 2.1
        "64:ff9b::/96",  # NAT64, RFC 6052, section 2.1
        "64:ff9b:1::/48",  # NAT64 of a site, RFC 8215
    )
)
_6TO4: Final = IPv6Network("2002::/16")  # RFC 3056, section 2
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)  # RFC 5214, section 6.1


def embedded(address: IpAddress) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that an IPv6 address carries, by which a tunnel or a translator sends on."""
    if isinstance(address, IPv4Address):
        return
    value = int(address)
    last = IPv4Address(value & 0xFFFFFFFF)
    if any(address in network for network in _LAST_32) or value >> 32 & 0xFFFFFFFF in _ISATAP:
        yield last
    if address in _6TO4:
        yield IPv4Address(value >> 80 & 0xFFFFFFFF)
    if address.teredo is not None:  # RFC 4380, section 4: its server's, and its own behind a mask
        yield from address.teredo


def special(address: IpAddress) -> Why | None:
    """Say why no other host can have this address, wherever one asks; None where one can."""
    for one in (address, *embedded(address)):
        for network, why in _SPECIAL:
            if one.version == network.version and one in network:
                return why
    return None


def of_a_site(address: IpAddress) -> bool:
    """Whether an address means one host in one site, and another host in another."""
    return _within(address, _SITE)


def is_loopback(host: str) -> bool:
    """Whether an endpoint's host is a loopback address. Names are not: what they resolve to changes."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def all_loopback(hosts: Iterable[str]) -> bool:
    """Whether there are hosts, and all are loopback addresses: so a mesh within one machine is configured."""
    found = list(hosts)
    return bool(found) and all(is_loopback(host) for host in found)


@dataclass(frozen=True, slots=True)
class HostNetworks:
    """Contents of the host's routing tables. ``own``: what is delivered to the host itself; ``connected``:
    networks that are reached without a gateway, with their interfaces' indexes; ``uplinks``: the interfaces
    of default routes."""

    own: frozenset[Network] = frozenset()
    broadcast: frozenset[IPv4Address] = frozenset()
    connected: frozenset[tuple[Network, int]] = frozenset()
    uplinks: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address that an interface of this host has. ``index`` and ``name`` are the interface's; ``kind`` is
    its link's kind as the kernel names it (``bridge``, ``tun``), empty for hardware."""

    address: IpAddress
    index: int
    name: str
    kind: str = ""


# Kinds of links (IFLA_INFO_KIND) by which other hosts rarely come: bridges of containers, tunnels, addresses
# for this host's own use. Such a link counts where a default route leads over it.
INWARD: Final = frozenset(
    {"bridge", "dummy", "tun", "wireguard", "ifb", "ipip", "sit", "gre", "ip6tnl", "vti", "xfrm", "nlmon"}
)


def _within(address: IpAddress, networks: Iterable[Network]) -> bool:
    version = address.version
    return any(version == network.version and address in network for network in networks)


@dataclass(frozen=True, slots=True)
class Reach:
    """The addresses that this node may send to.

    ``overlay``: the mesh's networks. ``home``: this node's own endpoints, as addresses: the networks of the
    interfaces that hold one are where others reach it, like those of the default routes. ``found``: the same
    of addresses that nobody has named, and at which this node was found to be, now or before. ``told``:
    addresses that the operator has named as seeds. ``loopback``: this node's endpoints are all loopback
    addresses, so its peers' may be.
    """

    overlay: tuple[Network, ...] = ()
    host: HostNetworks = HostNetworks()
    home: frozenset[IpAddress] = frozenset()
    found: frozenset[IpAddress] = frozenset()
    told: frozenset[IpAddress] = frozenset()
    loopback: bool = False
    # The interfaces by which this node is itself reached. Each datagram that is sent asks for them.
    _homes: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        here = (one for one in (*self.home, *self.found) if _within(one, self.host.own))
        object.__setattr__(self, "_homes", self.host.uplinks | self._around(here))

    def refuses(self, host: str, *, seen: bool) -> Why | None:
        """Say why nothing may be sent to a host (an address, no name), or None where it may. ``seen``: the
        member finished a handshake with this node from there."""
        return self.never(host) or (None if seen else self._fenced(ip_address(host)))

    def never(self, host: str) -> Why | None:
        """Say why nothing may ever be sent to a host, whoever was heard from there."""
        try:
            address = ip_address(host)
        except ValueError:
            return Why.NO_ADDRESS
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return Why.LINK_LOCAL
        if self.loopback and address.is_loopback:
            return None
        for one in (address, *embedded(address)):
            if _within(one, self.overlay):
                return Why.OVERLAY
        if (why := special(address)) is not None:
            return why
        for one in (address, *embedded(address)):
            if _within(one, self.host.own):
                return Why.OWN
            if one in self.host.broadcast:
                return Why.BROADCAST
        return None

    def beside(self, address: IpAddress) -> bool:
        """Whether an address lies in a network of an interface by which this node is itself reached."""
        return any(i in self._homes and _within(address, (network,)) for network, i in self.host.connected)

    def offers(self, found: Iterable[HostAddress]) -> list[HostAddress]:
        """The addresses of this host by which others may reach it, those of one interface together.

        Interfaces of default routes count, and those whose network holds an address that the operator has
        named, here or as a seed; beside them those whose network holds an address at which this host was
        before. If there is none of the former, all count that are not of an inward kind: an uplink that was
        out for a while is no lesser one than those that stayed.
        """
        usable = [one for one in found if self._common(one.address)]
        named = self.host.uplinks | self._around((*self.told, *self.home))
        before = self._around(self.found)
        if any(one.index in named for one in usable):
            return [one for one in usable if one.index in named | before]
        return [one for one in usable if one.kind not in INWARD or one.index in before]

    def _around(self, addresses: Iterable[IpAddress]) -> frozenset[int]:
        """The interfaces whose networks hold one of these addresses."""
        around = list(addresses)
        return frozenset(
            index for network, index in self.host.connected if any(_within(one, (network,)) for one in around)
        )

    def _common(self, address: IpAddress) -> bool:
        """Whether an address may be another host's destination at all."""
        return special(address) is None and not any(
            _within(one, self.overlay) for one in (address, *embedded(address))
        )

    def _fenced(self, address: IpAddress) -> Why | None:
        """The networks that only this host reaches, such as a container bridge's."""
        for one in (address, *embedded(address)):
            around = [(n, i) for n, i in self.host.connected if _within(one, (n,))]
            longest = max((network.prefixlen for network, _ in around), default=0)
            nearest = {index for network, index in around if network.prefixlen == longest}
            if nearest and not nearest & self._homes and one not in self.told:
                return Why.HOST_NETWORK
        return None
