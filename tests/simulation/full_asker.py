# SPDX-License-Identifier: GPL-3.0-or-later
"""What a simulated node asks of others, as `GossipDriver`'s services and `Caller` of nursery/ do.

Records, comparisons and group keys are asked for by tasks, over channels. Records that whoever is at an
address may have, and whether the node was revoked, are asked for on connections of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from phantommesh import asking, control
from phantommesh.endpoint import Address
from phantommesh.envelope import EnvelopeError
from phantommesh.gossip import AskKeys
from phantommesh.identity import NodeId
from phantommesh.membership.effects import FetchRecord, Sync
from phantommesh.nursery.calling import STANDING_ASKED, STANDING_FIRST, STANDING_MAX
from phantommesh.nursery.gossip import ASK_QUEUE, ASKERS, FETCHERS, QUIET, SYNC_QUEUE, SYNCERS
from phantommesh.nursery.streams import CONNECT
from tests.simulation.full_calls import Ask, Task, spawn

if TYPE_CHECKING:
    from tests.simulation.full_node import Process


class Asker:
    """Queues what is to be asked, and asks it with as many workers at once as a real node has."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.fetching = asking.Fetching()
        self.busy = {"fetch": 0, "sync": 0, "ask": 0}
        self._to_sync: list[bytes | Address] = []
        self._to_ask: list[AskKeys] = []
        self._standing_at = process.now
        self._standing_pause = STANDING_FIRST

    def want(self, wanted: FetchRecord | Sync | AskKeys) -> None:
        """Queue what gossip wants asked, if there is room."""
        process = self.process
        match wanted:
            case FetchRecord():
                if self.fetching.want(wanted, process.now):
                    process.sim.later(0.0, self.pump)
            case Sync(peer):
                if len(self._to_sync) < SYNC_QUEUE:
                    self._to_sync.append(peer)
                    process.sim.later(0.0, self.pump)
            case AskKeys():
                if len(self._to_ask) < ASK_QUEUE:
                    self._to_ask.append(wanted)
                    process.sim.later(0.0, self.pump)

    def callable(self, first: Sequence[bytes]) -> list[NodeId]:
        """`Caller.callable`. In a large mesh those that are named, and the authorities, can all be called."""
        process = self.process
        if process.sim.large and first:
            authorities = (entry.member.node_id for entry in process.peers.authorities)
            named = dict.fromkeys(NodeId(node_id) for node_id in (*first, *authorities))
            return [n for n in named if n != process.me and process.roster.get(n) is not None]
        ordered = asking.whom(process.roster, process.me, first, process.rng)
        return [m for m in ordered if process.sim.large or process.sessions.newest(m) is not None]

    def member_at(self, peer: bytes | Address) -> NodeId | None:
        """`GossipDriver._member_at`."""
        if not isinstance(peer, Address):
            return NodeId(peer)
        process = self.process
        return next(
            (node_id for node_id in process.acquaintance.told if peer in process.where(node_id)), None
        )

    def pump(self) -> None:
        """Start what waits, as far as there are workers for it."""
        process = self.process
        if process.machine.life != process.life:
            return
        while self.busy["fetch"] < FETCHERS and (batch := self.fetching.batch()):
            spawn(process, "fetch", self._fetch(batch))
        while self.busy["sync"] < SYNCERS and self._to_sync:
            spawn(process, "sync", self._sync(self._to_sync.pop(0)))
        while self.busy["ask"] < ASKERS and self._to_ask:
            spawn(process, "ask", self._ask(self._to_ask.pop(0)))

    def _fetch(self, batch: Sequence[FetchRecord]) -> Task:
        process = self.process
        looking = asking.look_for(
            batch, process.roster, member_at=self.member_at, callable=self.callable, where=process.where
        )
        try:
            for step in looking:
                yield Ask(*step) if isinstance(step, asking.Call) else step
            process.sim.tally["record-not-found"] += len(asking.missing(batch, process.roster))
        finally:
            self.fetching.over(batch)

    def _sync(self, peer: bytes | Address) -> Task:
        process, member = self.process, self.member_at(peer)
        if member is None or (not process.sim.large and process.sessions.newest(member) is None):
            process.sim.tally["sync-unlinked"] += 1
            return

        def close(answer: bytes) -> bytes:
            rest, effects = process.membership.sync_close(answer, member, process.now)
            process.carry_gossip(process.gossip.seal(effects, process.now))
            return rest

        yield Ask(
            member,
            asking.compare(
                lambda: process.membership.sync_open(process.now), close, process.roster, lambda: process.wall
            ),
        )
        process.sim.tally["syncs"] += 1

    def _ask(self, wanted: AskKeys) -> Task:
        process = self.process
        if process.gossip.moot(wanted):
            return
        members = self.callable(()) if wanted.member is None else [wanted.member]
        if not members or (not process.sim.large and process.sessions.newest(members[0]) is None):
            return
        told = yield Ask(members[0], asking.keys(process.revocations))
        if isinstance(told, asking.Shut):
            news = process.take_revocations(*told.statements)
            news |= process.merge(told.keys.keys, told.keys.active_key)
            process.gossip.asked(wanted.digest, news=news)

    # On connections of their own.

    def ask_records(self, address: Address, hashes: Sequence[bytes], done: Callable[[], None]) -> None:
        """`GossipDriver._fetch_unlinked`: a sealed question."""
        process, sim = self.process, self.process.sim
        target = sim.by_address.get(address)
        if (
            target is None
            or not process.requests.ready
            or not sim.network.both(process.machine.index, target.index)
        ):
            sim.at_process(process, CONNECT, done)
            return
        request = process.requests.seal(0, b"".join(hashes))

        def arrive() -> None:
            server, answer = target.process, b""
            if server is not None and not target.stalled:
                answer = server.desk.answer_records(request)

            def back() -> None:
                self._take_unlinked(request, hashes, answer)
                done()

            sim.at_process(process, sim.hop(), back)

        sim.later(sim.hop() + sim.hop(), arrive)

    def _take_unlinked(self, request: bytes, hashes: Sequence[bytes], answer: bytes) -> None:
        """The end of `GossipDriver._fetch_unlinked`."""
        process = self.process
        try:
            records = control.decode_answer_untrusted(process.requests.open_answer(request, answer))
        except (EnvelopeError, control.ControlError):
            return
        if isinstance(records, control.Records):
            process.take(asking.asked_for(records.records, hashes).records)

    def ask_standing(self) -> None:
        """`Caller.ask_standing`, where nothing genuine was heard for a while."""
        process = self.process
        if process.now < self._standing_at:
            return
        if process.now - process.gossip.heard_at <= QUIET and not process.revoked:
            self._standing_pause = STANDING_FIRST
        else:
            self._standing_pause = min(STANDING_MAX, self._standing_pause * 1.5)
            entries = [e for e in process.roster.everyone() if e.member.node_id != process.me]
            for entry in process.rng.sample(entries, min(len(entries), STANDING_ASKED)):
                self.ask_revoked(entry.member.node_id)
        self._standing_at = process.now + self._standing_pause * process.rng.uniform(0.75, 1.25)

    def ask_revoked(self, of: NodeId) -> None:
        """`streams.ask_revoked`: anybody may ask whether it was revoked."""
        process, sim = self.process, self.process.sim
        machine = sim.by_id[of]
        if machine.process is None or machine.stalled:
            return
        if not sim.network.both(process.machine.index, machine.index):
            return
        plea = process.revocations.plea()
        if plea:
            machine.process.take_revocations(plea)
        standing = machine.process.revocations.standing(process.me)

        def heard() -> None:
            if standing:
                process.take_standing(standing)

        sim.at_process(process, sim.hop() + sim.hop(), heard)
