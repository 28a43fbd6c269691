# SPDX-License-Identifier: GPL-3.0-or-later
"""Replaced WireGuard keys between whole nodes: the record travels, links and interfaces follow."""

import base64
import itertools
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from time import time

import msgspec
import trio
from structlog.testing import capture_logs
from trio import Event

from phantommesh.dimensions import ALL
from phantommesh.nursery.node import Node
from phantommesh.records.record import CONTEXT
from phantommesh.state import directory
from phantommesh.state.start import load_node
from phantommesh.trust.identity import NodeId
from tests.support.loopback import join, make_authority, make_invite, serving, until


def knows(at: Node, of: Node) -> bool:
    """Whether one node has the other's present keys, in its roster, its links and its interfaces."""
    entry = at.parts.keeper.roster.get(of.parts.state.identity.node_id)
    if entry is None or entry.record.wg_keys != of.parts.own.wg_keys.public:
        return False
    shown = [set(at.parts.reconciler.desired[name].peers) for name in at.parts.names]
    return at.parts.links.bound(of.parts.state.identity.node_id) == ALL and shown == [
        {key} for key in of.parts.own.wg_keys.public
    ]


def both(one: Node, other: Node) -> bool:
    mine, theirs = (
        at.parts.links.psks(of.parts.state.identity.node_id) for at, of in ((one, other), (other, one))
    )
    return knows(one, other) and knows(other, one) and mine == theirs


