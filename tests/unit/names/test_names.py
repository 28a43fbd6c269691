# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's zone: what every question gets, and that reverse and forward agree."""

import hashlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.names.zone import (
    MAX_UDP_SIZE,
    NEGATIVE_TTL,
    TTL,
    Host,
    QueryError,
    Zone,
    decode_untrusted,
    encode,
    hosts_lines,
    hosts_of,
    respond,
    zone_names,
)
from phantommesh.trust.certificates import Member, Mesh, Role
from tests.support.makemesh import NOW, identity

MESH = Mesh("pm", b"spki", IPv4Network("100.64.0.0/10"), IPv6Network("fd12:3456:789a::/48"), NOW)
ALPHA = Host("alpha", IPv4Address("100.64.1.2"), IPv6Address("fd12:3456:789a::1"))
BETA = Host("beta", IPv4Address("100.127.255.254"), IPv6Address("fd12:3456:789a:ffff::2"))
ZONE = Zone(MESH, "alpha", [ALPHA, BETA], serial=7)

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


def ask(
    name: str, kind: str = "A", *, zone: Zone = ZONE, klass: str = "IN", tcp: bool = False
) -> dns.message.Message:
    query = dns.message.make_query(name, kind, klass)
    _, wire = respond(zone, query.to_wire(), tcp=tcp)
    assert wire is not None
    response = dns.message.from_wire(wire)
    assert query.is_response(response)
    assert not response.flags & dns.flags.RA
    return response


def records(section: list[dns.rrset.RRset]) -> list[str]:
    return [f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {rr}" for rrset in section for rr in rrset]


def is_negative(response: dns.message.Message, rcode: dns.rcode.Rcode, apex: str) -> bool:
    """Whether it says no as RFC 2308 section 3 wants it: authoritative, with the SOA and its short TTL."""
    (soa,) = response.authority
    return (
        response.rcode() == rcode
        and not response.answer
        and bool(response.flags & dns.flags.AA)
        and soa.name == dns.name.from_text(apex)
        and soa.rdtype == dns.rdatatype.SOA
        and soa.ttl == soa[0].minimum == NEGATIVE_TTL
    )


def refused(response: dns.message.Message) -> bool:
    empty = not response.answer and not response.authority and not response.additional
    return response.rcode() == dns.rcode.REFUSED and empty and not response.flags & dns.flags.AA


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        ("alpha.pm.internal", "A", "100.64.1.2"),
        ("alpha.pm.internal", "AAAA", "fd12:3456:789a::1"),
        ("BeTa.PM.Internal", "A", "100.127.255.254"),
        ("alpha.pm.internal", "ANY", "100.64.1.2"),
        ("pm.internal", "SOA", "alpha.pm.internal. hostmaster.pm.internal. 7 3600 600 86400 5"),
        ("pm.internal", "NS", "alpha.pm.internal."),
        ("2.1.64.100.in-addr.arpa", "PTR", "alpha.pm.internal."),
        ("254.255.127.100.IN-ADDR.arpa", "PTR", "beta.pm.internal."),
        ("64.100.in-addr.arpa", "NS", "alpha.pm.internal."),
        ("a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa", "NS", "alpha.pm.internal."),
    ],
)
def test_answers(name: str, kind: str, wanted: str, tcp: bool) -> None:
    response = ask(name, kind, tcp=tcp)
    assert response.rcode() == dns.rcode.NOERROR
    assert response.flags & dns.flags.AA
    (rrset,) = response.answer
    assert [rr.to_text() for rr in rrset] == [wanted]
    assert rrset.ttl == TTL
    assert rrset.name.to_text() == f"{name}."  # in the asker's own case, which some resolvers check


def test_reverse6() -> None:
    for host in (ALPHA, BETA):
        response = ask(dns.reversename.from_address(str(host.ip6)).to_text().upper(), "PTR")
        assert response.answer[0][0].to_text() == f"{host.name}.pm.internal."


def test_ns_brings_addresses() -> None:
    assert records(ask("pm.internal", "NS").additional) == [
        "alpha.pm.internal. A 100.64.1.2",
        "alpha.pm.internal. AAAA fd12:3456:789a::1",
    ]


