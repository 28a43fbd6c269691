# SPDX-License-Identifier: GPL-3.0-or-later
"""Queries: asks other members for their own word about a member that may be gone, and gives this node's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from phantommesh.endpoint import Address
from phantommesh.membership.cases import Case
from phantommesh.membership.core import Core
from phantommesh.membership.messages import (
    ANSWER,
    DEAD,
    MAX_EVENTS,
    QUERY,
    SUSPECT,
    Message,
    State,
    accusation,
)
from phantommesh.membership.rumours import Rumours
from phantommesh.membership.verdicts import Verdicts

TICK: Final = 0.1  # s between rounds of queries
QUERY_AGAIN: Final = 0.25  # s between queries about one member; half as much more each time
QUERY_AGAIN_MAX: Final = 5.0
RECHECK: Final = 2.0  # s after which a member that we cannot reach, but others can, is asked anew
MEMORY: Final = 3.0  # s after a judge was silent for which a late answer still counts


class Judges:
    """The members that are asked, each under a nonce of its own. ``check`` asks a member itself whether it is
    there; its second argument says whether by way of relays, too."""

    def __init__(
        self, core: Core, verdicts: Verdicts, rumours: Rumours, check: Callable[[bytes, bool], None]
    ) -> None:
        self._core, self._verdicts, self._rumours, self._check = core, verdicts, rumours, check
        self._waiting: dict[bytes, bytes] = {}  # judges, by nonce
        self._asking = False

    def want(self) -> None:
        """There are cases to ask others about."""
        if not self._asking and self._core.params.verify:
            self._asking = True
            self._core.at(self._core.clock, self._query)

    def _query(self, _: None) -> None:
        core, cases = self._core, self._verdicts.cases
        open_cases = [c for c in cases.values() if c.checked or (c.accuses and c.next_query <= core.clock)]
        due = sorted((c for c in open_cases if c.next_query <= core.clock), key=lambda c: c.next_query)
        due = due[: MAX_EVENTS - 1]
        for case in open_cases:
            if case.kind is not State.ALIVE and case.deadline <= core.clock:
                self._verdicts.judge(case)  # fewer may be left to ask than there were
        self._asking = bool(open_cases)
        if due:
            self._ask_judges(due)
        if self._asking:
            core.at(core.clock + TICK, self._query)

    def _ask_judges(self, due: list[Case]) -> None:
        core, cases, doubted = self._core, self._verdicts.cases, self._verdicts.doubted
        subjects = []
        for case in due:
            subjects.append(self._subject(case))
            case.next_query = core.clock + min(QUERY_AGAIN * 1.5**case.queries, QUERY_AGAIN_MAX)
            case.queries += 1
            if case.failed is not None and core.clock - case.failed > RECHECK and not case.asking:
                case.asking = True
                self._check(case.node, True)
        wanted = core.params.query_nodes
        judges = core.peers(wanted, doubted)
        if len(judges) < wanted:  # or else a forger that accuses everyone would leave nobody to ask
            judges += core.peers(
                wanted - len(judges), lambda n: n in judges or (doubted(n) and cases[n].failed is not None)
            )
        for witness in judges:
            nonce = core.nonce()
            self._waiting[nonce] = witness
            core.at(core.clock + 2 * core.params.probe_timeout * core.health.scale, self._silent, nonce)
            core.send(witness, QUERY, nonce, witness, subjects)

    def _subject(self, case: Case) -> bytes:
        core = self._core
        if case.accuses:
            return accusation(case.node, case.key, SUSPECT, core.node)
        down = core.table.down.get(case.node)
        return accusation(case.node, case.key if down is None else down.key, DEAD, core.node)

    def _silent(self, nonce: bytes) -> None:
        """A judge did not answer in time: see whether it is there."""
        witness = self._waiting.get(nonce)
        if witness is not None:
            self._core.at(self._core.clock + MEMORY, self._forget, nonce)
            self._verdicts.ask_soon(witness)

    def _forget(self, nonce: bytes) -> None:
        self._waiting.pop(nonce, None)

    def queried(self, message: Message, source: Address) -> None:
        """Say what we have found of the members asked about."""
        core = self._core
        if message.target != core.node:
            core.drops["target"] += 1
            return
        self._rumours.hear(message.events, source)
        positions = [self._verdicts.position(raw[:16]) for raw in message.events[: MAX_EVENTS - 1]]
        found = [core.own, *(p for p in positions if p is not None)]
        core.send(source, ANSWER, message.nonce, message.sender, found)

    def testified(self, message: Message) -> None:
        """A judge's answer: its own word about others, and about itself."""
        core = self._core
        witness = self._waiting.get(message.nonce)
        if witness is None or witness != message.sender:
            core.drops["nonce"] += 1
            return
        del self._waiting[message.nonce]
        events = message.events
        self._rumours.answered(witness, events[0] if events else None)
        for raw in events[1:]:
            self._verdicts.testimony(witness, raw)
        self._rumours.hear(events[1:], witness)
