# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's DNS zone: NAME.MESH.internal and back again, as one query in and one response out.

Authoritative only, for MESH.internal and for the reverse zones of the overlay's addresses (RFC 1035; negative
answers RFC 2308, names that only have others below them RFC 8020, EDNS RFC 6891, ANY RFC 8482). Anything else
is refused: this is no resolver. Every node serves the zone from its own roster, so a name resolves while the
authority sleeps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from dns.rdtypes.ANY.NS import NS
from dns.rdtypes.ANY.PTR import PTR
from dns.rdtypes.ANY.SOA import SOA
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA

from phantommesh.trust.certificates import Member, Mesh

HEADER_SIZE: Final = 12  # RFC 1035 section 4.1.1
UDP_SIZE: Final = 512  # RFC 1035 section 2.3.4: without EDNS
MAX_UDP_SIZE: Final = 1232  # what passes every path unfragmented; https://www.dnsflagday.net/2020/
MAX_TCP_SIZE: Final = 65535

# Tuning.
MAX_QUERY: Final = 1232  # bytes; a question of the longest name with EDNS is below 600
TTL: Final = 30  # s; an address may be issued anew after a collision
NEGATIVE_TTL: Final = 5  # s; a node that has just joined is asked for at once

_IN: Final = dns.rdataclass.IN
_TRANSFERS: Final = (dns.rdatatype.AXFR, dns.rdatatype.IXFR)
_Records = Mapping[dns.rdatatype.RdataType, dns.rdata.Rdata]
_Network = IPv4Network | IPv6Network


class QueryError(Exception):
    """A message that is not a query we read. ``response`` is all there is to answer, None for nothing."""

    def __init__(self, reason: str, response: bytes | None) -> None:
        super().__init__(reason)
        self.reason, self.response = reason, response


@dataclass(frozen=True, slots=True)
class Host:
    """One name and its addresses; no IPv4 address while another member has it too, and keeps it."""

    name: str
    ip4: IPv4Address | None
    ip6: IPv6Address


def hosts_of(members: Iterable[Member]) -> tuple[Host, ...]:
    """The hosts of these members, by name. A name or an IPv4 address that two of them have is the lowest node
    id's, on every node, as in `records.Roster.disputes`."""
    found: dict[str, Host] = {}
    taken: set[IPv4Address] = set()
    for member in sorted(members, key=lambda one: one.node_id):
        ip4 = None if member.ip4 in taken else member.ip4
        taken.add(member.ip4)
        found.setdefault(member.name, Host(member.name, ip4, member.ip6))
    return tuple(found[name] for name in sorted(found))


def hosts_lines(hosts: Iterable[Host], mesh: str) -> list[str]:
    """The same names as lines of a hosts file (hosts(5))."""
    return [f"{ip}\t{host.name}.{mesh}.internal" for host in hosts for ip in (host.ip4, host.ip6) if ip]


def zone_names(mesh: Mesh) -> list[str]:
    """The zones served, without the root's dot: what a resolver is to send here."""
    reverse = (_Reverse(network) for network in (mesh.network4, mesh.network6))
    return [f"{mesh.name}.internal", *(name for part in reverse for name in part.zones())]


