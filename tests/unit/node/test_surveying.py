# SPDX-License-Identifier: GPL-3.0-or-later
"""Members tell each other of their links: samples that both ends draw alike, bounded, and believed no more
than what advice needs."""

from __future__ import annotations

from functools import partial
from ipaddress import ip_address
from statistics import mean

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from phantommesh.control import messages
from phantommesh.node.surveying import Sweep, answer, stations
from phantommesh.paths.effects import PathView
from phantommesh.paths.state import PathState
from phantommesh.records.candidate import Candidate
from phantommesh.records.candidate import Kind as Source
from phantommesh.records.record import sign_record
from phantommesh.records.roster import Roster
from phantommesh.routing.graph import Station, Weakness, analyse
from phantommesh.routing.neighbours import ALL_PAIRS, MOST, WANTED, Link, by_both, link_of, reported, share_of
from phantommesh.routing.ways import Kind, Way
from phantommesh.trust.identity import NodeId
from phantommesh.trust.revocations import Revocations
from phantommesh.wireguard.device import Endpoint
from tests.support.makemesh import NOW as WALL
from tests.support.makemesh import identity, make_mesh, plain_record
from tests.unit.routing.test_graph import DIRECT, NOW, Mesh, node

SALT = b"saltsalt"


def path(rtt: float | None, *, answers: bool = True) -> PathView:
    return PathView(PathState.UP, 1.0, rtt, 0.001, 0.01, 1.0, 1.0, 1.0, 1.0, answers)


def swept(mesh: Mesh, me: NodeId, silent: tuple[NodeId, ...] = ()) -> Sweep:
    """A sweep by one member, in which all others answer by their own code, over the wire."""
    sweep = Sweep(me, mesh.words, SALT)
    for step in (sweep.begin, sweep.confirm):
        for member, question in step(mesh.words[me].get):
            if member in silent:
                continue
            asked = messages.decode_request_untrusted(messages.encode(question))
            assert isinstance(asked, messages.AskNeighbours)
            word = mesh.words[member]
            said = messages.encode(answer(member, mesh.words.keys() - {member}, word.get, asked))
            told = messages.decode_answer_untrusted(said)
            assert isinstance(told, messages.NeighboursAre) and len(said) < 10_000
            sweep.heard(member, told)
    return sweep


def test_both_ends_of_a_large_mesh_tell_of_the_same_links() -> None:
    mesh = Mesh()
    members = mesh.whole(200)
    sweep = swept(mesh, members[0])
    edges = by_both(sweep.words, mesh.stations)
    assert 0.8 * WANTED < 2 * len(edges) / len(members) < 1.2 * WANTED
    assert all(len(word) <= MOST for word in sweep.words.values())
    found = analyse(sweep.survey(mesh.stations, NOW, None))
    assert found.findings == () and found.summary is not None
    assert 0.8 < mean(had.links for had in found.summary.members.values()) <= 1.0


def test_a_member_with_few_links_is_found_in_a_large_mesh() -> None:
    """It tells all of its links, and their other ends are asked for them. Without that its few links are
    hardly ever in the sample."""
    mesh = Mesh()
    members = mesh.whole(150)
    one, two = mesh.member(), mesh.member()
    mesh.join(one, members[7])
    for other in members[20:24]:
        mesh.join(two, other)
    found = analyse(swept(mesh, members[0]).survey(mesh.stations, NOW, None))
    assert [(f.kind, f.cut) for f in found.findings if f.cut] == [(Weakness.CUT_MEMBER, (one,))]
    assert [f.members for f in found.findings if f.kind is Weakness.BRIDGE] == [(members[7], one)]


def test_members_of_earlier_versions_have_the_links_that_others_tell_of() -> None:
    mesh = Mesh()
    members = mesh.ring(12)
    found = analyse(swept(mesh, members[0], tuple(members[3:6])).survey(mesh.stations, NOW, None))
    assert found.findings == ()


def test_a_member_that_lies_makes_nobody_else_look_bad_and_nothing_look_sound() -> None:
    mesh = Mesh()
    members, behind = mesh.ring(8), mesh.whole(3)
    for one in behind:
        mesh.join(members[0], one)
    liar = members[4]
    mesh.words[liar] = dict.fromkeys(mesh.stations, DIRECT) | {members[5]: Link(9.0, 9.0, 1.0, Kind.RELAYED)}
    found = analyse(swept(mesh, members[1]).survey(mesh.stations, NOW, None))
    assert [f.members for f in found.findings if f.kind is Weakness.CUT_MEMBER] == [(members[0],)]
    assert not any(set(f.members) & {members[5], members[3]} for f in found.findings)


