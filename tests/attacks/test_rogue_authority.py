# SPDX-License-Identifier: GPL-3.0-or-later
"""An authority turns rogue, and what it has signed is not to outlive it.

It makes the greatest group key there is; it revokes another authority with a date of long ago, on which all
members' certificates hang; it revokes everybody, also after it was revoked itself. Played by its own keys
against the nodes' own code: in the simulator where several nodes take part.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from time import time
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from cryptography.x509 import Certificate

from phantommesh.endpoint import Address
from phantommesh.nursery.keeping.groupkeys import GroupKeys
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members.authority import AuthorityDesk
from phantommesh.records.record import sign_record
from phantommesh.records.roster import Roster
from phantommesh.state import directory
from phantommesh.state.start import NodeState, load_node
from phantommesh.trust import statements
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.groupkey import (
    MAX_EPOCH,
    GroupKey,
    Keyring,
    encode_keys,
    make_group_key,
    next_epoch,
    take_keys,
)
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.trust.issuing import Authority, issue_authority
from phantommesh.trust.revocation import Revocation, revoke
from phantommesh.trust.revocations import Revocations
from phantommesh.trust.rootword import RootWord, say
from phantommesh.trust.statements import Held
from tests.simulation.full_node import Process
from tests.simulation.full_scenarios import bad_network, settle
from tests.simulation.full_sim import Simulation
from tests.simulation.full_views import agreed, members, settled, still_in
from tests.support.loopback import make_authority
from tests.support.makemesh import NOW, identity, make_mesh, plain_record

MESH = make_mesh()
HONEST = identity("mesh first").node_id  # the node whose authority MESH.authority is
ROGUE = identity("rogue").node_id
MEMBERS = 20
HOUR = 3_600.0


def second_authority(name: str) -> Authority:
    key = identity(f"{name} authority")
    cert = issue_authority(MESH.root, MESH.root_key, key.spki, identity(name).node_id, NOW)
    return Authority(MESH.root, cert, key)


BY_ROGUE = second_authority("rogue")


def greatest(authority: Authority, revocations: Revocations, now: float) -> GroupKey:
    return make_group_key(authority, MAX_EPOCH, revocations, now)


# --- its group key


def test_the_greatest_group_key_is_refused() -> None:
    ring, revocations = Keyring(), Revocations(MESH.root)
    ring.install(make_group_key(MESH.authority, 7, revocations, NOW), 0.0)
    for by in (BY_ROGUE, MESH.authority):
        encoded = encode_keys([greatest(by, revocations, NOW)])
        came, refused = take_keys(ring, encoded, MESH.root, revocations, 0.0, NOW)
        assert not came and len(refused) == 1
    assert [key.epoch for key in ring.keys] == [7]
    revocations.add(revoke(MESH.authority, identity("bad").node_id, NOW), NOW)
    assert next_epoch(ring, revocations, NOW) == 8  # honest authorities still have epochs


def test_a_key_that_a_version_before_took_in_is_dropped_when_it_starts() -> None:
    from phantommesh.trust.groupkey import greatest_epoch

    ring, revocations = Keyring(), Revocations(MESH.root)
    for key in (make_group_key(MESH.authority, 7, revocations, NOW), greatest(BY_ROGUE, revocations, NOW)):
        ring.install(key, 0.0)
    ring.tick(HOUR)
    ring.tick(2 * HOUR)
    assert ring.newest is not None and ring.newest.epoch == MAX_EPOCH
    again = Keyring()
    again.restore(ring.encode(), 0.0, greatest_epoch(MESH.root, NOW))
    assert again.keys == []
    assert next_epoch(again, revocations, NOW) == 8


@pytest.mark.parametrize("restarts", [False, True])
def test_the_keys_of_a_revoked_authority_are_replaced_and_its_epochs_do_not_count(restarts: bool) -> None:
    ring, revocations = Keyring(), Revocations(MESH.root)
    ring.install(make_group_key(MESH.authority, 7, revocations, NOW), 0.0)
    for epoch in (900, 1_000):  # the most that it may, and each is in use and retired
        encoded = encode_keys([make_group_key(BY_ROGUE, epoch, revocations, NOW)])
        assert take_keys(ring, encoded, MESH.root, revocations, 100.0, NOW) == (True, [])
        ring.tick(200.0)
        ring.tick(300.0)
    assert ring.active is not None and ring.active.epoch == 1_000 and len(ring.keys) == 1
    if restarts:
        again = Keyring()
        again.restore(ring.encode(), 0.0)
        ring = again
    revocations.add(revoke(MESH.authority, ROGUE, NOW), NOW)
    assert next_epoch(ring, revocations, NOW) == 8
    made = make_group_key(MESH.authority, 8, revocations, NOW)
    assert ring.install(made, 400.0)
    assert next_epoch(ring, revocations, NOW) is None  # and that is that
    ring.tick(410.0)
    assert ring.active == made
    ring.tick(430.0)
    assert ring.keys == [made]
    late = encode_keys([make_group_key(BY_ROGUE, 1_001, revocations, NOW)])
    came, refused = take_keys(ring, late, MESH.root, revocations, 430.0, NOW)
    assert not came and len(refused) == 1


# --- its date


def roster_of_twenty(revocations: Revocations) -> Roster:
    held = Roster(MESH.root, revocations)
    for number in range(MEMBERS):
        held.add(MESH.record(identity(f"member {number}"), f"m{number}"), NOW)
    assert len(held.members(NOW)) == MEMBERS
    return held


def test_a_revocation_dated_back_takes_no_member_along() -> None:
    """It revokes the authority that certified all of them, as of 1970."""
    revocations = Revocations(MESH.root)
    held = roster_of_twenty(revocations)
    revocations.add(revoke(BY_ROGUE, HONEST, 0.0), NOW)
    assert len(held.members(NOW)) == MEMBERS
    again = Roster.decode_untrusted(held.encode(), MESH.root, revocations, NOW)  # also after a restart
    assert len(again.members(NOW)) == MEMBERS
    one = identity("member 3")
    cert = next(e.signed.node_cert for e in held if e.member.node_id == one.node_id)
    newer = sign_record(one, plain_record(one, 2), cert, MESH.authority.der)
    assert held.add(newer, NOW)  # and what they say of themselves is still heard


# --- its revocations


@pytest.mark.parametrize("rogue_first", [True, False])
def test_what_a_rogue_signs_counts_only_if_it_came_before_its_own_revocation(rogue_first: bool) -> None:
    victim = identity("member 0").node_id
    its, of_it = revoke(BY_ROGUE, victim, NOW - 9), revoke(MESH.authority, ROGUE, NOW)
    revocations = Revocations(MESH.root)
    for one in (its, of_it) if rogue_first else (of_it, its):
        revocations.add(one, NOW)
    assert ROGUE in revocations
    assert (victim in revocations) == rogue_first
    again = Revocations.decode(revocations.encode(), MESH.root, NOW)  # a restart knows the order
    assert (victim in again) == rogue_first
    other = Revocations(MESH.root)
    for one in (of_it, its):
        other.add(one, NOW)
    assert other.digest() == revocations.digest()  # all hold the same, whatever counts


def test_a_revoked_rogue_revokes_nobody_back() -> None:
    revocations = Revocations(MESH.root)
    revocations.add(revoke(MESH.authority, ROGUE, NOW), NOW)
    revocations.add(revoke(BY_ROGUE, HONEST, 0.0), NOW)  # dated before
    assert ROGUE in revocations and HONEST not in revocations


# --- all of it at once, and the way back


class Attack:
    """A mesh of an honest authority (node 0, where the root key is), a rogue (node 1) and twenty members."""

    def __init__(self, seed: int) -> None:
        self.sim = Simulation(MEMBERS + 2, seed=seed, network=bad_network())
        self.sim.start_all()
        settle(self.sim, 60)
        self.rogue = self.sim.machines[1].identity.node_id

    def strike(self, *indexes: int) -> None:
        """The rogue revokes these nodes as of 1970, and tells everybody on the links that it has."""
        authority = self.sim.machines[1].authority
        assert authority is not None
        told = [revoke(authority, self.sim.machines[index].identity.node_id, 0.0) for index in indexes]

        def hear(process: Process) -> None:
            if process.revocations.take(told, process.wall):
                process.note_change()

        for index in range(MEMBERS + 2):
            self.sim.tell(index, hear)

    def out(self, index: int) -> int:
        """How many of the honest nodes hold this one for revoked."""
        node_id = self.sim.machines[index].identity.node_id
        return sum(node_id in p.revocations for p in self.sim.running() if p.me != self.rogue)


def test_a_revoked_authority_takes_no_member_along_in_a_mesh() -> None:
    attack = Attack(1)
    sim = attack.sim
    attack.strike(0)
    assert sim.run(60, lambda: attack.out(0) == MEMBERS + 1)
    sim.run(30, lambda: False)
    for process in (one for one in members(sim) if one.me != attack.rogue):
        others = {e.member.node_id for e in process.roster} - {process.me, attack.rogue}
        assert len(others) == MEMBERS - 1, f"{process.machine.name} lost members"
    keyed = [
        (a, b)
        for a, b in itertools.permutations(range(2, MEMBERS + 2), 2)
        if sim.machines[b].identity.node_id in sim.machines[a].kernel.psks
    ]
    assert len(keyed) == MEMBERS * (MEMBERS - 1)


def test_the_root_takes_back_all_whom_a_rogue_revoked() -> None:
    """Nobody links with anybody any more, the root's own machine least of all; one has been restarted
    since."""
    attack = Attack(2)
    sim = attack.sim
    everybody = [0, *range(2, MEMBERS + 2)]
    attack.strike(*everybody)
    assert all(attack.out(index) == MEMBERS + 1 for index in everybody)
    sim.run(10, lambda: False)
    assert not any(process.links._peers for process in sim.running() if process.me != attack.rogue)
    sim.crash(7)
    sim.start(7)
    sim.run(10, lambda: False)
    word = say(sim.mesh.root_key, pardoned=(), cast_out=(attack.rogue,), last=0, now=sim.wall)

    def speak(process: Process) -> None:
        root = sim.process(0)
        assert root.revocations.add(word, root.wall)
        root.note_change()
        root.make_key()

    sim.tell(0, speak)
    sim.crash(1)  # its words go on without it
    assert sim.run(180, lambda: all(attack.out(index) == 0 for index in everybody)), (
        "not all know they are back"
    )
    assert sim.run(120, lambda: settled(sim)), "not all are linked again"
    assert len(members(sim)) == MEMBERS + 1
    assert sim.run(60, lambda: not still_in(sim, 1)), still_in(sim, 1)
    attack.strike(*everybody)  # it goes on
    sim.run(30, lambda: False)
    assert all(attack.out(index) == 0 for index in everybody)
    assert agreed(sim)


def test_whom_the_root_took_back_may_be_revoked_again() -> None:
    victim = identity("member 0").node_id
    revocations = Revocations(MESH.root)
    old = revoke(MESH.authority, victim, NOW)
    revocations.add(old, NOW)
    word = say(MESH.root_key, pardoned=(victim,), cast_out=(), last=0, now=NOW)
    revocations.add(word, NOW)
    assert victim not in revocations
    revocations.add(old, NOW)  # a copy of what is void
    revocations.add(revoke(MESH.authority, victim, NOW + 9), NOW + 9)  # by one that has not heard of the word
    assert victim not in revocations
    revocations.take(revocations.sign(MESH.authority, victim, NOW + 10), NOW + 10)
    assert victim in revocations


async def test_junk_from_a_rogue_does_not_keep_the_roots_word_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was taken back tells members that do not know; a rogue floods the same place with forged
    words."""
    from phantommesh.trust import revocation, rootword

    state = make_authority(tmp_path)
    keeper = RosterKeeper(state, lambda: None)
    victim, checked = identity("member 0").node_id, 0
    assert state.authority is not None
    keeper.revoke(revoke(state.authority, victim, time()))

    def counted(word: rootword.RootWord, root: Certificate) -> None:
        nonlocal checked
        checked += 1
        rootword.verify_word(word, root)

    monkeypatch.setattr("phantommesh.trust.revocations.verify_word", counted)
    word = rootword.say(state.root_key(), pardoned=(victim,), cast_out=(), last=0, now=time())
    source, other = Address("192.0.2.1", 9), Address("192.0.2.2", 9)
    for number in range(500):
        forged = msgspec.structs.replace(word, number=word.number + 1 + number)
        plea = msgspec.msgpack.encode(revocation.Packed(2, [forged] * 2, [], []))
        assert keeper.answer_standing(victim + plea, source)  # it is answered all the same
    assert checked <= 20 and victim in state.revocations
    for junk in (b"", b"junk", victim + b"junk", victim + bytes(60_000)):
        keeper.answer_standing(junk, source)
    told = Revocations(state.root)
    told.add(word, time())
    before = checked
    answers = [keeper.answer_standing(victim + told.plea(), other) for _ in range(100)]
    assert checked == before + 1 and victim not in state.revocations
    heard = Revocations(state.root)
    heard.take(heard.unpack(answers[0]), time())
    assert heard.words == [word]


