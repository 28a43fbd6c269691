# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole nodes, of real parts, through the scenarios of `full_scenarios`. Times are virtual.

A run that fails prints the command that replays it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.full_scenarios import SCENARIOS

ROOT = Path(__file__).parent.parent.parent
SEEDS = {"collision": 2, "soak": 6}  # by default one


def runs() -> list[object]:
    """Each scenario with its seeds: few here, and so many more behind ``slow``."""
    cases: list[object] = []
    for name in SCENARIOS:
        few = 0 if name == "thousand-shut-out" else SEEDS.get(name, 1)
        many = 2 if name.startswith("thousand") else 60 if name == "soak" else 12
        cases += [pytest.param(name, seed, id=f"{name}-{seed}") for seed in range(few)]
        cases += [
            pytest.param(name, seed, id=f"{name}-{seed}", marks=pytest.mark.slow) for seed in range(few, many)
        ]
    return cases


@pytest.mark.parametrize(("name", "seed"), runs())
def test_scenario(name: str, seed: int) -> None:
    print(f"replay: python -m tests.simulation.full_sim {name} --seed {seed}")
    scenario, nodes = SCENARIOS[name]
    sim = scenario(seed, nodes)
    assert sim.tally["key-refused"] == 0
    assert sim.tally["task-failed"] == 0


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
