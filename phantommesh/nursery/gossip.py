# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives gossip its socket, its clock, its disk and its channels to other members."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import time
from typing import TypeVar, assert_never

import structlog
import trio

from phantommesh import antientropy, asking, control, envelope, gossip, statedir
from phantommesh.acquaintance import Acquaintance
from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.envelope import Envelope, EnvelopeError
from phantommesh.errors import PhantomMeshError
from phantommesh.gossip import AskKeys, Datagram, Gossip
from phantommesh.identity import NodeId, format_node_id
from phantommesh.membership.effects import Changed, FetchRecord, Persist, Sync
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import MAX_GENERATION, GossipError
from phantommesh.membership.presets import Params
from phantommesh.nodestate import NodeState, encode_members, load_last_addresses, load_leap, load_members
from phantommesh.nursery import streams
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.calling import Caller, converse
from phantommesh.nursery.due import Due
from phantommesh.nursery.groupkeys import GroupKeys
from phantommesh.nursery.keeper import RosterKeeper
from phantommesh.nursery.saver import Saver, patiently
from phantommesh.nursery.udp import UdpPort
from phantommesh.nursery.unexpected import left_out
from phantommesh.records import HASH_BYTES

# Tuning.
FETCHERS, SYNCERS, ASKERS = 3, 2, 2  # channels for each purpose at one time
SYNC_QUEUE, ASK_QUEUE = 8, 64
ASKED = 3  # members asked for keys that no datagram says who has, until one answers
TALK = 15.0  # s that one conversation may take
LOOK_AGAIN = 0.5  # s between readings of the interfaces while some member is suspected
DATA = 256  # bytes received on one interface between two readings from which on it was not keepalives alone
SAVE_EVERY = 30.0  # s
QUIET = 5.0  # s without a genuine datagram

BROKEN = "what gossip had to do now ended with an unexpected error"
FETCH_BROKEN = "a fetch of records ended with an unexpected error"
SYNC_BROKEN = "a comparison of tables ended with an unexpected error"
ASK_BROKEN = "a request for keys ended with an unexpected error"

Item = TypeVar("Item")

log = structlog.get_logger("phantommesh.gossip")


