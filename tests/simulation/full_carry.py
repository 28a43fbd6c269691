# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying between the nodes of `full_sim`, as `nursery/members/carrying.py` does it: the limits, the choice
of homes, the requests and the answers are real, the lent connections are modelled."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from phantommesh.control import messages
from phantommesh.endpoint import Address, by_way_of
from phantommesh.membership.messages import State
from phantommesh.node.carrying import Carrier, Homes
from phantommesh.nursery.members.carrying import QUEUE, TAKES
from phantommesh.nursery.sockets.framing import CONNECT
from phantommesh.records.roster import Entry
from phantommesh.trust.identity import NodeId, format_node_id, parse_node_id

if TYPE_CHECKING:
    from tests.simulation.full_machines import Machine
    from tests.simulation.full_node import Process

Asked = messages.Carry | messages.Carried


class Carrying:
    """One process's part in carrying."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.carrier = Carrier(process.me, lambda: process.peers.standing, process.now)
        self.choice = Homes(process.me)
        self.live: dict[NodeId, int] = {}  # this node's homes, with the life that each was in
        self.trying: dict[NodeId, float] = {}
        self._told: list[NodeId] = []
        self._queues: dict[NodeId, deque[tuple[NodeId, bytes]]] = {}
        self._due = float("inf")

    # Homes.

    def usable(self, member: NodeId) -> bool:
        """`parts._usable`."""
        process = self.process
        gone = process.membership.state(member) in (State.DEAD, State.LEFT)
        return process.sessions.newest(member) is not None and not gone

    @property
    def homes(self) -> list[NodeId]:
        """The homes that this node has a connection to."""
        return [home for home in self.choice.ranked(self.process.peers.entries) if home in self.live]

    def attended_by(self, member: NodeId) -> bool:
        """Whether a member has lent this node a connection that stands."""
        process, machine = self.process, self.process.sim.by_id.get(member)  # some members are records only
        other = None if machine is None else machine.process
        return other is not None and other.carrying.live.get(process.me) == process.life

    def ways(self, peer: bytes) -> list[Address]:
        """`Carrying.ways`."""
        if self.attended_by(NodeId(peer)):
            return [_at(self.process.me, NodeId(peer))]
        return [_at(home, NodeId(peer)) for home in self.homes if home != peer]

    def look(self) -> None:
        """The members, or the connections, have changed."""
        process, sim = self.process, self.process.sim
        if sim.large:
            return
        for home, life in list(self.live.items()):
            machine = sim.by_id[home]
            if machine.life != life or machine.process is None:
                del self.live[home]
        for home in self.live:
            self.choice.lives(home)
        ranked = filter(self.usable, self.choice.ranked(process.peers.entries))
        move = self.choice.look(ranked, self.live, self.trying, process.now)
        for member in move.call:
            self._lend(sim.by_id[member])
        for home in move.give_back:
            del self.live[home]
        if process.now < move.due < self._due:
            self._due = move.due
            sim.at_process(process, move.due - process.now, self._again)
        if (homes := self.homes) != self._told:
            self._told = homes
            process.links.carriers_changed(process.now)

    def _again(self) -> None:
        self._due = float("inf")
        self.look()

    def _lend(self, home: Machine) -> None:
        process, sim, node = self.process, self.process.sim, home.identity.node_id
        self.trying[node] = process.now
        session = process.sessions.newest(node)
        assert session is not None
        begins = sim.network.begins(process.machine.index, home.index)
        seconds = sum(sim.hop() for _ in range(6)) if begins else CONNECT

        def end() -> None:
            self.trying.pop(node, None)
            there = home.process
            if begins and there is not None and there.sessions.get(session.name) is not None:
                self.live[node] = home.life
            else:
                self.choice.failed(node, process.now)
            self.look()

        sim.at_process(process, seconds, end)

    # Datagrams.

    def send(self, datagram: bytes, to: Address) -> None:
        """`Carrying.send`."""
        carrier, end = map(parse_node_id, to.host.split("/"))
        process = self.process
        if carrier == process.me:
            self._queue(end, process.me, datagram, forward=True)
        else:
            self._queue(carrier, end, datagram, forward=False)

    def answer(self, entry: Entry, request: messages.Request) -> messages.Answer:
        """`Carrying.answer`, without lines: each two nodes that can have a channel have one here."""
        process, peer = self.process, entry.member.node_id
        match request:
            case messages.Carry(to, datagrams) if to == process.me:
                for datagram in self.carrier.take(peer, peer, datagrams, process.now):
                    process.receive(datagram, _at(process.me, peer))
            case messages.Carry(to, datagrams):
                if not self.attended_by(NodeId(to)):
                    self.carrier.dropped["carry-nowhere"] += len(datagrams)
                    return messages.Done()
                for datagram in self.carrier.carry(peer, to, datagrams, process.now):
                    self._queue(NodeId(to), peer, datagram, forward=True)
            case messages.Carried(origin, datagrams):
                for datagram in self.carrier.take(peer, origin, datagrams, process.now):
                    process.receive(datagram, _at(peer, NodeId(origin)))
            case _:
                return messages.Refused("not simulated")
        return messages.Done()

    def _queue(self, member: NodeId, other: NodeId, datagram: bytes, *, forward: bool) -> None:
        waiting = self._queues.get(member)
        if waiting is None:
            waiting = self._queues[member] = deque()
            self.process.sim.at_process(self.process, 0.0, lambda: self._send(member, forward=forward))
        if len(waiting) < QUEUE:
            waiting.append((other, datagram))

    def _send(self, member: NodeId, *, forward: bool) -> None:
        """Put what waits for a member to it, in as many requests as it takes."""
        waiting = self._queues[member]
        if not waiting:
            del self._queues[member]
            return
        other, batch = waiting[0][0], list[bytes]()
        while waiting and waiting[0][0] == other and len(batch) < messages.MAX_CARRIED:
            batch.append(waiting.popleft()[1])
        kind = messages.Carried if forward else messages.Carry
        self.ask(member, kind(other, tuple(batch)), lambda: self._send(member, forward=forward))

    def ask(self, member: NodeId, request: Asked, done: object = None) -> None:
        """Ask a member this over a channel, as far as there is one to it; then go on with ``done``."""
        process, sim = self.process, self.process.sim
        machine, me = sim.by_id[member], process.machine
        session = process.sessions.newest(member)
        there = machine.process
        open_to = self.attended_by(member) or sim.network.begins(me.index, machine.index)
        gone = there is None or machine.stalled or session is None
        theirs = None if there is None or session is None else there.sessions.get(session.name)
        after = done if callable(done) else lambda: None
        if gone or theirs is None or not open_to or not sim.network.both(me.index, machine.index):
            sim.tally["carry-unsent"] += 1
            sim.at_process(process, TAKES, after)
            return
        data = messages.encode(request)

        def arrive() -> None:
            if machine.process is not None and machine.process is there:
                there.desk.serve(theirs, messages.decode_request_untrusted(data), lambda answer: None)
                sim.schedule(machine)

        sim.later(sim.hop(), arrive)
        sim.at_process(process, 0.05, after)


def _at(carrier: NodeId, end: NodeId) -> Address:
    return by_way_of(format_node_id(carrier), format_node_id(end))
