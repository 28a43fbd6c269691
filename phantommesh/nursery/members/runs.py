# SPDX-License-Identifier: GPL-3.0-or-later
"""Watches for other runs of this node, and bears witness of the runs of others: `node.runs` decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from os import urandom
from time import time

import structlog
import trio

from phantommesh.control import messages
from phantommesh.endpoint import Address
from phantommesh.link.copies import Copies
from phantommesh.membership.machine import Membership
from phantommesh.node.runs import WITNESSES, Answer, Runs, Witness
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.sockets import channels, framing
from phantommesh.nursery.unexpected import left_out
from phantommesh.records.roster import Entry
from phantommesh.records.runs import NOBODY, RUN_BYTES, Run, RunError
from phantommesh.state.files import StateError
from phantommesh.trust.identity import NODE_ID_BYTES, Identity, NodeId

# Tuning.
LOOK = 0.25  # s between looks at what gossip says of this node
PUBLISH = 2.0  # s between two looks at whose our record is: two runs that both publish do so no faster
ROUND = 6.0  # s that a round of questions may take
OTHERS = 2.0  # s that the other witnesses have once one has answered: one may take a connection and be silent
TELLING = 16  # earlier runs that are told of later ones at one time
PUSHED = 16  # members that are told of a proof at one time
PUSH = 6.0  # s that telling all of them may take, while the interfaces are already down

log = structlog.get_logger("phantommesh.runs")


class RunWatch:
    """One run of the node, and what it knows of those of others. ``aside`` is set when this run is to give
    way, ``over`` when the run that it gave way to has gone."""

    def __init__(
        self,
        identity: Identity,
        keeper: RosterKeeper,
        copies: Copies,
        membership: Membership,
        caller: Caller,
        where: Callable[[Entry], Sequence[Address]],
        *,
        generation: int,
        publish: Callable[[], None],
        copy_gone: Callable[[], None],
        copy_found: Callable[[], None],
        begin_anew: Callable[[int], None],
        keep_start: Callable[[int], None],
        above: Run = NOBODY,
    ) -> None:
        """``publish`` puts our record into the roster if it says anything new; ``copy_gone`` is called when
        another run has stepped aside for this one, ``copy_found`` when two runs of a node, or of this one,
        are proved, ``begin_anew`` with the number of a start that this run takes in place of its own;
        ``keep_start`` writes such a number to disk, so that the next start is later, and may raise
        StateError; ``above`` is the run that this process stepped aside for before."""
        self._publish, self._copy_gone, self._begin_anew = publish, copy_gone, begin_anew
        self._copy_found, self._stir = copy_found, trio.Event()
        self._keep_start, self._kept = keep_start, generation
        self._keeper, self._copies, self._membership, self._where = keeper, copies, membership, where
        self._caller, self._me = caller, identity.node_id
        self._unannounced = set[NodeId]()  # members that may not know where this node is
        self._before, self._publish_from = self._record(), -inf
        self._follows = True
        self._telling = 0  # earlier runs that are being told
        self._took_over = above != NOBODY
        self.runs = Runs(identity, generation, urandom(RUN_BYTES), trio.current_time(), above)
        self.witness = Witness(keeper.roster)
        self.dropped = self.witness.dropped
        self.aside, self.over = trio.Event(), trio.Event()

    def answer(self, question: bytes) -> bytes:
        """`Witness.answer`."""
        now = trio.current_time()
        answer = self.witness.answer(question, self._membership.state, now)
        while self.witness.found:
            self._copies.twice(self.witness.found.pop(), now)
            self._copy_found()
        own = question[:NODE_ID_BYTES] == self._me
        if self.witness.met or (own and self.runs.shown(question[NODE_ID_BYTES:], now)):
            self._stir.set()
        return answer

    async def run(self) -> None:
        """Ask other members until cancelled, more often where another run may be there; tell earlier runs of
        others of later ones."""
        async with trio.open_nursery() as nursery:
            await self._watch(nursery)

    async def _watch(self, nursery: trio.Nursery) -> None:
        runs, membership = self.runs, self._membership
        while True:
            self._stir = trio.Event()
            now = trio.current_time()
            self._tell_earlier(nursery)
            self._follow_record(now)
            runs.notice(membership.generation, membership.incarnation, now)
            if now >= runs.due:
                with left_out(self.dropped, "run-broken", "answers on runs of this node were left out"):
                    await self._round()
            if self._unannounced:
                await self._announce()
            with trio.move_on_after(LOOK):
                await self._stir.wait()

    def _tell_earlier(self, nursery: trio.Nursery) -> None:
        """Show words of later runs where their nodes' records say that the nodes are: an earlier run that is
        there asks at once then, and does not wait for gossip. Mostly it has ended, and nobody is there or the
        later one itself, which takes no notice."""
        while self.witness.met:
            word = self.witness.met.pop()
            entry = self._keeper.roster.get(word.node)
            if entry is None or word.node == self._me:
                continue
            if self._telling >= TELLING:
                self.dropped["run-untold"] += 1
                continue
            self._telling += 1
            nursery.start_soon(self._tell_one, entry, word.node + word.raw)

    async def _tell_one(self, entry: Entry, word: bytes) -> None:
        with left_out(self.dropped, "run-broken", "an earlier run was not told of a later one"):
            with trio.move_on_after(ROUND):
                await self._ask_one(entry, word)
        self._telling -= 1

    async def _round(self) -> None:
        runs, before = self.runs, self.runs.run
        runs.round(await self._ask(self._entries()), trio.current_time())
        if runs.run != before:
            log.warning("an earlier run of this node had a later number: the clock or the state went back")
            self._begin_anew(runs.run.start)
        await self._keep(runs.run.start)
        if runs.twin is not None:
            self._copies.twice(None, trio.current_time())
            self._copy_found()
        if runs.aside is not None and not self.aside.is_set():
            log.critical("another run of this node started later: this one steps aside", fix=FIX)
            self.aside.set()
        elif runs.aside is None and (news := runs.news) is not None:
            runs.news = None
            log.critical("a copy of this node was running beside it, and has stepped aside")
            self._copy_gone()
            self._announce_to_all()
            await self.push(news)
        if runs.over:
            self.over.set()

    async def _keep(self, start: int) -> None:
        """Have the number of this run's start on disk, where it is another than at the start."""
        if start <= self._kept:
            return
        try:
            await trio.to_thread.run_sync(self._keep_start, start)
            self._kept = start
        except StateError as error:
            log.warning("the number of this run was not written", error=str(error), fix=error.fix)

    def _entries(self) -> list[Entry]:
        wall = time()
        others = (entry for entry in self._keeper.roster if entry.member.node_id != self._me)
        return [entry for entry in others if entry.valid(wall)]

    async def _ask(self, entries: Sequence[Entry]) -> list[Answer]:
        """Ask the witnesses at one time; those after the first few where one does not answer."""
        question, answers = self.runs.question(), list[Answer]()
        waiting = self.runs.whom(entries)

        async def ask() -> None:
            while waiting and len(answers) < WITNESSES:
                answer = await self._ask_one(waiting.pop(0), question)
                if answer is not None:
                    answers.append(answer)
                    scope.deadline = min(scope.deadline, trio.current_time() + OTHERS)

        with trio.move_on_after(ROUND) as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(WITNESSES):
                    nursery.start_soon(ask)
        return answers

    async def _ask_one(self, entry: Entry, question: bytes) -> Answer | None:
        for address in self._where(entry):
            try:
                async with framing.connect(address.host, address.port, entry.record.tcp_ports) as framed:
                    return Answer.decode_untrusted(await channels.ask_runs(framed, question))
            except (framing.StreamError, RunError):
                continue
        return None

    def _follow_record(self, now: float) -> None:
        """Have members know where this run is: once at its start, if the record is another than before; and
        whenever another run's record comes back, if this run took over from that one. Else a record that was
        made in our name stands until `OwnRecord.publish` is due, so that all can see two of one number."""
        follows, self._follows = self._follows, self._took_over
        if self.runs.aside is not None or not follows:
            return
        if self._record() != self._before and now >= self._publish_from:
            self._publish_from = now + PUBLISH
            self._publish()
            self._before = self._record()
            self._announce_to_all()

    def _record(self) -> int:
        mine = self._keeper.roster.get(self._me)
        return 0 if mine is None else mine.record.seq

    def _announce_to_all(self) -> None:
        self._unannounced = {entry.member.node_id for entry in self._entries()}

    async def _announce(self) -> None:
        """Give members our record, each as soon as it can be called: they may still look for this node where
        the run before, or another run, was."""
        mine = self._keeper.roster.get(self._me)
        for member in [m for m in self._unannounced if self._caller.sessions.newest(m) is not None]:
            self._unannounced.discard(member)
            if mine is not None:
                with suppress(framing.StreamError):
                    await self._caller.ask(member, messages.Announce(mine.signed.encode()), framing.CONNECT)

    async def push(self, news: bytes) -> None:
        """Tell every member of a proof, as far as each can be reached."""
        waiting = self._entries()

        async def tell() -> None:
            while waiting:
                await self._ask_one(waiting.pop(), news)

        with trio.move_on_after(PUSH), left_out(self.dropped, "run-broken", "a proof of two runs was kept"):
            async with trio.open_nursery() as nursery:
                for _ in range(PUSHED):
                    nursery.start_soon(tell)


FIX = (
    "end the other copy, and this node goes on by itself within a minute; or remove this copy. If you made "
    "none, the identity was stolen: restart this node, so that the other gives way, and run `phantommesh "
    "identity new` here at once"
)
