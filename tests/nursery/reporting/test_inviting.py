# SPDX-License-Identifier: GPL-3.0-or-later
"""An authority that runs makes an invite, and a node joins by it."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from phantommesh.errors import PhantomMeshError
from phantommesh.management.bodies import InviteRequest
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.invites import Invite
from tests.support.loopback import join, make_authority, serving


async def test_a_node_joins_by_an_invite_of_the_api(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "alpha")
    async with serving(tmp_path / "alpha") as node:
        reporter = node.reporter
        wanted = InviteRequest(name="beta", seconds=600.0)
        planned = await reporter.make_invite(wanted, dry_run=True)
        assert (planned.invite, planned.id, planned.dry_run) == (None, "", True)
        assert not list(state.invites.entries())
        with capture_logs() as logs:
            made = await reporter.make_invite(wanted, dry_run=False)
        assert made.invite is not None and made.invite not in repr((made, logs))
        assert [one.id for one in (await reporter.invites()).invites] == [made.id]
        summary = await join(tmp_path / "beta", Invite.parse_untrusted(made.invite), "beta")
        assert summary.name == "beta"
        # The place of that member, for another machine.
        again = await reporter.make_invite(InviteRequest(replace="beta"), dry_run=True)
        assert again.name == "beta" and again.replaces and "revokes" in again.notes[0]
        for wrong in (
            InviteRequest(name="Not a name"), InviteRequest(name="gamma", uses=2),
            InviteRequest(replace="beta", name="x"), InviteRequest(replace="nobody"),
            InviteRequest(endpoints=["a b"]), InviteRequest(tags=["No Tag"]),
        ):  # fmt: skip
            with pytest.raises(PhantomMeshError):
                await reporter.make_invite(wrong, dry_run=True)
        async with serving(tmp_path / "beta") as beta:
            with pytest.raises(TrustError, match="no authority"):
                await beta.reporter.make_invite(InviteRequest(), dry_run=False)
