# SPDX-License-Identifier: GPL-3.0-or-later
"""The tasks of the nodes in `full_sim`, and the conversations they hold with other members.

A task is a generator that yields what it waits for. A conversation goes over real channels, under the session
of a link; in a large mesh the two members may first have to be given a session.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

from phantommesh.control import asking, messages
from phantommesh.control.channel import RANDOM_SIZE, Channel, ChannelError
from phantommesh.control.sessions import Session
from phantommesh.errors import PhantomMeshError
from phantommesh.membership.messages import GossipError
from phantommesh.node import news
from phantommesh.node.news import Step, Take
from phantommesh.nursery.members.gossip import TALK
from phantommesh.nursery.sockets.framing import CONNECT
from phantommesh.secret import Secret
from phantommesh.trust.identity import NodeId
from tests.simulation.full_keeper import at_once
from tests.simulation.full_machines import Machine

if TYPE_CHECKING:
    from tests.simulation.full_node import Process
    from tests.simulation.full_sim import Simulation


class Ask(NamedTuple):
    """A task wants this conversation held with a member; it is sent the result, or None where it failed."""

    member: NodeId
    talk: asking.Talk[Any]


Task = Generator[Ask | Step, object, None]


def spawn(process: Process, kind: str, task: Task | news.Task) -> None:
    """Run one of a node's tasks."""
    if kind in process.asker.busy:
        process.asker.busy[kind] += 1
    _Running(process, kind, task).send(None)


class _Running:
    """A node's task, with what it waits for."""

    def __init__(self, process: Process, kind: str, task: Task | news.Task) -> None:
        self.sim, self.process, self.kind, self.task = process.sim, process, kind, task

    def send(self, value: object) -> None:
        """Let the task go on."""
        try:
            step = self.task.send(value)
        except StopIteration:
            self._end()
            return
        except (PhantomMeshError, GossipError):
            self.sim.tally["task-failed"] += 1
            self._end()
            return
        match step:
            case asking.Pause(seconds):
                self.sim.at_process(self.process, seconds, lambda: self.send(None))
            case asking.CallUnlinked():
                self.process.asker.ask_unlinked(step, lambda: self.send(None))
            case Take():
                self.send(self.process.take_told(step))
            case Ask(member, talk) | asking.Call(member, talk):
                self._ask(member, talk)

    def _ask(self, member: NodeId, talk: asking.Talk[Any]) -> None:
        process, sim = self.process, self.sim
        session = process.sessions.newest(member)
        if session is not None:
            Call(sim, process.machine, sim.by_id[member], session, talk, self.send)
            return
        other = sim.by_id[member]
        if not sim.large or other.process is None:
            sim.at_process(process, 0.001, lambda: self.send(None))
            return
        if sim.tally["handshakes"] < sim.handshakes:
            _link(process, member)
        else:
            _assume(process, other)
        given_up = sim.now + 10.0

        def look() -> None:
            ready = process.sessions.newest(member)
            if ready is not None:
                Call(sim, process.machine, sim.by_id[member], ready, talk, self.send)
            elif sim.now >= given_up:
                self.send(None)
            else:
                sim.at_process(process, 0.1, look)

        look()

    def _end(self) -> None:
        asker = self.process.asker
        if self.kind in asker.busy:
            asker.busy[self.kind] -= 1
            asker.pump()


def _link(a: Process, b: NodeId) -> None:
    """In a large mesh: have two members keep a link from now on."""
    sim = a.sim
    sim.tally["handshakes"] += 1
    other = sim.by_id[b].process
    for end, peer in ((a, b), (other, a.me)):
        if end is not None and end.linked is not None and peer not in end.linked:
            end.linked.add(peer)
            end.set_links()
            sim.schedule(end.machine)


def _assume(a: Process, other: Machine) -> None:
    """In a large mesh: give two members a session as a handshake between them would have."""
    sim, b = a.sim, other.process
    if b is None or other.stalled or not sim.network.both(a.machine.index, other.index):
        return
    if a.me in b.revocations or b.roster.get(a.me) is None or a.roster.get(b.me) is None:
        return
    name, first, second = sim.rng.randbytes(16), sim.rng.randbytes(32), sim.rng.randbytes(32)
    a.sessions.add(Session(b.me, name, Secret(first), Secret(second)))
    b.sessions.add(Session(a.me, name, Secret(second), Secret(first)))
    sim.tally["sessions assumed"] += 1