# --- a rogue's flood, and the nodes that it brings back


def test_taking_a_rogues_revocations_over_takes_nobody_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It revokes made-up nodes, chosen so that their take-over sorts before all that the honest authority
    says: before this one's revocation of the rogue, and before its older ones."""
    monkeypatch.setattr("phantommesh.trust.statements.MAX_OF_AUTHORITY", 24)
    revocations = Revocations(MESH.root)
    bad = [identity(f"bad {number}").node_id for number in range(5)]
    for node_id in bad:
        revocations.add(revoke(MESH.authority, node_id, NOW - HOUR), NOW)

    def place(node_id: bytes, origin: bytes = b"") -> bytes:
        return statements._place(HONEST, Revocation(node_id, 0, b"", b"", b"", origin))

    limit = min(place(node_id) for node_id in (ROGUE, *bad))
    made_up = (NodeId(hashlib.sha256(b"%d" % number).digest()[:16]) for number in itertools.count())
    ground = itertools.islice((one for one in made_up if place(one, ROGUE) < limit), 24)
    revocations.take([revoke(BY_ROGUE, one, NOW) for one in ground], NOW)
    revocations.take(revocations.sign(MESH.authority, ROGUE, NOW + 5), NOW + 5)
    told = Revocations(MESH.root)
    told.take(list(revocations), NOW + 5)
    again = Revocations.decode(revocations.encode(), MESH.root, NOW + 5)
    for each in (revocations, told, again):
        assert each.digest() == revocations.digest()
        assert ROGUE in each and all(node_id in each for node_id in bad)
        assert len(each) == 24 + 6


