# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kind of NAT witnesses show."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.management.netview import NAT_KINDS
from phantommesh.node.natkind import Nat, nat_of
from phantommesh.node.whereabouts import Place, Seen

PORT, WG = 51800, tuple(range(51820, 51827))
OWN, PUBLIC, OTHER, SIX = map(ip_address, ("192.168.1.5", "203.0.113.7", "198.51.100.9", "2001:db8::7"))


def seen(control: Place | None, *wireguard: int) -> Seen:
    places = tuple(None if control is None else Place(control.address, port) for port in wireguard)
    return Seen(1.0, control, places, 1)


def nat(*words: Seen, version: int = 4) -> Nat:
    return nat_of({OWN}, PORT, WG, words, version)


def test_nobody_has_said_anything() -> None:
    assert nat() == nat(seen(None)) == nat(seen(Place(SIX, PORT))) == Nat("unknown")


def test_members_see_the_own_address() -> None:
    assert nat(seen(Place(OWN, PORT), *WG), seen(Place(OWN, PORT))) == Nat("none", witnesses=2)
    assert nat_of({SIX}, PORT, WG, [seen(Place(SIX, PORT))], 6).kind == "none"


def test_another_address_with_the_own_ports() -> None:
    found = nat(seen(Place(PUBLIC, PORT), *WG), seen(Place(PUBLIC, PORT), *WG))
    assert found == Nat("port-preserving", (Place(PUBLIC, PORT),), 2)


def test_another_port_that_is_the_same_for_all() -> None:
    mapped = tuple(range(40001, 40008))
    words = [seen(Place(PUBLIC, 40000), *mapped)] * 2
    assert nat(*words).kind == "other-port"
    assert nat(seen(Place(PUBLIC, PORT), *mapped)).kind == "other-port"  # of WireGuard's


def test_another_port_for_each_member() -> None:
    assert nat(seen(Place(PUBLIC, 40000)), seen(Place(PUBLIC, 40001))).kind == "random"
    assert nat(seen(Place(PUBLIC, PORT), 40001), seen(Place(PUBLIC, PORT), 40002)).kind == "random"


def test_two_uplinks_are_two_nats() -> None:
    assert nat(seen(Place(PUBLIC, PORT), *WG), seen(Place(OTHER, PORT), *WG)).kind == "port-preserving"
    assert nat(seen(Place(PUBLIC, 40000)), seen(Place(OTHER, 40001))).kind == "other-port"


def test_a_witness_of_the_own_network_shows_no_nat_and_hides_none() -> None:
    found = nat(seen(Place(OWN, PORT), *WG), seen(Place(PUBLIC, 40000)))
    assert (found.kind, found.witnesses) == ("other-port", 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([OWN, PUBLIC, OTHER, SIX]), st.integers(1, 65535), st.lists(st.integers(1, 65535))
        )
    )
)
def test_any_words_give_a_kind(words: list[tuple[object, int, list[int]]]) -> None:
    for version in (4, 6):
        found = nat(*(seen(Place(a, p), *ports) for a, p, ports in words), version=version)  # type: ignore[arg-type]
        assert found.kind in NAT_KINDS
        assert all(place.address != OWN and place.address.version == version for place in found.public)