class _Reverse:
    """The reverse zones of one network: one at the first label boundary inside it, or several side by side
    where the network ends between two boundaries (100.64.0.0/10 is 64 zones)."""

    def __init__(self, network: _Network) -> None:
        self.network = network
        self.bits = 8 if network.version == 4 else 4  # a label
        self.suffix = dns.name.from_text("in-addr.arpa." if network.version == 4 else "ip6.arpa.")
        self.apex_labels = max(1, -(-network.prefixlen // self.bits))
        self.all_labels = network.max_prefixlen // self.bits

    def zones(self) -> list[str]:
        cut = self.all_labels - self.apex_labels
        parts = self.network.subnets(new_prefix=self.apex_labels * self.bits)
        return [part.network_address.reverse_pointer.split(".", cut)[-1] for part in parts]

    def labels(self, name: dns.name.Name) -> list[int]:
        """The numbers of a name below the suffix, most significant first, up to the first that is none."""
        found: list[int] = []
        below = name.labels[: -len(self.suffix)]
        for label in reversed(below[-self.all_labels :]):
            text = label.lower()
            number = _OCTETS.get(text) if self.bits == 8 else _NIBBLES.get(text)
            if number is None:
                break
            found.append(number)
        return found

    def range_of(self, labels: list[int]) -> tuple[int, int]:
        """The first address below these labels and the one after the last, as integers."""
        value = 0
        for label in labels:
            value = value << self.bits | label
        spare = (self.all_labels - len(labels)) * self.bits
        return value << spare, (value + 1) << spare

    def contains(self, first: int) -> bool:
        base = int(self.network.network_address)
        return base <= first < base + self.network.num_addresses


_OCTETS: Final = {b"%d" % number: number for number in range(256)}
_NIBBLES: Final = {b"%x" % number: number for number in range(16)}


class Zone:
    """The data that one node answers from: immutable, made anew when the members change.

    ``me`` is this node's name, which every SOA and NS record gives; ``serial`` is the SOA's, 32 bits.
    """

    def __init__(self, mesh: Mesh, me: str, hosts: Iterable[Host], serial: int) -> None:
        self.hosts = tuple(hosts)
        self.origin = dns.name.from_text(f"{mesh.name}.internal.")
        self.server = dns.name.from_text(me, self.origin)
        contact = dns.name.from_text("hostmaster", self.origin)
        self.soa = SOA(
            _IN,
            dns.rdatatype.SOA,
            self.server,
            contact,
            serial & 0xFFFFFFFF,
            refresh=3600,
            retry=600,
            expire=86400,
            minimum=NEGATIVE_TTL,
        )
        self._by_name = {host.name.encode(): host for host in self.hosts}
        self._reverse = [
            (_Reverse(network), addresses, sorted(addresses))
            for network, addresses in (
                (mesh.network4, {int(host.ip4): host for host in self.hosts if host.ip4}),
                (mesh.network6, {int(host.ip6): host for host in self.hosts}),
            )
        ]

    def find(self, name: dns.name.Name) -> tuple[dns.name.Name, _Records | None] | None:
        """Return the apex of the zone that ``name`` is in, and its records: None where there is no such name,
        empty for one that only has names below it. None outside of every zone."""
        if name.is_subdomain(self.origin):
            return self.origin, self._forward(name)
        for reverse, addresses, ordered in self._reverse:
            if not name.is_subdomain(reverse.suffix):
                continue
            labels = reverse.labels(name)
            first, after = reverse.range_of(labels)
            if len(labels) < reverse.apex_labels or not reverse.contains(first):
                return None
            own = len(name.labels) - len(reverse.suffix)  # may be more than what could be read
            apex = dns.name.Name(name.labels[own - reverse.apex_labels :])
            if own > len(labels):
                return apex, None
            records = self._apex() if own == reverse.apex_labels else {}
            if own == reverse.all_labels and (host := addresses.get(first)) is not None:
                target = dns.name.from_text(host.name, self.origin)
                return apex, {**records, dns.rdatatype.PTR: PTR(_IN, dns.rdatatype.PTR, target)}
            at = bisect_left(ordered, first)
            populated = at < len(ordered) and ordered[at] < after
            return apex, records if records or populated else None
        return None

    def _forward(self, name: dns.name.Name) -> _Records | None:
        own = len(name.labels) - len(self.origin)
        if own == 0:
            return self._apex()
        host = self._by_name.get(name.labels[0].lower()) if own == 1 else None
        return None if host is None else _addresses(host)

    def _apex(self) -> _Records:
        return {dns.rdatatype.SOA: self.soa, dns.rdatatype.NS: NS(_IN, dns.rdatatype.NS, self.server)}

    def fill(self, response: dns.message.Message) -> None:
        """Answer a response's question in it."""
        question = response.question[0]
        kind = question.rdtype
        found = self.find(question.name)
        if found is None or question.rdclass != _IN or kind in _TRANSFERS:
            response.set_rcode(dns.rcode.REFUSED)
            return
        response.flags |= dns.flags.AA
        apex, records = found
        if kind == dns.rdatatype.ANY and records:
            kind = next(iter(records))  # RFC 8482 section 4.1: one of them will do
        if records is not None and kind in records:
            _add(response.answer, question.name, TTL, records[kind])
            if kind == dns.rdatatype.NS and (host := self._by_name.get(self.server.labels[0])):
                for record in _addresses(host).values():
                    _add(response.additional, self.server, TTL, record)
            return
        if records is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        _add(response.authority, apex, NEGATIVE_TTL, self.soa)


def decode_untrusted(wire: bytes) -> dns.message.Message:
    """Read one query: a single question, and at most EDNS beside it. Raises QueryError only."""
    if len(wire) < HEADER_SIZE:
        raise QueryError("dns-short", None)
    flags = int.from_bytes(wire[2:4])
    if flags & dns.flags.QR:
        raise QueryError("dns-response", None)  # an answer to an answer would never end
    if dns.opcode.from_flags(flags) != dns.opcode.QUERY:
        raise QueryError("notimp", _bare(wire, dns.rcode.NOTIMP))
    malformed = QueryError("formerr", _bare(wire, dns.rcode.FORMERR))
    questions, answers, authorities, additional = (int.from_bytes(wire[at : at + 2]) for at in (4, 6, 8, 10))
    # RFC 9619 allows one question; the limits also bound what reading costs.
    if len(wire) > MAX_QUERY or questions != 1 or answers or authorities or additional > 2:
        raise malformed
    try:
        query = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError) as error:
        raise malformed from error
    if len(query.question) != 1:
        raise malformed
    return query


def respond(zone: Zone, wire: bytes, *, tcp: bool) -> tuple[str, bytes | None]:
    """Answer one message: what became of it, in a word for a counter, and the response if there is one.

    Never raises. A response over UDP is never longer than the asker said it takes.
    """
    try:
        query = decode_untrusted(wire)
    except QueryError as error:
        return error.reason, error.response
    response = dns.message.make_response(query, our_payload=MAX_UDP_SIZE, pad=0)
    if query.edns > 0:
        response.set_rcode(dns.rcode.BADVERS)
    else:
        zone.fill(response)
    limit = MAX_TCP_SIZE if tcp else min(max(query.payload, UDP_SIZE), MAX_UDP_SIZE)
    return dns.rcode.to_text(response.rcode()).lower(), encode(response, limit)


def encode(response: dns.message.Message, limit: int) -> bytes:
    """Write a response in at most ``limit`` bytes (512 or more). TC is set where records did not fit."""
    return response.to_wire(max_size=limit, prefer_truncation=True)


def _add(section: list[dns.rrset.RRset], name: dns.name.Name, ttl: int, record: dns.rdata.Rdata) -> None:
    section.append(dns.rrset.from_rdata(name, ttl, record))


def _addresses(host: Host) -> _Records:
    six = {dns.rdatatype.AAAA: AAAA(_IN, dns.rdatatype.AAAA, str(host.ip6))}
    return six if host.ip4 is None else {dns.rdatatype.A: A(_IN, dns.rdatatype.A, str(host.ip4)), **six}


def _bare(wire: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """A response of a header alone, for what could not be read further."""
    flags = int.from_bytes(wire[2:4]) & (0x7800 | dns.flags.RD) | dns.flags.QR | rcode
    return wire[:2] + flags.to_bytes(2) + bytes(8)
