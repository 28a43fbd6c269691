# SPDX-License-Identifier: GPL-3.0-or-later
"""Scatter proofs between whole nodes, over their control ports and a model of WireGuard."""

import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import trio

from phantommesh.nursery.host.fake import FakeBackend
from phantommesh.nursery.members import proving as module
from phantommesh.nursery.node import Node
from phantommesh.proofs.archive import Archive
from phantommesh.proofs.statement import Seven
from phantommesh.proofs.verify import verify
from phantommesh.records.roster import Entry
from phantommesh.scatter.epochs import EpochCounts
from phantommesh.scatter.maps import Epoch
from phantommesh.scatter.peermap import Hits
from phantommesh.trust.identity import NodeId
from tests.support.loopback import join, make_authority, make_invite, serving, until
from tests.support.makeproofs import cards_of

PACKETS = (3000,) * 7


def entry_of(node: Node, other: Node) -> Entry | None:
    return node.parts.keeper.roster.get(NodeId(other.parts.state.identity.node_id))


def count(node: Node, other: Node, *, received: int = 0, sent: int = 0) -> None:
    """Have a node's WireGuard count bytes in every dimension."""
    entry, backend = entry_of(node, other), cast("FakeBackend", node.parts.backend)
    assert entry is not None
    for name, key in zip(node.parts.names, entry.record.wg_keys, strict=True):
        device = backend.state[name]
        peer = device.peers[key]
        counted = replace(peer, rx_bytes=peer.rx_bytes + received, tx_bytes=peer.tx_bytes + sent)
        backend.state[name] = replace(device, peers={**device.peers, key: counted})


def epoch(node: Node, other: Node, number: int, before: EpochCounts | None) -> EpochCounts:
    """What the scatterer says at the end of an epoch, and when the counters of the next one are read."""
    peer, now = other.parts.state.identity.node_id, trio.current_time()
    hits = Hits(PACKETS, tuple(n * 1380 for n in PACKETS)) if number else Hits()
    if before is None:
        before = counts(number, now - 2)
    current = counts(number + 1, now)

    async def scattered() -> dict[bytes, EpochCounts]:
        await trio.lowlevel.checkpoint()
        return {peer: current}

    node.parts.proving._scattered = scattered
    node.parts.proving.epoch(peer, replace(before, hits=hits), current)
    return current


def counts(number: int, began: float) -> EpochCounts:
    date = time.time() - trio.current_time() + began
    return EpochCounts(Epoch(1, number), "deck", (1.0,) * 7, cards_of("deck"), Hits(), date, began=began)


def answered(node: Node) -> list[Seven | None]:
    """What a node's ledger hears of peers that were told of an epoch."""
    ledger, answers = node.parts.proving._ledger, list[Seven | None]()
    assert ledger is not None
    hear = ledger.answered

    def listen(peer: NodeId, wire: Seven | None) -> None:
        hear(peer, wire)
        answers.append(wire)

    ledger.answered = listen  # type: ignore[method-assign]
    return answers


async def test_nodes_prove_to_each_other_over_their_control_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OFTEN", 0.0)
    authority = make_authority(tmp_path / "a")
    invite = make_invite(authority)
    async with serving(tmp_path / "a"):
        await join(tmp_path / "b", invite, "beta")
    async with serving(tmp_path / "a") as a, serving(tmp_path / "b") as b:
        peer = NodeId(b.parts.state.identity.node_id)
        await until(
            lambda: bool(a.parts.sessions.newest(peer)) and len(linked(a, b)) == len(linked(b, a)) == 7
        )
        answers = answered(a)
        current: EpochCounts | None = None
        for number in range(4):
            if number:
                count(a, b, sent=3000 * 1420)
                count(b, a, received=3000 * 1420)
            current = epoch(a, b, number, current)
            await until(lambda: len(answers) > number)  # noqa: B023
            await a.parts.proving.round()
            await b.parts.proving.round()
        shown = a.reporter.proofs()[0]
        assert (shown.peer, shown.sent.kept, shown.sent.countersigned) == ("beta", 3, 3)
        assert shown.sent.newest is not None and shown.sent.newest.problem is None
        assert shown.sent.newest.received_bytes == [3000 * 1420] * 7
        for node in (a, b):
            exported = await node.reporter.export_proofs(None)
            report = verify(Archive.decode_untrusted(exported), root_hash=authority.mesh.root_hash)
            assert [(link.sender, link.receiver, link.countersigned) for link in report.links] == [
                ("alpha", "beta", 3)
            ]


def linked(node: Node, other: Node) -> list[str]:
    """The interfaces that know the other node."""
    entry, backend = entry_of(node, other), cast("FakeBackend", node.parts.backend)
    if entry is None:
        return []
    keys = dict(zip(node.parts.names, entry.record.wg_keys, strict=True))
    return [name for name, device in backend.state.items() if keys.get(name) in device.peers]


async def test_a_link_with_a_node_that_cannot_be_called_is_countersigned_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a NAT: beta calls alpha, and alpha gets nowhere when it calls beta. Before: nothing that
    alpha sent was ever countersigned."""
    monkeypatch.setattr(module, "OFTEN", 0.0)
    authority = make_authority(tmp_path / "a")
    invite = make_invite(authority)
    async with serving(tmp_path / "a"):
        await join(tmp_path / "b", invite, "beta")
    async with serving(tmp_path / "a") as a, serving(tmp_path / "b") as b:
        peer, me = (NodeId(node.parts.state.identity.node_id) for node in (b, a))
        a.parts.caller._where = lambda member: ()
        await until(
            lambda: bool(a.parts.sessions.newest(peer)) and len(linked(a, b)) == len(linked(b, a)) == 7
        )
        answers = {name: (node, answered(node)) for name, node in (("a", a), ("b", b))}
        current: dict[str, EpochCounts | None] = {"a": None, "b": None}
        for number in range(6):
            for name, other in (("a", "b"), ("b", "a")):
                node, heard = answers[name]
                if number:
                    count(node, answers[other][0], sent=3000 * 1420)
                    count(answers[other][0], node, received=3000 * 1420)
                current[name] = epoch(node, answers[other][0], number, current[name])
                await until(lambda: len(heard) > number)  # noqa: B023
            for node in (a, b):
                await node.parts.proving.round()
            if number == 2:  # alpha is a home of beta's
                await until(lambda: peer in a.parts.caller._lent)
        for node in (a, b):
            await node.parts.proving.round()
        shown = a.reporter.proofs()[0]
        assert shown.sent.countersigned >= 2 and shown.received.countersigned >= 4
        assert shown.sent.newest is not None and shown.sent.newest.problem is None
        assert me not in b.parts.caller._lent
        # A conversation that is broken off gives the connection back; beta makes another at once.
        with trio.CancelScope() as scope:
            async with a.parts.caller.call(peer):
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert peer not in a.parts.caller._lent
        await until(lambda: peer in a.parts.caller._lent)