def test_what_cannot_be_taken_over_is_refused_and_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("phantommesh.trust.statements.MAX_OF_AUTHORITY", 8)
    revocations = Revocations(MESH.root)
    for number in range(6):  # twice as many as it may have of one kind
        for origin in (b"", identity("nobody").node_id):
            node_id = identity(f"made up {number} {origin.hex()}").node_id
            revocations.add(revoke(BY_ROGUE, node_id, NOW, origin=origin), NOW)
    before = revocations.digest()
    with pytest.raises(TrustError, match="no room") as caught:
        revocations.sign(MESH.authority, ROGUE, NOW)
    assert "--undo-all" in caught.value.fix and revocations.digest() == before
    revocations.add(say(MESH.root_key, pardoned=(), cast_out=(ROGUE,), last=0, now=NOW), NOW)
    assert revocations.nodes == {ROGUE}


def desk_of(state: NodeState) -> AuthorityDesk:
    return AuthorityDesk(state, RosterKeeper(state, lambda: None), GroupKeys(state))


async def test_a_revocation_that_does_not_count_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path)
    desk = desk_of(state)
    monkeypatch.setattr(Revocations, "_hold", lambda self, held: True)  # whatever the reason
    with pytest.raises(TrustError, match="still in"):
        await desk.revoke(desk.find(format_node_id(identity("bad").node_id)), force=False)