async def test_a_replaced_key_reaches_the_other_end_and_the_rest_stays(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as authority:
        await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as node:
            await until(lambda: known(authority, node) and both(authority, node))
            for changed, other in ((node, authority), (authority, node)):
                before = node.parts.links.psks(authority.parts.state.identity.node_id)
                epoch = node.parts.links.state(
                    authority.parts.state.identity.node_id, trio.current_time()
                ).epoch
                keys, ports = (
                    changed.parts.own.wg_keys.public,
                    changed.parts.reconciler.desired["pm2"].listen_port,
                )
                assert await changed.parts.rekeying.replace(2)
                await until(lambda: both(authority, node))
                after = node.parts.links.psks(authority.parts.state.identity.node_id)
                assert after[2] not in before
                now = changed.parts.own.wg_keys.public
                assert [a == b for a, b in zip(keys, now, strict=True)] == [i != 2 for i in range(7)]
                device = changed.parts.reconciler.desired["pm2"]
                assert device.listen_port == ports + 7
                record = other.parts.keeper.roster.get(changed.parts.state.identity.node_id)
                assert record is not None and record.record.wg_ports[2] == device.listen_port
                assert (
                    node.parts.links.state(authority.parts.state.identity.node_id, trio.current_time()).epoch
                    > epoch
                )
            assert not authority.parts.keeper.roster.disputes(0.0)
            assert not authority.parts.keeper.roster.equivocations


def known(authority: Node, node: Node) -> bool:
    return any(
        entry.member.node_id == node.parts.state.identity.node_id for entry in authority.parts.peers.entries
    )


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
            at.state.write(directory.WIREGUARD_KEYS, json.dumps(keys.encode()).encode())
            async with serving(tmp_path / "b") as node:
                assert node.parts.own.wg_keys.public == keys.public
                await until(lambda node=node: both(authority, node))  # type: ignore[misc]
        assert not authority.parts.keeper.roster.equivocations
        assert (
            NodeId(authority.parts.state.identity.node_id) not in authority.parts.keeper.roster.equivocations
        )


def bound(at: Node, of: NodeId) -> int:
    """The dimensions whose preshared key one node has agreed with another."""
    return at.parts.links.bound(of) if of in {entry.member.node_id for entry in at.parts.peers.entries} else 0


async def test_a_key_that_two_members_hold_is_replaced_by_both_and_costs_nobody_the_other_six(
    tmp_path: Path,
) -> None:
    """As after a machine was cloned and enrolled again with the keys of the first."""
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a"):
        for name in ("b", "c"):
            await join(tmp_path / name, make_invite(state), name)
    one, two = (load_node(tmp_path / name / "state", time()) for name in ("b", "c"))
    shared = one.wg_keys.keys[2]
    keys = replace(two.wg_keys, keys=(*two.wg_keys.keys[:4], shared, *two.wg_keys.keys[5:]))
    two.state.write(directory.WIREGUARD_KEYS, json.dumps(keys.encode()).encode())
    held = Event()

    def hold(node: Node) -> None:
        run = node.parts.rekeying.run

        async def later() -> None:
            await held.wait()
            await run()

        node.parts.rekeying.run = later  # type: ignore[method-assign]

    async with AsyncExitStack() as stack:
        alpha, beta, gamma = [
            await stack.enter_async_context(serving(tmp_path / name, hold)) for name in ("a", "b", "c")
        ]
        ids = {
            name: node.parts.state.identity.node_id for name, node in zip("bc", (beta, gamma), strict=True)
        }
        await until(lambda: len(alpha.parts.keeper.roster.disputes(time())) == 1)
        dispute = alpha.parts.keeper.roster.disputes(time())[0]
        first, second = dispute.winner, dispute.loser
        dimension = 2 if second == ids["b"] else 4
        lost = 1 << dimension
        # the third member uses all but that dimension of the one that came later
        await until(lambda: bound(alpha, first) == ALL and bound(alpha, second) == ALL & ~lost)
        desired = alpha.parts.reconciler.desired
        shown = [len(desired[name].peers) for name in alpha.parts.names]
        assert shown == [1 if i == dimension else 2 for i in range(7)]
        # the two themselves know of it, each by the other's record
        await until(lambda: all(n.parts.own.shared_dimension() is not None for n in (beta, gamma)))
        # the two themselves are linked on the others too
        await until(lambda: bound(beta, ids["c"]) == bound(gamma, ids["b"]) == ALL & ~0b10100)
        by_id = {e.member.node_id: e.member.name for e in alpha.parts.keeper.roster}
        told = [r for r in alpha.reporter.status().degraded if "private key" in r]
        assert len(told) == 1
        assert told[0].startswith(
            f"{by_id[first]} and {by_id[second]} both hold the private key of dimension {dimension}: "
            f"{by_id[second]} claimed it later"
        )
        before = {node.parts.own.wg_keys.public for node in (beta, gamma)}
        assert all(shared.public in keys for keys in before)
        held.set()
        await until(lambda: not any(n.parts.keeper.roster.disputes(time()) for n in (alpha, beta, gamma)))
        # Either one's new key ends the dispute, but each replaces its own.
        await until(
            lambda: shared.public not in {*beta.parts.own.wg_keys.public, *gamma.parts.own.wg_keys.public}
        )
        changed = [
            sum(a != b for a, b in zip(keys.public, node.parts.own.wg_keys.public, strict=True))
            for keys, node in ((one.wg_keys, beta), (keys, gamma))
        ]
        assert changed == [1, 1]
        for at, of in itertools.permutations((alpha, beta, gamma), 2):
            await until(lambda at=at, of=of: at.parts.links.bound(of.parts.state.identity.node_id) == ALL)  # type: ignore[misc]
            await until(
                lambda at=at, of=of: all(  # type: ignore[misc]
                    key in at.parts.reconciler.desired[name].peers
                    for name, key in zip(at.parts.names, of.parts.own.wg_keys.public, strict=True)
                )
            )
        assert not [r for r in alpha.reporter.status().degraded if "private key" in r]


async def test_two_nodes_of_an_earlier_version_find_each_other_again(tmp_path: Path) -> None:
    """Their files hold bare private keys, and their rosters records without proofs."""
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as beta:
            await until(lambda: known(alpha, beta) and both(alpha, beta))
    places = [tmp_path / "a", tmp_path / "b"]
    nodes = [load_node(place / "state", time()) for place in places]
    early = []
    for node in nodes:
        entry = node.roster.get(node.identity.node_id)
        assert entry is not None
        body = msgspec.msgpack.encode(msgspec.msgpack.decode(entry.signed.body)[:6])
        signature = node.identity.sign(body, CONTEXT)
        early.append(msgspec.structs.replace(entry.signed, body=body, signature=signature))
    old = []
    for node in nodes:
        written = node.wg_keys.encode()
        private = [base64.b64encode(key.reveal()).decode() for key in node.wg_keys.private]
        written = {"keys": private, "slots": written["slots"], "made": written["made"], "seq": written["seq"]}
        node.state.write(directory.WIREGUARD_KEYS, json.dumps(written).encode())
        node.state.write(directory.ROSTER, msgspec.msgpack.encode(early))
        old.append(node.wg_keys.public)
    with capture_logs() as logs:
        async with serving(places[0]) as alpha, serving(places[1]) as beta:
            await until(lambda: known(alpha, beta) and known(beta, alpha) and both(alpha, beta))
            assert not {*alpha.parts.own.wg_keys.public, *beta.parts.own.wg_keys.public} & {*old[0], *old[1]}
            assert not alpha.parts.keeper.roster.equivocations and not beta.parts.keeper.roster.equivocations
    assert sum("of an earlier version were replaced" in line["event"] for line in logs) == 2
    kept = [load_node(place / "state", time()).wg_keys for place in places]
    assert [keys.public for keys in kept] == [n.parts.own.wg_keys.public for n in (alpha, beta)]
