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
from tests.simulation.full_views import agreed, settled

HOUR, YEAR = 3_600.0, 365 * DAY
WRONG_FOR = 600.0  # s that a clock is wrong
PATIENCE = 900.0  # s after the cause is gone; who is not back then needs a hand


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: whether the mesh works meanwhile without the machine in question, and after how many
    seconds from the end of the cause all is well again; None: not without a hand."""

    others_well: bool
    back_after: float | None
    sim: Simulation


@dataclass(frozen=True)
class Case:
    """One trial: ``play`` it from a seed."""

    name: str
    play: Callable[[int], Outcome]


def _mesh(seed: int, authorities: int) -> Simulation:
    """Four members or so that have come to rest; the authorities are the first of them."""
    sim = Simulation(4, seed=seed, network=bad_network(), authorities=authorities)
    sim.start_all()
    settle(sim, 60)
    return sim


def _back(sim: Simulation, wanted: Callable[[], bool], *, others_well: bool = True) -> Outcome:
    began = sim.now
    found = sim.run(PATIENCE, wanted)
    return Outcome(others_well, sim.now - began if found else None, sim)


def off(seed: int, *, index: int, days: int, authorities: int) -> Outcome:
    """A machine is off for some days; the others go on."""
    sim = _mesh(seed, authorities)
    sim.crash(index)
    sim.days(days)
    well = sim.run(60, lambda: settled(sim))
    sim.start(index)
    return _back(sim, lambda: len(sim.running()) == 4 and settled(sim), others_well=well)


def all_off(seed: int, *, days: int) -> Outcome:
    """All machines of a mesh with one authority are off for some days, and are switched on at once."""
    sim = _mesh(seed, 1)
    for index in range(4):
        sim.crash(index)
    sim.days(days)
    for index in range(4):
        sim.start(index)
    return _back(sim, lambda: settled(sim), others_well=False)


def wrong(seed: int, *, index: int, seconds: float, authorities: int, when: str) -> Outcome:
    """A machine's clock is wrong for ten minutes: as it joins (``join``), when its certificate is to be
    renewed (``renewal``), or just so (``between``)."""
    sim = _mesh(seed, authorities)
    if when == "renewal":
        sim.days(3)
        assert sim.run(60, lambda: settled(sim))
        sim.skipped += DAY  # from here on everybody's certificate is due
    joiner = None
    sim.step_clock(index, seconds)
    if when == "join":  # at an authority with this clock, or with this clock itself
        joiner = 3 if index == 0 else index
        sim.crash(joiner)
        machine = sim.machines[joiner]
        raise NotImplementedError(machine)
    sim.run(WRONG_FOR)
    sim.step_clock(index, -seconds)
    return _back(sim, lambda: settled(sim))


def joining(seed: int, *, at_authority: bool, seconds: float) -> Outcome:
    """A machine joins while its own clock, or the authority's, is wrong; it goes on trying."""
    sim = Simulation(5, seed=seed, network=bad_network(), authorities=1)
    sim.start_all(4)
    settle(sim, 60)
    index = 0 if at_authority else 4
    sim.step_clock(index, seconds)
    join(sim, 4, 0)
    sim.run(WRONG_FOR)
    sim.step_clock(index, -seconds)
    return _back(sim, lambda: len(sim.running()) == 5 and settled(sim))


def cases() -> Iterator[Case]:
    """Every trial of the table."""
    for days in (10, 40):
        for who, index, authorities in (
            ("a member", 3, 1), ("one authority of two", 1, 2), ("the only authority", 0, 1),
        ):  # fmt: skip
            play = partial(off, index=index, days=days, authorities=authorities)
            yield Case(f"{who} is off for {days} days", play)
        yield Case(f"the whole mesh is off for {days} days", partial(all_off, days=days))
    for size, seconds in (("an hour", HOUR), ("a day", DAY), ("a year", YEAR)):
        for way, sign in (("ahead", 1.0), ("behind", -1.0)):
            for who, index, authorities in (
                ("a member", 3, 2), ("one authority of two", 1, 2), ("the only authority", 0, 1),
            ):  # fmt: skip
                for when in ("between", "renewal"):
                    play = partial(
                        wrong, index=index, seconds=sign * seconds, authorities=authorities, when=when
                    )
                    at = "" if when == "between" else ", certificates are due"
                    yield Case(f"the clock of {who} is {size} {way}{at}", play)
            for who, at_authority in (("a joiner", False), ("the authority that it joins at", True)):
                play = partial(joining, at_authority=at_authority, seconds=sign * seconds)
                yield Case(f"the clock of {who} is {size} {way}", play)


__all__ = ["Case", "Outcome", "agreed", "cases"]
