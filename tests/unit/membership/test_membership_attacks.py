# SPDX-License-Identifier: GPL-3.0-or-later
"""An insider holds the group key: it can write any event, in any name, from any address. These tests say what
it cannot do.

Each test runs a small mesh of real memberships over a network with loss. The insider is one of them
(the last), or writes datagrams besides.
"""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from phantommesh.endpoint import Address
from phantommesh.membership import carrying, messages, rumours
from phantommesh.membership.effects import Effect, Send
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import (
    NOBODY,
    Errand,
    Event,
    State,
    accusation,
    decode_untrusted,
    encode,
    make_key,
)
from phantommesh.membership.table import Snapshot
from tests.simulation.gossip_sim import Network, Simulation, agree, claim, node_id, record_hash

NOWHERE = Address("203.0.113.66", 6)
VICTIM = 1
DOWN = ("dead", "left")


class Mesh(Simulation):
    """A mesh whose changes of view are kept, and whose gossip someone adds to."""

    def __init__(self, nodes: int, *, seed: int = 3, loss: float = 0.1) -> None:
        super().__init__(nodes, seed=seed, network=Network(loss=loss))
        self.changes: list[tuple[int, bytes, str]] = []
        self.on_change = lambda viewer, change, now: self.changes.append((viewer, change.node, change.event))
        self.start_all()
        self.run(3)

    def forge(self, *events: bytes, names: tuple[int, ...] = (2,)) -> None:
        """Send these events to every node, in the name of each of these."""
        for name in names:
            for node in self.nodes:
                if node.index != name:
                    datagram = encode(messages.GOSSIP, bytes(8), node_id(name), NOBODY, list(events))
                    self.inject(datagram, node.index, NOWHERE)

    def every(self, seconds: float, rounds: int, act: Callable[[int], None]) -> None:
        for number in range(rounds):
            act(number)
            self.run(seconds)

    def events(self, *kinds: str, of: int = VICTIM) -> list[str]:
        return [e for _, node, e in self.changes if node == node_id(of) and e in kinds]


class Liar(Membership):
    """A member that says of the victim what it likes, whenever it is asked."""

    says = State.DEAD
    incarnation_shift = 0

    def receive(
        self, datagram: bytes, source: Address, now: float, *, at_home: bool = False, usable: bool = False
    ) -> list[Effect]:
        message = decode_untrusted(datagram)
        if message.kind == messages.QUERY:
            lies = [accusation(e[:16], e[16:25], self.says, self._core.node) for e in message.events]
            answer = encode(
                messages.ANSWER, message.nonce, self._core.node, message.sender, [self._core.own, *lies]
            )
            return [Send(answer, source)]
        if message.kind == messages.PING_REQ:  # vouches for the dead, and never for the living
            return [Send(encode(messages.NACK, message.nonce, self._core.node, message.target, []), source)]
        return super().receive(datagram, source, now, at_home=at_home, usable=usable)


def turn(mesh: Mesh, *indices: int, of: type[Liar] = Liar) -> None:
    """Make liars of these nodes."""
    for index in indices:
        node = mesh.nodes[index]
        node.member = of(
            node=node.id, generation=node.generation, record_seq=1, record_hash=record_hash(index, 1),
            rng=random.Random(index), now=mesh.now, known=Snapshot(claim(i) for i in range(len(mesh.nodes))),
            agree=partial(agree, node.id),
        )  # fmt: skip
        mesh.step_clock(index, 0)


@pytest.mark.parametrize("state", [State.SUSPECT, State.DEAD])
def test_accusations_in_everyones_name_kill_nobody(state: State) -> None:
    mesh = Mesh(8)

    def accuse(number: int) -> None:
        key = make_key(1, number)
        mesh.forge(
            *[accusation(node_id(VICTIM), key, state, node_id(a)) for a in range(8) if a != VICTIM],
            names=(0, 2, 3, 4, 5, 6, 7),
        )

    mesh.every(0.5, 60, accuse)
    mesh.run(20)
    assert mesh.events(*DOWN) == []
    assert mesh.agreed()


def test_a_forged_goodbye_makes_nobody_leave() -> None:
    mesh = Mesh(8)
    mesh.every(1, 20, lambda n: mesh.forge(Event(node_id(VICTIM), 1, n, State.LEFT, 1, bytes(16)).encode()))
    mesh.run(20)
    assert mesh.events(*DOWN) == []
    assert mesh.agreed()


