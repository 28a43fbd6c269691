# SPDX-License-Identifier: GPL-3.0-or-later
import importlib
import pkgutil
import re
from pathlib import Path

import msgspec

import phantommesh
from phantommesh.faults import MOST_CONTESTED, OFTEN, WITHIN, Contest, FaultKind
from phantommesh.management.views import Status
from phantommesh.nursery.reporting.health import UNREADY
from tests.support.fakenode import FakeNode

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
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)+", code) for code in codes)
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


def test_what_is_put_right_again_and_again_is_contested_until_it_stays_right() -> None:
    contest = Contest()
    for number in range(OFTEN):
        assert list(contest.lasting(number)) == []
        contest.mended("pm3", number)
    assert list(contest.lasting(OFTEN)) == ["pm3"]
    assert list(contest.lasting(WITHIN + 0.5)) == []
    for number in range(2 * MOST_CONTESTED):
        contest.mended(f"pm{number}", 100.0)
        contest.mended("pm3", 100.0)
    assert list(contest.lasting(100.0)) == ["pm3"] and len(contest._mended) == MOST_CONTESTED
