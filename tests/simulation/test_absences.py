# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines come back by themselves after days off, and after their clock was wrong: see `absences`."""

from __future__ import annotations

import pytest

from tests.simulation.absences import Case, cases

SOON = 120.0  # s of virtual time


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=() if case.brief else pytest.mark.slow) for case in cases()],
)
def test_who_is_back(case: Case) -> None:
    outcome = case.play(0)
    # All certificates but its own authority's are out of their grace, or its own is.
    by_hand = "100 days" in case.name
    assert (outcome.back_after is None) == by_hand, outcome.said
    if by_hand and "member" in case.name:
        assert "longer ago than the mesh's grace of 90 days" in outcome.said
    if outcome.back_after is not None:
        assert outcome.back_after <= SOON
    # Nobody renews what runs out after seven days, and without a certificate there is no link.
    assert (outcome.others is False) == case.name.startswith("the only authority is off")
