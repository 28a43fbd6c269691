# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests and the benchmark of the quickest path do with `latency_sim.Model`: simulated time only."""

from __future__ import annotations

from math import inf

from tests.simulation.latency_sim import Model

WATCH = 30.0  # s that a path which became worse is watched


def settled(seed: int) -> tuple[Model, int]:
    """A node that has chosen, and the dimension."""
    model = Model(seed)
    model.run(30.0 + seed % 7)
    assert model.taken is not None
    return model, model.taken


def leaves(seed: int, late: float = 0.0, loss: float = 0.0) -> float:
    """After how many seconds the traffic of one node leaves a path whose probes take ``late`` seconds longer
    or of which a share ``loss`` is lost; inf: not within `WATCH`."""
    model, before = settled(seed)
    model.late[before], model.loss[before], start = late, loss, model.now
    model.run(WATCH, until=lambda: model.taken != before)
    return model.now - start if model.taken != before else inf


def moves(seed: int, seconds: float) -> list[tuple[float, int | None, str]]:
    """How the traffic of one node moves in so many seconds of noise: when, to which dimension, and why."""
    model, _ = settled(seed)
    before, start = len(model.changes), model.now
    model.run(seconds)
    assert model.refused == 0, "the other end did not answer all"
    return [(at - start, dimension, why) for at, dimension, why in model.changes[before:]]
