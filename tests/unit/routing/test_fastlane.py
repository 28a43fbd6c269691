# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay's short way as messages to nf_tables: which lanes there are, and what changes lead to."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.endpoint import Address
from phantommesh.nftables.messages import Change, encode_transaction
from phantommesh.nlattr import attributes
from phantommesh.routing.fastlane import SLICE, Hop, Lane, alter, choose, key_of, whole
from phantommesh.routing.forwarding import Frame
from phantommesh.routing.leases import Forward

FRAME = Frame("pm", 51700, IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"), 12_500_000)
ONE, TWO = Address("192.0.2.7", 40001), Address("192.0.2.8", 40002)
SEVEN = Address("2001:db8::7", 7)
NEAR = Hop("192.0.2.254", 2, 1500)

_NEW, _DELETE = 12, 14  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM


def held(changes: list[Change]) -> dict[str, dict[bytes, bytes]]:
    """The elements that are there after these changes, by set. A wrong delete fails."""
    return follow({}, changes)


def follow(sets: dict[str, dict[bytes, bytes]], changes: list[Change]) -> dict[str, dict[bytes, bytes]]:
    for change in changes:
        if change.kind not in (_NEW, _DELETE):
            continue
        fields = dict(attributes(change.body))
        elements = sets.setdefault(fields[2].rstrip(b"\0").decode(), {})
        for _, element in attributes(fields[3]):
            parts = dict(attributes(element))
            key = dict(attributes(parts[1]))[1]
            if change.kind == _DELETE:
                del elements[key]
            else:
                assert key not in elements
                elements[key] = dict(attributes(parts.get(2, b""))).get(1, b"")
    return {name: elements for name, elements in sets.items() if elements}


def test_a_packet_is_found_by_source_type_and_tag_and_goes_to_the_target() -> None:
    forward = Forward(1, 5, ONE, TWO)
    found = held(whole(FRAME, ["eth0"], 1500, [Lane(forward, NEAR, 3)]))
    key = bytes((192, 0, 2, 7)) + b"\x9c\x41\0\0" + b"\x04\x05\0\0" + struct.pack("=I", 3)
    assert key_of(Lane(forward, NEAR, 3)) == key
    data = found["lanes4"][key]
    assert data[:8] == bytes((192, 0, 2, 1, 192, 0, 2, 8))
    assert data[8:12] == b"\xc9\xf4\x9c\x42"
    assert data[12:16] == bytes((192, 0, 2, 254))
    assert int.from_bytes(data[16:], "little") == 2 or int.from_bytes(data[16:], "big") == 2
    assert set(found["leased4"]) == {key}


def test_a_way_that_carries_less_than_the_others_has_no_lane() -> None:
    forwards = [Forward(n, 0, ONE, Address(f"192.0.2.{n}", n)) for n in range(10, 15)]
    hops = {each.target.host: NEAR for each in forwards} | {ONE.host: Hop("192.0.2.253", 4, 1500)}
    hops["192.0.2.10"] = Hop("192.0.2.254", 3, 1400)
    hops["192.0.2.11"] = Hop("192.0.2.254", 3, 9000)
    del hops["192.0.2.12"]
    mtu, lanes = choose(forwards, hops)
    assert mtu == 1500
    assert {lane.forward.number for lane in lanes} == {11, 13, 14}
    assert {lane.arrives for lane in lanes} == {4}
    del hops[ONE.host]
    assert choose(forwards, hops) == choose(forwards, {}) == (0, frozenset())


def test_two_ways_alike_in_number_have_the_limit_of_the_narrower_one() -> None:
    forwards = [Forward(1, 0, ONE, TWO), Forward(2, 0, TWO, ONE)]
    hops = {ONE.host: NEAR, TWO.host: Hop("192.0.2.254", 3, 1400)}
    mtu, lanes = choose(forwards, hops)
    assert mtu == 1400
    assert len(lanes) == 2


HOPS = st.builds(Hop, st.sampled_from(("192.0.2.253", "192.0.2.254")), st.integers(1, 9), st.just(1500))
HOPS6 = st.builds(Hop, st.sampled_from(("fe80::1", "2001:db8::9")), st.integers(1, 9), st.just(1500))


def spot(address: str) -> st.SearchStrategy[Address]:
    return st.builds(Address, st.just(address), st.integers(1, 3))


def lane(source: str, target: str, hops: st.SearchStrategy[Hop]) -> st.SearchStrategy[Lane]:
    forward = st.builds(Forward, st.integers(1, 50), st.integers(0, 3), spot(source), spot(target))
    return st.builds(Lane, forward, hops, st.integers(1, 2))


LANES = st.lists(
    lane("192.0.2.7", "192.0.2.8", HOPS) | lane("2001:db8::6", "2001:db8::7", HOPS6),
    unique_by=lambda each: key_of(each),
    max_size=8,
).map(frozenset)


@given(LANES, LANES)
def test_a_change_leads_from_one_to_the_other(before: frozenset[Lane], after: frozenset[Lane]) -> None:
    sets = held(whole(FRAME, ["eth0"], 1500, before))
    assert follow(sets, alter(FRAME, before, after)) == held(whole(FRAME, ["eth0"], 1500, after))


def test_any_number_of_lanes_fits_into_messages() -> None:
    hop = Hop("fe80::1", 2, 1500)
    lanes = {
        Lane(Forward(n, n % 256, Address(str(ip_address(n << 64 | 1)), 1), SEVEN), hop, 3)
        for n in range(1, 2 * SLICE + 2)
    }
    changes = whole(FRAME, ["eth0"], 1500, lanes)
    assert len(held(changes)["lanes6"]) == 2 * SLICE + 1
    encode_transaction(changes, 5, sequence=1)
    assert all(len(change.body) < 0xFFFF for change in changes)


def test_a_relay_of_one_family_has_no_set_for_the_other() -> None:
    frame = Frame("pm", 51700, IPv4Address("192.0.2.1"), None, 12_500_000)
    text = b"".join(change.body for change in whole(frame, ["eth0"], 1500, []))
    assert b"lanes4" in text
    assert b"lanes6" not in text