async def test_the_desk_verifies_nothing_that_it_has_signed_or_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path)
    desk, bad = desk_of(state), identity("bad").node_id
    for name in ("_verify", "decode"):
        monkeypatch.setattr(Revocations, name, lambda *_: pytest.fail("verified"))
    await desk.revoke(desk.find(format_node_id(bad)), force=False)
    target = desk.find(format_node_id(bad))
    assert await desk.undo(target, cast_out=False, dry_run=True) == 1
    assert bad in state.revocations and not state.revocations.words
    assert await desk.undo(target, cast_out=False, dry_run=False) == 1
    assert bad not in state.revocations


# --- what it goes on to say


def keys_forced(revocations: Revocations, statements: Iterable[Revocation | RootWord]) -> int:
    """How many new group keys an authority makes for these, which come one after the other."""
    ring, made = Keyring(), 0
    ring.install(make_group_key(MESH.authority, 1, revocations, NOW), 0.0)
    for one in statements:
        revocations.add(one, NOW)
        epoch = next_epoch(ring, revocations, NOW)
        if epoch is not None:
            made += 1
            ring.install(make_group_key(MESH.authority, epoch, revocations, NOW), 0.0)
    return made


@pytest.mark.parametrize("knows", [False, True])
def test_one_that_is_cast_out_says_nothing_whatever_word_it_names(knows: bool) -> None:
    revocations = Revocations(MESH.root)
    word = say(MESH.root_key, pardoned=(), cast_out=(ROGUE,), last=0, now=NOW)
    revocations.add(word, NOW)
    before, victim = revocations.digest(), identity("member 0").node_id
    afters = [b"", word.id] if knows else [bytes([number]) * 16 for number in range(20)]
    assert keys_forced(revocations, (revoke(BY_ROGUE, victim, NOW - 1, after=one) for one in afters)) == 0
    assert list(revocations) == [] and revocations.digest() == before