class GossipDriver:
    """Runs one `Gossip`. ``changed`` hears of every change of a member's state, and ``learned`` of how many
    seconds passed from first word of a record to its being verified here."""

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
    ) -> None:
        """``generation`` is the number of this start: no rumour moves the next one. ``where`` gives the
        addresses of a member's record that may be used, ``seeds`` those to try for ever; ``may`` says whether
        a member, or somebody, may be spoken to at an address; ``look`` has the interfaces read soon;
        ``agree`` is `WgKeys.agree` of this node's keys."""
        self._node, self._keeper, self._keys, self._caller, self._udp = node, keeper, keys, caller, udp
        self._where, self._changed, self._look = where, changed, look
        self._may, self._agree_on = may, agree
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
            agree=self._agree,
        )
        self._fetching, self._wanted = asking.Fetching(), Bell()
        self._acquaintance = Acquaintance(
            self._mine,
            keeper.roster,
            node.revocations,
            self.membership,
            self._fetching,
            told={} if me is None else {self._mine: me.hash},
            learned=learned,
        )
        self._lost = load_last_addresses(node)
        sealed = Envelope(
            self._mine,
            keys.ring,
            start=generation,
            revoked=node.revocations,
            digest=keys.digest,
        )
        self._requests = Envelope(
            self._mine,
            keys.ring,
            start=generation,
            revoked=node.revocations,
            digest=keys.digest,
            label=envelope.REQUEST,
        )
        self.gossip = Gossip(
            self.membership, sealed, where=where, digest=keys.digest, in_use=keys.in_use, may=may
        )
        self._due, self._saver = Due(lambda: self.gossip.deadline), Saver(self._write)
        self._rx: dict[NodeId, tuple[Sequence[int], float]] = {}
        self._to_sync, self._syncs = trio.open_memory_channel[bytes | Address](SYNC_QUEUE)
        self._to_ask, self._asks = trio.open_memory_channel[AskKeys](ASK_QUEUE)
        self._dropped: Counter[str] = Counter()

    # Told from outside.

    def receive(self, datagram: bytes, source: Address) -> None:
        """Take one datagram from the network."""
        self._carry_out(self.gossip.receive(datagram, source, trio.current_time()))

    @property
    def dropped(self) -> Counter[str]:
        """Datagrams that came and could not be used, by reason; requests for records under the group key
        apart."""
        refused = {
            f"records-{reason.removeprefix('gossip-')}": count
            for reason, count in self._requests.drops.items()
        }
        return self.gossip.drops + self._dropped + Counter(refused)

    def quiet(self) -> bool:
        """Whether nobody has been heard for a while."""
        return trio.current_time() - self.gossip.heard_at > QUIET

    def roster_changed(self) -> None:
        """Tell membership of records that are new here, and of members that were revoked."""
        now = trio.current_time()
        for effects in self._acquaintance.roster_changed(now, time()):
            self._carry_out(self.gossip.seal(effects, now))
        told = self._acquaintance.told
        self.gossip.forget(set(told))
        self._rx = {node_id: seen for node_id, seen in self._rx.items() if node_id in told}

    def _agree(self, node: bytes, draw: int) -> bytes | None:
        """See `membership.carrying.Agree`: X25519 of the two nodes' WireGuard keys in one dimension, which
        their signed records name. One that is being replaced may differ for a moment; others do not."""
        entry, dimension = self._keeper.roster.get(NodeId(node)), draw % DIMENSIONS
        return None if entry is None else self._agree_on(dimension, entry.record.wg_keys[dimension])

    def read_interfaces(self, received: Mapping[NodeId, Sequence[int]]) -> None:
        """Bytes that each member's WireGuard has brought so far, by dimension: data is a sign of life, and it
        came after the reading before this one. Keepalives and handshakes are WireGuard's own."""
        now = trio.current_time()
        for node_id, counts in received.items():
            before, then = self._rx.get(node_id, (counts, now))
            self._rx[node_id] = counts, now
            if any(count - last > DATA for count, last in zip(counts, before, strict=True)):
                seen = self.membership.traffic_seen(node_id, now, age=now - then)
                self._carry_out(self.gossip.seal(seen, now))

    def _compare(self, peer: NodeId) -> asking.Talk[int]:
        return asking.compare(self._sync_open, partial(self._sync_close, peer), self._keeper.roster, time)

    def _sync_open(self) -> bytes:
        return self.membership.sync_open(trio.current_time())

    def _sync_close(self, peer: NodeId, answer: bytes) -> bytes:
        now = trio.current_time()
        rest, effects = self.membership.sync_close(answer, peer, now)
        self._carry_out(self.gossip.seal(effects, now))
        return rest

    def sync_answer(self, opening: bytes, peer: NodeId) -> bytes:
        """Another member opens a full sync. Raises `GossipError`."""
        now = trio.current_time()
        answer, effects = self.membership.sync_answer(opening, peer, now)
        self._carry_out(self.gossip.seal(effects, now))
        return answer

    def sync_finish(self, rest: bytes, peer: NodeId) -> None:
        """And closes it. Raises `GossipError`."""
        now = trio.current_time()
        self._carry_out(self.gossip.seal(self.membership.sync_finish(rest, peer, now), now))

    def answer_records(self, sealed: bytes) -> bytes:
        """Somebody who holds the group key and has no link with us asks for records: answer, if need be
        with nothing."""
        try:
            asked = self._requests.open(sealed).payload
        except EnvelopeError:
            return b""
        hashes = [asked[i : i + HASH_BYTES] for i in range(0, len(asked), HASH_BYTES)][: asking.MAX_UNLINKED]
        found = antientropy.records(self._keeper.roster, hashes, time())
        return self._requests.seal_answer(sealed, control.encode(control.Records(tuple(found))))

    # Carrying out.

    def _carry_out(self, effects: list[gossip.Effect]) -> None:
        for effect in effects:
            match effect:
                case Datagram(data, to):
                    self._udp.send(data, to)
                case Changed():
                    self._saver.mark()
                    self._lost.heard(effect, self._where)
                    self._changed(effect)
                case FetchRecord():
                    now = trio.current_time()
                    told, fetch = self._acquaintance.wished(effect, now, time())
                    self._carry_out(self.gossip.seal(told, now))
                    if fetch:
                        self._want(effect)
                case Sync(peer):
                    self._queue(self._to_sync, peer, "sync")
                case AskKeys():
                    self._queue(self._to_ask, effect, "ask")
                case Persist(generation):
                    self._leap = generation - self._start
                    self._saver.mark()
                case _:
                    assert_never(effect)
        self._due.look()

    def _all_seeds(self) -> list[Address]:
        last = [address for address in self._lost.addresses() if self._may(None, address.host)]
        return [*self._seeds(), *last]

    def _queue(self, channel: trio.MemorySendChannel[Item], item: Item, what: str) -> None:
        try:
            channel.send_nowait(item)
        except trio.WouldBlock:  # what matters is asked for again
            self._dropped[f"gossip-{what}-queue"] += 1

    def _want(self, wanted: FetchRecord) -> None:
        if NodeId(wanted.node) in self._keeper.roster.waiting:
            self._dropped["gossip-fetch-paced"] += 1  # it makes too many; membership asks again
        elif self._fetching.want(wanted, trio.current_time()):
            self._wanted.ring()
        elif self._fetching.full:  # what matters is asked for again
            self._dropped["gossip-fetch-queue"] += 1

    # Services.

    async def run(self) -> None:
        """Tick, fetch, compare, ask and save until cancelled."""
        async with trio.open_nursery() as nursery:
            for workers, work in ((FETCHERS, self._fetch), (SYNCERS, self._sync), (ASKERS, self._ask)):
                for _ in range(workers):
                    nursery.start_soon(work)
            nursery.start_soon(self._save)
            nursery.start_soon(self._watch)
            while True:
                await self._due.sleep()
                with left_out(self._dropped, "gossip-broken", BROKEN):  # what others said had a timer set
                    self._carry_out(self.gossip.tick(trio.current_time()))

    async def leave(self) -> None:
        """Say goodbye, and stay until those who ask whether it is true have been answered."""
        now = trio.current_time()
        self._carry_out(self.gossip.seal(self.membership.leave(now), now))
        if self.membership.left_at is not None and len(self.membership) > 1:
            await trio.sleep_until(self.membership.left_at)

    async def _watch(self) -> None:
        """Keep the seeds up to date; have the interfaces read while traffic there could clear a suspect."""
        while True:
            self.membership.set_seeds(self._all_seeds())
            await trio.sleep(LOOK_AGAIN)
            if self.membership.unsure:
                self._look()

    async def _fetch(self) -> None:
        """Fetch the records that are said to exist, those that wait together."""
        while True:
            batch = self._fetching.batch()
            if not batch:
                await self._wanted.wait()
                continue
            try:
                with left_out(self._dropped, "gossip-fetch-broken", FETCH_BROKEN):
                    await self._fetch_from_someone(batch)
            finally:
                self._fetching.over(batch)

    async def _fetch_from_someone(self, batch: Sequence[FetchRecord]) -> None:
        looking = asking.look_for(
            batch,
            self._keeper.roster,
            member_at=self._member_at,
            callable=self._caller.callable,
            where=self._where,
        )
        for step in looking:
            match step:
                case asking.Pause(seconds):
                    await trio.sleep(seconds)
                case asking.Call(member, talk):
                    peer = format_node_id(member)
                    with left_out(self._dropped, "gossip-fetch-broken", FETCH_BROKEN, peer=peer):
                        await self._fetch_linked(member, talk)
                case asking.CallUnlinked(address, hashes):
                    source = str(address)
                    with left_out(self._dropped, "gossip-fetch-broken", FETCH_BROKEN, source=source):
                        await self._fetch_unlinked(address, hashes)
                case _:
                    assert_never(step)
        self._dropped["gossip-record-not-found"] += len(asking.missing(batch, self._keeper.roster))

    async def _fetch_linked(self, member: NodeId, talk: asking.Talk[int]) -> None:
        try:
            with trio.move_on_after(TALK):
                async with self._caller.call(member) as client:
                    await converse(client, self._keeper, member, talk)
        except streams.StreamError as error:
            log.debug("records not fetched", peer=format_node_id(member), error=str(error))

    async def _fetch_unlinked(self, source: Address, hashes: Sequence[bytes]) -> None:
        """Ask whoever spoke from an address, for its own record above all: there is nobody else to ask while
        those who know it are away, and no link with it without its record."""
        if not self._may(None, source.host):
            self._dropped["gossip-record-forbidden"] += 1
            return
        try:
            if not self._requests.ready:
                return
            request = self._requests.seal(0, b"".join(hashes))
            async with streams.connect(source.host, source.port) as framed:
                answer = await streams.ask_records(framed, request)
            records = control.decode_answer_untrusted(self._requests.open_answer(request, answer))
            if isinstance(records, control.Records):
                kept = asking.asked_for(records.records, hashes)
                await self._keeper.take(kept.records, source, unasked=kept.unasked)
        except (streams.StreamError, EnvelopeError, control.ControlError) as error:
            log.debug("records not fetched", source=str(source), error=str(error))

    def _member_at(self, peer: bytes | Address) -> NodeId | None:
        if not isinstance(peer, Address):
            return NodeId(peer)
        return next((node_id for node_id in self._acquaintance.told if peer in self._where(node_id)), None)

    async def _sync(self) -> None:
        """Compare tables, and then records and keys, with a member over a channel."""
        async for peer in self._syncs.clone():
            member = self._member_at(peer)
            if member is None or self._caller.sessions.newest(member) is None:
                self._dropped["gossip-sync-unlinked"] += 1
                continue
            name = format_node_id(member)
            with left_out(self._dropped, "gossip-sync-broken", SYNC_BROKEN, peer=name):
                try:
                    with trio.move_on_after(TALK):
                        async with self._caller.call(member) as client:
                            await converse(client, self._keeper, member, self._compare(member))
                except (streams.StreamError, GossipError, PhantomMeshError) as error:
                    log.info("tables not compared", peer=name, error=str(error))

    async def _ask(self) -> None:
        """Ask for revocations and group keys."""
        async for wanted in self._asks.clone():
            if self.gossip.moot(wanted):
                continue
            members = self._caller.callable() if wanted.member is None else [wanted.member]
            for member in members[:ASKED]:  # the first may be away
                if self._caller.sessions.newest(member) is None:
                    break  # no link with it yet: its next datagram says the same
                answered = False
                name = format_node_id(member)
                with left_out(self._dropped, "gossip-ask-broken", ASK_BROKEN, peer=name):
                    answered = await self._ask_keys(member, wanted.digest)
                if answered:
                    break

    async def _ask_keys(self, member: NodeId, digest: bytes) -> bool:
        """Ask one member; say whether it answered."""
        try:
            with trio.move_on_after(TALK):
                async with self._caller.call(member) as client:
                    told = await converse(client, self._keeper, member, asking.keys(self._node.revocations))
                    news = await self._take_revocations(member, told.statements)
                    news |= self._keys.merge(told.keys.keys, told.keys.active_key, member)
                    self.gossip.asked(digest, news=news)
                    return True
        except (streams.StreamError, PhantomMeshError) as error:
            log.info("group keys not fetched", peer=format_node_id(member), error=str(error))
        return False

    async def _take_revocations(self, member: NodeId, parts: Sequence[bytes]) -> bool:
        """A member whose revocations do not hold, or a list that is full, keeps no group key from us."""
        try:
            return await self._keeper.take_parts(parts)
        except PhantomMeshError as error:
            log.warning("revocations refused", peer=format_node_id(member), error=str(error), fix=error.fix)
            return False

    async def _save(self) -> None:
        """Keep on disk what the next start should know. A full disk does not end the node."""
        while True:
            await self._saver.marked()
            async with patiently(log, "members"):
                await self.save()
                await trio.sleep(SAVE_EVERY)

    async def save(self) -> None:
        """Write what members last said of themselves, and how far we have leapt. Raises StateError."""
        await self._saver.save(always=True)

    async def _write(self) -> None:
        files = {
            statedir.MEMBERS: encode_members(self.membership.snapshot()),
            statedir.LAST_ADDRESSES: self._lost.encode(),
        }
        if self._leap:
            files[statedir.LEAP] = str(self._leap).encode("ascii")
        for name, data in files.items():
            await trio.to_thread.run_sync(self._node.state.write, name, data)
