# SPDX-License-Identifier: GPL-3.0-or-later
"""Candidates in a record: what goes in comes out, and what no node may publish is refused by name."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from phantommesh.dimensions import DIMENSIONS
from phantommesh.records.candidate import MAX_CANDIDATES, Candidate, Kind, flaw
from phantommesh.records.record import (
    MAX_BODY_BYTES,
    MAX_CONTROL_ENDPOINTS,
    NodeRecord,
    RecordError,
    RelayOffer,
    each_wg_ports_at,
    open_record,
    sign_record,
)
from tests.support.makemesh import NOW, identity, make_mesh, plain_record

PORTS = tuple(range(1, DIMENSIONS + 1))
candidates = st.builds(
    Candidate.of,
    st.sampled_from(Kind),
    st.ip_addresses(),
    st.integers(1, 65535),
    st.one_of(st.just(()), st.tuples(*[st.integers(0, 65535)] * DIMENSIONS)),
    st.integers(0, 255),
)
GOOD = Candidate.of(Kind.SEEN, ip_address("203.0.113.7"), 40_001, PORTS)


@given(st.lists(candidates, max_size=MAX_CANDIDATES))
def test_candidates_come_back_from_a_record_as_they_were(found: list[Candidate]) -> None:
    assert flaw(found) == ""
    data = msgspec.msgpack.encode(structs.replace(plain_record(identity("a")), candidates=tuple(found)))
    back = msgspec.msgpack.decode(data, type=NodeRecord)
    assert back.candidates == tuple(found)
    assert [ip_address(one.host) for one in back.candidates] == [one.ip for one in found]


@pytest.mark.parametrize(
    "bad",
    [
        {"address": b"abc"},
        {"address": b""},
        {"port": 0},
        {"port": 65_536},
        {"wg_ports": (1,)},
        {"wg_ports": (65_536, *PORTS[1:])},
        {"wg_ports": (-1, *PORTS[1:])},
        {"kind": -1},
        {"kind": 2**63},
        {"uplink": -1},
    ],
)
def test_what_no_node_may_publish_is_refused(bad: dict[str, Any]) -> None:
    wrong = structs.replace(GOOD, **bad)
    assert flaw([GOOD, wrong])
    mesh, me = make_mesh(), identity("a")
    record = structs.replace(plain_record(me), candidates=(wrong,))
    with pytest.raises(RecordError, match="candidate"):
        sign_record(me, record, mesh.certify(me, "a"), mesh.authority.der)


def test_too_many_are_refused() -> None:
    assert not flaw([GOOD] * MAX_CANDIDATES)
    assert flaw([GOOD] * (MAX_CANDIDATES + 1))


def test_a_full_record_is_within_its_bound() -> None:
    wide = Candidate.of(Kind.SEEN, ip_address("2001:db8::1"), 65_535, (65_535,) * DIMENSIONS, 255)
    longest = "a" * 63 + "." + "b" * 63 + "." + "c" * 63 + ".com:51800"
    record = structs.replace(
        plain_record(identity("a")),
        control=(longest,) * MAX_CONTROL_ENDPOINTS,
        candidates=(wide,) * MAX_CANDIDATES,
    )
    assert len(msgspec.msgpack.encode(record)) <= MAX_BODY_BYTES


def test_a_kind_of_a_later_version_is_taken() -> None:
    assert not flaw([structs.replace(GOOD, kind=9)])


def test_a_port_that_is_not_known_is_the_records() -> None:
    partly = structs.replace(GOOD, wg_ports=(0, *PORTS[1:]))
    assert [partly.wg_port(i, 9) for i in (0, 1)] == [9, 2]
    assert structs.replace(GOOD, wg_ports=()).wg_port(3, 9) == 9


def test_a_record_with_candidates_is_opened() -> None:
    mesh, me = make_mesh(), identity("a")
    record = structs.replace(plain_record(me), candidates=(GOOD,))
    signed = sign_record(me, record, mesh.certify(me, "a"), mesh.authority.der)
    assert open_record(mesh.root, signed, NOW)[1].candidates == (GOOD,)


@pytest.mark.parametrize(
    "offer", [RelayOffer(0, 1), RelayOffer(65_536, 1), RelayOffer(1, 0), RelayOffer(1, 4)]
)
def test_a_relay_that_nobody_could_use_is_refused(offer: RelayOffer) -> None:
    mesh, me = make_mesh(), identity("a")
    with pytest.raises(RecordError, match="relay"):
        sign_record(
            me, structs.replace(plain_record(me), relay=offer), mesh.certify(me, "a"), mesh.authority.der
        )


@pytest.mark.parametrize("ports", [(443, 80, 22), (0,), (65536,), (-1,)])
def test_tcp_ports_that_nobody_could_use_are_refused(ports: tuple[int, ...]) -> None:
    mesh, me = make_mesh(), identity("a")
    with pytest.raises(RecordError, match="TCP ports"):
        sign_record(
            me, structs.replace(plain_record(me), tcp_ports=ports), mesh.certify(me, "a"), mesh.authority.der
        )


def test_tcp_ports_are_read_and_a_record_without_them_too() -> None:
    mesh, me = make_mesh(), identity("a")
    naming = structs.replace(plain_record(me), tcp_ports=(443, 8443))
    signed = sign_record(me, naming, mesh.certify(me, "a"), mesh.authority.der)
    assert open_record(mesh.root, signed, NOW)[1].tcp_ports == (443, 8443)
    earlier = msgspec.to_builtins(naming)[:9]
    assert msgspec.convert(earlier, NodeRecord, from_attributes=False).tcp_ports == ()


def test_an_offer_of_a_relay_is_read_and_a_record_without_one_too() -> None:
    mesh, me = make_mesh(), identity("a")
    offering = structs.replace(plain_record(me), relay=RelayOffer(51_810, 3))
    signed = sign_record(me, offering, mesh.certify(me, "a"), mesh.authority.der)
    assert open_record(mesh.root, signed, NOW)[1].relay == RelayOffer(51_810, 3)
    earlier = msgspec.msgpack.decode(signed.body)[:8]
    assert msgspec.convert(earlier, NodeRecord, from_attributes=False).relay is None


def test_all_ports_that_are_told_of_an_address_are_tried_the_mapped_ones_first() -> None:
    seen = tuple(port + 1000 for port in PORTS)
    mapped = Candidate.of(Kind.MAPPED, GOOD.ip, 51_800, PORTS)
    both = (mapped, Candidate.of(Kind.SEEN, GOOD.ip, 40_000, (0, *seen[1:])))
    record = structs.replace(plain_record(identity("a")), control=("192.0.2.1:51800",), candidates=both)
    own = record.wg_ports
    assert each_wg_ports_at(record, GOOD.host) == [PORTS, (own[0], *seen[1:])]
    assert each_wg_ports_at(record, "192.0.2.1") == [own]  # an operator has written it down
    written = structs.replace(record, control=(f"{GOOD.host}:51801",))
    assert each_wg_ports_at(written, GOOD.host) == [own]
