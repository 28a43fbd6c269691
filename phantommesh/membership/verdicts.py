# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases about members, and how they are decided: by this node's own question, and by members it asks.

Theory of operation. Every member holds the group key, so any member can write any other's name into an event.
A rumour is therefore a reason to look, and no evidence. Evidence is at first hand: an answer to a fresh nonce
of this node, from the address in a member's signed record.

A *case* opens when a member is accused (by a rumour, or because it did not answer this node), or is said to
be back. It runs as follows.

    check     this node asks the member itself, out of turn but at a pace: in a large mesh not all ask at once
    wait      the deadline is Lifeguard's: long for one accuser, shorter for each further one. Accusers that
              rumours name count here, where a lie costs little
    query     shortly before the deadline this node asks other members of its own choosing what they found.
              One member is one voice: a witness (it found the same) or contrary (it did not)
    verdict   dead, or left, if this node's own check has failed lately and enough members are witnesses

A case ends in the member's favour when the member answers this node, or when WireGuard authenticates data of
it that is newer than the accusation. A newer incarnation ends it too, unless this node has already asked in
vain: then the member is only asked again.

How many witnesses are enough is set by the parameters, less what cannot be had: members that do not answer
this node either, or that it reaches only by way of others, cannot be asked. So a node that is cut off with
one other can still come to a verdict, and a pair in which one dies is no deadlock.

A verdict can be wrong when a member is badly placed: some reach it, some do not. Two things keep such a
member from flapping. A node that finds itself badly placed looks for the others' way to the member first, for
a bounded time. And a verdict that the member disproves holds the next one back (`Damping`, after RFC 2439).

A member that was down comes back by its own answer, or because as many others vouch for it as a death needs.
The rest of the world is told of this node's own word only; the others look for themselves.

docs/gossip.md ("Whose word counts") has the rules; decisions 10 and 22 have the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from phantommesh.membership.cases import Case
from phantommesh.membership.checks import Checks
from phantommesh.membership.claims import Claims
from phantommesh.membership.core import Core
from phantommesh.membership.damping import Damping
from phantommesh.membership.effects import Changed, Sync
from phantommesh.membership.messages import (
    ACCUSER,
    ALIVE,
    GENERATION,
    KEY,
    LEFT,
    STATE,
    SUSPECT,
    State,
    accusation,
)
from phantommesh.membership.signs import LINGER
from phantommesh.membership.table import Down

ASK_AGAIN: Final = 2.0  # s between two checks whether a dead member is back
MANY: Final = 100  # members, from which on not all of them ask an accused at once
SEARCH: Final = 3.0  # shortest suspicions for which a badly placed node looks for a way that another has
UNPROVED: Final = 60.0  # s for which a word that the accused is alive counts: by then there is a proof of it
STREAMS: Final = 4  # members at once that are asked over a stream when they are suspected
FRESH: Final = 0.6  # s that a failed check counts for in a verdict: a stalled member may be back since then


