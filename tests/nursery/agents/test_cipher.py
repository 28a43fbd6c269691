# SPDX-License-Identifier: GPL-3.0-or-later
"""CIPHER in whole nodes, over real links: what it sees is what is, and what it wants done is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import time

import pytest
import trio

from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.agents.look_cipher import look
from phantommesh.nursery.node import Node
from phantommesh.state.start import NodeState
from phantommesh.trust.identity import NodeId, format_node_id
from tests.support.loopback import join, make_authority, make_invite, serving, until

PROMISE = 180.0  # s, the default


@pytest.fixture
def state(tmp_path: Path) -> NodeState:
    return make_authority(tmp_path / "a")


def guarded(node: Node) -> None:
    """Have a guard that takes over what is wanted, in place of this machine's packet filter."""
    guarding = node.parts.guarding

    async def converge() -> None:
        await trio.lowlevel.checkpoint()
        guarding.quarantined = frozenset(guarding._want().quarantined)

    guarding.converge = converge  # type: ignore[method-assign]


def grow_old(node: Node, peer: NodeId, seconds: float) -> None:
    """Let the PSK with a peer be older than it is."""
    links = node.parts.links
    known = links._peers[peer]
    assert known.psk.committed is not None
    known.psk.committed = replace(known.psk.committed, born=known.psk.committed.born - seconds)
    links._context.settle(known)
    node.parts.driver.wake()


@contextmanager
def deaf(node: Node) -> Iterator[None]:
    """The node takes no handshake's datagram, and sends none."""
    driver, udp = node.parts.driver, node.parts.udp
    kept = driver.receive, udp.send
    driver.receive = lambda *_: None  # type: ignore[method-assign]
    driver._udp = type("Nobody", (), {"send": lambda *_: None})()
    try:
        yield
    finally:
        driver.receive = kept[0]  # type: ignore[method-assign]
        driver._udp = udp


def findings(node: Node) -> set[str]:
    return {fault.subject for fault in node.reporter.faults() if fault.code == "agent-finding"}


async def test_a_link_that_gets_stale_is_closed_and_opened_by_the_next_handshake(
    tmp_path: Path, state: NodeState
) -> None:
    async with serving(tmp_path / "a", guarded) as alpha:
        joined = await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b", guarded) as beta:
            peer, parts = joined.node_id, alpha.parts
            await until(lambda: parts.links.bound(peer) != 0)
            seen = await look(parts)
            assert [(one.name, one.failing, one.closed) for one in seen.links] == [("beta", False, False)]
            assert seen.links[0].age is not None and seen.links[0].age < 60 and not seen.signs
            assert len(seen.key_ages) == DIMENSIONS and max(age or 0 for age in seen.key_ages) < 600
            assert seen.renewal_late < 0 and not seen.group_key_due and seen.forged == 0
            member = parts.peers.get(peer)
            assert member is not None
            both = {member.member.ip4, member.member.ip6}
            with deaf(beta):
                grow_old(alpha, peer, PROMISE)
                # The alarm wakes CIPHER; the guard keeps what it is told.
                await until(lambda: parts.guarding.quarantined == both)
                await until(lambda: "cipher-quarantine" in findings(alpha))
                assert (await look(parts)).links[0].closed
                made = [one.verdict for one in parts.council.decisions]
                assert {one.proposal.incident for one in made if one.accepted} >= {format_node_id(peer)}
            await until(lambda: (parts.links.state(peer, trio.current_time()).age or PROMISE) < PROMISE)
            await until(lambda: not parts.guarding.quarantined and "cipher-quarantine" not in findings(alpha))
            assert not beta.parts.guarding.quarantined  # its own PSK never grew old


async def test_a_psk_that_the_machinery_forgot_is_made_anew(tmp_path: Path, state: NodeState) -> None:
    async with serving(tmp_path / "a", guarded) as alpha:
        joined = await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b", guarded) as beta:
            peer, me = joined.node_id, alpha.parts.state.identity.node_id
            await until(lambda: alpha.parts.links.bound(peer) != 0)
            for node, other in ((alpha, peer), (beta, me)):
                node.parts.links._peers[other].next_start = float("inf")
            grow_old(alpha, peer, PROMISE)
            age = alpha.parts.links.state
            await until(lambda: (age(peer, trio.current_time()).age or PROMISE) < PROMISE)


async def test_an_overdue_certificate_is_seen(tmp_path: Path, state: NodeState) -> None:
    async with serving(tmp_path / "a", guarded) as alpha:
        alpha.parts.own.renewal_due = lambda: time() - 100.0  # type: ignore[method-assign]
        assert 99 < (await look(alpha.parts)).renewal_late < 200
