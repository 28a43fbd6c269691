# SPDX-License-Identifier: GPL-3.0-or-later
"""When a node surveys the mesh, and what it keeps of that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from phantommesh.control.sessions import Sessions
from phantommesh.node.surveying import ENOUGH, PERIOD
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.members.surveying import FRESH, Known, Surveying
from phantommesh.records.record import sign_record
from phantommesh.records.roster import Entry, Roster
from phantommesh.routing import drift
from phantommesh.routing.graph import Analysis
from phantommesh.state.start import NodeState
from phantommesh.trust.identity import NodeId
from phantommesh.trust.revocations import Revocations
from tests.support.loopback import make_authority
from tests.support.makemesh import NOW, identity, make_mesh, plain_record

pytestmark = pytest.mark.usefixtures("at_once")


def entries(count: int) -> list[Entry]:
    mesh = make_mesh()
    roster = Roster(mesh.root, Revocations(mesh.root))
    for number in range(count):
        one = identity(f"m{number}")
        certificate = mesh.certify(one, f"m{number}")
        roster.add(sign_record(one, plain_record(one), certificate, mesh.authority.der), NOW)
    return list(roster)


def surveying(at: Path, others: Sequence[Entry]) -> tuple[Surveying, list[NodeId]]:
    """A node without links: nobody can be called, so nobody answers. The list has whom it looked at."""
    state: NodeState = make_authority(at)
    looked = list[NodeId]()
    keeper = RosterKeeper(state, lambda: None)
    caller = Caller(state, keeper, Sessions(), lambda member: ())
    me = state.identity.node_id
    part = Surveying(
        me, caller, lambda: others, lambda: keeper.roster.get(me), lambda member: False,
        look=looked.append, path=at / "topology.bin",
    )  # fmt: skip
    return part, looked


@pytest.mark.parametrize(("others", "looks"), [(ENOUGH - 1, False), (ENOUGH, True)])
async def test_a_small_mesh_is_surveyed_only_when_somebody_asks(
    tmp_path: Path, autojump_clock: MockClock, others: int, looks: bool
) -> None:
    part, looked = surveying(tmp_path, entries(others))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(part.run)
        await trio.sleep(2 * PERIOD)
        assert bool(looked) is looks
        looked.clear()
        await part.ask(60.0)
        assert looked and part.known is None  # nobody answered: nothing is said
        nursery.cancel_scope.cancel()


async def test_what_was_just_found_is_not_looked_for_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    part, _ = surveying(tmp_path, entries(2))
    part.known = Known({}, Analysis(), trio.current_time(), 0.0, 0.0, 2, 2, 0)
    began = trio.current_time()
    await part.ask(10.0)
    assert trio.current_time() == began
    await trio.sleep(FRESH)
    await part.ask(10.0)  # nothing runs here that could answer
    assert trio.current_time() == began + FRESH + 10.0


async def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    part, _ = surveying(tmp_path, [])
    for damage in (b"", b"\xff" * 40, b"\x00" * (drift.MAX_BYTES + 9)):
        part.path.write_bytes(damage)
        assert part._read() == drift.Days()
    days = drift.Days(drift.Summary(NOW, {b"m" * 16: drift.Had(0.02, 0.0, 1.0)}))
    part._days = days
    part._write()
    assert part._read() == days
