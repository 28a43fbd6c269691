# SPDX-License-Identifier: GPL-3.0-or-later
"""A node whose certificate ran out is taken back over real sockets, and a lost machine's place is kept."""

from pathlib import Path
from time import time

import pytest
import trio
from structlog.testing import capture_logs

from phantommesh.link.psk import PskPhase
from phantommesh.node.returning import place_of
from phantommesh.nursery.members import own
from phantommesh.nursery.members.own import CERTIFICATE_EXPIRED, MESH_ENDS
from phantommesh.nursery.node import Node
from phantommesh.state.directory import StateDir
from phantommesh.state.start import NodeState, load_node, renewal_files
from phantommesh.trust.certificates import DAY, Role, TrustError, validity
from phantommesh.trust.identity import NodeId
from tests.support import loopback
from tests.support.loopback import invite_in_place, join, make_authority, make_invite, serving, until


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "LOOK_UNCERTIFIED", 0.2)


def make_old_mesh(at: Path, patch: pytest.MonkeyPatch, days: int = 200) -> NodeState:
    """A mesh that was made so many days ago. Its authority was off since."""
    with patch.context() as then:
        then.setattr(loopback, "time", lambda: time() - days * DAY)
        return make_authority(at)


def let_run_out(authority: NodeState, at: Path, days: float) -> NodeState:
    """Give the node in this directory a certificate that ran out so many days ago."""
    node = load_node(at / "state", time())
    assert authority.authority is not None
    member = node.member_at_issue()
    old = authority.authority.issue(
        node.identity.spki, member.name, member.role, member.ip4, time() - 7 * DAY - days * DAY
    )
    for name, data in renewal_files(authority.authority.der, old).items():
        StateDir.open(at / "state").write(name, data)
    return load_node(at / "state", time())


def linked(node: Node, other: NodeId) -> bool:
    known = {entry.member.node_id for entry in node.parts.peers.entries}
    return other in known and node.parts.links.state(other, trio.current_time()).phase is PskPhase.FRESH


async def test_a_node_that_was_off_is_back_under_its_name_and_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_old_mesh(tmp_path / "a", monkeypatch)
    async with serving(tmp_path / "a"):
        joined = await join(tmp_path / "b", make_invite(state), "beta")
    expired = let_run_out(state, tmp_path / "b", 10)
    with pytest.raises(TrustError, match="ran out on"):
        expired.member(time())
    with capture_logs() as logs:
        async with serving(tmp_path / "b") as beta:  # the authority is not there yet
            await until(lambda: beta.parts.own.renewal_error is not None)
            faults = {fault.code: fault for fault in beta.reporter.status().faults}
            told = faults[CERTIFICATE_EXPIRED.code]
            assert "by this machine's clock it is" in told.text and "alpha: " in told.text
            assert "start an authority" in told.fix
            assert not beta.reporter.ready().ready
            async with serving(tmp_path / "a") as alpha:
                await until(lambda: linked(beta, state.identity.node_id) and linked(alpha, joined.node_id))
                await until(lambda: beta.parts.own.renewal_error is None)
                assert beta.parts.own.member.not_after > time() + 6 * DAY
                held = alpha.parts.keeper.roster.get(joined.node_id)
                assert held is not None and held.member == beta.parts.own.member
    assert "member taken back" in [entry["event"] for entry in logs]
    after = load_node(tmp_path / "b" / "state", time()).member(time())
    assert (after.node_id, after.name, after.ip4) == (joined.node_id, "beta", joined.ip4)


async def test_after_the_grace_the_node_says_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_old_mesh(tmp_path / "a", monkeypatch)
    async with serving(tmp_path / "a"):
        joined = await join(tmp_path / "b", make_invite(state), "beta")
    let_run_out(state, tmp_path / "b", 100)

    def forget(node: Node) -> None:
        """The authority holds no newer certificate than the node itself."""
        roster, old = node.parts.keeper.roster, load_node(tmp_path / "b" / "state", time())
        entry = roster._entries[joined.node_id]
        object.__setattr__(entry, "member", old.member_at_issue())

    with capture_logs():
        async with serving(tmp_path / "a", forget), serving(tmp_path / "b") as beta:
            await until(lambda: beta.parts.own.renewal_error is not None)
            error = beta.parts.own.renewal_error
            assert error is not None
            assert "longer ago than the mesh's grace of 90 days" in str(error)
            assert "`phantommesh invite --replace beta`" in error.fix


@pytest.mark.parametrize("revoked_first", [False, True])
async def test_another_machine_takes_a_lost_ones_place(tmp_path: Path, revoked_first: bool) -> None:
    state = make_authority(tmp_path / "a")
    with capture_logs():
        async with serving(tmp_path / "a") as alpha:
            lost = await join(tmp_path / "b", make_invite(state), "beta")
            if revoked_first:
                await alpha.reporter.revoke("beta", force=False, dry_run=False)
            await alpha.parts.keeper.save()
            kept = load_node(tmp_path / "a" / "state", time())
            place = place_of(kept, "beta")
            assert (place.name, place.role, place.ip4) == ("beta", Role.NODE, lost.ip4)
            assert (place.replaces is None) == revoked_first
            made = invite_in_place(kept, "beta")
            found = await join(tmp_path / "c", made, "beta")
            assert (found.name, found.ip4) == ("beta", lost.ip4)
            assert found.node_id != lost.node_id
            assert lost.node_id in alpha.parts.state.revocations
            assert alpha.parts.keeper.roster.get(lost.node_id) is None
            with pytest.raises(TrustError, match="in place of itself"):
                place_of(kept, "alpha")
    assert validity(load_node(tmp_path / "c" / "state", time()).node_cert)[1] > time()


@pytest.mark.parametrize(("age", "told"), [(3_460, False), (3_480, True)])
async def test_half_a_year_before_its_end_the_mesh_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: int, told: bool
) -> None:
    make_old_mesh(tmp_path / "a", monkeypatch, age)
    with capture_logs():
        async with serving(tmp_path / "a") as alpha:
            found = [fault for fault in alpha.reporter.status().faults if fault.code == MESH_ENDS.code]
            assert bool(found) == told
