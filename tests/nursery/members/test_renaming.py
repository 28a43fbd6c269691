# SPDX-License-Identifier: GPL-3.0-or-later
"""A node gets another name while it runs: the same node id and addresses, told to all, and there after a
restart."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import time

import pytest
from structlog.testing import capture_logs

from phantommesh.config.reading import load
from phantommesh.errors import PhantomMeshError
from phantommesh.node import desk
from phantommesh.nursery.node import Node
from phantommesh.state.agreement import check_agreement
from phantommesh.state.start import load_node
from phantommesh.trust.certificates import TrustError
from tests.support.loopback import join, make_authority, make_invite, serving, until


def names(node: Node) -> set[str]:
    return {entry.member.name for entry in node.parts.keeper.roster}


def callable_(node: Node) -> bool:
    return bool(node.parts.caller.callable())


async def test_a_member_and_an_authority_get_other_names(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        before = await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as beta:
            await until(partial(callable_, beta))
            with capture_logs():
                made = await beta.reporter.rename("gamma")
                assert (made.name, made.old_name) == ("gamma", "beta")
                assert (made.ip4, made.ip6) == (str(before.ip4), str(before.ip6))
                await until(lambda: names(alpha) == {"alpha", "gamma"})
                assert beta.reporter.status().node == "gamma"
                with pytest.raises(TrustError, match="a node named gamma already"):
                    await alpha.reporter.rename("gamma")
                with pytest.raises(TrustError, match="a node named alpha already") as caught:
                    await beta.reporter.rename("alpha")
                assert "choose another name" in caught.value.fix
                with pytest.raises(PhantomMeshError, match="node name"):
                    await beta.reporter.rename("Not A Name")
                assert (await alpha.reporter.rename("first")).old_name == "alpha"
                await until(lambda: names(beta) == {"first", "gamma"})
                assert alpha.parts.own.member.role.value == "authority"
    again = load_node(tmp_path / "b" / "state", time())
    assert again.name == "gamma" and again.identity.node_id == before.node_id
    with pytest.raises(PhantomMeshError) as caught_again:
        check_agreement(load(tmp_path / "b" / "pm.toml"), again.mesh, again.member_at_issue())
    assert 'set node.name to "gamma"' in caught_again.value.fix


async def test_a_name_costs_the_others_something_so_few_are_given(tmp_path: Path) -> None:
    make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        with capture_logs():
            for number in range(desk.RENAMES):
                await alpha.reporter.rename(f"name-{number}")
            with pytest.raises(TrustError, match="renamed too often") as caught:
                await alpha.reporter.rename("one-more")
        assert caught.value.fix.startswith("try again in")
        assert alpha.parts.own.name() == f"name-{desk.RENAMES - 1}"
