# SPDX-License-Identifier: GPL-3.0-or-later
"""An insider copies a WireGuard key that its owner has just made, and is the first to tell another member.

The insider is a whole node with keys of its own. It reads the victim's new record as any member may, and
announces the new key as its own to an observer that has not heard of the victim's record yet. Before records
carried proofs, the observer believed the insider and left the victim out of all seven interfaces.

In namespaces the insider's node does nothing else: its record names all of the victim's keys, each as soon as
it is heard of, while the victim replaces one every few seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep, time

import msgspec
import pytest
import trio
from msgspec import structs
from structlog.testing import capture_logs

from phantommesh.client.http import NodeClient
from phantommesh.control import messages
from phantommesh.endpoint import Address
from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.mesh import converged, pid_file
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.members.calling import reconcile
from phantommesh.nursery.node import Node
from phantommesh.records.record import CONTEXT, NodeRecord, SignedRecord, record_hash
from phantommesh.state.start import load_node
from phantommesh.trust.identity import NodeId
from tests.attacks.rig import status_of
from tests.lab.conftest import PATIENCE_S
from tests.lab.test_lab import run_in
from tests.lab.test_node import stop
from tests.lab.test_paths import own_keys, young
from tests.support.loopback import join, make_authority, make_invite, serving, until

DIMENSION = 3


def id_of(node: Node) -> NodeId:
    return node.parts.state.identity.node_id


def shown(at: Node, of: Node) -> list[bool]:
    """On which interfaces of one node the other's present key is a peer."""
    return [
        key in at.parts.reconciler.desired[name].peers
        for name, key in zip(at.parts.names, of.parts.own.wg_keys.public, strict=True)
    ]


def keyed(one: Node, other: Node) -> bool:
    """Whether two nodes agree on all seven preshared keys."""
    mine, theirs = (at.parts.links.psks(id_of(of)) for at, of in ((one, other), (other, one)))
    return mine == theirs and all(shown(one, other)) and all(shown(other, one))


class SlowNews:
    """All that comes to a node, but for the news of one member, which waits until it is let through."""

    def __init__(self, at: Node, of: NodeId) -> None:
        self._of, self.slow = of, True
        self._add, self._take = at.parts.keeper.add, at.parts.keeper.take
        at.parts.keeper.add = self.add  # type: ignore[method-assign]
        at.parts.keeper.take = self.take  # type: ignore[method-assign]

    def _late(self, signed: SignedRecord) -> bool:
        return self.slow and msgspec.msgpack.decode(signed.body)[0] == self._of

    def add(self, signed: SignedRecord, of: NodeId | None = None) -> bool:
        return False if self._late(signed) else self._add(signed, of)

    async def take(self, records: Iterable[bytes], of: NodeId | Address, *, unasked: int = 0) -> int:
        let_in = [r for r in records if not self._late(SignedRecord.decode_untrusted(r))]
        return await self._take(let_in, of, unasked=unasked)


def claim(insider: Node, victim: NodeRecord, *, with_proofs: bool) -> SignedRecord:
    """The insider's own record, with the victim's fresh key in place of its own."""
    held = insider.parts.keeper.roster.get(id_of(insider))
    assert held is not None
    mine = held.record
    keys = (*mine.wg_keys[:DIMENSION], victim.wg_keys[DIMENSION], *mine.wg_keys[DIMENSION + 1 :])
    lie = structs.replace(mine, seq=mine.seq + 100, wg_keys=keys)
    if with_proofs and (proofs := getattr(mine, "wg_proofs", ())):
        copied = victim.wg_proofs[DIMENSION]
        lie = structs.replace(lie, wg_proofs=(*proofs[:DIMENSION], copied, *proofs[DIMENSION + 1 :]))
    body = msgspec.msgpack.encode(lie)
    return structs.replace(held.signed, body=body, signature=insider.parts.state.identity.sign(body, CONTEXT))


def serve(insider: Node, lie: SignedRecord) -> None:
    """Have the insider's node hand the lie to all that ask for records."""
    entries, me = insider.parts.keeper.roster._entries, id_of(insider)
    record = msgspec.msgpack.decode(lie.body, type=NodeRecord)
    entries[me] = replace(entries[me], record=record, signed=lie, hash=record_hash(lie))


