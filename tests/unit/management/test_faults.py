# SPDX-License-Identifier: GPL-3.0-or-later
import importlib
import pkgutil
import re
from pathlib import Path

import msgspec
import pytest

import phantommesh
from phantommesh.faults import Fault, FaultKind
from phantommesh.management.peerfaults import MAX_PARTLY, RENEWAL, partly_reachable, peer_faults
from phantommesh.management.views import MemberState, PathView, Status
from phantommesh.nursery.reporting.health import UNREADY
from tests.support.fakenode import FakeNode, link_view, path_view

RUNBOOK = Path(phantommesh.__file__).parent.parent / "docs" / "runbook.md"


def declared() -> list[FaultKind]:
    """Every kind that a module of the package declares."""
    kinds: dict[int, FaultKind] = {}
    for module in pkgutil.walk_packages(phantommesh.__path__, "phantommesh."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, FaultKind):
                    kinds[id(value)] = value
    return list(kinds.values())


def test_each_code_is_declared_once_and_has_its_section_in_the_runbook() -> None:
    kinds = declared()
    codes = sorted(kind.code for kind in kinds)
    assert codes == sorted(set(codes))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)+", code) for code in codes)
    sections = re.findall(r"^### `(.+)`\nSeverity: (\w+)\. \S", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted((kind.code, kind.severity) for kind in kinds)
    assert len(sections) == len(re.findall(r"^### ", RUNBOOK.read_text(), re.MULTILINE))


def test_the_runbook_says_which_faults_make_a_node_unready() -> None:
    [told] = re.findall(
        r"^`/readyz` answers 503 for these alone: ([^.]+)\.", RUNBOOK.read_text(), re.MULTILINE
    )
    assert set(re.findall(r"`(.+?)`", told)) == UNREADY
    assert all(kind.severity == "critical" for kind in declared() if kind.code in UNREADY)


def test_a_fault_is_told_in_full() -> None:
    fault = FaultKind("peer-gone", "medium").fault("pm-2 is dead", "start it", subject="pm-2")
    assert msgspec.to_builtins(fault) == {
        "code": "peer-gone",
        "severity": "medium",
        "subject": "pm-2",
        "text": "pm-2 is dead",
        "fix": "start it",
    }
    assert fault.line == "pm-2 is dead; start it"
    assert FaultKind("peer-gone", "medium").fault("pm-2 is dead", "").line == "pm-2 is dead"


def test_a_status_without_faults_is_read_as_of_an_older_node() -> None:
    status = msgspec.to_builtins(FakeNode().status())
    del status["faults"]
    assert msgspec.convert(status, Status).faults == []


def seen(*faults: Fault) -> list[tuple[str, str]]:
    return [(fault.code, fault.subject) for fault in faults]


def test_a_peer_that_is_gone_is_told_of_once() -> None:
    links = [link_view(1), link_view(2)]
    assert seen(*peer_faults({}, links, [], 1)) == []
    assert seen(*peer_faults({"id002": "dead"}, links, [], 1)) == [("peer-gone", "pm-2")]
    stale = msgspec.structs.replace(links[0], state="stale", dimensions=3, last_error="no answer")
    [fault] = peer_faults({}, [stale], [], 1)
    assert seen(fault) == [("link-incomplete", "pm-1")]
    assert "3 of 7" in fault.text and fault.text.endswith(": no answer")
    assert seen(*peer_faults({"id001": "left"}, [stale], [], 1)) == []
    [fault] = peer_faults({}, [msgspec.structs.replace(links[0], state="none", dimensions=0)], [], 1)
    assert fault.text == "peer pm-1 has no keys agreed with this node and answers on 0 of 7 dimensions"


def test_of_two_peers_with_one_name_the_one_that_is_gone_is_meant() -> None:
    links = [msgspec.structs.replace(link_view(number), peer="twin") for number in (1, 2)]
    assert seen(*peer_faults({"id001": "alive", "id002": "dead"}, links, [], 1)) == [("peer-gone", "twin")]


@pytest.mark.parametrize(
    ("state", "since", "told"), [("dark", 0.0, True), ("proving", RENEWAL, True), ("proving", 0.0, False)]
)
def test_a_dark_dimension_is_a_fault_where_others_answer(state: str, since: float, told: bool) -> None:
    def path(dimension: int, **changes: object) -> PathView:
        return msgspec.structs.replace(path_view(1, dimension), **changes)

    paths = [path(0, state=state, since_s=since), path(1)]
    assert seen(*peer_faults({}, [], paths, 1)) == ([("dimensions-dark", "pm-1")] if told else [])
    assert seen(*peer_faults({}, [], paths[:1], 1)) == []
    gone: tuple[MemberState, ...] = ("suspect", "dead")
    for standing in gone:  # nothing takes its traffic, and `peer-gone` tells it
        assert seen(*peer_faults({paths[0].node_id: standing}, [], paths, 1)) == []


def test_few_of_many_partly_reachable_peers_are_named() -> None:
    through = [(f"pm-{number}", ["pm-0"]) for number in range(MAX_PARTLY + 3)]
    faults = list(partly_reachable(through, 1))
    assert len(faults) == MAX_PARTLY + 1
    assert {fault.code for fault in faults} == {"peer-partly-reachable"}
    assert faults[-1].subject == "" and "3 more" in faults[-1].text
