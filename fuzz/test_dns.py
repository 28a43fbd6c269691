# SPDX-License-Identifier: GPL-3.0-or-later
"""Any bytes get one bounded answer or none, and what is answered is a response to what was asked."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import dns.message
import dns.rdataclass
import dns.rdatatype
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phantommesh.names.zone import MAX_UDP_SIZE, UDP_SIZE, Host, Zone, respond
from phantommesh.trust.certificates import Mesh

MESH = Mesh("pm", b"spki", IPv4Network("100.64.0.0/10"), IPv6Network("fd12:3456:789a::/48"), 0.0)
ALPHA = Host("alpha", IPv4Address("100.64.1.2"), IPv6Address("fd12:3456:789a::1"))
ZONE = Zone(MESH, "alpha", [ALPHA], serial=7)
WORDS = {"noerror", "nxdomain", "refused", "badvers", "formerr", "notimp", "dns-short", "dns-response"}

names = st.sampled_from(
    [
        "alpha.pm.internal.",
        "x.pm.internal.",
        "pm.internal.",
        ".",
        "2.1.64.100.in-addr.arpa.",
        "1.64.100.in-addr.arpa.",
        "alpha.x.pm.internal.",
        "0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.",
        "arpa.",
        ("z" * 60 + ".") * 4,
    ]
)
kinds = st.one_of(st.integers(0, 65535), st.sampled_from([1, 2, 6, 12, 28, 41, 250, 252, 255]))
options = st.lists(st.tuples(st.integers(0, 20), st.binary(max_size=40)), max_size=4)


@st.composite
def queries(draw: st.DrawFn) -> bytes:
    """A query as a resolver sends it, or one that went wrong on the way."""
    query = dns.message.make_query(draw(names), "A", dns.rdataclass.RdataClass.make(draw(st.integers(1, 5))))
    query.question[0].rdtype = dns.rdatatype.RdataType.make(draw(kinds))
    wire = bytearray(query.to_wire())
    if draw(st.booleans()):
        data = b"".join(kind.to_bytes(2) + len(value).to_bytes(2) + value for kind, value in draw(options))
        ttl = draw(st.sampled_from([0, 0x8000, 0x10000, 0xFFFFFFFF]))
        payload = draw(st.integers(0, 65535))
        wire[11] += 1
        wire += b"\0\0\x29" + payload.to_bytes(2) + ttl.to_bytes(4) + len(data).to_bytes(2) + data
    for at, value in draw(
        st.lists(st.tuples(st.integers(0, len(wire) - 1), st.integers(0, 255)), max_size=3)
    ):
        wire[at] = value
    return bytes(wire[: draw(st.integers(0, len(wire)))] if draw(st.booleans()) else wire)


def check(wire: bytes, *, tcp: bool) -> None:
    word, response = respond(ZONE, wire, tcp=tcp)
    assert word in WORDS
    if response is None:
        assert word in ("dns-short", "dns-response")
        return
    assert response[:2] == wire[:2]
    assert response[2] & 0x80
    assert len(response) <= UDP_SIZE <= MAX_UDP_SIZE
    if word in ("formerr", "notimp"):
        assert len(response) == 12  # nothing to gain from junk
    else:
        # reads back; BADVERS answers in version 0
        read = dns.message.from_wire(response)
        assert read.question == dns.message.from_wire(wire).question


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes(wire: bytes, tcp: bool) -> None:
    check(wire, tcp=tcp)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=100), st.booleans())
def test_any_question(tail: bytes, tcp: bool) -> None:
    check(bytes.fromhex("abcd01000001000000000000") + tail, tcp=tcp)


@settings(max_examples=1000, deadline=None)
@given(queries(), st.booleans())
@example(b"\0\0\1\0\0\1\0\0\0\0\0\1\0\0\1\0\1\0\0\x29\xff\xff\0\0\0\0\0\4\0\x08\0\0", False)
def test_any_query(wire: bytes, tcp: bool) -> None:
    check(wire, tcp=tcp)


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.integers(1000, 70_000))
def test_long_messages(part: bytes, size: int) -> None:
    wire = bytes.fromhex("abcd01000001000000000002") + (part * (size // len(part) + 1))[:size]
    check(wire, tcp=True)
