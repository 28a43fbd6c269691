# SPDX-License-Identifier: GPL-3.0-or-later
"""Values that GENESIS tunes: in force at once, and on disk where they are for good."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from phantommesh.nursery.dataplane.tuning import PROBES, Tuning, UnknownParameterError
from phantommesh.paths.machine import Paths
from phantommesh.state import directory
from phantommesh.state.directory import StateDir


def tuning(state: StateDir) -> tuple[Tuning, Paths]:
    paths = Paths(random=Random(1), interval=0.1)
    return Tuning(state, paths, 0.1), paths


async def test_a_value_is_in_force_at_once_and_outlasts_the_run_only_when_taken(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    one, paths = tuning(state)
    await one.tune(PROBES, 0.2, taken=False)
    assert paths.interval == 0.2
    assert tuning(state)[0].taken == {}
    await one.tune(PROBES, 0.4, taken=True)
    assert tuning(state)[0].taken == {PROBES: 0.4}
    assert (tmp_path / directory.TUNED).stat().st_mode & 0o777 == 0o600
    one.restore(PROBES)
    assert paths.interval == 0.1
    await one.tune(PROBES, 0.1, taken=False)
    assert tuning(state)[0].taken == {}


async def test_what_nothing_changes_is_refused(tmp_path: Path) -> None:
    one, _ = tuning(StateDir(tmp_path))
    with pytest.raises(UnknownParameterError, match=r"link\.rotate_seconds"):
        await one.tune("link.rotate_seconds", 1.0, taken=False)


def test_damage_on_disk_costs_only_what_was_found(tmp_path: Path) -> None:
    for text in (b"", b"[]", b'{"a": "b"}', b"\xff"):
        (tmp_path / directory.TUNED).write_bytes(text)
        assert tuning(StateDir(tmp_path))[0].taken == {}
