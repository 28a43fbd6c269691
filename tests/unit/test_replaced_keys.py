# SPDX-License-Identifier: GPL-3.0-or-later
"""Replaced WireGuard keys between whole nodes: the record travels, links and interfaces follow."""

import json
from pathlib import Path

import trio

from phantommesh import statedir
from phantommesh.identity import NodeId
from phantommesh.link.psk import ALL
from phantommesh.nodestate import load_node
from phantommesh.nursery.node import Node
from tests.unit.loopback import join, make_authority, make_invite, serving, until


def knows(at: Node, of: Node) -> bool:
    """Whether one node has the other's present keys, in its roster, its links and its interfaces."""
    entry = at.keeper.roster.get(of.state.identity.node_id)
    if entry is None or entry.record.wg_keys != of.own.wg_keys.public:
        return False
    shown = [set(at.reconciler.desired[name].peers) for name in at.names]
    return at.links.bound(of.state.identity.node_id) == ALL and shown == [
        {key} for key in of.own.wg_keys.public
    ]


def both(one: Node, other: Node) -> bool:
    mine, theirs = (at.links.psks(of.state.identity.node_id) for at, of in ((one, other), (other, one)))
    return knows(one, other) and knows(other, one) and mine == theirs


async def test_a_replaced_key_reaches_the_other_end_and_the_rest_stays(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as authority:
        await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as node:
            await until(lambda: known(authority, node) and both(authority, node))
            for changed, other in ((node, authority), (authority, node)):
                before = node.links.psks(authority.state.identity.node_id)
                epoch = node.links.state(authority.state.identity.node_id, trio.current_time()).epoch
                keys, ports = changed.own.wg_keys.public, changed.reconciler.desired["pm2"].listen_port
                assert await changed.rekeying.replace(2)
                await until(lambda: both(authority, node))
                after = node.links.psks(authority.state.identity.node_id)
                assert after[2] not in before
                now = changed.own.wg_keys.public
                assert [a == b for a, b in zip(keys, now, strict=True)] == [i != 2 for i in range(7)]
                device = changed.reconciler.desired["pm2"]
                assert device.listen_port == ports + 7
                record = other.keeper.roster.get(changed.state.identity.node_id)
                assert record is not None and record.record.wg_ports[2] == device.listen_port
                assert node.links.state(authority.state.identity.node_id, trio.current_time()).epoch > epoch
            assert not authority.keeper.roster.disputes(0.0)
            assert not authority.keeper.roster.equivocations


def known(authority: Node, node: Node) -> bool:
    return any(entry.member.node_id == node.state.identity.node_id for entry in authority.entries())


async def test_a_node_whose_new_keys_nobody_heard_of_finds_its_way_back(tmp_path: Path) -> None:
    """It was killed after the key was on disk, before the record went out: six dimensions are keyed at once,
    by which the record travels, and then the seventh. It is the same where all seven were replaced."""
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as authority:
        await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as node:
            await until(lambda: known(authority, node) and both(authority, node))
        for dimensions in ((4,), range(7)):
            at = load_node(tmp_path / "b" / "state", 2e9)
            keys = at.wg_keys
            for dimension in dimensions:
                keys = keys.replaced(dimension, 1, 1.0, keys.seq + 20)
            at.state.write(statedir.WIREGUARD_KEYS, json.dumps(keys.encode()).encode())
            async with serving(tmp_path / "b") as node:
                assert node.own.wg_keys.public == keys.public
                await until(lambda node=node: both(authority, node))  # type: ignore[misc]
        assert not authority.keeper.roster.equivocations
        assert NodeId(authority.state.identity.node_id) not in authority.keeper.roster.equivocations
