# SPDX-License-Identifier: GPL-3.0-or-later
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.management.logbudget import (
    BYTES_BURST,
    BYTES_RATE,
    HOUR,
    KIND_BURST,
    MAX_KINDS,
    MAX_SUBJECTS,
    SUBJECT_BURST,
    TELL,
    LogBudget,
)


def test_a_subject_uses_up_its_own_budget_only() -> None:
    budget = LogBudget(0.0)
    assert [budget.admit("refused", "a", 0.0) for _ in range(100)].count(0) == SUBJECT_BURST
    assert budget.admit("refused", "b", 0.0) == 0
    assert budget.admit("other kind", "a", 0.0) == 0


def test_many_subjects_use_up_their_kinds_budget_only() -> None:
    budget = LogBudget(0.0)
    written = sum(budget.admit("refused", str(i), 0.0) is not None for i in range(10_000))
    assert written == KIND_BURST
    assert budget.admit("other kind", "a", 0.0) == 0
    assert len(next(iter(budget._kinds.values())).left_out) <= MAX_SUBJECTS


def test_what_was_left_out_is_told_once() -> None:
    budget = LogBudget(0.0)
    for _ in range(SUBJECT_BURST + 7):
        budget.admit("refused", "a", 0.0)
    assert budget.summary(0.0) == {}
    assert budget.admit("refused", "a", TELL) == 7
    assert budget.admit("refused", "a", 2 * TELL) == 0
    assert budget.summary(2 * TELL) == {"refused": 7}
    assert budget.summary(9 * TELL) == {}


def test_when_all_bytes_are_spent_the_first_line_of_a_kind_is_written_all_the_same() -> None:
    budget = LogBudget(0.0)
    budget.wrote(2 * BYTES_BURST, 0.0)
    assert budget.admit("a", "", 0.0) == 0
    assert budget.admit("a", "", 0.0) is None
    assert budget.admit("b", "", 0.0) == 0
    assert budget.admit("a", "", HOUR) == 1


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 50), st.floats(0, 5)), max_size=400))
def test_bytes_are_bounded_whatever_comes(steps: list[tuple[int, int, float]]) -> None:
    budget, now, written, size = LogBudget(0.0), 0.0, 0, 4_000
    for kind, subject, pause in steps * 3:
        now += pause
        if budget.admit(str(kind), str(subject), now) is not None:
            budget.wrote(size, now)
            written += size
    firsts = (MAX_KINDS + 1) * (1 + int(now / HOUR)) * size
    assert written <= BYTES_BURST + BYTES_RATE * now + firsts + size
    assert len(budget._kinds) <= MAX_KINDS + 1