class Verdicts:
    """Keeps the cases. ``check(node, thorough)`` asks a member whether it is there; ``want_query()`` has
    others asked about what is open."""

    def __init__(
        self, core: Core, claims: Claims, check: Callable[[bytes, bool], None], want_query: Callable[[], None]
    ) -> None:
        self._core = core
        self._claims = claims
        self._check = check
        self._want_query = want_query
        self._checks = Checks(core, self._ask)
        self._silent: dict[bytes, float] = {}  # members that left a question open, and since when
        self.cases: dict[bytes, Case] = {}
        self.damping = Damping()
        self.unreachable = 0  # cases in which our own check has failed

    # Cases.

    def open(self, node: bytes, key: bytes, accuser: bytes, kind: State) -> Case:
        """Start a case, and spread the accusation."""
        core, params = self._core, self._core.params
        case = self.cases[node] = Case(node, key, kind, core.clock)
        case.least = (
            params.suspicion_mult
            * max(params.suspicion_floor, math.log10(max(1, core.table.live)))
            * params.probe_interval
        )
        case.most = case.least * params.suspicion_max
        case.accusers.add(accuser)
        case.lasts(self._wanted(), params)
        if kind is State.SUSPECT:
            core.spread(accusation(node, key, SUSPECT, accuser))
            if core.clock - core.traffic.get(node, -math.inf) > params.veto:
                self._show(case)
        core.at(case.deadline, self.judge, case)
        if params.verify:
            wait = case.least * (0.35 + 0.4 * core.rng.random()) * min(1.0, core.table.live / MANY)
            core.at(core.clock + wait, self.check_soon, case)
        return case

    def doubted(self, node: bytes) -> bool:
        """Whether a member is accused: whoever is to help us should not be. That it is back is no accusation;
        after a mass restart it is said of all."""
        case = self.cases.get(node)
        return case is not None and case.kind is not State.ALIVE

    def _wanted(self) -> int:
        """How many accusers after the first make a suspicion as short as it gets."""
        wanted = self._core.params.confirmations
        return wanted if self._core.table.live - 2 >= wanted else 0

    def confirm(self, case: Case, accuser: bytes) -> None:
        """Count another accuser that a rumour names: it can make the case shorter, not decide it."""
        core, wanted = self._core, self._wanted()
        self.recall(case, accuser)
        if accuser in case.accusers or len(case.accusers) > wanted:
            return
        case.accusers.add(accuser)
        core.spread(accusation(case.node, case.key, SUSPECT, accuser))
        before = case.deadline
        case.lasts(wanted, core.params)
        case.deadline = min(before, case.deadline)
        core.at(case.deadline, self.judge, case)
        if case.accuses:
            core.at(max(core.clock, case.deadline - core.params.probe_interval / 2), self._prepare, case)

    def recall(self, case: Case, accuser: bytes) -> None:
        """A rumour names an accuser that told us otherwise before: ask it again now, once."""
        if accuser in case.contrary and accuser not in case.recalled:
            case.recalled.add(accuser)
            case.queries, case.next_query = 0, self._core.clock
            self._want_query()

    def _show(self, case: Case) -> None:
        if not case.visible:
            case.visible = True
            self._core.out.append(Changed(case.node, State.ALIVE, State.SUSPECT, "suspected"))

    def clear(self, node: bytes, event: str) -> None:
        """End a case in the member's favour."""
        case = self.cases.get(node)
        if case is None:
            return
        self._drop(case)
        if case.kind is not State.ALIVE:
            self._core.queue.drop(node)
        if case.visible:
            self._core.out.append(Changed(node, State.SUSPECT, State.ALIVE, event))

    def _drop(self, case: Case) -> None:
        del self.cases[case.node]
        self._forget_failure(case)

    def _forget_failure(self, case: Case) -> None:
        if case.failed is not None:
            case.failed = None
            self.unreachable -= 1

    # This node's own questions.

    def check_soon(self, case: Case) -> None:
        """Ask the member that a case is about, unless that is under way."""
        if self.cases.get(case.node) is case and not case.asking:
            case.due = True
            self._checks.put(case.node, accused=case.kind is not State.ALIVE)

    def ask_soon(self, node: bytes) -> None:
        """Check a member that did not answer something else, at the pace that checks are allowed."""
        if self._core.params.verify:
            self._silent.setdefault(node, self._core.clock)
            self._checks.put(node, accused=False)

    def _ask(self, node: bytes) -> bool:
        """Its turn has come: ask it, if there still is a reason to."""
        core = self._core
        case, since = self.cases.get(node), self._silent.pop(node, None)
        if case is not None and case.due and not case.asking:
            case.due, case.asking = False, True
        elif since is None or core.heard.get(node, -math.inf) > since or core.table.get(node) is None:
            return False
        self._check(node, False)
        return True

    def ask_whether_back(self, node: bytes, key: bytes) -> None:
        """Something says that a member lives again, or in a new generation: ask it."""
        core = self._core
        down = core.table.down.get(node)
        if down is not None:
            if core.clock < down.asked + ASK_AGAIN:
                return
            down.asked = core.clock
        case = self.cases.get(node)
        if case is None:
            case = self.cases[node] = Case(node, key, State.ALIVE, core.clock)
            self.check_soon(case)
        elif case.kind is not State.ALIVE:
            self.check_soon(case)

    def _give_up(self, case: Case) -> None:
        """Neither the member nor enough others say that it is back. If we do not hold it for down, it may be:
        else nothing would have us look again before its turn among all members comes."""
        if self.cases.get(case.node) is case and case.kind is State.ALIVE:
            self._drop(case)
            if case.node not in self._core.table.down:
                self._check(case.node, True)

    def failed(self, node: bytes, thorough: bool) -> None:
        """Our own question went unanswered; a ``thorough`` one went through others too."""
        core, params = self._core, self._core.params
        case = self.cases.get(node)
        if core.signs.lives(node, core.clock) and (case is None or case.kind is State.SUSPECT):
            if thorough:
                core.signs.missed(node)
            self.clear(node, "vetoed")
            return
        if case is not None and case.kind is State.ALIVE:
            # It does not answer us; perhaps it does answer others.
            case.asking = False
            case.checked = True
            self._want_query()
            core.at(core.clock + ASK_AGAIN, self._give_up, case)
            return
        claim = core.table.get(node)
        if claim is None or node in core.table.down:
            return
        if case is None:
            if not thorough:
                # At 10 % loss 7 in 1,000 of those who live fail the quick check. One is no reason for a
                # whole mesh to ask.
                self._check(node, True)
                return
            case = self.open(node, claim[KEY], core.node, State.SUSPECT)
        if case.asking:
            case.asking = False
            case.checked = True
        if case.failed is None:
            self.unreachable += 1
            if params.verify and len(self.cases) <= STREAMS:
                core.out.append(Sync(node))  # perhaps no UDP passes; an answer over TCP is a sign of life
            if core.reach.badly_placed(node):
                # Few reach this node, and their rumours may all be lost: after the shortest time it asks.
                soonest = case.started + case.least - params.probe_interval / 2
                core.at(max(core.clock, soonest), self._prepare, case)
        case.failed = core.clock
        self._show(case)
        self.confirm(case, core.node)
        core.at(max(core.clock, case.deadline - params.probe_interval / 2), self._prepare, case)

    def traffic(self, node: bytes, when: float) -> None:
        """WireGuard has authenticated traffic of this member, of this time of `Core.clock`. Traffic that is
        older than the accusation does not speak against it."""
        core = self._core
        core.traffic[node] = max(when, core.traffic.get(node, -math.inf))
        case = self.cases.get(node)
        if case is not None and case.kind is State.SUSPECT and when >= case.started:
            self.clear(node, "vetoed")
            self._check(node, False)  # tells it of the accusation, so that it refutes it for all
        down = core.table.down.get(node)
        if down is not None and when >= down.since:
            self.ask_whether_back(node, down.key)

    def lives(self, node: bytes, when: float) -> None:
        """This member has given a sign of life that no other can give, on another way than gossip's own (a
        finished handshake, a probe inside a dimension, a channel), at this time of `Core.clock`. A process
        has answered, so the member is not dead, whatever its control port does not say."""
        core = self._core
        core.signs.came(node, when)
        case, down = self.cases.get(node), core.table.down.get(node)
        if case is not None and case.kind is State.SUSPECT and when >= case.started:
            core.signs.rely(node)
        self.traffic(node, when)
        claim = core.table.get(node)
        if down is not None and claim is not None and node in core.table.down:
            since = down.since + (LINGER if down.state is State.LEFT else 0.0)
            if when >= since and core.signs.brings_back(node, when):
                core.signs.rely(node)
                self.bring_back(claim)

    # Verdicts.

    def _prepare(self, case: Case) -> None:
        """Shortly before the deadline: start to collect what the others found."""
        if self.cases.get(case.node) is case and case.accuses and self._core.params.verify:
            case.next_query = min(case.next_query, self._core.clock)
            self._want_query()

    def required(self, node: bytes) -> int:
        """How many others must have found the same: as the parameters say, if there are as many to ask."""
        core, case = self._core, self.cases.get(node)
        partly = core.reach.partly
        mine = 1 if case is not None and case.failed is not None else 0
        others = core.table.live - 1 - (node not in core.table.down)
        # Nor can those be asked that this node reaches only by way of others.
        if case is not None and core.clock > case.started + UNPROVED:
            others -= len(case.contrary)
        others -= sum(n != node and ((c := self.cases.get(n)) is None or c.failed is None) for n in partly)
        return max(0, min(core.params.accusers, others - (self.unreachable - mine)))

    def judge(self, case: Case) -> None:
        """Decide a case if it is due and decidable."""
        core, node = self._core, case.node
        if self.cases.get(node) is not case or case.kind is State.ALIVE or core.clock < case.deadline - 1e-9:
            return
        kind = State.LEFT if case.kind is State.LEFT else State.DEAD
        if not core.params.verify:
            self.condemn(node, case.key, kind, None)
            return
        if case.failed is None or not case.checked or core.clock - case.failed > FRESH:
            if not case.asking:
                self.check_soon(case)
        elif self._disputed(case) or len(case.witnesses) < self.required(node):
            self._want_query()
        elif kind is State.DEAD and (held := self.damping.holds(node, core.clock)):
            case.deadline = core.clock + held
            core.at(case.deadline, self.judge, case)
        else:
            self.condemn(node, max(case.key, min(case.witnesses.values(), default=case.key)), kind, None)

    def _disputed(self, case: Case) -> bool:
        """True if this node is badly placed, a member that it has asked says otherwise, and not too much time
        has passed. The way by which that member reaches the accused may not have been found here yet."""
        core = self._core
        if not case.contrary or not core.reach.badly_placed(case.node):
            return False
        return core.clock < case.started + SEARCH * case.least

    def position(self, node: bytes) -> bytes | None:
        """Return this node's first-hand word about another, for whoever asks."""
        core = self._core
        down = core.table.down.get(node)
        if down is not None:
            return accusation(node, down.key, down.state, core.node)
        case = self.cases.get(node)
        if case is not None and case.accuses:
            return accusation(node, case.key, LEFT if case.kind is State.LEFT else SUSPECT, core.node)
        return core.table.get(node)

    def testimony(self, witness: bytes, raw: bytes) -> None:
        """Take in the word of a member that we asked about another."""
        core, node = self._core, raw[:16]
        case = self.cases.get(node)
        if case is None or node == core.node or witness == node:
            return
        if case.kind is State.ALIVE:
            down, claim = core.table.down.get(node), core.table.get(node)
            if raw[STATE] != ALIVE or claim is None or raw[KEY] <= (claim[KEY] if down is None else down.key):
                return
            case.vouchers[witness] = raw
            agreeing = [v for v in case.vouchers.values() if v[GENERATION] == raw[GENERATION]]
            if len(agreeing) >= max(1, self.required(node)):
                self._drop(case)
                best = max(agreeing, key=lambda v: v[KEY])
                if down is not None:
                    self.bring_back(best)
                else:
                    self._claims.adopt(best, witness)
        elif raw[STATE] == ALIVE:
            case.witnesses.pop(witness, None)
            case.contrary.add(witness)
        elif raw[ACCUSER] == witness and raw[GENERATION] >= case.key[:6]:
            # Perhaps it went down in a later generation than the last that we heard of.
            case.witnesses[witness] = raw[KEY]
            case.contrary.discard(witness)
            if case.kind is State.SUSPECT and core.reach.badly_placed(node):
                self.confirm(case, witness)
            self.judge(case)

    def condemn(self, node: bytes, key: bytes, state: State, raw: bytes | None) -> None:
        """Hold a member for dead or gone. ``raw`` is the event that says so, if it is not our own verdict."""
        core = self._core
        case = self.cases.pop(node, None)
        if case is not None:
            self._forget_failure(case)
        visible = case is not None and case.visible
        core.table.put_down(node, Down(state, key, core.clock, core.clock))
        core.reach.down(node)
        core.signs.forget(node)
        # Others look for themselves, so what we pass on is our own word, or the leaver's.
        core.spread(accusation(node, key, state, core.node) if raw is None else raw)
        event = "dead" if state is State.DEAD else "left"
        core.out.append(Changed(node, State.SUSPECT if visible else State.ALIVE, state, event))

    def bring_back(self, raw: bytes) -> None:
        """A member that was down is back."""
        core, node = self._core, raw[:16]
        case = self.cases.get(node)
        if case is not None:
            self._drop(case)
        down, claim = core.table.down[node], core.table.get(node)
        if raw[GENERATION] > down.key[:6]:
            self.damping.forget(node)  # it has really started again
        elif down.state is State.DEAD and core.params.verify:
            self.damping.flap(node, core.clock)  # it was there all the time: the verdict was wrong
        core.table.raise_up(node)
        core.out.append(Changed(node, down.state, State.ALIVE, "returned"))
        core.queue.drop(node)
        if down.retried:
            core.out.append(Sync(node))  # perhaps a whole partition is back with it
        if claim is not None and raw != claim:
            self._claims.adopt(raw, node)

    def forget(self, node: bytes, event: str) -> None:
        """Drop a member and all that is known of it."""
        core = self._core
        down = core.table.down.get(node)
        case = self.cases.get(node)
        old = down.state if down is not None else State.SUSPECT if case and case.visible else State.ALIVE
        known = core.table.get(node) is not None
        if case is not None:
            self._drop(case)
        core.table.remove(node)
        core.queue.drop(node)
        self._checks.drop(node)
        self._silent.pop(node, None)
        core.rtt.forget(node)
        core.reach.forget(node)
        core.places.forget(node)
        core.signs.forget(node)
        self.damping.forget(node)
        core.heard.pop(node, None)
        core.traffic.pop(node, None)
        self._claims.forget(node)
        if known:
            core.out.append(Changed(node, old, None, event))
