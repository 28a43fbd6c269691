# SPDX-License-Identifier: GPL-3.0-or-later
"""An insider holds the group key: it can write any event, in any name, from any address. What it can not do.

Each test runs a small mesh of real memberships over a network with loss. The insider is one of them
(the last), or writes datagrams besides.
"""

import random
from collections.abc import Callable

import pytest

from phantommesh.membership import messages
from phantommesh.membership.effects import Effect, Send
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import (
    NOBODY,
    Event,
    State,
    accusation,
    decode_untrusted,
    encode,
    make_key,
)
from phantommesh.membership.table import Snapshot
from phantommesh.wire import Address
from tests.simulation.gossip_sim import Network, Simulation, claim, node_id, record_hash

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

    def receive(self, datagram: bytes, source: Address, now: float, *, at_home: bool = False) -> list[Effect]:
        message = decode_untrusted(datagram)
        if message.kind == messages.QUERY:
            lies = [accusation(e[:16], e[16:25], self.says, self._core.node) for e in message.events]
            answer = encode(
                messages.ANSWER, message.nonce, self._core.node, message.sender, [self._core.own, *lies]
            )
            return [Send(answer, source)]
        if message.kind == messages.PING_REQ:  # vouches for the dead, and never for the living
            return [Send(encode(messages.NACK, message.nonce, self._core.node, message.target, []), source)]
        return super().receive(datagram, source, now, at_home=at_home)


def turn(mesh: Mesh, *indices: int) -> None:
    """Make liars of these nodes."""
    for index in indices:
        node = mesh.nodes[index]
        node.member = Liar(
            node=node.id, generation=node.generation, record_seq=1, record_hash=record_hash(index, 1),
            rng=random.Random(index), now=mesh.now, known=Snapshot(claim(i) for i in range(len(mesh.nodes))),
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
        datagram = encode(kind, bytes(8), node_id(VICTIM), target, [claim(VICTIM)], 100)
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
