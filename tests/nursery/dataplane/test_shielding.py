# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is never banned: a member's mere word shields no source that offended before."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from phantommesh.acl.bans import BanError
from phantommesh.config.sections import Config, NodeSection
from phantommesh.endpoint import Address
from phantommesh.nursery.dataplane.banning import LIFTED, Banning
from phantommesh.nursery.dataplane.shielding import Shielding
from phantommesh.state.directory import StateDir
from phantommesh.trust.certificates import Role
from tests.nursery.dataplane.test_banning import Table

MEMBER = b"m" * 16
ACCOMPLICE = "198.51.100.66"
NETWORK = ip_network(f"{ACCOMPLICE}/32")
THERE = Address(ACCOMPLICE, 51800)


@dataclass
class World:
    """What the parts of a node say of one member: ``said`` is its word, ``proved`` where it showed itself."""

    role: Role = Role.NODE
    said: list[Address] = field(default_factory=list)
    heard: list[Address] = field(default_factory=list)
    proved: list[Address] = field(default_factory=list)
    endpoint: Address | None = None

    def banning(self, at: Path) -> Banning:
        places: Any = SimpleNamespace(
            of=lambda entry: tuple(self.said),
            heard=lambda node: (),
            seeds=tuple,
            reach=SimpleNamespace(host=SimpleNamespace(own=(), connected=())),
        )
        gossip: Any = SimpleNamespace(
            membership=SimpleNamespace(proved_at=lambda node, now: None), heard_at=lambda node: self.heard
        )
        finding: Any = SimpleNamespace(heard=lambda node: ((address, 0.0) for address in self.proved))
        shielding = Shielding(
            Config(NodeSection(name="a", mesh="m")), SimpleNamespace(ports=(51820,)),  # type: ignore[arg-type]
            places, finding, gossip, entries=self.entries,
            actual=self.devices, overlay=tuple,
        )  # fmt: skip
        banning = Banning(shielding, StateDir(at), rules=Table(), wall=lambda: 1e9 + trio.current_time())
        shielding.offended = banning.offended
        return banning

    def entries(self) -> list[Any]:
        return [SimpleNamespace(member=SimpleNamespace(node_id=MEMBER, name="m", role=self.role, routes=()))]

    def devices(self) -> dict[str, Any]:
        return {"pm0": SimpleNamespace(peers={b"k": SimpleNamespace(endpoint=self.endpoint)}, index=9)}


@pytest.fixture(autouse=True)
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that jumps does not wait for threads; and who is logged in here is another matter."""

    async def refresh(self: Shielding) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Shielding, "refresh", refresh)


BY_WORD = {
    "record": World(said=[THERE]),
    "forged": World(heard=[THERE]),
    "called": World(endpoint=THERE),
    "relay": World(role=Role.RELAY, said=[THERE]),
}


async def ban(banning: Banning) -> None:
    await banning.ban(NETWORK, "own", 20.0, "scan", kinds=["scan"])


@pytest.mark.parametrize("how", BY_WORD)
async def test_a_members_word_frees_no_offender(how: str, tmp_path: Path, autojump_clock: object) -> None:
    world, gone = World(), list[str]()
    banning = world.banning(tmp_path)
    banning.changed = lambda ban, lifted, why: gone.append(why) if lifted else None
    async with trio.open_nursery() as nursery:
        await banning.begin()
        nursery.start_soon(banning.run)
        await ban(banning)
        vars(world).update(vars(BY_WORD[how]))
        await trio.sleep(15.0)
        assert len(banning.bans) == 1 and not gone
        assert not banning.shields(ACCOMPLICE)
        await trio.sleep(10.0)  # it is over, and the source offends again
        await ban(banning)
        (again,) = banning.bans
        assert again.times == 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", BY_WORD)
async def test_a_members_word_shields_who_has_not_offended_and_whom_the_operator_forgave(
    how: str, tmp_path: Path
) -> None:
    world = World()
    banning = world.banning(tmp_path)
    await banning.begin()
    await ban(banning)
    await banning.unban(NETWORK, LIFTED)
    vars(world).update(vars(BY_WORD[how]))
    with pytest.raises(BanError, match="an address"):
        await ban(banning)


async def test_a_member_that_shows_itself_lifts_the_ban(tmp_path: Path, autojump_clock: object) -> None:
    world, gone = World(), list[str]()
    banning = world.banning(tmp_path)
    banning.changed = lambda ban, lifted, why: gone.append(why) if lifted else None
    async with trio.open_nursery() as nursery:
        await banning.begin()
        nursery.start_soon(banning.run)
        await ban(banning)
        world.proved = [THERE]
        await trio.sleep(10.0)
        assert gone == ["it is an address of m"] and banning.offended(ACCOMPLICE)
        nursery.cancel_scope.cancel()