@pytest.mark.parametrize(
    ("name", "kind", "apex"),
    [
        ("pm.internal", "A", "pm.internal"),
        ("pm.internal", "DS", "pm.internal"),
        ("alpha.pm.internal", "MX", "pm.internal"),
        ("64.100.in-addr.arpa", "PTR", "64.100.in-addr.arpa"),
        ("99.100.in-addr.arpa", "A", "99.100.in-addr.arpa"),
        ("1.64.100.in-addr.arpa", "PTR", "64.100.in-addr.arpa"),
        ("2.1.64.100.in-addr.arpa", "A", "64.100.in-addr.arpa"),
        ("f.f.f.f.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa", "PTR", "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"),
        ("0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa", "ANY", "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"),
    ],
)
def test_nodata(name: str, kind: str, apex: str) -> None:
    assert is_negative(ask(name, kind), dns.rcode.NOERROR, apex)


@pytest.mark.parametrize(
    ("name", "apex"),
    [
        ("gamma.pm.internal", "pm.internal"),
        ("x.alpha.pm.internal", "pm.internal"),
        ("*.pm.internal", "pm.internal"),
        ("alpha.pm.internal.pm.internal", "pm.internal"),
        ("3.1.64.100.in-addr.arpa", "64.100.in-addr.arpa"),
        ("2.64.100.in-addr.arpa", "64.100.in-addr.arpa"),
        ("02.1.64.100.in-addr.arpa", "64.100.in-addr.arpa"),
        ("256.1.64.100.in-addr.arpa", "64.100.in-addr.arpa"),
        ("x.2.1.64.100.in-addr.arpa", "64.100.in-addr.arpa"),
        ("9.2.1.64.100.in-addr.arpa", "64.100.in-addr.arpa"),
        ("5.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa", "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"),
        ("10.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa", "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"),
    ],
)
@pytest.mark.parametrize("kind", ["A", "PTR", "ANY"])
def test_nxdomain(name: str, kind: str, apex: str) -> None:
    assert is_negative(ask(name, kind), dns.rcode.NXDOMAIN, apex)


@pytest.mark.parametrize(
    ("name", "kind", "klass"),
    [
        (".", "NS", "IN"),
        ("internal", "SOA", "IN"),
        ("example.com", "A", "IN"),
        ("alpha.pm2.internal", "A", "IN"),
        ("notpm.internal", "A", "IN"),
        ("100.in-addr.arpa", "SOA", "IN"),
        ("in-addr.arpa", "NS", "IN"),
        ("63.100.in-addr.arpa", "PTR", "IN"),
        ("1.1.128.100.in-addr.arpa", "PTR", "IN"),
        ("x.100.in-addr.arpa", "PTR", "IN"),
        ("9.8.7.6.5.4.3.2.1.d.f.ip6.arpa", "PTR", "IN"),
        ("b.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa", "PTR", "IN"),
        ("alpha.pm.internal", "A", "CH"),
        ("version.bind", "TXT", "CH"),
        ("pm.internal", "AXFR", "IN"),
    ],
)
def test_refuses_what_is_not_ours(name: str, kind: str, klass: str) -> None:
    assert refused(ask(name, kind, klass=klass))


@pytest.mark.parametrize(("name", "member"), [("a" * 63, "b" * 63), ("x", "y")])
def test_every_answer_fits_without_edns(name: str, member: str) -> None:
    """The largest answers of the largest names need no TCP."""
    mesh = Mesh(name, b"spki", MESH.network4, MESH.network6, NOW)
    zone = Zone(mesh, member, [Host(member, ALPHA.ip4, ALPHA.ip6)], serial=2**40)
    below = ".".join(["z" * 60] * 3)[: 252 - len(f".{name}.internal")].rstrip(".")
    for asked in (f"{member}.{name}.internal", f"{name}.internal", f"{below}.{name}.internal"):
        for kind in ("A", "NS", "SOA", "ANY", "TXT"):
            assert not ask(asked, kind, zone=zone).flags & dns.flags.TC


def test_truncates() -> None:
    query = dns.message.make_query("alpha.pm.internal", "TXT")
    response = dns.message.make_response(query)
    texts = [f'"{number:0100}"' for number in range(20)]
    response.answer.append(dns.rrset.from_text_list("alpha.pm.internal.", TTL, "IN", "TXT", texts))
    short = encode(response, 512)
    assert len(short) <= 512
    read = dns.message.from_wire(short)
    assert read.flags & dns.flags.TC
    assert query.is_response(read)
    assert not dns.message.from_wire(encode(response, 65535)).flags & dns.flags.TC