def test_one_lying_judge_does_not_kill_a_member_that_cannot_be_reached_from_one_place() -> None:
    mesh = Mesh(6)
    turn(mesh, 5)
    mesh.network.cut = lambda a, b: {a, b} == {0, VICTIM}
    mesh.every(
        1,
        60,
        lambda n: mesh.forge(accusation(node_id(VICTIM), make_key(1, n), State.DEAD, node_id(5)), names=(5,)),
    )
    assert mesh.events(*DOWN) == []


def test_as_many_lying_judges_as_are_required_do() -> None:
    """The documented limit: two insiders, and a victim that the observer really cannot reach."""
    mesh = Mesh(5)
    turn(mesh, 2, 3, 4)
    mesh.network.cut = lambda a, b: {a, b} == {0, VICTIM}
    mesh.run(60)
    assert mesh.state(0, VICTIM) is State.DEAD


class Helper(Liar):
    """A member that vouches for a dead one in every way: it says so, makes proofs up, and shows old ones."""

    says = State.ALIVE
    old: tuple[bytes, bytes] | None = None

    def receive(
        self, datagram: bytes, source: Address, now: float, *, at_home: bool = False, usable: bool = False
    ) -> list[Effect]:
        message = decode_untrusted(datagram)
        if message.kind == messages.CARRIED:
            Helper.old = message.extra, message.events[0]
        if message.kind == messages.PING_REQ and message.target == node_id(VICTIM):
            code, event = Helper.old or (bytes(16), claim(VICTIM))
            answers = [(code, event), (bytes(16), event), (random.randbytes(16), claim(VICTIM))]
            me, nonce = self._core.node, message.nonce
            return [
                Send(encode(messages.CARRIED, nonce, me, VICTIM_ID, [said], extra=code), source)
                for code, said in answers
            ]
        return super().receive(datagram, source, now, at_home=at_home, usable=usable)


VICTIM_ID = node_id(VICTIM)


def knows(mesh: Mesh, index: int) -> tuple[State | None, tuple[bytes, ...]]:
    member = mesh.nodes[index].member
    assert member is not None
    return member.state(VICTIM_ID), member.through(VICTIM_ID)


@pytest.mark.parametrize("seed", range(3))
def test_a_helper_can_not_carry_answers_of_a_dead_member(seed: int) -> None:
    """Half of the others are helpers that lie, and the honest ones can reach each other and them."""
    mesh = Mesh(8, seed=seed)
    turn(mesh, 6, 7, of=Helper)
    mesh.crash(VICTIM)
    honest = [0, 2, 3, 4, 5]
    assert mesh.run(12, lambda: all(mesh.state(i, VICTIM) is State.DEAD for i in honest))
    mesh.changes.clear()
    mesh.run(60)
    assert mesh.events("returned", "partly") == []


@pytest.mark.parametrize("seed", range(3))
def test_the_only_helper_can_not_keep_a_dead_member_alive_for_long(seed: int) -> None:
    """All reach the last node and nobody else. It carries what it is asked to, until it begins to lie: the
    member dies. The liar alone would be asked, and says that it is there: so it is not dead at once, but it
    is suspect, and is dead a minute after; nobody ever shows it as reached by way of the liar again."""
    mesh = Mesh(5, seed=seed)
    mesh.network.cut = lambda a, b: 4 not in (a, b)
    mesh.run(30)
    honest = [0, 2, 3]
    assert all(knows(mesh, i) == (State.ALIVE, (node_id(4),)) for i in honest)
    member = mesh.nodes[4].member
    assert member is not None
    member.__class__ = Helper  # it knows what it knew
    mesh.crash(VICTIM)
    mesh.run(25)
    assert all(mesh.state(i, VICTIM) is not State.ALIVE for i in honest)
    assert mesh.run(75, lambda: all(mesh.state(i, VICTIM) is State.DEAD for i in honest))
    mesh.changes.clear()
    mesh.run(60)
    assert mesh.events("returned", "partly") == []


def test_an_answer_that_was_carried_before_proves_nothing_later() -> None:
    mesh = Mesh(4, loss=0)
    mesh.network.cut = lambda a, b: {a, b} == {0, VICTIM}
    carried: list[bytes] = []

    def overhear(datagram: bytes) -> None:
        if decode_untrusted(datagram).kind == messages.CARRIED:
            carried.append(datagram)

    mesh.overhear = overhear
    mesh.run(30)
    assert knows(mesh, 0)[1] and carried
    mesh.crash(VICTIM)
    mesh.run(10)
    assert mesh.state(0, VICTIM) is State.DEAD
    mesh.changes.clear()
    for datagram in carried:
        mesh.inject(datagram, 0, mesh.nodes[2].address)
    mesh.run(10)
    assert mesh.events("returned", "partly", "refuted") == []
    assert mesh.state(0, VICTIM) is State.DEAD


