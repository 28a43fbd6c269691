# SPDX-License-Identifier: GPL-3.0-or-later
"""GENESIS: whether another value of a parameter would serve this node better, found out by trial.

Inputs: bytes that went out for peers, those of them that paths were given after their last answer, and the
probes that watch the paths. The cost of a value is what went in vain for a byte sent, where a lost byte
counts as `LOST` bytes of probes: a lost byte is sent again, and somebody waits for it. Parameters and their
bounds are `PARAMETERS`, a closed list: none of them is a bound of safety (lives of keys, epochs of the secret
maps, rates of admission).

A trial has two arms, the value in force and a neighbour of that value. The arms alternate, `BLOCK` seconds
each, in an order drawn anew for each pair, so that neither load that swings nor an outage that begins always
meets the same arm. The first `SETTLE` seconds of a block count for nothing: they show what came before. A
pair is won by the neighbour if its cost is less by `MARGIN`, lost if not, and void without enough traffic.
Wald's sequential probability ratio test (Sequential Tests of Statistical Hypotheses, Ann. Math. Stat. 16,
1945) of p = 1/2 against p = `P_BETTER` decides. Under "no better" the ratio is a supermartingale, so a trial
takes a neighbour wrongly with a probability of at most `ALPHA`, however long it goes on (Ville's inequality).

Guard rails: where the neighbour loses `GUARD` times the share of bytes that the value in force lost, and
`GUARD_FLOOR` more, the trial ends at once, and that neighbour rests for `RESTS`. A value that was taken is
tried against the configured one from time to time, so a value that turns out bad goes as it came. Where it
loses `GUARD_TAKEN` more of all bytes than in its trial, it goes at once.

Actions: `Tune` alone. GENESIS tries one parameter at a time, and never where there is no traffic to judge by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import log
from random import Random
from typing import Final

import msgspec

from phantommesh.agents.actions import Tune
from phantommesh.agents.base import Agent, Evidence, Expectation, Observation, Proposal, Subject

# Tuning.
EVERY: Final = 5.0  # s between looks: a twelfth of a block
BLOCK: Final = 60.0  # s an arm; an outage of seconds and its discovery fit in well
SETTLE: Final = 10.0  # s at the beginning of a block that count for nothing
LEAST_SENT: Final = 1_000_000.0  # bytes in a block, or nothing can be told from it
LOST: Final = 20.0  # a judgement, not a measurement: a stall of a second spoils some 20 times its own bytes
MARGIN: Final = 0.05  # a neighbour has to be better by this share, or changing is not worth it
P_BETTER: Final = 0.8  # share of pairs that a value wins which is better indeed
ALPHA: Final = 0.001  # that a neighbour is taken which is no better; there is a trial every half hour or so
BETA: Final = 0.2  # that one which is better is given up
MOST_PAIRS: Final = 60  # then the trial ends as it began
GUARD, GUARD_FLOOR = 2.0, 0.02  # times the share of bytes lost, and on top of that
GUARD_TAKEN: Final = 0.2  # share of all bytes lost
RESTS: Final = 6 * 3600.0  # s until a neighbour is tried again that lost
HOLD: Final = 2 * BLOCK  # s that a value stands after the last look that proposed it
MOST_RESTING: Final = 64

_TAKE, _GIVE_UP = log((1 - BETA) / ALPHA), log(BETA / (1 - ALPHA))
_WON, _LOST = log(P_BETTER / 0.5), log((1 - P_BETTER) / 0.5)


class Parameter(msgspec.Struct, frozen=True):
    """What may be tuned: the configuration's key, its least and greatest value, and the factor to the next
    value that is tried."""

    key: str
    low: float
    high: float
    step: float

    def clamp(self, value: float) -> float:
        """The nearest value within the bounds."""
        return min(max(value, self.low), self.high)


PARAMETERS: Final = (Parameter("paths.probe_seconds", 0.05, 0.4, 2.0),)
"""Below 50 ms probes compete with traffic; above 400 ms a dark path is left later than after two seconds,
which is a promise."""


class GenesisSeen(msgspec.Struct, frozen=True):
    """What GENESIS sees. Bytes are totals since the node began: ``sent`` for peers, ``lost`` of them to paths
    that had gone dark (`Paths.vain`), ``probes`` sent to find that out. ``configured``: the file's values;
    ``taken``: those that an earlier run took."""

    sent: float
    lost: float
    probes: float
    configured: Mapping[str, float]
    taken: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class _Totals:
    sent: float
    lost: float
    probes: float

    @classmethod
    def of(cls, seen: GenesisSeen) -> _Totals:
        return cls(seen.sent, seen.lost, seen.probes)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a block came to, each as a share of the bytes sent."""

    vain: float
    lost: float