def test_edns() -> None:
    query = dns.message.make_query("alpha.pm.internal", "A", use_edns=0, payload=4096)
    query.use_edns(0, payload=4096, options=[dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")])
    response = dns.message.from_wire(respond(ZONE, query.to_wire(), tcp=False)[1] or b"")
    assert response.edns == 0
    assert response.payload == MAX_UDP_SIZE
    assert response.answer
    plain = dns.message.make_query("alpha.pm.internal", "A", use_edns=False)
    assert dns.message.from_wire(respond(ZONE, plain.to_wire(), tcp=False)[1] or b"").edns == -1


def test_later_edns_is_refused_by_its_number() -> None:
    query = dns.message.make_query("alpha.pm.internal", "A")
    query.use_edns(1)
    word, wire = respond(ZONE, query.to_wire(), tcp=False)
    response = dns.message.from_wire(wire or b"")
    assert (word, response.rcode(), response.edns) == ("badvers", dns.rcode.BADVERS, 0)
    assert not response.answer


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
def test_other_opcodes(opcode: int) -> None:
    query = bytearray(dns.message.make_query("alpha.pm.internal", "A").to_wire())
    query[2] = opcode << 3 | 1
    word, wire = respond(ZONE, bytes(query), tcp=False)
    assert wire is not None
    assert (word, len(wire), wire[:2], wire[3] & 15) == (
        "notimp",
        12,
        bytes(query[:2]),
        int(dns.rcode.NOTIMP),
    )
    assert wire[2] == 0x80 | opcode << 3 | 1


def test_says_nothing_to_a_response_or_a_scrap() -> None:
    response = dns.message.make_response(dns.message.make_query("alpha.pm.internal", "A")).to_wire()
    assert respond(ZONE, response, tcp=False) == ("dns-response", None)
    assert respond(ZONE, response[:11], tcp=False) == ("dns-short", None)


@pytest.mark.parametrize(("at", "count"), [(4, 0), (4, 2), (6, 1), (8, 1), (10, 3), (10, 65535)])
def test_counts_that_no_query_has(at: int, count: int) -> None:
    query = bytearray(dns.message.make_query("alpha.pm.internal", "A").to_wire())
    query[at : at + 2] = count.to_bytes(2)
    with pytest.raises(QueryError) as caught:
        decode_untrusted(bytes(query))
    assert caught.value.reason == "formerr"
    assert len(caught.value.response or b"") == 12


@pytest.mark.parametrize(
    "tail",
    [
        b"\xc0\x0c\x00\x01\x00\x01",  # a name that points at itself
        b"\x05alpha",  # cut off
        b"\x45alpha\x00\x00\x01\x00\x01",  # a label type that nobody uses
        b"\x01a\x00\x00\x01\x00\x01junk",
        b"\x01a\x00\x00\x01\x00\x01" + bytes(1300),
    ],
)
def test_malformed(tail: bytes) -> None:
    word, wire = respond(ZONE, bytes.fromhex("abcd01000001000000000000") + tail, tcp=True)
    assert (word, wire) == ("formerr", bytes.fromhex("abcd81010000000000000000"))


@pytest.mark.parametrize(
    ("cidr", "wanted"),
    [
        ("10.0.0.0/8", ["10.in-addr.arpa"]),
        ("10.64.0.0/15", ["64.10.in-addr.arpa", "65.10.in-addr.arpa"]),
        ("192.168.7.0/24", ["7.168.192.in-addr.arpa"]),
        ("192.168.7.4/30", [f"{n}.7.168.192.in-addr.arpa" for n in (4, 5, 6, 7)]),
    ],
)
def test_zone_names(cidr: str, wanted: list[str]) -> None:
    mesh = Mesh("pm", b"spki", IPv4Network(cidr), MESH.network6, NOW)
    assert zone_names(mesh) == ["pm.internal", *wanted, "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"]
    zone = Zone(mesh, "alpha", [], serial=1)
    for name in zone_names(mesh):
        assert ask(name, "SOA", zone=zone).answer


@settings(deadline=None, max_examples=30)
@given(st.integers(8, 30), st.integers(0, 2**32 - 1), st.data())
def test_forward_and_reverse_agree(length: int, base: int, data: st.DataObject) -> None:
    network = IPv4Network((base, length), strict=False)
    mesh = Mesh("pm", b"spki", network, MESH.network6, NOW)
    members = data.draw(
        st.dictionaries(
            labels,
            st.tuples(st.integers(0, network.num_addresses - 1), st.integers(0, 2**80 - 1)),
            min_size=1,
            max_size=4,
        )
    )
    hosts = [Host(name, network[i], MESH.network6[j]) for name, (i, j) in members.items()]
    zone = Zone(mesh, hosts[0].name, hosts, serial=1)
    for host in hosts:
        addresses: list[tuple[str, IPv4Address | IPv6Address]] = [("AAAA", host.ip6)]
        addresses += [("A", host.ip4)] if host.ip4 else []
        for kind, address in addresses:
            response = ask(f"{host.name}.pm.internal", kind, zone=zone)
            assert ip_address(response.answer[0][0].to_text()) == address
            back = ask(address.reverse_pointer, "PTR", zone=zone)
            assert back.answer[0][0].to_text().removesuffix(".pm.internal.") in members
            # every name above it is there, so that no resolver gives up half-way (RFC 8020)
            above = dns.name.from_text(address.reverse_pointer)
            while not refused(answer := ask(above.to_text(), "TXT", zone=zone)):
                assert answer.rcode() == dns.rcode.NOERROR
                above = above.parent()


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=12), max_size=6), st.sampled_from(["", "pm", "r4", "r6"]))
def test_no_name_is_answered_by_accident(parts: list[bytes], under: str) -> None:
    tail = {
        "": (b"",),
        "pm": (b"pm", b"internal", b""),
        "r4": (b"1", b"64", b"100", b"in-addr", b"arpa", b""),
        "r6": (*b"a 9 8 7 6 5 4 3 2 1 d f".split(), b"ip6", b"arpa", b""),
    }[under]
    response = ask(dns.name.Name((*parts, *tail)).to_text(), "TXT")
    assert not response.answer
    if under:
        assert response.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)


