# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node tells of its bans exposes no honest node, wherever that node and those who hear it are."""

from __future__ import annotations

from ipaddress import ip_network
from math import inf
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from phantommesh.acl.bans import OPEN, Ban, Bans
from phantommesh.mnemonic.canaries import Named
from phantommesh.mnemonic.hints import SETTLED, Hinter, Hints
from phantommesh.mnemonic.saying import LIFE, Hint, Said, sign_hints
from phantommesh.nursery.dataplane.banning import EXPIRED, LIFTED
from phantommesh.nursery.keeping import offenders
from phantommesh.nursery.keeping.memory import MemoryKeeper
from phantommesh.nursery.reporting.threats import DROPPED, ThreatNews
from phantommesh.trust.identity import NodeId
from tests.support.makemesh import identity
from tests.support.remembering import make_keeper

NOW = 1_790_000_000.0
A, MEMBER = identity("a"), identity("member").node_id
NAT, STRANGER, LAN = "203.0.113.5", "198.51.100.66", "192.168.1.1"


@pytest.fixture
def keeper(tmp_path: Path) -> MemoryKeeper:
    return make_keeper(tmp_path)


def ban(host: str, kinds: tuple[str, ...] = ("scan",)) -> Ban:
    return Bans().add(ip_network(f"{host}/32"), "own", 600.0, "x", NOW, OPEN, kinds=kinds)


def told(keeper: MemoryKeeper, now: float = NOW) -> list[str]:
    return [hint.source for hint in keeper.hints.own.take(A.node_id, now).hints]


def test_neither_a_members_address_nor_a_private_one_is_told(keeper: MemoryKeeper) -> None:
    keeper.canaries.look([Named(MEMBER, 1, [NAT])], NOW)
    for host in (NAT, LAN, STRANGER):
        offenders.banned(keeper, ban(host, ("bad-mac", "slow-tcp")), ("scan",), NOW, alone=True)
    assert told(keeper) == [STRANGER]
    keeper.shields = {STRANGER, "198.51.100.67"}.__contains__  # a member is heard there, or a seed is
    offenders.banned(keeper, ban("198.51.100.67"), ("scan",), NOW, alone=True)
    keeper.hints.own.withhold(keeper.never)
    assert told(keeper, NOW + 1) == []


@pytest.mark.parametrize(
    ("why", "weight"), [("it is an address of m", 0.5), (EXPIRED, 0.5), (DROPPED, 0.5), (LIFTED, 1 / 3)]
)
async def test_only_the_operators_word_refutes_who_hinted(
    why: str, weight: float, keeper: MemoryKeeper
) -> None:
    said = Said(A.node_id, int(NOW * 1000), (Hint("scan", STRANGER, 100, int(NOW + LIFE)),))
    keeper.hints._who = {A.node_id: Hinter(A.public_key, b"root")}.get
    assert keeper.hints.take(sign_hints(A, said), A.node_id, 0, keeper.never, NOW) == 1
    made = ban(STRANGER)
    offenders.banned(keeper, made, ("scan",), NOW, alone=False)
    parts = MagicMock(memory=keeper)
    parts.banning.bans = ()
    ThreatNews(parts).ban(made, gone=True, why=why)
    assert keeper.hints.reputations.weight(A.node_id, NOW) == pytest.approx(weight)
    assert offenders.banned_before(keeper, made.network, NOW) == (0 if why == LIFTED else 1)


async def test_a_ban_that_is_lifted_is_told_no_more(keeper: MemoryKeeper) -> None:
    made = ban(STRANGER)
    offenders.banned(keeper, made, ("scan",), NOW, alone=True)
    parts = MagicMock(memory=keeper)
    parts.banning.bans = ()
    ThreatNews(parts).ban(made, gone=True, why="it is an address of m")
    assert told(keeper) == []


def test_what_a_node_alone_never_bans_exposes_nobody_and_what_records_name_does(keeper: MemoryKeeper) -> None:
    keeper.shields = {LAN, NAT, STRANGER}.__contains__
    keeper.canaries.look([Named(MEMBER, 1, [NAT])], NOW - SETTLED)
    assert keeper.never(STRANGER) == inf and keeper.never(NAT) == NOW - SETTLED
    assert keeper.never("198.51.100.99") is None
    hints = Hints(NodeId(bytes(16)), {A.node_id: Hinter(A.public_key, b"root")}.get)
    for number, (source, weight) in enumerate(((STRANGER, 0.5), (LAN, 0.5), (NAT, 0.0))):
        said = Said(A.node_id, int(NOW * 1000) + number, (Hint("scan", source, 100, int(NOW + LIFE)),))
        hints.take(sign_hints(A, said), A.node_id, 0, keeper.never, NOW)
        assert hints.reputations.weight(A.node_id, NOW) == weight