def test_a_helper_that_carries_nothing_does_not_hide_the_others() -> None:
    """Two of five members answer no ping-req: a member that is reached by way of the others stays partly
    reachable."""
    mesh = Mesh(7)
    mesh.network.cut = lambda a, b: {a, b} == {0, VICTIM}
    mesh.run(30)
    turn(mesh, 5, 6)
    mesh.changes.clear()
    mesh.run(120)
    state, through = knows(mesh, 0)
    assert state is State.ALIVE and set(through) <= {node_id(i) for i in (2, 3, 4, 5, 6)} and through
    assert mesh.events(*DOWN) == []


def test_whoever_asks_for_another_makes_few_datagrams_and_few_proofs() -> None:
    """An insider sends questions in others' names. Each costs a bounded number of datagrams; proofs, which
    are what costs most, are made at a bounded rate."""
    mesh = Mesh(6, loss=0)
    member = mesh.nodes[0].member
    assert member is not None
    sent = Counter[int]()
    agreed = 0
    really = member._probing._carrying._agree

    def counting(node: bytes, draw: int) -> bytes | None:
        nonlocal agreed
        agreed += 1
        return really(node, draw)

    member._probing._carrying._agree = counting
    for i in range(4000):
        for target in (0, VICTIM):
            extra = Errand(node_id(2), i.to_bytes(8), 255).encode()
            asked = encode(messages.PING_REQ, i.to_bytes(8), node_id(3), node_id(target), [], 65535, extra)
            for effect in member.receive(asked, NOWHERE, mesh.now):
                if isinstance(effect, Send):
                    sent[decode_untrusted(effect.datagram).kind] += 1
    assert agreed <= carrying.PROOF_BURST
    assert sent[messages.CARRIED] <= carrying.PROOF_BURST
    assert sent[messages.PING_REQ] <= carrying.MAX_CARRIED
    assert len(member._probing._carrying._questions) <= carrying.MAX_REMEMBERED
    mesh.step_clock(0, 0)
    mesh.run(20)
    assert not member._probing._carrying._questions and not member._probing._carrying._asked


def test_questions_about_a_member_that_is_not_there_do_not_multiply() -> None:
    """Two halves that meet in one node: a question about a dead member goes through each node once."""
    mesh = Mesh(9, loss=0)
    mesh.network.cut = lambda a, b: 8 not in (a, b) and (a < 4) != (b < 4)
    mesh.run(40)
    mesh.crash(VICTIM)
    asked = 0

    def overhear(datagram: bytes) -> None:
        nonlocal asked
        message = decode_untrusted(datagram)
        if message.kind == messages.PING_REQ:
            asked += Errand.of(message.extra).nonce == b"question"

    mesh.overhear = overhear
    extra = Errand(node_id(5), b"question", 8).encode()
    for index in (4, 6, 7, 8):
        datagram = encode(messages.PING_REQ, bytes(8), node_id(5), VICTIM_ID, [], 1000, extra)
        mesh.inject(datagram, index, mesh.nodes[5].address)
    mesh.run(2)
    assert 0 < asked <= 2 * 8 * (1 + carrying.SEARCHERS)


def test_accusations_for_ever_do_not_make_a_member_speak_for_ever() -> None:
    mesh = Mesh(5)

    def accuse(_: int) -> None:
        victim = mesh.nodes[VICTIM].member
        assert victim is not None
        key = make_key(victim.generation, victim.incarnation)
        mesh.forge(accusation(VICTIM_ID, key, State.SUSPECT, node_id(4)), names=(4,))

    mesh.every(0.2, 600, accuse)
    victim = mesh.nodes[VICTIM].member
    assert victim is not None
    assert victim.incarnation <= rumours.REFUTE_BURST + 120 / rumours.REFUTE_EVERY + 2
    mesh.run(20)
    assert mesh.events(*DOWN) == []
    assert mesh.agreed()


def test_liars_do_not_kill_who_can_be_reached() -> None:
    mesh = Mesh(6)
    turn(mesh, 2, 3, 4, 5)
    mesh.every(
        1,
        60,
        lambda n: mesh.forge(
            accusation(node_id(VICTIM), make_key(1, n), State.DEAD, node_id(5)), names=(5, 4)
        ),
    )
    assert (0, node_id(VICTIM), "dead") not in mesh.changes