def test_what_names_a_word_that_nobody_knows_is_not_held() -> None:
    """A standing authority's statement is not held: else it could keep some for a word to come."""
    revocations, victim = Revocations(MESH.root), identity("member 0").node_id
    some = [revoke(BY_ROGUE, victim, NOW, after=bytes([number]) * 16) for number in range(9)]
    assert keys_forced(revocations, some) == 0 and list(revocations) == []


def test_what_one_says_that_is_revoked_is_no_reason_for_a_new_group_key() -> None:
    revocations, victim = Revocations(MESH.root), identity("member 0").node_id
    revocations.add(revoke(MESH.authority, ROGUE, NOW), NOW)
    some = [revoke(BY_ROGUE, identity(f"m{number}").node_id, NOW) for number in range(9)]
    some += [revoke(BY_ROGUE, victim, NOW - number) for number in range(9)]  # one place, ever earlier
    assert keys_forced(revocations, some) == 0 and len(list(revocations)) == 11
    more = [revoke(BY_ROGUE, HONEST, NOW), revoke(MESH.authority, victim, NOW)]
    assert keys_forced(revocations, more) == 1
    assert victim in revocations


async def test_little_is_verified_of_what_one_says_that_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path)
    monkeypatch.setattr("phantommesh.node.intake.LATE_BURST", 4)
    keeper, rogue = RosterKeeper(state, lambda: None), authority_in(state)
    assert state.authority is not None
    keeper.revoke(revoke(state.authority, ROGUE, time()))
    some = Revocations(state.root)
    some.take([revoke(rogue, identity(f"m{number}").node_id, time()) for number in range(40)], time())
    await keeper.hear(ROGUE, [some.encode()])
    assert len(list(state.revocations)) == 1 + 4
    keeper.take_revocations(some.encode())
    assert len(list(state.revocations)) == 1 + 4 and keeper.dropped["revocation-late"] > 0


