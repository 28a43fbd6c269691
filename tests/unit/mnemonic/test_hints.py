# SPDX-License-Identifier: GPL-3.0-or-later
"""Hints of others: weighed, bounded, and of no use to a liar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import pytest

from phantommesh.mnemonic import hints as module
from phantommesh.mnemonic.hints import (
    BURST,
    CHARGES,
    CHECKS_AT_ONCE,
    HALF_LIFE,
    HOP,
    HOUR,
    MOST_HINTED,
    MOST_HINTERS,
    MOST_HOPS,
    MOST_LOWERING,
    ONE,
    SETTLED,
    Hinter,
    Hints,
)
from phantommesh.mnemonic.reputation import HALF_LIFE as WEIGHT_HALF_LIFE
from phantommesh.mnemonic.reputation import LIAR_FOR, Reputation, Reputations
from phantommesh.mnemonic.reputation import MOST as MOST_STANDINGS
from phantommesh.mnemonic.saying import LIFE, MOST_HINTS, RENEWED, Hint, OwnHints, Said, sign_hints
from phantommesh.trust.identity import Identity, NodeId
from tests.support.makemesh import identity

NOW = 1_790_000_000.0
ME, RELAY, OTHER_RELAY = identity("me").node_id, identity("relay").node_id, identity("other relay").node_id
A, B, C = identity("a"), identity("b"), identity("c")
BAD = "198.51.100.7"
LABELS = ("a", "b", "c")


class Mesh:
    """A node that hears hints of members: ``authorities`` says who introduced whom."""

    def __init__(self, authorities: Mapping[Identity, bytes] | None = None) -> None:
        self.hinters = {
            one.node_id: Hinter(one.public_key, by)
            for one, by in (authorities or {A: b"root", B: b"root", C: b"other"}).items()
        }
        self.members = dict[str, float]()  # addresses that are never bannable, since when
        self.hints = Hints(ME, self.hinters.get)
        self.now = NOW

    def hear(
        self, who: Identity, *sources: str, by: NodeId | None = None, hops: int = 0, strength: int = 100,
        made: float | None = None,
    ) -> int | None:  # fmt: skip
        made = self.now if made is None else made
        said = tuple(Hint("scan", source, strength, int(made + LIFE)) for source in sources)
        data = sign_hints(who, Said(who.node_id, int(made * 1000), said))
        return self.take(data, by or who.node_id, hops)

    def take(self, data: bytes, by: NodeId, hops: int = 0) -> int | None:
        return self.hints.take(data, by, hops, self.members.get, self.now)

    def lowering(self, address: str = BAD) -> float:
        return self.hints.lowering(address, self.now)

    def confirm(self, who: Identity, times: int) -> None:
        for _ in range(times):
            self.hints.reputations.confirm(who.node_id, self.now)


def test_nothing_is_lower_where_nobody_hinted() -> None:
    assert Mesh().lowering() == 0.0 and Mesh().lowering("no address") == 0.0


def test_a_stranger_lowers_by_half_of_what_it_says() -> None:
    mesh = Mesh()
    assert mesh.hear(A, BAD, strength=50) == 1
    assert mesh.lowering() == pytest.approx(0.25)
    assert mesh.lowering("198.51.100.8") == 0.0


def test_a_hint_about_a_block_counts_for_all_of_its_addresses() -> None:
    mesh = Mesh()
    mesh.hear(A, "2001:db8:1:2::")
    assert mesh.lowering("2001:db8:1:2::99") == 0.5


def test_a_hint_ages_and_ends() -> None:
    mesh = Mesh()
    mesh.hear(A, BAD)
    mesh.now += HALF_LIFE
    assert mesh.lowering() == pytest.approx(0.25)
    mesh.now = NOW + LIFE
    assert mesh.lowering() == 0.0
    assert mesh.hints.summary(mesh.now).hinted == 1
    mesh.hints.sweep(mesh.members.get, mesh.now)
    assert mesh.hints.summary(mesh.now).hinted == 0


def test_each_member_that_passed_a_hint_on_takes_some_of_its_force() -> None:
    mesh = Mesh()
    assert mesh.hear(A, BAD, by=RELAY, hops=2) == 3
    assert mesh.lowering() == pytest.approx(0.5 * HOP**2)
    last = Mesh()
    assert last.hear(A, BAD, by=RELAY, hops=MOST_HOPS) is None and last.lowering() > 0.0
    over = Mesh()
    assert over.hear(A, BAD, by=RELAY, hops=MOST_HOPS + 1) is None and over.lowering() == 0.0


def test_a_member_that_passes_a_hint_on_cannot_say_that_it_comes_from_its_origin() -> None:
    mesh = Mesh()
    mesh.hear(A, BAD, by=RELAY, hops=0)
    assert mesh.lowering() == pytest.approx(0.5 * HOP)


def test_two_hinters_of_one_authority_count_as_one() -> None:
    mesh = Mesh()
    for who in (A, B):
        mesh.confirm(who, 20)
        mesh.hear(who, BAD)
    assert mesh.lowering() == ONE
    mesh.confirm(C, 20)
    mesh.hear(C, BAD)
    assert mesh.lowering() == MOST_LOWERING


def test_all_of_whom_nobody_knows_who_introduced_them_count_as_one() -> None:
    mesh = Mesh({A: b"", B: b""})
    mesh.hear(A, BAD)
    mesh.hear(B, BAD)
    assert mesh.lowering() == 0.5


def test_a_threshold_is_never_nought() -> None:
    many = [identity(f"n{number}") for number in range(20)]
    mesh = Mesh({one: one.node_id for one in many})
    for one in many:
        mesh.confirm(one, 1000)
        mesh.hear(one, BAD)
    assert mesh.lowering() == MOST_LOWERING < 1


def test_a_newer_list_takes_the_place_of_the_old_one_and_an_old_one_is_no_news() -> None:
    mesh = Mesh()
    mesh.hear(A, BAD, "198.51.100.8")
    assert mesh.hear(A, "198.51.100.8", made=NOW + 1) == 1
    assert mesh.lowering() == 0.0 and mesh.lowering("198.51.100.8") == 0.5
    assert mesh.hear(A, BAD) is None and mesh.lowering() == 0.0
    assert mesh.hear(A, made=NOW + 2) == 1 and mesh.hints.summary(NOW).hinted == 0
    assert not mesh.hints.dropped


def test_a_nodes_own_list_comes_back_and_is_left() -> None:
    mesh = Mesh()
    me = identity("me")
    mesh.hinters[ME] = Hinter(me.public_key, b"root")
    assert mesh.hear(me, BAD, by=RELAY) is None and mesh.lowering() == 0.0


def drop(mesh: Mesh, data: bytes, by: NodeId = A.node_id) -> dict[str, int]:
    assert mesh.take(data, by) is None and mesh.lowering() == 0.0
    return mesh.hints.summary(mesh.now).dropped


def signed(who: Identity, origin: Identity, *hints: Hint, made: float = NOW) -> bytes:
    return sign_hints(who, Said(origin.node_id, int(made * 1000), hints))


GOOD = Hint("scan", BAD, 100, int(NOW + 60))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"junk", "malformed"),
        (b"\xc0" * 10_000, "malformed"),
        (signed(A, A, GOOD, GOOD), "malformed"),
        (signed(A, A, Hint("scan", "198.51.100.0/24", 100, int(NOW + 60))), "malformed"),
        (signed(A, A, Hint("scan", "2001:db8::1", 100, int(NOW + 60))), "malformed"),
        (signed(A, A, Hint("sc\n", BAD, 100, int(NOW + 60))), "malformed"),
        (signed(A, A, GOOD, made=NOW + module.EARLY + 1), "untimely"),
        (signed(A, A, GOOD, made=NOW - LIFE), "untimely"),
        (signed(B, A, GOOD), "signature"),
        (signed(identity("nobody"), identity("nobody"), GOOD), "stranger"),
    ],
)
def test_what_is_no_list_of_a_member_is_dropped_and_counted(data: bytes, reason: str) -> None:
    assert drop(Mesh(), data) == {reason: 1}


def test_a_sender_has_a_pace() -> None:
    mesh = Mesh()
    for _ in range(BURST):
        mesh.take(b"junk", A.node_id)
    assert mesh.hear(A, BAD) is None and mesh.hints.dropped["hint-rate"] == 1
    assert mesh.hear(B, BAD) == 1


def test_so_many_signatures_are_verified_and_no_more() -> None:
    crowd = [identity(f"n{number}") for number in range(CHECKS_AT_ONCE // BURST + 2)]
    mesh = Mesh(dict.fromkeys((A, *crowd), b"root"))
    for one in crowd:
        for number in range(BURST):
            mesh.take(signed(one, A, GOOD, made=NOW + number / 100), one.node_id, 1)
    assert mesh.hints.dropped["hint-signature"] == CHECKS_AT_ONCE
    assert mesh.hear(A, BAD) is None and mesh.hints.dropped["hint-busy"] > 0
    mesh.now += 1.0
    assert mesh.hear(A, BAD) == 1


def test_a_confirmed_hinter_gains_weight_once_for_each_hint() -> None:
    mesh = Mesh()
    mesh.hear(A, BAD)
    for _ in range(5):
        mesh.hints.banned(BAD, mesh.now, alone=True)
    assert mesh.hints.reputations.weight(A.node_id, mesh.now) == pytest.approx(2 / 3)
    mesh.hear(A, BAD, made=NOW + 1)
    mesh.hints.banned(BAD, mesh.now, alone=True)
    assert mesh.hints.reputations.weight(A.node_id, mesh.now) == pytest.approx(2 / 3)


def test_a_ban_that_needed_the_hint_confirms_nobody() -> None:
    mesh = Mesh()
    mesh.hear(A, BAD)
    mesh.hints.banned(BAD, mesh.now, alone=False)
    assert mesh.hints.reputations.weight(A.node_id, mesh.now) == 0.5


def test_a_false_alarm_costs_weight_and_the_hint_once() -> None:
    mesh = Mesh()
    mesh.hear(A, BAD)
    mesh.hints.refuted(BAD, mesh.now)
    assert mesh.lowering() == 0.0
    mesh.hear(A, BAD, made=NOW + 1)
    assert mesh.lowering() == 0.0
    assert mesh.hints.reputations.weight(A.node_id, mesh.now) == pytest.approx(1 / 3)


def test_four_bans_an_hour_rest_on_one_hinter() -> None:
    mesh = Mesh()
    sources = [f"198.51.100.{number}" for number in range(CHARGES + 1)]
    mesh.hear(A, *sources)
    for source in sources[:CHARGES]:
        assert mesh.lowering(source) > 0.0
        mesh.hints.banned(source, mesh.now, alone=False)
    assert mesh.lowering(sources[CHARGES]) == 0.0
    assert mesh.hints.summary(mesh.now).hinters[0].weight == 0.0
    mesh.hear(C, *sources)
    assert mesh.lowering(sources[CHARGES]) == 0.5  # on the other hinter alone
    mesh.now += HOUR
    mesh.hints.sweep(mesh.members.get, mesh.now)
    assert mesh.lowering(sources[CHARGES]) > 0.25


def test_of_bans_that_were_judged_at_one_time_four_rest_on_one_hinter() -> None:
    mesh = Mesh()
    sources = [f"198.51.100.{number}" for number in range(3 * CHARGES)]
    mesh.hear(A, *sources)
    judged = {source: mesh.lowering(source) for source in sources}
    mesh.now += 60
    banned = list[str]()
    for source in sources:
        if mesh.hints.bears(source, judged[source], mesh.now):
            mesh.hints.banned(source, mesh.now, alone=False)
            banned.append(source)
    assert banned == sources[:CHARGES]


def test_a_hint_about_a_member_exposes_a_liar() -> None:
    mesh = Mesh()
    mesh.confirm(A, 50)
    mesh.members["192.0.2.1"] = NOW - SETTLED
    mesh.hear(A, BAD)
    assert mesh.hear(A, BAD, "192.0.2.1", made=NOW + 1) is None
    assert mesh.lowering() == mesh.lowering("192.0.2.1") == 0.0
    assert mesh.hints.reputations.weight(A.node_id, mesh.now) == 0.0
    mesh.now += LIAR_FOR - 1
    assert mesh.hear(A, BAD) is None
    assert mesh.hints.dropped == {"hint-canary": 1, "hint-liar": 1}
    mesh.now += 2
    assert mesh.hear(A, BAD) == 1 and 0.0 < mesh.lowering() < 0.5


@pytest.mark.parametrize(
    ("source", "since"),
    [
        ("192.0.2.1", NOW - SETTLED + 1),  # a member's since less than an hour
        ("192.0.2.1", inf),  # what only this node knows: its gateway, where it hears a member
        ("192.168.1.1", None),  # private: another machine where the hinter is
        ("64:ff9b::", None),  # all of IPv4, by a translator
        ("fd00::", None),
    ],
)
def test_a_hint_that_its_hinter_could_not_know_to_be_wrong_lowers_nothing_and_costs_nothing(
    source: str, since: float | None
) -> None:
    mesh = Mesh()
    if since is not None:
        mesh.members[source] = since
    assert mesh.hear(A, BAD, source) == 1
    assert mesh.lowering(source) == 0.0 and mesh.lowering() == 0.5
    assert mesh.hints.dropped == {"hint-passed-over": 1}
    assert mesh.hints.reputations.weight(A.node_id, NOW) == 0.5


def test_an_address_that_becomes_a_members_is_hinted_no_more() -> None:
    mesh = Mesh()
    mesh.hear(A, BAD)
    mesh.members[BAD] = NOW
    mesh.hints.sweep(mesh.members.get, mesh.now)
    assert mesh.lowering() == 0.0 and mesh.hints.reputations.weight(A.node_id, NOW) == 0.5


def test_who_is_no_member_any_more_hints_nothing() -> None:
    mesh = Mesh()
    mesh.hear(A, BAD)
    del mesh.hinters[A.node_id]
    mesh.hints.sweep(mesh.members.get, mesh.now)
    assert mesh.lowering() == 0.0 and not mesh.hints.summary(NOW).hinters


def sources(crowd: int) -> list[str]:
    return [f"203.0.{crowd}.{number}" for number in range(MOST_HINTS)]


def test_the_hinted_set_is_bounded_and_what_is_believed_more_finds_room() -> None:
    crowd = [identity(f"n{number}") for number in range(MOST_HINTED // MOST_HINTS + 1)]
    mesh = Mesh(dict.fromkeys((*crowd, A, B), b"root"))
    for number, one in enumerate(crowd):
        mesh.hear(one, *sources(number))
    assert mesh.hints.summary(NOW).hinted == MOST_HINTED
    assert mesh.hints.dropped == {"hint-full": MOST_HINTS}
    mesh.hear(B, BAD)
    assert mesh.lowering() == 0.0
    mesh.confirm(A, 1)
    mesh.hear(A, BAD)
    assert mesh.lowering() == 0.5 and mesh.hints.summary(NOW).hinted == MOST_HINTED


def test_one_authority_has_at_most_half_of_the_hinters() -> None:
    crowd = [identity(f"n{number}") for number in range(MOST_HINTERS // 2 + 1)]
    mesh = Mesh({**dict.fromkeys(crowd, b"root"), C: b"other"})
    for one in crowd[:-1]:
        assert mesh.hear(one) == 1
    assert mesh.hear(crowd[-1]) is None and mesh.hints.dropped == {"hint-full": 1}
    assert mesh.hear(C, BAD) == 1
    mesh.confirm(crowd[-1], 1)
    assert mesh.hear(crowd[-1], "198.51.100.8", made=NOW + 1) == 1
    assert len(mesh.hints.summary(NOW).hinters) == MOST_HINTERS // 2 + 1


# ---- what a node says itself


def test_what_a_node_says_is_what_others_hear() -> None:
    own, mesh = OwnHints(), Mesh()
    assert not own.due(NOW)
    own.tell("scan", BAD, 0.8, NOW + 600, NOW)
    assert own.due(NOW)
    said = own.take(A.node_id, NOW)
    assert not own.due(NOW)
    assert mesh.take(sign_hints(A, said), A.node_id) == 1
    assert mesh.lowering() == pytest.approx(0.4)


def test_a_list_is_renewed_while_there_is_something_in_it() -> None:
    own = OwnHints()
    own.tell("scan", BAD, 1.0, NOW + 10_000, NOW)
    own.take(A.node_id, NOW)
    own.tell("scan", BAD, 1.0, NOW + 10_000, NOW)
    assert not own.due(NOW + RENEWED - 1) and own.due(NOW + RENEWED)
    assert own.take(A.node_id, NOW - 99).made == int(NOW * 1000) + 1  # also where the clock was set back
    assert not own.due(NOW + 10_000) and len(own) == 0


def test_a_hint_is_withdrawn_by_a_list_without_it() -> None:
    own = OwnHints()
    own.tell("scan", BAD, 1.0, NOW + 600, NOW)
    own.take(A.node_id, NOW)
    own.withdraw(BAD)
    assert own.due(NOW) and own.take(A.node_id, NOW).hints == ()
    own.withdraw(BAD)
    assert not own.due(NOW)


def test_private_addresses_and_those_that_became_a_members_are_not_told() -> None:
    own = OwnHints()
    for address in ("192.168.1.1", "10.1.2.3", "100.64.0.9", "fd00::1", "64:ff9b::c633:6407", "127.0.0.1"):
        own.tell("scan", address, 1.0, NOW + 600, NOW)
    assert not own.due(NOW)
    own.tell("scan", BAD, 1.0, NOW + 600, NOW)
    own.tell("scan", "198.51.100.8", 1.0, NOW + 600, NOW)
    own.take(A.node_id, NOW)
    own.withhold({BAD: inf}.get)
    assert own.due(NOW) and [hint.source for hint in own.take(A.node_id, NOW).hints] == ["198.51.100.8"]


def test_the_longest_bans_are_told_where_there_are_too_many() -> None:
    own = OwnHints()
    for number in range(MOST_HINTS + 5):
        own.tell("x" * 40, f"198.51.100.{number}", 2.0, NOW + 60 + number, NOW)
    own.tell("scan", BAD, 1.0, NOW, NOW)
    said = own.take(A.node_id, NOW)
    assert len(said.hints) == MOST_HINTS and min(hint.until for hint in said.hints) == int(NOW) + 65
    mesh = Mesh()
    assert mesh.take(sign_hints(A, said), A.node_id) == 1


# ---- weights


def test_a_weight_decays_to_that_of_a_stranger() -> None:
    reputations = Reputations()
    for _ in range(3):
        reputations.confirm(A.node_id, NOW)
        reputations.refute(B.node_id, NOW)
    assert reputations.weight(A.node_id, NOW) == pytest.approx(0.8)
    assert reputations.weight(B.node_id, NOW) == pytest.approx(0.2)
    later = NOW + WEIGHT_HALF_LIFE
    assert reputations.weight(A.node_id, later) == pytest.approx(2.5 / 3.5)
    assert reputations.weight(B.node_id, later) == pytest.approx(1 / 3.5)
    assert reputations.weight(A.node_id, NOW - 1e6) == pytest.approx(0.8)


def test_reputations_are_written_and_read() -> None:
    reputations, other = Reputations(), Reputations()
    reputations.confirm(A.node_id, NOW)
    reputations.expose(B.node_id, NOW)
    before = reputations.unsaved
    changes = reputations.take_changes()
    assert (before, reputations.unsaved, len(changes)) == (True, False, 2)
    assert all(one in reputations.all() for one in changes)
    assert other.restore([*changes, Reputation(C.node_id, float("nan"), 0.0, NOW)], NOW) == 1
    assert not other.unsaved and not other.take_changes()
    assert other.weight(A.node_id, NOW) == pytest.approx(2 / 3) and other.weight(B.node_id, NOW) == 0.0


def test_reputations_are_bounded_and_liars_are_remembered() -> None:
    reputations = Reputations()
    reputations.expose(A.node_id, NOW)
    names = [NodeId(number.to_bytes(16, "big")) for number in range(MOST_STANDINGS + 10)]
    for number, name in enumerate(names):
        reputations.confirm(name, NOW + 1 + number)
    assert len(reputations.all()) == len(reputations.take_changes()) == MOST_STANDINGS
    assert reputations.weight(A.node_id, NOW + 9999) == 0.0
    assert reputations.weight(names[0], NOW) == 0.5 < reputations.weight(names[-1], NOW)


# ---- a mesh with a liar, and FORTRESS's threshold as it stands in `agents.fortress`


def bans(mesh: Mesh, evidence: Sequence[tuple[str, float]], threshold: float) -> list[str]:
    """Who is banned by evidence that reaches the threshold as hints lower it."""
    found = list[str]()
    for address, weight in evidence:
        lowered = threshold * (1 - mesh.lowering(address))
        if address not in mesh.members and weight >= lowered:
            mesh.hints.banned(address, mesh.now, alone=weight >= threshold)
            found.append(address)
    return found


def test_a_liar_that_hints_members_gets_none_banned_and_loses_its_weight() -> None:
    mesh = Mesh()
    mesh.members = {f"192.0.2.{number}": NOW - 2 * SETTLED for number in range(20)}
    mesh.confirm(A, 10)
    for number in range(20):
        mesh.hear(A, f"192.0.2.{number}", BAD, made=NOW + number / 1000)
    noise = [(address, 7.0) for address in (*mesh.members, BAD)]  # evidence below the threshold
    assert bans(mesh, noise, threshold=10.0) == []
    assert mesh.hints.reputations.weight(A.node_id, NOW) == 0.0


def test_a_node_that_got_the_hint_bans_sooner() -> None:
    hinted, alone = Mesh(), Mesh()
    for one in (A, C):
        hinted.hear(one, BAD)
    seen = {mesh: next(n for n in range(1, 20) if bans(mesh, [(BAD, n)], 10.0)) for mesh in (hinted, alone)}
    assert seen[alone] == 10 and seen[hinted] == 3  # a quarter of the evidence