def test_the_dead_do_not_walk_at_anyones_word() -> None:
    mesh = Mesh(8)
    mesh.crash(VICTIM)
    mesh.run(30)
    mesh.changes.clear()
    mesh.every(
        1, 20,
        lambda n: mesh.forge(Event(node_id(VICTIM), 1 + n % 3, 50 + n, State.ALIVE, 1, bytes(16)).encode()),
    )  # fmt: skip
    assert [event for _, node, event in mesh.changes if node == node_id(VICTIM)] == []
    assert all(mesh.state(i, VICTIM) is State.DEAD for i in mesh.running())


def test_answering_for_a_dead_member_only_puts_its_death_off() -> None:
    mesh = Mesh(8)
    mesh.crash(VICTIM)
    mesh.every(
        0.25, 240,
        lambda n: mesh.forge(Event(node_id(VICTIM), 1, 1 + n, State.ALIVE, 1, record_hash(1, 1)).encode()),
    )  # fmt: skip
    assert all(mesh.state(i, VICTIM) is State.DEAD for i in mesh.running())


def test_accusing_everyone_does_not_hide_a_real_death() -> None:
    mesh = Mesh(8)
    mesh.crash(VICTIM)

    def accuse(number: int) -> None:
        mesh.forge(
            *[accusation(node_id(i), make_key(1, 3 * number), State.SUSPECT, node_id(7)) for i in range(7)],
            names=(7,),
        )

    mesh.every(0.5, 60, accuse)
    mesh.run(10)
    assert all(mesh.state(i, VICTIM) is State.DEAD for i in mesh.running())
    assert [e for _, node, e in mesh.changes if node != node_id(VICTIM) and e in DOWN] == []


def test_a_forged_restart_is_not_believed() -> None:
    mesh = Mesh(6)
    mesh.every(
        1, 10, lambda n: mesh.forge(Event(node_id(VICTIM), 9 + n, 0, State.ALIVE, 1, bytes(16)).encode())
    )
    mesh.run(10)
    for index in (0, 2, 3, 4, 5):
        member = mesh.nodes[index].member
        assert member is not None
        view = member.member(node_id(VICTIM))
        victim = mesh.nodes[VICTIM].member
        assert view is not None
        assert victim is not None
        assert (view.state, view.generation) == (State.ALIVE, victim.generation)


def test_the_highest_numbers_do_not_lock_a_member_out() -> None:
    mesh = Mesh(6)
    mesh.forge(
        Event(node_id(VICTIM), 1, 2**24 - 1, State.ALIVE, 2**48 - 1, bytes(16)).encode(),
        Event(node_id(VICTIM), 2**48 - 1, 2**24 - 1, State.ALIVE, 2**48 - 1, bytes(16)).encode(),
    )
    mesh.run(20)
    mesh.publish(VICTIM)
    mesh.run(10)
    assert mesh.events(*DOWN) == []
    assert mesh.agreed()


def test_leaps_forged_for_hours_leave_a_member_its_own_word() -> None:
    """One datagram every 10 s carries a generation past the 32 bits of a start number in 7 hours."""
    mesh = Mesh(4)
    mesh.crash(VICTIM)
    mesh.nodes[VICTIM].generation = 2**32 - 2**21
    mesh.start(VICTIM, known=Snapshot(map(claim, range(4))))
    assert mesh.run(30, mesh.agreed)

    def leap(_: int) -> None:
        generation = mesh.nodes[VICTIM].generation + 2**20
        mesh.forge(Event(node_id(VICTIM), generation, 2**24 - 1, State.DEAD, 1, node_id(2)).encode())

    mesh.every(10.5, 4, leap)
    assert mesh.nodes[VICTIM].generation > 2**32
    mesh.crash(VICTIM)
    mesh.start(VICTIM, known=Snapshot(map(claim, range(4))))
    assert mesh.run(60, mesh.agreed)


def test_the_last_incarnation_does_not_keep_a_member_from_speaking_up() -> None:
    mesh = Mesh(4)
    mesh.forge(Event(node_id(VICTIM), 1, 2**24 - 2, State.ALIVE, 1, bytes(16)).encode())
    mesh.run(1)
    mesh.publish(VICTIM)
    assert mesh.run(20, mesh.agreed)
    mesh.forge(Event(node_id(VICTIM), 2, 2**24 - 2, State.ALIVE, 1, bytes(16)).encode())
    mesh.run(1)
    victim = mesh.nodes[VICTIM].member
    assert victim is not None
    victim.leave(mesh.now)
    assert mesh.run(20, lambda: mesh.state(0, VICTIM) is State.LEFT)