def authority_in(state: NodeState) -> Authority:
    key = identity("rogue authority")
    return Authority(state.root, issue_authority(state.root, state.root_key(), key.spki, ROGUE, time()), key)


def test_an_answer_how_this_node_stands_says_nothing_of_others(tmp_path: Path) -> None:
    state = make_authority(tmp_path)
    keeper, rogue = RosterKeeper(state, lambda: None), authority_in(state)
    told, mine = Revocations(state.root), state.identity.node_id
    word = say(state.root_key(), pardoned=(HONEST,), cast_out=(), last=0, now=time())
    others = [identity(f"m{number}").node_id for number in range(9)]
    told.take([word, *(revoke(rogue, one, time(), after=word.id) for one in (*others, mine))], time())
    assert trio.run(standing_answered, keeper, told.encode())
    assert state.revocations.words == [word]
    assert [one.node_id for one in state.revocations] == [mine]


async def standing_answered(keeper: RosterKeeper, answer: bytes) -> bool:
    return keeper.take_standing(answer)


async def test_revocations_are_written_with_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """One a second for a minute; a command's own is on disk when it returns."""
    monkeypatch.setattr("phantommesh.nursery.keeping.roster.DISK_RATE", 16)
    state, written = make_authority(tmp_path), 0
    keeper, rogue, write = RosterKeeper(state, lambda: None), authority_in(state), state.state.write

    def counted(name: str, data: bytes) -> None:
        nonlocal written
        written += name == directory.REVOCATIONS
        write(name, data)

    monkeypatch.setattr(state.state, "write", counted)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.keep)
        for number in range(60):
            keeper.revoke(revoke(rogue, identity(f"m{number}").node_id, time()))
            await trio.sleep(1)
        assert 1 <= written <= 3
        await keeper.save()
        nursery.cancel_scope.cancel()
    assert len(load_node(tmp_path / "state", time()).revocations) == 60


# --- what its flood costs


def test_what_a_full_authority_has_no_room_for_is_not_verified_nor_searched_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unsearched(dict[bytes, Held]):
        searches = 0

        def items(self) -> Any:
            self.searches += 1
            return super().items()

        def values(self) -> Any:
            self.searches += 1
            return super().values()

    monkeypatch.setattr("phantommesh.trust.statements.MAX_OF_AUTHORITY", 8)
    revocations = Revocations(MESH.root)
    revocations.add(revoke(MESH.authority, ROGUE, NOW), NOW)
    flood = [revoke(BY_ROGUE, identity(f"m{number}").node_id, NOW) for number in range(64)]
    flood.sort(key=lambda one: statements._place(ROGUE, one), reverse=True)
    revocations.take(flood[32:40], NOW)
    store = revocations._held
    store._held = held = Unsearched(store._held)
    verified, verify = 0, Revocations._verify

    def counted(self: Revocations, one: Revocation, now: float) -> Held:
        nonlocal verified
        verified += 1
        return verify(self, one, now)

    monkeypatch.setattr(Revocations, "_verify", counted)
    assert not revocations.take(flood[:32], NOW)
    assert verified == 0 and held.searches <= 1
    held.searches = 0
    assert revocations.take(flood[40:], NOW)
    assert held.searches <= 1
    assert {*revocations} == {*flood[-8:], next(iter(revocations))}


async def test_the_loop_has_its_turn_while_many_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phantommesh.trust.revocations.SLICE", 4)
    state, held = make_authority(tmp_path), list[int]()
    keeper, some = RosterKeeper(state, lambda: None), Revocations(state.root)
    rogue = authority_in(state)
    some.take([revoke(rogue, identity(f"m{number}").node_id, time()) for number in range(40)], time())
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while True:
                held.append(len(list(state.revocations)))
                await trio.lowlevel.checkpoint()

        nursery.start_soon(watch)
        await keeper.hear(ROGUE, [some.encode()])
        nursery.cancel_scope.cancel()
    assert len({*held} - {0, 40}) >= 3  # of nine steps between: the two tasks run in any order
    assert state.revocations.nodes == some.nodes
