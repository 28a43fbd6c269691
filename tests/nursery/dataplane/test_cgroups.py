# SPDX-License-Identifier: GPL-3.0-or-later
"""The service that marks packets by cgroup, over cgroups that are files and a kernel that is played here."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from phantommesh.nursery.dataplane import cgroups as service
from phantommesh.nursery.dataplane.cgroups import CHECK, LOOK, RETRY, CgroupMarks
from phantommesh.nursery.host import cgroups as host
from phantommesh.nursery.host.nft import Fingerprint, NftError


@dataclass
class Kernel:
    texts: list[str] = field(default_factory=list)
    table: Fingerprint | None = None
    refusal: NftError | None = None


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    made = Kernel()

    class Table:
        def __init__(self, family: str, name: str) -> None:
            assert (family, name) == ("inet", "phantommesh_cgroups_pm")

        async def install(self, text: str) -> None:
            await trio.lowlevel.checkpoint()
            if made.refusal is not None:
                raise made.refusal
            made.texts.append(text)
            made.table = Fingerprint(len(made.texts), frozenset(), ())

        async def remove(self) -> None:
            await trio.lowlevel.checkpoint()
            made.table = None

        async def fingerprint(self) -> Fingerprint | None:
            await trio.lowlevel.checkpoint()
            return made.table

    monkeypatch.setattr(service, "Table", Table)
    monkeypatch.setattr(host, "ROOT", tmp_path)
    return made


def version_2(root: Path) -> None:
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        (root / name).touch()


@asynccontextmanager
async def running(marks: CgroupMarks) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(marks.run)
        await trio.sleep(LOOK / 2)
        yield
        nursery.cancel_scope.cancel()


async def test_rules_follow_the_cgroups_that_are_there(
    kernel: Kernel, tmp_path: Path, autojump_clock: object
) -> None:
    version_2(tmp_path)
    wanted = ["a", "a/b"]
    (tmp_path / "a").mkdir()
    marks = CgroupMarks("pm", lambda: wanted)
    async with running(marks):
        assert len(kernel.texts) == 1 and '"a"' in kernel.texts[0] and '"a/b"' not in kernel.texts[0]
        assert marks.missing == {"a/b"}
        await trio.sleep(10 * LOOK)
        assert len(kernel.texts) == 1
        (tmp_path / "a" / "b").mkdir()
        await trio.sleep(LOOK)
        assert len(kernel.texts) == 2 and '"a/b"' in kernel.texts[1] and not marks.missing
        (tmp_path / "a" / "b").rename(tmp_path / "old")  # the number of `old` is not given again
        (tmp_path / "a" / "b").mkdir()
        await trio.sleep(LOOK)
        assert len(kernel.texts) == 3, "of the same path, and another"
        kernel.table = None
        await trio.sleep(CHECK + LOOK)
        assert len(kernel.texts) == 4, "somebody had removed it"
        wanted.clear()
        await trio.sleep(LOOK)
        assert not kernel.table


async def test_where_version_1_is_there_too_the_hierarchy_is_found(
    kernel: Kernel, tmp_path: Path, autojump_clock: object
) -> None:
    (tmp_path / "unified" / "a").mkdir(parents=True)
    version_2(tmp_path / "unified")
    async with running(CgroupMarks("pm", lambda: ["a"])):
        assert 'level 1 "unified/a"' in kernel.texts[0]


@pytest.mark.parametrize("has_version_2", [True, False])
async def test_what_this_machine_lacks_is_said_and_tried_again(
    kernel: Kernel, tmp_path: Path, autojump_clock: object, *, has_version_2: bool
) -> None:
    (tmp_path / "a").mkdir()
    if has_version_2:
        version_2(tmp_path)
        kernel.refusal = NftError("Operation not supported", code=errno.EOPNOTSUPP)
    marks = CgroupMarks("pm", lambda: ["a"])
    with capture_logs() as logs:
        async with running(marks):
            await trio.sleep(3 * RETRY)
            assert "Linux 5.13" in getattr(marks.problem, "fix", "")
            assert [one["log_level"] for one in logs] == ["warning"]
            kernel.refusal = None
            version_2(tmp_path)
            await trio.sleep(RETRY)
            assert not marks.problem
            assert len(kernel.texts) == 1
