# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that mark packets by the cgroup of their socket, and which of these marks an intent matches."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.config.intents import CGROUP_MARKS, cgroup_mark
from phantommesh.config.sections import IntentSection
from phantommesh.scatter.cgroups import render
from phantommesh.scatter.intents import Intents

steps = st.lists(st.sampled_from(("a", "b", r"c\x2d1.service")), min_size=1, max_size=4).map("/".join)
RULE = re.compile(r'socket cgroupv2 level (\d) "unified/(\S+)" meta mark set (\d+) return')


def test_the_deepest_cgroup_is_looked_for_first() -> None:
    text = render("pm", "unified/", ["a", "b/c/d", "a/b"])
    assert [(level, path) for level, path, _ in RULE.findall(text)] == [
        ("3", "b/c/d"), ("2", "a/b"), ("1", "a"),
    ]  # fmt: skip
    assert 'oifname "pm" jump which' in text
    assert text.splitlines()[:2] == [
        "add table inet phantommesh_cgroups_pm", "delete table inet phantommesh_cgroups_pm",
    ]  # fmt: skip


@given(st.lists(steps, min_size=1, max_size=6, unique=True), steps)
def test_a_packet_is_of_the_first_intent_whose_cgroup_it_is_in(paths: list[str], at: str) -> None:
    """The kernel gives it the mark of the first rule that holds; the first class that has it takes it."""
    intents = Intents([IntentSection(f"i{n}", "order", cgroup=path) for n, path in enumerate(paths)])
    assert set(intents.cgroups) == set(paths)

    def within(path: str) -> bool:
        return at == path or at.startswith(f"{path}/")

    rules = RULE.findall(render("pm", "unified/", intents.cgroups))
    mark = next((int(mark) for _, path, mark in rules if within(path)), 0)
    classes = [one.name for one in intents.classes("db") if str(mark) in re.findall(r"\d+", one.matches[0])]
    assert classes == [f"i{n}" for n, path in enumerate(paths) if within(path)]


def test_a_cgroup_goes_with_all_else_that_an_intent_matches() -> None:
    intents = Intents(
        [IntentSection("a", "order", protocol="tcp", cgroup="x"), IntentSection("b", "order", user=1)]
    )
    (first,), (second,) = (one.matches for one in intents.classes("db"))
    assert first == f"meta mark {cgroup_mark('x')} meta l4proto 6" and second == "meta skuid 1"


@given(steps)
def test_marks_are_told_from_others_by_their_upper_bits(path: str) -> None:
    assert cgroup_mark(path) & 0xFF000000 == CGROUP_MARKS == 0xC6000000