@pytest.mark.parametrize("with_proofs", [False, True], ids=["key-alone", "key-and-its-proof"])
async def test_who_announces_a_copied_key_first_shuts_nobody_out(tmp_path: Path, with_proofs: bool) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as victim:
        for at, name in (("b", "observer"), ("c", "insider")):
            await join(tmp_path / at, make_invite(state), name)
        async with serving(tmp_path / "b") as observer, serving(tmp_path / "c") as insider:
            everyone = (victim, observer, insider)
            await until(lambda: all(len(node.parts.peers.entries) == 2 for node in everyone))
            await until(lambda: keyed(victim, observer))
            await until(
                lambda: None not in map(insider.parts.sessions.newest, map(id_of, (victim, observer)))
            )
            old = victim.parts.own.wg_keys.public
            news = SlowNews(observer, id_of(victim))
            with capture_logs():
                assert await victim.parts.rekeying.replace(DIMENSION)
                # the insider polls
                with trio.fail_after(30):
                    while (known := insider.parts.keeper.roster.get(id_of(victim))) is None or (
                        known.record.wg_keys == old
                    ):
                        async with insider.parts.caller.call(id_of(victim)) as client:
                            await reconcile(client, insider.parts.keeper, id_of(victim))
                # and announces the key as its own where nobody knows better
                lie = claim(insider, known.record, with_proofs=with_proofs)
                async with insider.parts.caller.call(id_of(observer)) as client:
                    answer = await client.ask(messages.Announce(lie.encode()))
                # and to the one that hands it on, in answers to all that ask
                serve(insider, lie)
                async with observer.parts.caller.call(id_of(insider)) as client:
                    await reconcile(client, observer.parts.keeper, id_of(insider))
                news.slow = False
                async with observer.parts.caller.call(id_of(victim)) as client:
                    await reconcile(client, observer.parts.keeper, id_of(victim))
            # the victim keeps all seven, with its new key
            await until(lambda: keyed(victim, observer))
            assert shown(observer, victim) == [True] * 7
            assert victim.parts.own.wg_keys.public[DIMENSION] != old[DIMENSION]
            assert isinstance(answer, messages.Refused) and "dimension 3" in answer.message
            assert observer.parts.keeper.dropped["record-possession"] >= 2
            assert observer.parts.keeper.roster.disputes(time()) == []
            kept = observer.parts.keeper.roster.get(id_of(insider))
            assert kept is not None and victim.parts.own.wg_keys.public[DIMENSION] not in kept.record.wg_keys
            observer.recorder.measure()
            counted = observer.parts.metrics.registry.get_sample_value
            assert (counted("phantommesh_dropped_total", {"reason": "record-possession"}) or 0) >= 2
    assert load_node(tmp_path / "b" / "state", time()).roster.disputes(time()) == []


NODES = 3
INSIDER = """
import sys
from msgspec import structs
import phantommesh.nursery.node, phantommesh.nursery.members.own, phantommesh.records.record
from phantommesh.cli import main

phantommesh.records.record.proves = lambda *_: True  # it believes itself
phantommesh.nursery.node.REFRESH = 0.1
make_record = phantommesh.nursery.members.own.make_record
publish = phantommesh.nursery.members.own.OwnRecord.publish
told = []

def copied(*arguments, **named):
    record = make_record(*arguments, **named)
    return structs.replace(record, wg_keys=told[-1]) if told else record

def poll(own):
    for entry in own._keeper.roster:
        if entry.member.name == VICTIM:
            told.append(entry.record.wg_keys)
    publish(own)

phantommesh.nursery.members.own.make_record = copied
phantommesh.nursery.members.own.OwnRecord.publish = poll
sys.argv = ["phantommesh", "run"]
sys.exit(main())
"""


@pytest.mark.lab
def test_in_namespaces_an_insider_that_claims_every_key_shuts_nobody_out(
    mesh: up.LabResult, spec: LabSpec
) -> None:
    observer, victim, insider = nodes_of(spec)
    trio.run(young, [victim], 40.0)
    trio.run(converged, nodes_of(spec), PATIENCE_S)
    trio.run(stop, insider)
    program = INSIDER.replace("VICTIM", repr(victim.name))
    pid = trio.run(net.start, insider, [sys.executable, "-c", program])
    pid_file(insider).write_text(f"{pid}\n", encoding="ascii")
    replaced, first = set[tuple[str, str]](), own_keys(victim)
    least, ip4 = 7, status_of(victim).ip4
    end = monotonic() + PATIENCE_S
    while (len(replaced) < 4 or not refused(observer)) and monotonic() < end:
        replaced |= {new for old, new in zip(first, own_keys(victim), strict=True) if old != new}
        least = min(least, run_in(observer, "wg", "show", "all", "allowed-ips").count(f"{ip4}/32"))
        sleep(0.1)
    assert len(replaced) >= 4 and refused(observer)
    assert least >= 6  # interfaces that have the victim, all but the one whose key is being replaced
    assert not [reason for reason in status_of(observer).degraded if "private key" in reason]
    trio.run(converged, [observer, victim], PATIENCE_S)


def refused(node: LabNode) -> bool:
    """Whether a node has refused a record for want of proof."""
    text = NodeClient(node.socket).request("GET", "/metrics").decode()
    return 'reason="record-possession"' in text