def test_a_made_up_record_is_never_taken_for_verified_and_the_true_one_comes_back() -> None:
    mesh = Mesh(6)
    mesh.forge(Event(node_id(VICTIM), 1, 1, State.ALIVE, 99, b"forged!!" * 2).encode())
    mesh.run(10)
    for index in (0, 2, 3, 4, 5):
        member = mesh.nodes[index].member
        assert member is not None
        view = member.member(node_id(VICTIM))
        assert view is not None
        assert (view.record_seq, view.record_hash) == (1, record_hash(VICTIM, 1))
        assert (99).to_bytes(6) + b"forged!!" * 2 not in member._probing.claims.records.values()


def test_a_false_source_address_redirects_nothing() -> None:
    mesh = Mesh(4)
    sent: list[Send] = []
    member = mesh.nodes[0].member
    assert member is not None
    for kind in (messages.PING, messages.GOSSIP, messages.QUERY, messages.PING_REQ):
        target = node_id(2) if kind == messages.PING_REQ else node_id(0)
        extra = Errand(node_id(VICTIM), bytes(8), 4).encode() if kind == messages.PING_REQ else b""
        datagram = encode(kind, bytes(8), node_id(VICTIM), target, [claim(VICTIM)], 100, extra)
        sent += [e for e in member.receive(datagram, NOWHERE, mesh.now) if isinstance(e, Send)]
    answers = [decode_untrusted(s.datagram).kind for s in sent if s.to == NOWHERE]
    assert set(answers) <= {messages.ACK, messages.ANSWER, messages.NACK}
    for _ in range(100):
        later = member.tick(member.deadline)
        assert [e for e in later if isinstance(e, Send) and e.to == NOWHERE and
                decode_untrusted(e.datagram).kind not in (messages.ACK, messages.NACK)] == []  # fmt: skip


def test_replayed_datagrams_change_nothing() -> None:
    mesh = Mesh(4)
    heard: list[bytes] = []
    mesh.overhear = heard.append
    mesh.publish(VICTIM)
    mesh.run(10)
    mesh.overhear = None
    assert heard
    mesh.changes.clear()
    for datagram in heard:
        for index in range(4):
            if decode_untrusted(datagram).sender != node_id(index):
                mesh.inject(datagram, index, NOWHERE)
    mesh.run(10)
    assert mesh.changes == []


def test_a_flood_of_made_up_nodes_adds_no_member() -> None:
    mesh = Mesh(4)
    mesh.every(
        0.1, 20,
        lambda n: mesh.forge(*[Event(node_id(10_000 + 20 * n + j), 1, 0, State.ALIVE, 1, bytes(16)).encode()
                               for j in range(20)]),
    )  # fmt: skip
    mesh.run(5)
    assert all(len(m) == 4 for node in mesh.nodes if (m := node.member) is not None)


def test_a_made_up_claim_does_not_hide_a_newcomer() -> None:
    """Found by fuzzing: the forged claim's key was the higher, so the true one was never asked about."""
    mesh = Mesh(4)
    mesh.crash(VICTIM)
    mesh.start(VICTIM, seeds=(mesh.nodes[0].address,))
    for state in (1, 7, 2**40):
        forged = Event(node_id(2), state, 9, State.ALIVE, 5, b"forged!!" * 2).encode()
        mesh.inject(encode(messages.GOSSIP, bytes(8), node_id(3), NOBODY, [forged]), VICTIM, NOWHERE)
    assert mesh.run(15, mesh.agreed)


def test_a_question_that_comes_again_as_it_ends_breaks_nothing() -> None:
    """Before: the second copy's timer looked for nonces that the first one's had forgotten. Six such errors
    in a minute end the node."""
    mesh = Mesh(5, loss=0)
    mesh.network.cut = lambda a, b: {a, b} == {0, VICTIM}
    mesh.run(30)
    asked = mesh.nodes[0].member
    assert asked is not None and asked.through(VICTIM_ID) != ()
    mesh.network.cut = lambda a, b: VICTIM in (a, b)  # nobody answers, which would end the question

    def ask(nonce: bytes, hops: int, wait_ms: int) -> None:
        errand = Errand(node_id(3), b"question", hops).encode()
        datagram = encode(messages.PING_REQ, nonce, VICTIM_ID, VICTIM_ID, [], wait_ms, errand)
        mesh.inject(datagram, 0, mesh.nodes[VICTIM].address)

    ask(b"aaaaaaaa", 0, 1000)
    mesh.run(1.0 + carrying.LATE - 0.05)
    ask(b"bbbbbbbb", 8, 5000)
    mesh.run(1.0)
