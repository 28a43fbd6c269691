# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs of a link whose traffic has classes: one distribution, and the scheduler that promises the least."""

from __future__ import annotations

import random
from typing import Final

import msgspec
import pytest

from phantommesh.proofs.statement import Plan, Scheduler
from tests.unit.proofs.honest import Honest, Sent
from tests.unit.proofs.telling import verdict

RUNS: Final[dict[Scheduler, int]] = {"deck": 1, "packet": 1, "batch": 8, "flow": 1}


class Classes(Honest):
    """An honest link with a class for each scheduler, all of them dealt by the plan's cards."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng, "flow")
        self.shares = [rng.random() for _ in RUNS]

    def send(self, plan: Plan, volume: float) -> Sent:
        total = Sent()
        for (scheduler, run), share in zip(RUNS.items(), self.shares, strict=True):
            part = msgspec.structs.replace(plan, scheduler=scheduler, run=run)
            total += super().send(part, volume * share / sum(self.shares))
        return total


@pytest.mark.parametrize("seed", range(40))
def test_an_honest_link_with_classes_is_not_refused(seed: int) -> None:
    found = verdict(Classes(random.Random(seed)).story(60))
    assert found.verdict == "holds", found.reason
