# SPDX-License-Identifier: GPL-3.0-or-later
"""Scatter proofs: honest links verify, whatever else there is does not."""

import pytest

from phantommesh.proofs.archive import Archive
from phantommesh.proofs.statement import Scheduler
from phantommesh.proofs.verify import verify
from tests.unit.makeproofs import EQUAL, MESH, UNEQUAL, World

ROOT = MESH.mesh.root_hash


@pytest.mark.parametrize("cards", [EQUAL, UNEQUAL, (7, 0, 0, 1, 1, 1, 1)])
@pytest.mark.parametrize(
    ("scheduler", "run"), [("packet", 1), ("deck", 1), ("batch", 8), ("flow", 1), ("flowlet", 1)]
)
def test_honest_links_verify(
    scheduler: Scheduler, run: int, cards: tuple[int, int, int, int, int, int, int]
) -> None:
    world = World(1)
    world.run(5, scheduler, run=run, cards=cards, loss=0.01)
    report = verify(Archive.decode_untrusted(world.archive().encode()), root_hash=ROOT)
    assert (report.mesh, report.pinned, report.proofs, report.countersigned) == ("pm", True, 10, 10)
    for link in report.links:
        assert link.tested == (0 if scheduler.startswith("flow") else 5)
        assert link.packets > 0
