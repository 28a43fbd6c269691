# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives gossip its socket, its clock, its disk and its channels to other members."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from time import time
from typing import assert_never

import structlog
import trio

from phantommesh.control import asking, messages
from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.gossip import envelope, machine
from phantommesh.gossip.envelope import Envelope, EnvelopeError
from phantommesh.gossip.machine import AskKeys, Datagram, Gossip, Hinted
from phantommesh.membership.effects import Changed, FetchRecord, Persist, Sync
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import MAX_GENERATION, GossipError
from phantommesh.membership.presets import Params
from phantommesh.node.federation import together
from phantommesh.node.news import WORKERS, Kind, News, Step, Take, Task, agreement
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.due import Due
from phantommesh.nursery.keeping.groupkeys import GroupKeys
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.keeping.saver import Patience, Saver
from phantommesh.nursery.members.calling import Caller, converse
from phantommesh.nursery.members.federating import Federating
from phantommesh.nursery.members.policing import Policing
from phantommesh.nursery.sockets import channels, framing
from phantommesh.nursery.sockets.udp import UdpPort
from phantommesh.nursery.unexpected import left_out
from phantommesh.records import antientropy
from phantommesh.records.record import HASH_BYTES
from phantommesh.state import directory
from phantommesh.state.start import (
    NodeState,
    encode_members,
    load_goodbyes,
    load_last_addresses,
    load_leap,
    load_members,
)
from phantommesh.trust.identity import NodeId, format_node_id

# Tuning.
TALK = 15.0  # s that one conversation may take
LOOK_AGAIN = 0.5  # s between readings of the interfaces while some member is suspected
SEEDS = 5.0  # s between looks at where the seeds are
SAVE_EVERY = 30.0  # s

BROKEN = "what gossip had to do now ended with an unexpected error"
TASK_BROKEN: Mapping[Kind, str] = {
    "fetch": "a fetch of records ended with an unexpected error",
    "sync": "a comparison of tables ended with an unexpected error",
    "ask": "a request for keys ended with an unexpected error",
}
EXPECTED: Mapping[Kind, tuple[type[Exception], ...]] = {
    "fetch": (framing.StreamError, EnvelopeError, messages.ControlError),
    "sync": (framing.StreamError, GossipError, PhantomMeshError),
    "ask": (framing.StreamError, PhantomMeshError),
}
FAILED: Mapping[Kind, str] = {
    "fetch": "records not fetched",
    "sync": "tables not compared",
    "ask": "group keys not fetched",
}

log = structlog.get_logger("phantommesh.gossip")