def test_too_few_answers_are_not_analysed() -> None:
    mesh = Mesh()
    members = mesh.ring(12)
    assert swept(mesh, members[0]).enough
    assert not swept(mesh, members[0], tuple(members[3:])).enough


neighbours = st.builds(
    messages.Neighbour,
    peer=st.integers(0, 9).map(node),
    rtt=st.integers(0, 60_000_000),
    jitter=st.integers(0, 60_000_000),
    loss=st.integers(0, 10_000),
    capacity=st.integers(0, 2**32),
    kind=st.integers(0, 2),
    relays=st.lists(st.integers(0, 9).map(node), max_size=2).map(tuple),
)


@given(st.lists(st.lists(neighbours, max_size=messages.MAX_NEIGHBOURS), max_size=5), st.integers(1, 5))
def test_whatever_is_answered_is_bounded_and_about_members(
    answers: list[list[messages.Neighbour]], who: int
) -> None:
    sweep = Sweep(node(1), map(node, range(1, 6)), SALT)
    sweep.begin(lambda peer: None)
    for said in answers:
        sweep.heard(node(who), messages.NeighboursAre(tuple(said)))
    for member, word in sweep.words.items():
        assert member not in word and word.keys() <= {node(n) for n in range(1, 6)}
    there = {node(n): Station(f"m{n}") for n in range(1, 6)}
    assert analyse(sweep.survey(there, NOW, None)).summary is not None
    for _, question in sweep.confirm(lambda peer: None):
        assert len(question.about) <= messages.MAX_ABOUT


@given(st.binary(min_size=8, max_size=8), st.integers(1, ALL_PAIRS), st.integers(0, 99), st.integers(0, 99))
def test_a_pair_is_told_by_both_ends_or_by_none(salt: bytes, share: int, one: int, two: int) -> None:
    assert reported(salt, share, node(one), node(two)) == reported(salt, share, node(two), node(one))
    assert reported(salt, ALL_PAIRS, node(one), node(two))


def test_a_small_mesh_tells_all_and_a_large_one_a_share() -> None:
    assert share_of(2 * WANTED) == ALL_PAIRS
    assert WANTED - 1 < share_of(1000) * 1000 / ALL_PAIRS < WANTED + 1


def test_the_link_to_a_peer_is_its_best_way() -> None:
    relay = node(9)
    relayed = Way(Kind.RELAYED, Endpoint("192.0.2.1", 1), relay=relay)
    tcp = Way(Kind.FRAMED, Endpoint("127.0.0.1", 1))
    views = [path(0.1), path(0.01), path(0.03), path(None), path(0.02, answers=False), path(0.5), path(0.5)]
    assert link_of(views, [relayed, None, None, None, None, tcp, tcp]) == Link(0.03, 0.001, 0.01, Kind.DIRECT)
    assert link_of(views[:1], [relayed]) == Link(0.1, 0.001, 0.01, Kind.RELAYED, relays=(relay,))
    assert link_of([path(0.1), path(0.5)], [relayed, tcp]) == Link(0.5, 0.001, 0.01, Kind.FRAMED)
    assert link_of(views[3:5], [None, None]) is None


def test_members_at_one_public_address_share_a_place_and_private_ones_say_nothing() -> None:
    mesh, entries = make_mesh(), []
    roster = Roster(mesh.root, Revocations(mesh.root))
    for name, seen in (("a", "198.18.0.1"), ("b", "8.8.4.4"), ("c", "8.8.4.4"), ("d", "10.0.0.1")):
        one = identity(name)
        candidate = Candidate.of(Source.SEEN, ip_address(seen), 7)
        record = structs.replace(plain_record(one), control=(), candidates=(candidate,), region="eu")
        roster.add(sign_record(one, record, mesh.certify(one, name), mesh.authority.der), WALL)
        entry = roster.get(one.node_id)
        assert entry is not None
        entries.append(entry)
    found = {station.name: station for station in stations(entries).values()}
    assert found["b"].places == found["c"].places == {"8.8.4.4"}
    assert not found["a"].places and not found["d"].places
    assert all(station.nat and station.region == "eu" for station in found.values())


def test_few_links_are_looked_at_for_one_answer() -> None:
    """A member asks this once in a while, and there may be thousands of peers."""
    looked = list[NodeId]()

    def look(looked: list[NodeId], peer: NodeId) -> Link:
        looked.append(peer)
        return DIRECT

    peers = [node(n) for n in range(1, 2001)]
    question = messages.AskNeighbours(SALT, share_of(2000))
    assert 5 < len(answer(node(0), peers, partial(look, looked), question).links) <= MOST
    assert len(looked) < 2 * MOST
