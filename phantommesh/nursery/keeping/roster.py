# SPDX-License-Identifier: GPL-3.0-or-later
"""The roster of this node while it changes: its additions, the parts that wait for changes, its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from math import inf
from time import time

import structlog
import trio

from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery import unexpected
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.keeping.saver import Patience
from phantommesh.nursery.unexpected import left_out
from phantommesh.rates import Rates, source_block
from phantommesh.records.record import PossessionError, RecordError, SignedRecord
from phantommesh.records.roster import Entry
from phantommesh.state import directory
from phantommesh.state.start import NodeState
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId, format_node_id
from phantommesh.trust.revocation import Revocation
from phantommesh.trust.revocations import MAX_PLEA, Revoked
from phantommesh.trust.rootword import RootWord
from phantommesh.trust.statements import MAX_OF_AUTHORITY, Held

# Tuning.
# Questions of strangers with words of the root's that are new: of one source, a second and in a row.
PLEA_RATE, PLEA_BURST, WORDS_A_PLEA = 0.5, 8.0, 2
# Newer records of one member that come into force at once, and a second. A node has reason for a few at its
# start, and one for each key that it replaces. Each costs every member a write, links and interfaces.
NEWER_BURST, NEWER_RATE = 6, 1 / 15
LOOK = 1.0  # s between looks at records that wait
RECORDS_AT_ONCE = 2000.0  # records that a member may bring in a row, as after a cut
# A second after that: each takes about two milliseconds to verify, and one that is new more.
RECORDS_RATE = 20.0
# bytes a second that the writes of the roster, and of the revocations, may take on the average. After each
# there is a pause, the longer the more was written, from 2 s to 10 min. The roster's are what changed, and
# now and then all of it: see `rosterlog`. The revocations are written whole each time; the first few writes
# that come in a row do not wait.
DISK_RATE = 64 * 1024
LEAST_PAUSE, MOST_PAUSE = 2.0, 600.0  # s
AHEAD = 20.0  # s of such pauses that revocations may run up
# New statements of an authority that is revoked: as many at once as may be held of it, which is what a node
# that was away has to fetch; and so many a second after that.
LATE_RATE, LATE_BURST = 1 / 60, 2 * MAX_OF_AUTHORITY
VERIFIED = 16  # statements between two turns of the loop, 5 ms

BROKEN = "a record was left out after an unexpected error"

log = structlog.get_logger("phantommesh.roster")


class RosterKeeper:
    """This node's roster. ``changed`` is called after every change, which is then also on its way to disk.

    ``dropped`` counts the records that were refused, by reason. ``verifications`` is what each member, or
    block of addresses, may have us verify: it pays for what it announces and for what it answers.

    There are bounds on what others can make it do. A few newer records of one member come into force a
    minute; of those that came meanwhile, only the newest does. Changes by others' records and revocations are
    written with pauses. A crash loses no more than others have too: a newcomer, a revocation that is made
    here and this node's own record are written at once.
    """

    def __init__(self, node: NodeState, changed: Callable[[], None]) -> None:
        self.roster = node.roster
        self.dropped: Counter[str] = Counter()
        self.disk = Patience(log, "roster")
        self._reported: set[NodeId] = set()
        self._node, self._changed = node, changed
        self._change = Bell()
        self._unsaved: set[str] = set()  # files; the roster's own changes are in the log
        self._log = node.roster_log
        self._dirty = trio.Event()
        self._saving = trio.Lock()
        self._pleas = Rates[str](PLEA_RATE, PLEA_BURST)
        self._late = Rates[NodeId](LATE_RATE, LATE_BURST)
        # By file, until when no change by others is reason to write it.
        self._rest_until = dict.fromkeys((directory.ROSTER, directory.REVOCATIONS), -inf)
        self._urgent = False  # this node's own record has changed
        self._newer = Rates[NodeId](NEWER_RATE, NEWER_BURST)
        self._waits = trio.Event()
        self.verifications = Rates[bytes](RECORDS_RATE, RECORDS_AT_ONCE)

    def add(self, signed: SignedRecord, of: NodeId | None = None) -> bool:
        """Keep a record if it is newer; say whether the roster changed. It may have to wait: then it does
        later. ``of`` is the member that brought it. Raises TrustError or RecordError."""
        if self.roster.holds(signed, time()):
            return False
        if not self._offer(signed, {} if of is None else self._who(of)):
            self._report_equivocations()
            return False
        self._note_change()
        return True

    def _who(self, of: NodeId | Address) -> dict[str, str]:
        """Return what a line of the log says of those who sent something."""
        if isinstance(of, Address):
            return {"source": str(of)}
        entry = self.roster.get(of)
        return {"peer": format_node_id(of) if entry is None else entry.member.name}

    def _offer(self, signed: SignedRecord, about: dict[str, str]) -> bool:
        """Verify a record, and keep it or have it wait. Raises TrustError or RecordError."""
        try:
            return self._take(signed)
        except PossessionError:
            self.dropped["record-possession"] += 1
            raise
        except PhantomMeshError:
            self.dropped["record"] += 1
            raise
        except Exception as error:  # the second line: see `unexpected`
            self.dropped["record-broken"] += 1
            unexpected.note(BROKEN, error, **about)
            raise RecordError("the record cannot be judged") from error

    def _take(self, signed: SignedRecord) -> bool:
        wall = time()
        entry = self.roster.verify(signed, wall)
        node_id = entry.member.node_id
        held, ahead = self.roster.get(node_id), self.roster.waiting.get(node_id)
        newer = held is None or entry.rank > held.rank
        if newer and node_id == self._node.identity.node_id:
            self._urgent = True
        elif newer and held is not None and (ahead is not None or self._too_soon(node_id)):
            if ahead is None or entry.rank > ahead.rank:
                self.roster.waiting[node_id] = entry
                self._waits.set()
            return False
        return self._keep(entry, wall)

    def _keep(self, entry: Entry, wall: float) -> bool:
        """Keep a verified record, on disk too: nothing else here changes the roster."""
        if changed := self.roster.keep(entry, wall):
            self._log.note(entry)
        return changed

    def _too_soon(self, node_id: NodeId) -> bool:
        return not self._newer.allow(node_id, trio.current_time())

    def _let_in(self) -> None:
        """Bring those records into force that have waited long enough."""
        came = False
        for node_id, entry in list(self.roster.waiting.items()):
            if self._too_soon(node_id):
                continue
            del self.roster.waiting[node_id]
            about = self._who(node_id)
            with (
                left_out(self.dropped, "record-broken", BROKEN, **about),
                suppress(PhantomMeshError),  # revoked meanwhile, or expired
            ):
                came |= self._keep(self.roster.verify(entry.signed, time()), time())
        if came:
            self._note_change()

    def revoke(self, *statements: Revocation | RootWord) -> bool:
        """Verify and keep statements that came together; say whether any is new here. Raises TrustError."""
        held = self._node.revocations
        if not held.hold(held.verify(statements, time(), self._may_be_late)):
            return False
        self._note_change(revoked=True)
        return True

    def _may_be_late(self, signer: NodeId) -> bool:
        """Whether one more statement is looked at of an authority that is revoked."""
        if self._late.allow(signer, trio.current_time()):
            return True
        self.dropped["revocation-late"] += 1
        return False

    async def hold(self, verified: Iterable[RootWord | Held]) -> bool:
        """Keep statements that were made here, or verified; say whether any is new. The loop has its turn
        meanwhile. Raises TrustError where there is no room."""
        held = self._node.revocations
        before = held.digest()
        try:
            with closing(held.holding(verified)) as slices:
                for _ in slices:
                    await trio.lowlevel.checkpoint()
        finally:
            if new := held.digest() != before:
                self._note_change(revoked=True)
        return new

    def is_revoked(self) -> bool:
        """Whether this node was revoked."""
        return self.revoked is not None

    @property
    def revoked(self) -> Revoked | None:
        """Why this node itself is out, if it is."""
        return self._node.revocations.get(self._node.identity.node_id)

    async def changes(self) -> None:
        """Return at the next change of roster or revocations."""
        await self._change.wait()

    def _note_change(self, *, revoked: bool = False) -> None:
        self._report_equivocations()
        self._change.ring()
        if revoked:  # the roster's file has revoked nodes too, so it stays as it is
            self._unsaved.add(directory.REVOCATIONS)
        self._dirty.set()
        self._changed()

    def _report_equivocations(self) -> None:
        for node_id in self.roster.equivocations.keys() - self._reported:
            self._reported.add(node_id)
            log.error(
                "a node signed two different records with one number: it was copied, or it lies",
                node_id=format_node_id(node_id),
                fix="find out which, and revoke it if in doubt",
            )

    def take_revocations(self, *packed: bytes) -> bool:
        """Add what another member holds, all as come at one time; say whether any is new here. Raises
        TrustError where they do not hold."""
        held = self._node.revocations
        return self.revoke(*(one for data in packed for one in held.unpack(data)))

    def take_standing(self, answer: bytes) -> bool:
        """Take what somebody answered to the question how this node stands: no more than that. Raises
        TrustError."""
        return self.revoke(*self._node.revocations.about(self._node.identity.node_id, answer))

    async def take_parts(self, parts: Iterable[bytes]) -> bool:
        """`take_revocations` of much that came from one member: the loop has its turn now and then. Words of
        the root's are first, since the others name them."""
        held, verified = self._node.revocations, list[Held]()
        words, others = list[RootWord](), list[Revocation]()
        for data in parts:
            await trio.lowlevel.checkpoint()
            for one in held.unpack(data):
                if isinstance(one, RootWord):
                    words.append(one)
                else:
                    others.append(one)
        new = self.revoke(*words)
        for start in range(0, len(others), VERIFIED):
            await trio.lowlevel.checkpoint()
            some = held.verify(others[start : start + VERIFIED], time(), self._may_be_late)
            verified += [one for one in some if isinstance(one, Held)]
        return await self.hold(verified) or new

    def answer_standing(self, question: bytes, source: Address) -> bytes:
        """Answer anybody how a node stands: `Revocations.standing`. The question is its id, and
        `Revocations.plea`: nobody links with a node that is out, so this is how the root's word gets about.
        Strangers may have us verify little, and one has no part in another's share; a word that is known
        already costs nothing."""
        held = self._node.revocations
        node_id, plea = NodeId(question[:NODE_ID_BYTES]), question[NODE_ID_BYTES:]
        if plea and len(plea) <= MAX_PLEA:
            try:
                told = [one for one in held.unpack(plea) if isinstance(one, RootWord)]
                new = [word for word in told if word.id not in held.tree][:WORDS_A_PLEA]
                if new and self._pleas.allow(source_block(source.host), trio.current_time()):
                    self.revoke(*new)
            except TrustError as error:
                log.debug("a stranger's word is not the root's", source=str(source), error=str(error))
        return held.standing(node_id)

    async def take(self, records: Iterable[bytes], of: NodeId | Address, *, unasked: int = 0) -> int:
        """Add encoded records that ``of`` answered with; those that do not hold are left out, and logged
        once. Return how many changed the roster, which is told once.

        Each that is new here is charged to ``of``, and left out where it has had too many verified.
        ``unasked`` is how many more came that nobody had asked for: `asking.asked_for`.
        """
        came, refused, about = 0, list[str](), self._who(of)
        payer = source_block(of.host).encode() if isinstance(of, Address) else bytes(of)
        if unasked:
            self.dropped["record-unasked"] += unasked
        try:
            for data in records:
                await trio.lowlevel.checkpoint()  # each takes about two milliseconds to verify
                try:
                    signed = SignedRecord.decode_untrusted(data)
                    if self.roster.holds(signed, time()):
                        self.dropped["record-held"] += 1
                    elif not self.verifications.allow(payer, trio.current_time()):
                        self.dropped["record-paced"] += 1
                    else:
                        came += self._offer(signed, about)
                except PhantomMeshError as error:
                    refused.append(str(error))
        finally:
            if refused:
                log.warning("records refused", **about, count=len(refused), error=refused[0])
            self._report_equivocations()
            if came:
                self._note_change()
        return came

    async def save(self) -> None:
        """Write what has changed since the last time; it is on disk when this returns. Raises StateError."""
        await self._save((directory.REVOCATIONS, directory.ROSTER))

    async def _save(self, names: Iterable[str]) -> None:
        async with self._saving:
            for name in names:
                if name not in self._changed_files():
                    continue
                before = self._rest_until[name]
                if name == directory.ROSTER:
                    written, before = await self._save_roster(), -inf
                else:
                    written = await self._save_revocations()
                pause = min(MOST_PAUSE, max(LEAST_PAUSE, written / DISK_RATE))
                self._rest_until[name] = pause + max(trio.current_time(), before)

    async def _save_roster(self) -> int:
        job, urgent = self._log.take(self.roster), self._urgent
        self._urgent = False
        try:
            written = await trio.to_thread.run_sync(self._log.write, job)
        except BaseException:
            self._log.give_back(job)
            self._urgent |= urgent
            raise
        finally:
            self._report_replaced()
        if (refused := self._log.refused) is not None:
            log.warning("roster not compacted: its file goes on growing", error=str(refused), fix=refused.fix)
        return written

    def _report_replaced(self) -> None:
        if (replaced := self._log.replaced) is not None:
            log.warning(
                "the roster's file is written anew from what this node knows",
                error=str(replaced),
                fix=replaced.fix,
            )

    async def _save_revocations(self) -> int:
        self._unsaved.discard(directory.REVOCATIONS)
        try:
            encoded = await trio.to_thread.run_sync(self._node.revocations.encoder())
            await trio.to_thread.run_sync(self._node.state.write, directory.REVOCATIONS, encoded)
        except BaseException:
            self._unsaved.add(directory.REVOCATIONS)
            raise
        return len(encoded)

    def _changed_files(self) -> set[str]:
        return self._unsaved | ({directory.ROSTER} if self._log.unsaved else set())

    async def keep(self) -> None:
        """Write the roster and the revocations when they have changed, and let records in that wait, until
        cancelled. A full disk does not end the node."""
        self._report_damage()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._admit)
            while True:
                self._dirty = trio.Event()
                due = {name: self._due(name) for name in self._changed_files()}
                # Revocations come first: a crash between the two leaves no revoked node behind.
                if names := sorted(name for name in due if due[name] <= trio.current_time()):
                    async with self.disk.patiently():
                        await self._save(names)
                    continue
                with trio.move_on_at(min(due.values(), default=inf)):
                    await self._dirty.wait()

    def _report_damage(self) -> None:
        path = str(self._node.state.path / directory.ROSTER)
        if self._log.damage:
            log.error(
                "a part of the roster's file cannot be read: other members give again what it held",
                file=path,
                error=str(self._log.damage),
                members=len(self.roster),
                fix="nothing, after a power cut: the file is written anew; else check the disk",
            )
        if self._log.torn:
            log.warning(
                "the end of the roster's file is no whole record: a write that was cut off, or damage",
                file=path,
                bytes=self._log.torn,
                members=len(self.roster),
                fix="nothing, after a crash or a power cut: other members give it again; else check the disk",
            )

    def _due(self, name: str) -> float:
        """When a file that has changed is written."""
        if name == directory.ROSTER:
            return -inf if self._urgent else self._rest_until[name]
        return self._rest_until[name] - AHEAD

    async def _admit(self) -> None:
        while True:
            await self._waits.wait()
            await trio.sleep(LOOK)
            self._let_in()
            if not self.roster.waiting:
                self._waits = trio.Event()