class GossipDriver:
    """Runs one `Gossip`. ``changed`` is called with every change of a member's state, ``learned`` with the
    seconds from the first word of a record until it was verified here."""

    def __init__(
        self,
        node: NodeState,
        keeper: RosterKeeper,
        keys: GroupKeys,
        caller: Caller,
        udp: UdpPort,
        *,
        generation: int,
        params: Params,
        seeds: Callable[[], Sequence[Address]],
        where: Callable[[NodeId], Sequence[Address]],
        may: Callable[[bytes | None, str], bool],
        changed: Callable[[Changed], None],
        learned: Callable[[float], None],
        look: Callable[[], None],
        agree: Callable[[int, bytes], bytes | None],
        further: Callable[[Address], Sequence[int]] = lambda address: (),
        near: Callable[[bytes], bool] | None = None,
        federating: Federating | None = None,
        policing: Policing | None = None,
    ) -> None:
        """``generation`` is the number of this start; no rumour changes the number of the next start.
        ``where`` gives the addresses of a member's record that may be used, ``seeds`` those to try for ever;
        ``may`` says whether a member, or somebody, may be spoken to at an address; ``look`` has the
        interfaces read soon; ``agree`` is `WgKeys.agree` of this node's keys; ``further`` gives more
        TCP ports of an address. For ``near`` see `Membership`."""
        self._node, self._keeper, self._keys, self._caller, self._udp = node, keeper, keys, caller, udp
        self._federating, self._policing = federating, policing
        pacts = (lambda: b"") if federating is None else federating.federation.pacts.digest

        def policies() -> bytes:
            return node.policies.digest(time())

        digest = partial(together, keys.digest, pacts, policies)
        self._where, self._changed, self._look = where, changed, look
        self._may, self._agree_on, self._further = may, agree, further
        self._mine, self._seeds = node.identity.node_id, seeds
        me = node.roster.get(self._mine)
        self._start, self._leap = generation, load_leap(node.state)
        self.membership = Membership(
            node=self._mine,
            generation=min(generation + self._leap, MAX_GENERATION),
            record_seq=0 if me is None else me.record.seq,
            record_hash=bytes(16) if me is None else me.hash,
            rng=random.SystemRandom(),
            now=trio.current_time(),
            params=params,
            known=load_members(node),
            goodbyes=load_goodbyes(node),
            agree=self._agree,
            near=near,
        )
        self._lost = load_last_addresses(node)
        self.hinted: Callable[[str], None] = lambda place: None  # a member says that this node is there
        sealed = Envelope(
            self._mine,
            keys.ring,
            start=generation,
            revoked=node.revocations,
            digest=digest,
        )
        self._requests = Envelope(
            self._mine,
            keys.ring,
            start=generation,
            revoked=node.revocations,
            digest=digest,
            label=envelope.REQUEST,
        )
        self.gossip = Gossip(self.membership, sealed, where=where, digest=digest, in_use=keys.in_use, may=may)
        self.news = News(
            self._mine,
            keeper.roster,
            node.revocations,
            self.gossip,
            self._requests,
            told={} if me is None else {self._mine: me.hash},
            learned=learned,
            where=where,
            may=may,
            reachable=caller.callable,
            linked=lambda member: caller.sessions.newest(member) is not None,
            carry_out=self._carry_out,
            pacts=pacts,
            policies=policies,
        )
        self._send_framed: Callable[[bytes, Address], None] = lambda datagram, to: None
        self._dropped = self.news.dropped
        self._due, self._saver = Due(lambda: self.gossip.deadline, turns=True), Saver(self._write)
        self.disk = Patience(log, "members")
        self._wanted, self._watched = Bell(), Bell()

    # Told from outside.

    def receive(self, datagram: bytes, source: Address) -> None:
        """Take one datagram from the network."""
        self._carry_out(self.gossip.receive(datagram, source, trio.current_time()))

    def receive_framed(self, datagram: bytes, source: Address, member: NodeId) -> None:
        """Take one datagram that came over the connection of this member."""
        self._carry_out(self.gossip.receive(datagram, source, trio.current_time(), member=member))

    @property
    def dropped(self) -> Counter[str]:
        """Datagrams that came and could not be used, by reason; requests for records under the group key
        apart."""
        refused = {
            f"records-{reason.removeprefix('gossip-')}": count
            for reason, count in self._requests.drops.items()
        }
        return self.gossip.drops + self._dropped + Counter(refused)

    def follow(
        self,
        over_tcp: Callable[[NodeId], Address | None],
        send: Callable[[bytes, Address], None],
        by_udp: Callable[[NodeId], None],
    ) -> None:
        """Speak to members over their connections for frames, too: ``over_tcp`` gives a connection's address,
        ``send`` sends there, and ``by_udp`` is told of each member that is heard by UDP."""
        self.gossip.over_tcp, self.gossip.by_udp, self._send_framed = over_tcp, by_udp, send

    def quiet(self) -> bool:
        """Whether nobody has been heard for a while."""
        return self.news.quiet(trio.current_time())

    def roster_changed(self) -> None:
        """Tell membership of records that are new here, and of members that were revoked."""
        self.news.roster_changed(trio.current_time(), time())
        self._watched.ring()  # the seeds may be at other addresses

    def begin_anew(self, start: int) -> None:
        """This start's number is to be at least this one: see `node.runs`."""
        now = trio.current_time()
        self._carry_out(self.gossip.seal(self.membership.begin_anew(start, now), now))

    def _agree(self, node: bytes, draw: int) -> bytes | None:
        return agreement(self._keeper.roster, node, draw, self._agree_on)

    def read_interfaces(self, received: Mapping[NodeId, Sequence[int]]) -> None:
        """Bytes that each member's WireGuard has brought so far, by dimension: data is a sign of life."""
        self.news.read_interfaces(received, trio.current_time())

    def rouse(self) -> None:
        """This node may be somewhere else, or has slept: have some members hear of it now."""
        now = trio.current_time()
        self._carry_out(self.gossip.seal(self.membership.rouse(now), now))

    def lives(self, peer: NodeId, when: float) -> None:
        """A member gave a sign of life that no other can give, at this time: see `News.lives`."""
        self.news.lives(peer, when, trio.current_time())

    def heard_at(self, member: bytes) -> list[Address]:
        """The addresses at which a member was lately heard, that its record does not name, and that may be
        spoken to."""
        found = self.membership.heard_at(member)
        return [address for address in found if self._may(member, address.host)]

    def sync_answer(self, opening: bytes, peer: NodeId) -> bytes:
        """Another member opens a full sync. Raises `GossipError`."""
        now = trio.current_time()
        answer, effects = self.membership.sync_answer(opening, peer, now)
        self._carry_out(self.gossip.seal(effects, now))
        return answer

    def sync_finish(self, rest: bytes, peer: NodeId) -> None:
        """Another member closes its full sync. Raises `GossipError`."""
        now = trio.current_time()
        self._carry_out(self.gossip.seal(self.membership.sync_finish(rest, peer, now), now))

    def answer_records(self, sealed: bytes) -> bytes:
        """Answer a request for records from somebody that holds the group key and has no link with us; if
        need be with nothing."""
        try:
            asked = self._requests.open(sealed).payload
        except EnvelopeError:
            return b""
        hashes = [asked[i : i + HASH_BYTES] for i in range(0, len(asked), HASH_BYTES)][: asking.MAX_UNLINKED]
        found = antientropy.records(self._keeper.roster, hashes, time())
        return self._requests.seal_answer(sealed, messages.encode(messages.Records(tuple(found))))

    # Carrying out.

    def _carry_out(self, effects: list[machine.Effect]) -> None:
        for effect in effects:
            match effect:
                case Datagram(data, to):
                    (self._udp.send if to.transport == "udp" else self._send_framed)(data, to)
                case Changed():
                    self._saver.mark()
                    self._lost.heard(effect, self._where)
                    self._changed(effect)
                case FetchRecord() | Sync() | AskKeys():
                    if self.news.wish(effect, trio.current_time(), time()):
                        self._wanted.ring()
                case Hinted(_, place):
                    self.hinted(place)
                case Persist(generation):
                    self._leap = generation - self._start
                    self._saver.mark()
                case _:
                    assert_never(effect)
        if self.membership.unsure:
            self._watched.ring()
        self._due.look()

    def _all_seeds(self) -> list[Address]:
        last = [address for address in self._lost.addresses() if self._may(None, address.host)]
        return [*self._seeds(), *last]

    # Services.

    async def run(self) -> None:
        """Tick, fetch, compare, ask and save until cancelled."""
        async with trio.open_nursery() as nursery:
            for kind, workers in WORKERS.items():
                for _ in range(workers):
                    nursery.start_soon(self._work, kind)
            nursery.start_soon(self._save)
            nursery.start_soon(self._watch)
            while True:
                await self._due.sleep()
                with left_out(self._dropped, "gossip-broken", BROKEN):  # the words of others set a timer
                    self._carry_out(self.gossip.tick(trio.current_time()))

    async def leave(self) -> None:
        """Say goodbye, and stay until the members that ask whether it is true have their answers."""
        now = trio.current_time()
        self._carry_out(self.gossip.seal(self.membership.leave(now), now))
        if self.membership.left_at is not None and len(self.membership) > 1:
            await trio.sleep_until(self.membership.left_at)

    async def _watch(self) -> None:
        """Keep the seeds up to date; have the interfaces read while traffic there could clear a suspect."""
        while True:
            self.membership.set_seeds(self._all_seeds())
            if self.membership.unsure:
                await trio.sleep(LOOK_AGAIN)
                self._look()
                continue
            with trio.move_on_after(SEEDS):
                await self._watched.wait()

    async def _work(self, kind: Kind) -> None:
        """Work on tasks of one kind, one after the other."""
        while True:
            task = self.news.next(kind, trio.current_time, time)
            if task is None:
                await self._wanted.wait()
                continue
            with left_out(self._dropped, f"gossip-{kind}-broken", TASK_BROKEN[kind]):
                await self.work_on(kind, task)

    async def work_on(self, kind: Kind, task: Task) -> None:
        """Take the steps of one task."""
        with closing(task):
            came: object = None
            while True:
                try:
                    step = task.send(came)
                except StopIteration:
                    return
                came = None
                about = _whom(step)
                with left_out(self._dropped, f"gossip-{kind}-broken", TASK_BROKEN[kind], **about):
                    try:
                        came = await self._take_step(step)
                    except EXPECTED[kind] as error:
                        level = log.debug if kind == "fetch" else log.info
                        level(FAILED[kind], **about, error=str(error))

    async def _take_step(self, step: Step) -> object:
        match step:
            case asking.Pause(seconds):
                await trio.sleep(seconds)
            case asking.Call(member, talk):
                with trio.move_on_after(TALK):
                    async with self._caller.call(member) as client:
                        return await converse(client, self._keeper, member, talk)
            case asking.CallUnlinked():
                await self._ask_unlinked(step)
            case Take(member, told):
                news = await self._keeper.hear(member, told.statements)
                if self._federating is not None and told.pacts:
                    news |= await self._federating.take(told.pacts, member)
                if self._policing is not None and told.policies:
                    news |= await self._policing.take(told.policies, member)
                return self._keys.merge(told.keys.keys, told.keys.active_key, member) or news
            case _:
                assert_never(step)
        return None

    async def _ask_unlinked(self, step: asking.CallUnlinked) -> None:
        question, address = self.news.question(step), step.address
        if question is None:
            return
        answer = b""
        with trio.move_on_after(step.patience):
            further = self._further(address._replace(transport="tcp"))
            async with framing.connect(address.host, address.port, further) as framed:
                answer = await channels.ask_records(framed, question)
        if not answer:
            return
        kept = self.news.answered(step, question, answer)
        if kept is not None:
            await self._keeper.take(kept.records, address, unasked=kept.unasked)

    async def _save(self) -> None:
        """Write to disk all that the next start should know. A full disk does not end the node."""
        while True:
            await self._saver.marked()
            async with self.disk.patiently():
                await self.save()
                await trio.sleep(SAVE_EVERY)

    async def save(self) -> None:
        """Write the members' last claims, and how far our generation has leapt. Raises StateError."""
        await self._saver.save(always=True)

    async def _write(self) -> None:
        files = {
            directory.MEMBERS: encode_members([*self.membership.snapshot(), *self.membership.goodbyes()]),
            directory.LAST_ADDRESSES: self._lost.encode(),
        }
        if self._leap:
            files[directory.LEAP] = str(self._leap).encode("ascii")
        for name, data in files.items():
            await trio.to_thread.run_sync(self._node.state.write, name, data)


def _whom(step: Step) -> dict[str, str]:
    match step:
        case asking.Pause():
            return {}
        case asking.CallUnlinked(address):
            return {"source": str(address)}
        case asking.Call(member) | Take(member):
            return {"peer": format_node_id(member)}
        case _:
            assert_never(step)
