# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator is told that may not have been meant: bans of members, names that nobody has."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from time import time

import pytest

from phantommesh.acl.bans import OPEN, BanError
from phantommesh.nursery.reporting.agents import members_at
from tests.nursery.members.test_federating import mesh_in
from tests.support.loopback import make_authority, serving, until


async def test_a_ban_of_a_members_address_names_the_member(tmp_path: Path) -> None:
    async with mesh_in(tmp_path / "a") as here:
        node, parts = here.alpha, here.alpha.parts
        await until(lambda: len(list(members_at(parts, ip_network("127.0.0.0/8")))) == 2)
        done = await node.reporter.ban("127.0.0.0/8", 60.0, force=True, dry_run=True)
        (note,) = done.notes
        assert note.startswith("beta, gamma are members that are at an address of 127.0.0.0/8 now")
        done = await node.reporter.ban("192.0.2.0/24", 60.0, force=True, dry_run=True)
        assert done.notes == []


async def test_unban_says_that_a_wider_ban_holds_on(tmp_path: Path) -> None:
    make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as node:
        bans, now = node.parts.banning.bans, time()
        for text in ("192.0.2.0/24", "192.0.2.9/32"):
            bans.add(ip_network(text), "operator", 3600.0, "a word", now, OPEN)
        first = await node.reporter.unban("192.0.2.9", None)
        assert [one.network for one in first.lifted] == ["192.0.2.9/32"]
        assert first.notes == ["192.0.2.9/32 is still kept out: it is in 192.0.2.0/24, which is banned"]
        with pytest.raises(BanError, match=r"it is in 192\.0\.2\.0/24") as wider:
            await node.reporter.unban("192.0.2.9", None)
        assert "unban 192.0.2.0/24" in wider.value.fix
        with pytest.raises(BanError, match=r"192\.0\.3\.9/32 is not banned"):
            await node.reporter.unban("192.0.3.9", None)
        assert (await node.reporter.unban("192.0.2.0/24", None)).notes == []


async def test_all_agents_that_go_on_are_heard_again(tmp_path: Path) -> None:
    make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as node:
        node.reporter.pause_agent("apex")
        node.reporter.pause_agent("all")
        assert node.reporter.resume_agent("all", trying=True).agents[0].phase == "paused"
        result = node.reporter.resume_agent("all", trying=False)
        assert {one.phase for one in result.agents} == {"running"}
        assert result.agents[0].name == "apex"


async def test_names_of_a_pact_that_nobody_has_are_told(tmp_path: Path) -> None:
    async with mesh_in(tmp_path / "a") as here, mesh_in(tmp_path / "b") as there:
        ours, theirs = here.alpha.reporter, there.alpha.reporter
        made = await ours.invite_mesh(["gama"], ["beta:tcp/443:beat"], [], life=1e6, ttl=3600.0)
        (note,) = made.notes
        assert note.startswith("no member of this mesh is gama (did you mean gamma")
        done = await theirs.accept_pact(made.invite, ["beta"], ["gamma:tcp/80:gama,nobody"], [], life=1e6)
        assert sorted(done.notes) == [
            "beat may use services, and this mesh put no member beat into the pact (did you mean beta?)",
            "nobody may use services, and pm put no member nobody into the pact",
        ]
        good = await ours.invite_mesh(["gamma"], ["beta:tcp/443:beta"], [], life=1e6, ttl=3600.0)
        assert good.notes == []
        done = await theirs.accept_pact(good.invite, ["beta"], ["gamma:tcp/80:gamma"], [], life=1e6)
        assert done.notes == []
