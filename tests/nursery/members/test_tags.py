# SPDX-License-Identifier: GPL-3.0-or-later
"""Tags from the invite into certificates: granted by the authority, and kept over all that renews one."""

from __future__ import annotations

from pathlib import Path
from time import time

import pytest

from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.node import Node
from phantommesh.state.start import load_node
from tests.support.loopback import invite_in_place, join, make_authority, make_invite, serving, until


def tags_at(node: Node, name: str) -> tuple[str, ...] | None:
    return next((e.member.tags for e in node.parts.keeper.roster if e.member.name == name), None)


async def test_an_invite_grants_its_tags_and_no_others(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        all_of_them = await join(tmp_path / "b", make_invite(state, tags=("web", "db")), "beta")
        assert all_of_them.tags == ("db", "web")
        asked = await join(tmp_path / "c", make_invite(state, tags=("web", "db")), "gamma", tags=("web",))
        assert asked.tags == ("web",) == tags_at(alpha, "gamma")
        invite = make_invite(state, tags=("web",))
        with pytest.raises(PhantomMeshError, match="does not grant the tag ops"):
            await join(tmp_path / "d", invite, "delta", tags=("ops", "web"))
        assert tags_at(alpha, "delta") is None
        plain = await join(tmp_path / "d", invite, "delta", tags=("web",))  # it was not spent
        assert plain.tags == ("web",)


async def test_tags_stay_with_a_renewal_a_new_name_and_a_machine_in_place(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", make_invite(state, tags=("web",)), "beta")
        async with serving(tmp_path / "b") as beta:
            await until(lambda: beta.parts.sessions.newest(alpha.parts.own.member.node_id) is not None)
            await beta.reporter.rename("bravo")
            assert beta.parts.own.member.tags == ("web",)
            before = beta.parts.own.member
            await beta.parts.own.renew_now(beta.parts.caller)
            assert beta.parts.own.member is not before and beta.parts.own.member.tags == ("web",)
            await until(lambda: tags_at(alpha, "bravo") == ("web",))
        fresh = load_node(tmp_path / "a" / "state", time())
        again = await join(tmp_path / "c", invite_in_place(fresh, "bravo"), "bravo")
        assert again.tags == ("web",)