class Call:
    """One conversation over a real `Channel`, from the session's keys at both ends. Ends in ``done``, with
    None where it failed."""

    def __init__(
        self, sim: Simulation, client: Machine, server: Machine, session: Session,
        talk: asking.Talk[Any], done: Callable[[object], None],
    ) -> None:  # fmt: skip
        self.sim, self.client, self.server, self.session = sim, client, server, session
        self.talk, self.done = talk, done
        self.lives = client.life, server.life
        self.deadline = sim.now + TALK
        randoms = sim.rng.randbytes(RANDOM_SIZE), sim.rng.randbytes(RANDOM_SIZE)
        self.mine = Channel(session.key_out, session.key_in, *randoms)
        self.randoms = randoms
        self.theirs: tuple[Channel, Session] | None = None
        self.asked = False  # whether a request waits for its answer
        self.me = client.identity.node_id
        if not sim.network.both(client.index, server.index):
            sim.later(CONNECT, self._fail)
        else:
            self._reach(self._connect)

    def _reach(self, step: Callable[[], None]) -> None:
        """Get a segment across, now or when the way is open again."""
        sim = self.sim

        def arrive() -> None:
            if self.client.life != self.lives[0]:
                return
            ends = (self.client, self.server)
            if self.server.life != self.lives[1] or self.server.process is None:
                self._fail()
            elif any(end.stalled for end in ends) or not sim.network.both(*(end.index for end in ends)):
                if sim.now >= self.deadline:
                    self._fail()
                else:
                    sim.later(0.2, arrive)
            else:
                step()
                for end in ends:
                    sim.schedule(end)

        sim.later(sim.hop(), arrive)

    def _connect(self) -> None:
        assert self.server.process is not None
        found = self.server.process.sessions.get(self.session.name)
        if found is None:
            self._fail()
            return
        self.theirs = Channel(found.key_out, found.key_in, *self.randoms), found
        self._reach(lambda: self._go_on(None))

    def _go_on(self, value: messages.Answer | int | None) -> None:
        process = self.client.process
        try:
            step = next(self.talk) if value is None else self.talk.send(value)
            while isinstance(step, asking.Keep):
                assert process is not None
                kept = process.keeper.taking(step.records, self.server.identity.node_id, unasked=step.unasked)
                step = self.talk.send(at_once(kept))
        except StopIteration as end:
            self.done(end.value)
            return
        except asking.AskingError:
            self._fail()
            return
        frame = self.mine.seal(messages.encode(step))
        self.sim.tally["stream_bytes"] += len(frame)
        self._reach(lambda: self._serve(frame))

    def _serve(self, frame: bytes) -> None:
        assert self.theirs is not None and self.server.process is not None
        channel, session = self.theirs
        if session.peer in self.server.process.revocations:
            self._fail()  # `TcpPort.close_channels`
            return
        try:
            request = messages.decode_request_untrusted(channel.open(frame))
        except (ChannelError, messages.ControlError):
            self._fail()
            return
        self.asked = True

        def done(answer: messages.Answer) -> None:
            if not self.asked:
                return
            self.asked, sealed = False, channel.seal(messages.encode(answer))
            self.sim.tally["stream_bytes"] += len(sealed)
            self._reach(lambda: self._go_on(messages.decode_answer_untrusted(self.mine.open(sealed))))

        self.server.process.desk.serve(session, request, done)
        self._wait()

    def _wait(self) -> None:
        """A server that goes, or turns the client out, or takes too long, gives no answer."""
        if not self.asked or self.client.life != self.lives[0]:
            return
        server = self.server.process if self.server.life == self.lives[1] else None
        if server is None or self.me in server.revocations or self.sim.now >= self.deadline:
            self.asked = False
            self._fail()
        else:
            self.sim.later(0.2, self._wait)

    def _fail(self) -> None:
        self.sim.tally["call-failed"] += 1
        self.talk.close()
        if self.client.life == self.lives[0]:
            self.done(None)
            self.sim.schedule(self.client)