def test_one_name_twice_belongs_to_the_lowest_node_id() -> None:
    members = []
    for i in range(4):
        node = identity(f"twin {i}")
        ip4 = IPv4Address(f"100.64.0.{i + 1}")
        members.append(
            Member(
                node.node_id,
                "twin" if i else "one",
                Role.NODE,
                ip4,
                MESH.network6[i],
                node.public_key,
                0,
                NOW,
            )
        )
    first = min(members[1:], key=lambda one: one.node_id)
    hosts = hosts_of(members)
    assert hosts == hosts_of(reversed(members))
    assert hosts == (
        Host("one", members[0].ip4, members[0].ip6),
        Host("twin", first.ip4, first.ip6),
    )


def test_one_address_twice_belongs_to_the_lowest_node_id() -> None:
    nodes = sorted((identity(f"twin {i}") for i in range(2)), key=lambda node: node.node_id)
    members = [
        Member(node.node_id, name, Role.NODE, ALPHA.ip4, MESH.network6[i], node.public_key, 0, NOW)
        for i, (node, name) in enumerate(zip(nodes, ("z", "a"), strict=True))
        if ALPHA.ip4
    ]
    hosts = hosts_of(members)
    assert hosts == (Host("a", None, MESH.network6[1]), Host("z", ALPHA.ip4, MESH.network6[0]))
    assert len(hosts_lines(hosts, "pm")) == 3
    zone = Zone(MESH, "a", hosts, serial=1)
    assert is_negative(ask("a.pm.internal", "A", zone=zone), dns.rcode.NOERROR, "pm.internal")
    assert ask("a.pm.internal", "AAAA", zone=zone).answer
    assert ask("2.1.64.100.in-addr.arpa", "PTR", zone=zone).answer[0][0].to_text() == "z.pm.internal."


def test_hosts_lines() -> None:
    assert hosts_lines([ALPHA], "pm") == [
        "100.64.1.2\talpha.pm.internal",
        "fd12:3456:789a::1\talpha.pm.internal",
    ]


def test_a_large_mesh_is_quick_to_make_and_to_ask() -> None:
    """A zone of every member a roster may hold answers for the first and the last."""
    hosts = [
        Host(
            f"n{i}",
            MESH.network4[i + 1],
            IPv6Address(MESH.network6.network_address.packed[:6] + hashlib.sha256(b"%d" % i).digest()[:10]),
        )
        for i in range(4096)
    ]
    zone = Zone(MESH, "n0", hosts, serial=1)
    for host in (hosts[0], hosts[-1]):
        assert ask(host.ip6.reverse_pointer, "PTR", zone=zone).answer
