# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole nodes, of real parts, through the scenarios of `full_scenarios` and `desk_scenarios`. Times are
virtual.

A run that fails prints the command that replays it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.desk_scenarios import SCENARIOS

ROOT = Path(__file__).parent.parent.parent
SEEDS = {"collision": 2, "soak": 4}  # by default one
MORE = {"news": 2, "large": 4, "soak": 60}  # behind ``slow``; by default twelve


def runs() -> list[object]:
    """Each scenario with its seeds: few here, and more behind ``slow``."""
    cases: list[object] = []
    for name in SCENARIOS:
        few, all_ = SEEDS.get(name, 1), MORE.get(name, 12)
        cases += [pytest.param(name, seed, id=f"{name}-{seed}") for seed in range(few)]
        cases += [
            pytest.param(name, seed, id=f"{name}-{seed}", marks=pytest.mark.slow) for seed in range(few, all_)
        ]
    return cases


@pytest.mark.slow
def test_a_thousand_nodes_shut_a_revoked_one_out() -> None:
    print("replay: python -m tests.simulation.full_sim large --seed 0 --nodes 1000")
    SCENARIOS["large"][0](0, 1000)


@pytest.mark.parametrize(("name", "seed"), runs())
def test_scenario(name: str, seed: int) -> None:
    print(f"replay: python -m tests.simulation.full_sim {name} --seed {seed}")
    scenario, nodes = SCENARIOS[name]
    sim = scenario(seed, nodes)
    assert sim.tally["key-refused"] == 0
    assert sim.tally["task-failed"] == 0
    assert not sim.suspected  # crashes, cuts and stalls copy no identity


def test_the_same_seed_gives_the_same_trace_in_any_process() -> None:
    """Python orders sets of bytes by a random key of each process: nothing may depend on it."""

    def trace(seed: int, hash_seed: int) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation.full_sim", "revoker-crashes", "--seed", str(seed)],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)}, cwd=ROOT, check=True, text=True,
            capture_output=True,
        )  # fmt: skip
        return done.stdout

    first = trace(1, 1)
    assert first == trace(1, 2)
    assert first.partition("trace")[2] != trace(2, 1).partition("trace")[2]