@dataclass(slots=True)
class Trial:
    """A neighbour against the value in force. ``first``: whether the neighbour has the first block of this
    pair; ``costs``: of the pair's blocks so far; ``known_lost``: the share of bytes that each block of the
    value in force has lost, newest last."""

    parameter: Parameter
    value: float
    first: bool
    began: float
    ratio: float = 0.0
    pairs: int = 0
    costs: list[Cost] = field(default_factory=list)
    known_lost: list[float] = field(default_factory=list)
    start: _Totals | None = None

    @property
    def trying(self) -> bool:
        """Whether this block is the neighbour's."""
        return self.first == (not self.costs)


class Genesis(Agent[GenesisSeen]):
    """The agent. ``random`` draws the order of arms."""

    name = "genesis"

    def __init__(self, random: Random, parameters: tuple[Parameter, ...] = PARAMETERS) -> None:
        self.every = EVERY
        self.trial: Trial | None = None
        self.taken: dict[str, float] = {}
        self._random, self._parameters = random, parameters
        self._turn = 0
        self._resting: dict[tuple[str, float], float] = {}
        self._lost_in_trial: dict[str, float] = {}
        self._watch: tuple[float, _Totals] | None = None
        self._remembered = False
        self._touched: set[str] = set()  # proposed from then on: a trial's value must not outlive the trial

    def value(self, key: str, configured: Mapping[str, float]) -> float:
        """The value in force, outside of a trial's blocks."""
        return self.taken.get(key, configured[key])

    def observe(self, observation: Observation[GenesisSeen]) -> Iterable[Proposal]:
        """Go on with the trial, and propose the values that are to be in force until the next look."""
        seen, now = observation.seen, observation.at.now
        if not self._remembered:
            self._recall(seen)
        self._guard(seen, now)
        if self.trial is None:
            self._begin(seen, now)
        else:
            self._continue(self.trial, seen, now)
        return [self._proposal(one, seen, now) for one in self._parameters if one.key in self._touched]

    def measure(self, seen: GenesisSeen, proposal: Proposal) -> float | None:
        """The share of bytes that went in vain since the watch began."""
        if self._watch is None or seen.sent - self._watch[1].sent < LEAST_SENT:
            return None
        return _cost(self._watch[1], seen).vain

    def _recall(self, seen: GenesisSeen) -> None:
        self._remembered = True
        for one in self._parameters:
            value = seen.taken.get(one.key)
            if value is not None and one.clamp(value) == value and value != seen.configured[one.key]:
                self.taken[one.key] = value
                self._touched.add(one.key)

    def _proposal(self, parameter: Parameter, seen: GenesisSeen, now: float) -> Proposal:
        base = self.value(parameter.key, seen.configured)
        trial = self.trial if self.trial is not None and self.trial.parameter == parameter else None
        tried = trial is not None and trial.trying
        value = trial.value if trial is not None and tried else base
        evidence = [Evidence("configured", seen.configured[parameter.key], source="the configuration")]
        why = f"{parameter.key} is as it was configured, after a trial"
        if parameter.key in self.taken:
            why = f"{parameter.key} = {base:g} has served better than its configured value"
        if trial is not None:
            evidence.append(Evidence("log_ratio", trial.ratio, _TAKE, f"{trial.pairs} pairs of blocks"))
            why = f"a trial of {parameter.key}: {trial.value:g} against {base:g}"
        lost = self._lost_in_trial.get(parameter.key)
        expects = None
        if lost is not None and trial is None:
            expects = Expectation("vain_share", "at_most", lost + GUARD_TAKEN, BLOCK)
        return Proposal(
            agent="genesis",
            subject=Subject("parameter", parameter.key),
            action=Tune(parameter.key, value, taken=parameter.key in self.taken and not tried),
            evidence=tuple(evidence),
            expects=expects,
            until=now + HOLD,
            why=why,
        )

    # Trials.

    def _begin(self, seen: GenesisSeen, now: float) -> None:
        if self._watch is None:
            self._watch = now, _Totals.of(seen)
            return
        began, totals = self._watch
        if now < began + BLOCK:
            return
        self._watch = now, _Totals.of(seen)
        if seen.sent - totals.sent < LEAST_SENT:
            return
        lost = _cost(totals, seen).lost
        for _ in self._parameters:
            parameter = self._parameters[self._turn % len(self._parameters)]
            self._turn += 1
            value = self._candidate(parameter, seen.configured, now)
            if value is not None:
                first = self._random.random() < 0.5
                self._touched.add(parameter.key)
                self.trial = Trial(parameter, value, first, now, known_lost=[lost])
                return

    def _candidate(self, parameter: Parameter, configured: Mapping[str, float], now: float) -> float | None:
        """A value to try: the configured one where another is in force, or the next to the one in force."""
        base = self.value(parameter.key, configured)
        options = [configured[parameter.key], base / parameter.step, base * parameter.step]
        options = [one for one in map(parameter.clamp, options) if one != base]
        free = [one for one in options if now >= self._resting.get((parameter.key, one), now)]
        return self._random.choice(free) if free else None

    def _continue(self, trial: Trial, seen: GenesisSeen, now: float) -> None:
        if now < trial.began + SETTLE:
            return
        if trial.start is None:
            trial.start = _Totals.of(seen)
            return
        sent, trying = seen.sent - trial.start.sent, trial.trying
        cost = _cost(trial.start, seen)
        if trying and sent >= LEAST_SENT / 10 and self._harms(trial, cost):
            self._end(trial, now, rests=True)
            return
        if now < trial.began + BLOCK:
            return
        trial.began, trial.start = now, None
        if sent < LEAST_SENT:  # nothing can be told from this pair
            trial.costs = []
            if not trial.pairs:
                self._end(trial, now, rests=False)
            return
        if not trying:
            trial.known_lost = [*trial.known_lost, cost.lost][-10:]
        trial.costs.append(cost)
        if len(trial.costs) == 2:
            self._pair(trial, seen.configured, now)

    def _harms(self, trial: Trial, cost: Cost) -> bool:
        known = sum(trial.known_lost) / len(trial.known_lost)
        return cost.lost > GUARD * known + GUARD_FLOOR

    def _pair(self, trial: Trial, configured: Mapping[str, float], now: float) -> None:
        one, other = trial.costs if trial.first else trial.costs[::-1]
        trial.ratio += _WON if one.vain < other.vain * (1 - MARGIN) else _LOST
        trial.pairs, trial.costs = trial.pairs + 1, []
        trial.first = self._random.random() < 0.5
        if trial.ratio >= _TAKE:
            key = trial.parameter.key
            self.taken[key] = trial.value
            self._lost_in_trial[key] = one.lost
            if trial.value == configured[key]:
                del self.taken[key], self._lost_in_trial[key]
            self._end(trial, now, rests=False)
        elif trial.ratio <= _GIVE_UP or trial.pairs >= MOST_PAIRS:
            self._end(trial, now, rests=True)

    def _end(self, trial: Trial, now: float, *, rests: bool) -> None:
        self.trial, self._watch = None, None
        if rests:
            self._resting[trial.parameter.key, trial.value] = now + RESTS
            while len(self._resting) > MOST_RESTING:
                del self._resting[next(iter(self._resting))]

    def _guard(self, seen: GenesisSeen, now: float) -> None:
        """Let go of a value under which far more is lost than its trial showed. Only values that were taken
        can be at fault: the mesh may just be broken."""
        if self.trial is not None or self._watch is None or now < self._watch[0] + BLOCK:
            return
        totals = self._watch[1]
        if seen.sent - totals.sent < LEAST_SENT:
            return
        lost = _cost(totals, seen).lost
        for key in list(self.taken):
            if lost > self._lost_in_trial.get(key, 0.0) + GUARD_TAKEN:
                self._resting[key, self.taken.pop(key)] = now + RESTS
                self._lost_in_trial.pop(key, None)


def _cost(start: _Totals, seen: GenesisSeen) -> Cost:
    sent = max(1.0, seen.sent - start.sent)
    lost, probes = seen.lost - start.lost, seen.probes - start.probes
    return Cost((LOST * lost + probes) / sent, lost / sent)
