# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines that were off for long, and machines whose clock is wrong for a while: who is back without a hand,
and after how long. `benchmarks.absences` prints the table of these trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from phantommesh.trust.certificates import DAY
from tests.simulation.full_joining import join
from tests.simulation.full_scenarios import bad_network, settle
from tests.simulation.full_sim import Simulation
from tests.simulation.full_views import settled

HOUR, YEAR = 3_600.0, 365 * DAY
WRONG_FOR = 600.0  # s that a clock is wrong
PATIENCE = 900.0  # s after the cause is gone; who is not back then needs a hand
NODES = 4


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. ``others`` says whether the others agreed, all linked, at the end of an absence;
    ``back_after`` in how many seconds from the end of the cause all machines agreed and were linked, None:
    not without a hand. ``said`` is why the machine in question was not taken back, as it was told last."""

    others: bool | None
    back_after: float | None
    said: str
    sim: Simulation


@dataclass(frozen=True)
class Case:
    """One trial: ``play`` it from a seed. ``brief`` ones are played in the ordinary tests."""

    name: str
    play: Callable[[int], Outcome]
    brief: bool = False


def _mesh(seed: int, authorities: int, nodes: int = NODES) -> Simulation:
    """Four members that have come to rest; the authorities are the first of them."""
    sim = Simulation(nodes, seed=seed, network=bad_network(), authorities=authorities)
    sim.start_all(NODES)
    settle(sim, 60)
    return sim


def _back(sim: Simulation, index: int, others: bool | None) -> Outcome:
    began, machine = sim.now, sim.machines[index]
    machine.told.clear()
    found = sim.run(PATIENCE, lambda: len(sim.running()) == len(sim.machines) and settled(sim))
    said = "" if machine.process is None else str(machine.process.own.word.renewal_error or "")
    return Outcome(others, sim.now - began if found else None, said or "; ".join(machine.told), sim)


def off(seed: int, *, index: int, days: int, authorities: int) -> Outcome:
    """A machine is off for some days; the others go on."""
    sim = _mesh(seed, authorities)
    sim.crash(index)
    sim.days(days)
    others = sim.run(60, lambda: settled(sim))
    sim.start(index)
    return _back(sim, index, others)


def off_and_wrong(seed: int, *, days: int, seconds: float) -> Outcome:
    """A member is off for some days, and its clock is wrong for ten minutes when it starts: many a small
    machine has no clock that runs while it is off."""
    sim = _mesh(seed, 1)
    sim.crash(NODES - 1)
    sim.days(days)
    sim.step_clock(NODES - 1, seconds)
    sim.start(NODES - 1)
    sim.run(WRONG_FOR)
    sim.step_clock(NODES - 1, -seconds)
    return _back(sim, NODES - 1, None)


def all_off(seed: int, *, days: int) -> Outcome:
    """All machines of a mesh with one authority are off for some days, and are switched on at once."""
    sim = _mesh(seed, 1)
    for index in range(NODES):
        sim.crash(index)
    sim.days(days)
    for index in range(NODES):
        sim.start(index)
    return _back(sim, NODES - 1, None)


def wrong(seed: int, *, index: int, seconds: float, authorities: int, due: bool) -> Outcome:
    """A running machine's clock is wrong for ten minutes, perhaps while all certificates are ``due``."""
    sim = _mesh(seed, authorities)
    if due:
        sim.days(3)
        settle(sim, 60)
        sim.skipped += DAY
    sim.step_clock(index, seconds)
    sim.run(WRONG_FOR)
    sim.step_clock(index, -seconds)
    return _back(sim, index, None)


def joining(seed: int, *, index: int, seconds: float) -> Outcome:
    """A machine joins, and goes on trying, while its own clock, or the authority's (0), is wrong."""
    sim = _mesh(seed, 1, NODES + 1)
    sim.step_clock(index, seconds)
    join(sim, NODES, 0)
    sim.run(WRONG_FOR)
    sim.step_clock(index, -seconds)
    return _back(sim, NODES, None)


def cases() -> Iterator[Case]:
    """Every trial of the table."""
    for days in (10, 40, 100):
        for who, index, authorities in (
            ("a member", 3, 1), ("one authority of two", 1, 2), ("the only authority", 0, 1),
        ):  # fmt: skip
            play = partial(off, index=index, days=days, authorities=authorities)
            brief = days == 10 or (days == 100 and who == "a member")
            yield Case(f"{who} is off for {days} days", play, brief)
        yield Case(f"the whole mesh is off for {days} days", partial(all_off, days=days), brief=days == 10)
    for size, seconds in (("an hour", HOUR), ("a day", DAY), ("a year", YEAR)):
        for way, sign in (("ahead", 1.0), ("behind", -1.0)):
            step = sign * seconds
            play = partial(off_and_wrong, days=10, seconds=step)
            name = f"a member is off for 10 days, and starts with its clock {size} {way}"
            yield Case(name, play, brief=size == "a year")
            for who, index, authorities in (
                ("a member", 3, 2), ("one authority of two", 1, 2), ("the only authority", 0, 1),
            ):  # fmt: skip
                for due in (False, True):
                    play = partial(wrong, index=index, seconds=step, authorities=authorities, due=due)
                    renewal = ", certificates are due" if due else ""
                    yield Case(f"the clock of {who} is {size} {way}{renewal}", play, brief=size == "a year")
            for who, index in (("a joiner", NODES), ("the authority that it joins at", 0)):
                play = partial(joining, index=index, seconds=step)
                yield Case(f"the clock of {who} is {size} {way}", play, brief=size == "a year")
