# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes that an event brings. Rumours make this node look; only what it has seen or asked for itself is a
verdict.

Whoever holds the group key can write any event and put any sender's name on it, so an event is taken at its
word only where a lie corrects itself: a newer incarnation within a generation, which its subject outbids. All
else needs **first-hand** evidence: the answer to a nonce that this node sent to the address in a member's
signed record. An accusation makes this node ask the accused; if that fails, it asks members of its own
choosing what they found, and believes a death when enough of them, each counted once, found the same.
A return from the dead and a new generation are believed from the member itself, or from as many others.

The limits: whoever can read this node's traffic to a member can answer for it. As many insiders as there must
be accusers can declare dead a member that does not answer here. One who answers for a dead member can put the
news of its death off, until this node's own probes come round to it.
"""

from __future__ import annotations

import math
from typing import Final

from phantommesh.endpoint import Address
from phantommesh.membership.claims import Claims
from phantommesh.membership.core import Core
from phantommesh.membership.effects import Persist
from phantommesh.membership.messages import (
    ACCUSER,
    ALIVE,
    GENERATION,
    KEY,
    LEFT,
    STATE,
    SUSPECT,
    State,
)
from phantommesh.membership.verdicts import Verdicts

MAX_LEAP: Final = 2**20  # generations that a rumour may make us leap, and
LEAP_INTERVAL: Final = 10.0  # s between two such leaps: 2**48 generations last for 85 years of forging
REFUTE_BURST: Final = 8  # accusations that we refute at once, and
REFUTE_EVERY: Final = 5.0  # s between those after them
LEFT_WAIT: Final = 1.0  # s that a rumour of a graceful leave waits for what the check says


class Rumours:
    """Applies events to the claims, or brings them before the judge."""

    def __init__(self, core: Core, claims: Claims, verdicts: Verdicts) -> None:
        self._core = core
        self._claims = claims
        self._verdicts = verdicts
        self._next_leap = -math.inf
        self._refute_at = -math.inf  # when the next refutation is due at a steady pace
        self._outbid: tuple[int, int] | None = None  # generation and incarnation that wait to be outbid

    def hear(self, events: list[bytes], source: bytes | Address) -> None:
        """Take in events that anyone may have made up."""
        own, base = self._core.table.lookup()
        for raw in events:
            node = raw[:16]
            held = own(node)  # empty for a member that was forgotten since
            if raw == (base(node) if held is None else held):
                continue
            state = raw[STATE]
            if node == self._core.node:
                self._about_me(raw)
            elif node in self._claims.expelled:
                continue
            elif state == ALIVE:
                self._alive(raw, source)
            elif state == SUSPECT:
                self._suspect(raw)
            else:
                self._gone(raw)

    def _alive(self, raw: bytes, source: bytes | Address) -> None:
        core, node, key = self._core, raw[:16], raw[KEY]
        claim = core.table.get(node)
        if claim is None:
            self._claims.hear_of_unknown(raw, source)
            return
        down = core.table.down.get(node)
        if down is not None:
            if core.params.verify and key >= down.key:  # equal: a partition's other side never saw it down
                self._verdicts.ask_whether_back(node, key)
            elif key > down.key:
                self._verdicts.bring_back(raw)
            return
        if key <= claim[KEY]:
            return
        if core.params.verify and raw[GENERATION] != claim[GENERATION]:
            self._verdicts.ask_whether_back(node, key)
            return
        case = self._verdicts.cases.get(node)
        if case is not None and case.kind is not State.ALIVE and key > case.key:
            if case.accuses and core.params.verify:
                # We have asked it in vain ourselves: words do not outweigh that, but we ask again.
                case.restart(key, core.clock)
                self._verdicts.check_soon(case)
            else:
                self._verdicts.clear(node, "refuted")
        self._claims.adopt(raw, source)

    def _suspect(self, raw: bytes) -> None:
        core, node, key = self._core, raw[:16], raw[KEY]
        claim = core.table.get(node)
        if claim is None or key < claim[KEY] or node in core.table.down:
            return
        if core.params.verify and key[:6] != claim[GENERATION]:
            self._verdicts.ask_whether_back(node, key)
            return
        case = self._verdicts.cases.get(node)
        if case is None or case.kind is State.ALIVE:
            self._verdicts.open(node, key, raw[ACCUSER], State.SUSPECT)
        elif key > case.key:
            case.key = key
        else:
            self._verdicts.confirm(case, raw[ACCUSER])

    def _gone(self, raw: bytes) -> None:
        """A rumour says dead, or left."""
        core, node, key, kind = self._core, raw[:16], raw[KEY], State(raw[STATE])
        claim = core.table.get(node)
        if claim is None or key < claim[KEY] or node in core.table.down:
            return
        if not core.params.verify:
            self._verdicts.condemn(node, key, kind, raw)
            return
        if key[:6] != claim[GENERATION]:
            self._verdicts.ask_whether_back(node, key)
            return
        case = self._verdicts.cases.get(node)
        if case is None or case.kind is State.ALIVE:
            accuser = node if kind is State.LEFT else raw[ACCUSER]
            case = self._verdicts.open(node, key, accuser, State.SUSPECT if kind is State.DEAD else kind)
            if kind is State.LEFT:
                core.spread(raw)
        elif kind is State.LEFT:
            case.kind = kind
        else:
            self._verdicts.recall(case, raw[ACCUSER])
        recent = core.clock - core.heard.get(node, -math.inf) < LEFT_WAIT
        if case.deadline > core.clock + LEFT_WAIT and (kind is State.LEFT or not recent):
            case.deadline = core.clock + LEFT_WAIT
            core.at(case.deadline, self._verdicts.judge, case)
            if not case.asking and not case.checked:
                core.at(core.clock + 0.3 * core.rng.random(), self._verdicts.check_soon, case)

    # First-hand evidence.

    def answered(self, node: bytes, raw: bytes | None) -> None:
        """A member answered our nonce with this event about itself, if any: from its own address, or with a
        proof by way of others."""
        core = self._core
        core.heard[node] = core.clock
        core.signs.answered(node)
        if raw is None or raw[:16] != node or node in self._claims.expelled or node == core.node:
            return
        claim = core.table.get(node)
        if claim is None:
            if raw[STATE] == ALIVE:
                self._claims.hear_of_unknown(raw, node)
        elif raw[STATE] == LEFT:
            if node not in core.table.down:
                self._verdicts.condemn(node, raw[KEY], State.LEFT, raw)
        elif raw[STATE] == ALIVE:
            if node in core.table.down:
                if core.params.verify or raw[KEY] > core.table.down[node].key:
                    self._verdicts.bring_back(raw)
                return
            if not core.params.verify:
                self._alive(raw, node)
                return
            self._verdicts.clear(node, "refuted")
            if raw != claim:
                self._claims.adopt(raw, node)

    # Events about ourselves.

    def _about_me(self, raw: bytes) -> None:
        core = self._core
        generation = int.from_bytes(raw[GENERATION])
        incarnation = int.from_bytes(raw[22:25])
        if (generation, incarnation) < (core.generation, core.incarnation) or raw == core.own:
            return
        if core.leaving and raw[STATE] != ALIVE:
            return
        if generation > core.generation:
            # Our state came from an old copy, or someone lies. Leap, so that our own word is the newest.
            if generation > core.generation + MAX_LEAP or core.clock < self._next_leap:
                core.drops["generation"] += 1
                return
            self._next_leap = core.clock + LEAP_INTERVAL
            core.generation = generation
            core.out.append(Persist(generation))
            core.say(incarnation + 1)
        elif self._outbid is not None:
            self._outbid = max(self._outbid, (generation, incarnation))
        else:
            if raw[STATE] != ALIVE:
                core.health.adjust(1)
            # All members hear each refutation, and whoever can accuse us for ever would have us refute for
            # ever. So this is a leaky bucket, as of ITU-T I.371 (GCRA).
            ahead = (REFUTE_BURST - 1) * REFUTE_EVERY
            self._refute_at = max(self._refute_at, core.clock)
            if self._refute_at > core.clock + ahead:
                self._outbid = generation, incarnation
                core.at(self._refute_at - ahead, self._refute_now, None)
            else:
                core.say(incarnation + 1)
            self._refute_at += REFUTE_EVERY

    def _refute_now(self, _: None) -> None:
        core, outbid, self._outbid = self._core, self._outbid, None
        if outbid is not None and outbid >= (core.generation, core.incarnation) and not core.leaving:
            core.say(outbid[1] + 1)
