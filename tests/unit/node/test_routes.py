# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes as one node sees them: whose offers count, in which order, and what is told of changes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from msgspec import structs

from phantommesh.config.sections import RoutesSection
from phantommesh.node.routes import Claim, Routes, offered
from phantommesh.records.record import Condition, sign_record
from phantommesh.records.roster import Entry, Roster
from phantommesh.routable import EXITS, Network
from phantommesh.routing.prefixes import Taken
from phantommesh.trust.certificates import Role
from phantommesh.trust.identity import Identity, NodeId, format_node_id
from phantommesh.trust.issuing import choose_ip4
from phantommesh.trust.revocations import Revocations
from phantommesh.trust.routes import Grant
from tests.support.makemesh import NOW, identity, make_mesh, plain_record

MESH = make_mesh()
OVERLAY = (MESH.mesh.network4, MESH.mesh.network6)
SITE, LAB = ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")
ONE, TWO = sorted((identity("one"), identity("two")), key=lambda node: node.node_id)


def entry(
    node: Identity, name: str, grants: tuple[Network, ...], says: tuple[Network, ...], region: str = ""
) -> Entry:
    roster = Roster(MESH.root, Revocations(MESH.root))
    ip4 = choose_ip4(MESH.mesh, node.node_id, ())
    cert = MESH.authority.issue(node.spki, name, Role.NODE, ip4, NOW, grants=map(Grant, grants))
    record = structs.replace(plain_record(node), routes=tuple(map(str, says)), region=region)
    assert roster.add(sign_record(node, record, cert, MESH.authority.der), NOW)
    found = roster.get(node.node_id)
    assert found is not None
    return found


def test_an_offer_needs_both_the_certificate_and_the_record() -> None:
    some = entry(ONE, "one", (SITE, LAB), (SITE,))
    assert offered(some, frozenset()) == (SITE,)
    assert offered(entry(ONE, "one", (SITE,), (SITE, LAB)), frozenset()) == (SITE,)
    assert offered(some, {Grant(SITE).id_for(ONE.node_id)}) == ()
    assert offered(some, {Grant(SITE).id_for(TWO.node_id)}) == (SITE,)


def test_routers_of_the_own_region_come_first() -> None:
    here, there = (
        entry(TWO, "two", (SITE,), (SITE,), "eu"),
        entry(ONE, "one", (SITE,), (SITE,), "us"),
    )
    for region, wanted in (("eu", (TWO, ONE)), ("us", (ONE, TWO)), ("", (ONE, TWO)), ("as", (ONE, TWO))):
        routes = Routes(RoutesSection(accept=("all",)), OVERLAY, region)
        routes.look([here, there], frozenset(), ())
        assert routes.taken == (Taken(SITE, tuple(node.node_id for node in wanted)),)


def test_an_exit_is_taken_by_name_alone_in_the_order_of_the_names() -> None:
    one, two = entry(ONE, "one", EXITS, EXITS), entry(TWO, "two", (*EXITS[:1], SITE), (*EXITS[:1], SITE))
    for names, four, six in (
        ((), (), ()),
        (("two", "one"), (TWO, ONE), (ONE,)),
        (("one", "two"), (ONE, TWO), (ONE,)),
        (("two",), (TWO,), ()),
        (("three",), (), ()),
    ):
        routes = Routes(RoutesSection(accept=("all",), exit=names), OVERLAY)
        routes.look([one, two], frozenset(), ())
        found = {taken.prefix: taken.routers for taken in routes.taken}
        assert found.pop(SITE) == (TWO.node_id,)
        wanted = zip(EXITS, (four, six), strict=True)
        assert found == {gate: tuple(node.node_id for node in by) for gate, by in wanted if by}
        assert routes.allows(EXITS[0]) == bool(names) and routes.allows(SITE)
        assert not routes.conflicts


