# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of decisions: what is written reads back, what was changed shows, a torn end is dropped."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phantommesh.agents import ledger
from phantommesh.agents.actions import Raise, Weigh
from phantommesh.agents.base import Evidence, Expectation, Outcome, Proposal, Subject, Verdict
from phantommesh.agents.council import Decision
from phantommesh.agents.ledger import FIRST, DecisionLine, Line, OutcomeLine, StartLine

PROPOSAL = Proposal(
    agent="velocity", subject=Subject("path", "x/0"), action=Weigh("x", 0, 0.5),
    evidence=(Evidence("rtt_ms", 180.0, 100.0, "probes"),),
    expects=Expectation("rtt_ms", "at_most", 100.0, 2.0), until=130.0, why="it is slow",
)  # fmt: skip


def decision(number: int = 1, **changed: Any) -> DecisionLine:
    proposal = msgspec.structs.replace(PROPOSAL, **changed)
    made = Decision(
        seq=number, at=1700000000.0, trace=f"t{number}",
        verdict=Verdict(proposal=proposal, reason="accepted"), seconds=0.001,
    )  # fmt: skip
    return ledger.decision_line(made, now=100.0)


def outcome(number: int = 1) -> OutcomeLine:
    return ledger.outcome_line(
        Outcome(trace=f"t{number}", proposal=PROPOSAL, measured=90.0, met=True), 1700000002.0
    )


def written(count: int = 6) -> bytes:
    lines: list[Line] = [StartLine(prev="", at=1.0, run="r", version="1", torn=0)]
    for number in range(count // 2):
        lines += [decision(number), outcome(number)]
    return ledger.chain(lines, FIRST)[0]


def test_what_is_written_reads_back_in_a_chain() -> None:
    data = written()
    lines = list(ledger.read(data))
    assert [type(one) for one in lines] == [StartLine] + 3 * [DecisionLine, OutcomeLine]
    assert lines[0].prev == FIRST and len({one.prev for one in lines}) == len(lines)
    one = lines[1]
    assert isinstance(one, DecisionLine) and one.until == 1700000030.0
    assert one.action == {"do": "weigh", "peer": "x", "dimension": 0, "factor": 0.5}
    checked = ledger.check([("a", data)])
    assert (checked.files, checked.lines, checked.first, checked.problem) == (1, 7, FIRST, "")
    assert checked.last == ledger.tail(data).last and not checked.torn


def test_a_chain_goes_on_in_the_next_file() -> None:
    one = written()
    two, last = ledger.chain([decision(9)], ledger.tail(one).last or "")
    checked = ledger.check([("a", one), ("b", two)])
    assert (checked.files, checked.lines, checked.last, checked.problem) == (2, 8, last, "")
    assert "b, line 1" in ledger.check([("a", one[: one[:-1].rfind(b"\n") + 1]), ("b", two)]).problem
    assert ledger.check([("b", two)]).first != FIRST  # the oldest file has gone: that shows, and is no break


def test_nonsense_and_long_texts_have_a_line_too() -> None:
    """What JSON cannot say is null, and what is refused for its length is cut: the chain holds."""
    nan = decision(
        1, action=Weigh("x", 0, float("nan")), evidence=(Evidence("x", float("inf")),), until=float("inf")
    )
    long = decision(2, why="y" * 60_000, action=Raise("r", "low", "z" * 60_000, ""))
    data, _ = ledger.chain([nan, long], FIRST)
    first, second = ledger.read(data)
    assert isinstance(first, DecisionLine) and first.action["factor"] is None and first.until is None
    assert isinstance(second, DecisionLine) and len(second.why) == ledger.MOST_TEXT
    assert max(map(len, data.split(b"\n"))) <= ledger.MOST_LINE
    assert not ledger.check([("a", data)]).problem


@given(st.data())
def test_each_change_before_the_last_line_shows(data: st.DataObject) -> None:
    lines = written().split(b"\n")[:-1]
    at = data.draw(st.integers(0, len(lines) - 2))
    what = data.draw(st.sampled_from(["change", "take out", "swap", "twice"]))
    changed = list(lines)
    if what == "change":
        fields = json.loads(lines[at])
        fields["at"] = 5.0
        changed[at] = json.dumps(fields).encode()
    elif what == "take out" and at:
        del changed[at]
    elif what == "swap" and at + 2 < len(lines):
        changed[at], changed[at + 1] = changed[at + 1], changed[at]
    elif what == "twice":
        changed.insert(at, lines[at])
    else:
        return
    assert ledger.check([("a", b"\n".join(changed) + b"\n")]).problem


@given(st.integers(0, len(written())), st.sampled_from([b"", b"\0" * 40, b'{"kind":', b"\n\n", b"null\n"]))
@example(len(written()), b"")
@example(len(written()) - 1, b"\n\n")  # all but the end of the last line, and that end
def test_what_a_crash_leaves_is_dropped_and_all_before_is_kept(cut: int, rest: bytes) -> None:
    whole = written()
    data = whole[:cut] + rest
    end = ledger.tail(data)
    completed = rest[:1] == whole[cut : cut + 1] == b"\n"
    kept = whole[: whole.rfind(b"\n", 0, cut + completed) + 1]
    assert data[: end.kept] == kept
    assert end.kept + end.torn == len(data)
    assert (end.last is None) == (not kept)
    assert not ledger.check([("a", data[: end.kept])]).problem


@given(st.binary(max_size=200))
def test_any_bytes_can_be_checked(data: bytes) -> None:
    ledger.check([("a", data)])
    list(ledger.read(data))
    assert 0 <= ledger.tail(data).kept <= len(data)


def test_a_line_that_is_none_is_told() -> None:
    with pytest.raises(ledger.LedgerError):
        ledger.parse(b'{"kind":"decision"}')