def test_an_exit_that_is_named_by_its_node_id_keeps_its_place_from_one_that_takes_its_name() -> None:
    text = format_node_id(ONE.node_id)
    other = entry(TWO, "one", EXITS, EXITS)
    for exits, wanted in (((text,), ()), (("one",), (TWO,)), ((text, "one"), (TWO,))):
        routes = Routes(RoutesSection(exit=exits), OVERLAY)
        routes.look([other], frozenset(), ())
        assert [taken.routers for taken in routes.taken] == [
            (node.node_id,) for node in wanted for _ in EXITS
        ]
    routes = Routes(RoutesSection(exit=(text,)), OVERLAY)
    routes.look([entry(ONE, "new", EXITS, EXITS), entry(TWO, text, EXITS, EXITS)], frozenset(), ())
    assert [taken.routers for taken in routes.taken] == [(ONE.node_id,)] * 2


def test_an_exit_whose_grant_was_withdrawn_is_taken_no_more() -> None:
    routes = Routes(RoutesSection(exit=("one",)), OVERLAY)
    routes.look([entry(ONE, "one", EXITS, EXITS)], {Grant(EXITS[0]).id_for(ONE.node_id)}, ())
    assert [taken.prefix for taken in routes.taken] == [EXITS[1]]
    routes.look([entry(ONE, "one", (), EXITS)], frozenset(), ())
    assert routes.taken == ()


def test_changes_are_told_once() -> None:
    routes, nobody = Routes(RoutesSection(accept=("10.0.0.0/8",)), OVERLAY), frozenset[NodeId]()
    one, two = entry(ONE, "one", (SITE,), (SITE,)), entry(TWO, "two", (SITE,), (SITE,))
    told = []
    for entries in ([two], [two], [two, one], [one], [one, two], []):
        changes, _ = routes.look(entries, nobody, ())
        told.append([(change.kind, change.prefix, change.routers[:1]) for change in changes])
    assert told == [
        [("taken", SITE, (TWO.node_id,))],
        [],
        [("moved", SITE, (ONE.node_id,))],
        [],
        [],
        [("lost", SITE, ())],
    ]


def test_a_false_claim_is_told_once_and_moves_nothing() -> None:
    routes = Routes(RoutesSection(accept=("all",)), OVERLAY)
    liar = entry(ONE, "one", (), (LAB,))
    assert routes.look([liar], frozenset(), ()) == ([], [Claim(ONE.node_id, "one", str(LAB))])
    assert routes.look([liar], frozenset(), ()) == ([], [])
    assert routes.taken == ()


def test_a_node_takes_nothing_that_it_advertises() -> None:
    entries = [entry(ONE, "one", (SITE, LAB), (SITE, LAB))]
    routes = Routes(RoutesSection(accept=("all",), advertise=(str(SITE),)), OVERLAY)
    routes.look(entries, frozenset(), ())
    assert routes.taken == (Taken(LAB, (ONE.node_id,)),)


def test_what_is_there_for_a_prefix_of_ones_own_is_taken_of_nobody() -> None:
    """Members' packets for the prefix have to find the site here, by whatever route."""
    mapped = RoutesSection(advertise=("10.77.0.0/16",), sites={"10.77.0.0/16": str(SITE)}, accept=("all",))
    routes = Routes(mapped, OVERLAY)
    routes.look([entry(ONE, "one", (SITE, LAB), (SITE, LAB))], frozenset(), ())
    assert routes.taken == (Taken(LAB, (ONE.node_id,)),)
    (conflict,) = routes.conflicts
    assert conflict.prefix == SITE and str(SITE) in conflict.why


def test_a_router_that_drains_comes_last_whatever_its_region_and_place() -> None:
    one, two = (
        entry(ONE, "one", (EXITS[0], SITE, EXITS[1]), (EXITS[0], SITE, EXITS[1]), "eu"),
        entry(TWO, "two", (EXITS[0], SITE, EXITS[1]), (EXITS[0], SITE, EXITS[1])),
    )
    gone = replace(one, record=structs.replace(one.record, condition=Condition(draining=True)))
    routes = Routes(RoutesSection(accept=("all",), exit=("one", "two")), OVERLAY, "eu")
    routes.look([one, two], frozenset(), ())
    assert {taken.routers for taken in routes.taken} == {(ONE.node_id, TWO.node_id)}
    routes.look([gone, two], frozenset(), ())
    assert {(taken.routers, taken.leaving) for taken in routes.taken} == {
        ((TWO.node_id, ONE.node_id), frozenset({ONE.node_id}))
    }
