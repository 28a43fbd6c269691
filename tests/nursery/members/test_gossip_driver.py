# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole nodes on loopback whose news go from member to member, with no authority to ask."""

from pathlib import Path
from time import time

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from phantommesh.control import asking
from phantommesh.control.messages import Records, decode_answer_untrusted
from phantommesh.endpoint import Address
from phantommesh.gossip.envelope import REQUEST, Envelope
from phantommesh.management.events import Filter
from phantommesh.membership import rumours
from phantommesh.membership.effects import Effect, FetchRecord, Persist
from phantommesh.membership.messages import GOSSIP, NOBODY, Event, State, encode
from phantommesh.node.news import DATA
from phantommesh.nursery.keeping import saver
from phantommesh.nursery.node import Node
from phantommesh.nursery.sockets.channels import ask_records
from phantommesh.nursery.sockets.framing import connect
from phantommesh.state import directory
from phantommesh.state.directory import StateDir
from phantommesh.state.files import StateError
from phantommesh.state.making import Summary
from phantommesh.state.start import NodeState, load_members, load_node
from phantommesh.trust.groupkey import Keyring
from phantommesh.trust.identity import NodeId
from tests.support.dying import hold_first
from tests.support.loopback import join, make_authority, make_invite, serving, until


async def make_mesh(at: Path) -> tuple[NodeState, Summary, Summary]:
    """An authority alpha and two members beta and gamma, of which none runs."""
    state = make_authority(at / "a")
    async with serving(at / "a"):
        beta = await join(at / "b", make_invite(state), "beta")
        gamma = await join(at / "c", make_invite(state), "gamma")
    return state, beta, gamma


def sees(node: Node, other: Summary | NodeState, state: State | None = State.ALIVE) -> bool:
    other_id = other.node_id if isinstance(other, Summary) else other.identity.node_id
    return node.parts.gossip.membership.state(other_id) is state


def linked(node: Node, other: NodeId) -> bool:
    return node.parts.keeper.roster.get(other) is not None and node.parts.links.keyed(other)


async def test_a_newcomers_record_is_with_the_others_before_it_runs(tmp_path: Path) -> None:
    """The authority sees to it, so it may be away when the newcomer starts."""
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a"):
        beta = await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as node:
            await until(lambda: linked(node, state.identity.node_id))
            gamma = await join(tmp_path / "c", make_invite(state), "gamma")
            await until(lambda: node.parts.keeper.roster.get(gamma.node_id) is not None)
    async with serving(tmp_path / "b") as node, serving(tmp_path / "c") as newcomer:
        await until(lambda: linked(node, gamma.node_id) and linked(newcomer, beta.node_id))
        assert sees(node, gamma) and sees(newcomer, beta)


async def test_two_that_have_only_heard_of_each_other_link_all_the_same(tmp_path: Path) -> None:
    """Beta was away while gamma joined, and alpha is now: nobody but gamma can give beta gamma's record."""
    _, beta, gamma = await make_mesh(tmp_path)
    assert load_node(tmp_path / "b" / "state", time()).roster.get(gamma.node_id) is None
    async with serving(tmp_path / "b") as node, serving(tmp_path / "c") as other:
        await until(lambda: linked(node, gamma.node_id) and linked(other, beta.node_id))
        assert sees(node, gamma) and sees(other, beta)


async def test_a_stranger_gets_no_record(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as node:
        await until(lambda: node.parts.keys.ring.active is not None)
        key = node.parts.keys.ring.active
        me = node.parts.keeper.roster.get(state.identity.node_id)
        assert key is not None and me is not None
        ours, theirs = Keyring(), Keyring()
        ours.install(key, 0.0)
        theirs.install(msgspec.structs.replace(key, key=bytes(32)), 0.0)
        answers = []
        for ring in (ours, theirs):
            asker = Envelope(
                NodeId(b"s" * 16), ring, start=1, revoked=(), digest=lambda: bytes(8), label=REQUEST
            )
            request = asker.seal(0, me.hash)
            for again in (request, request):  # nor does who heard a member ask
                async with connect("127.0.0.1", node.parts.config.control.port) as framed:
                    answers.append((asker, request, await ask_records(framed, again)))
        opened = [asker.open_answer(request, answer) for asker, request, answer in answers if answer]
        assert [decode_answer_untrusted(answer) for answer in opened] == [Records((me.signed.encode(),))]


async def test_a_changed_record_reaches_members_without_an_authority(tmp_path: Path) -> None:
    _, _, gamma = await make_mesh(tmp_path)
    async with serving(tmp_path / "b") as node, serving(tmp_path / "c") as other:
        await until(lambda: linked(node, gamma.node_id) and sees(node, gamma))
        before = other.parts.keeper.roster.get(gamma.node_id)
        assert before is not None
        section = msgspec.structs.replace(
            other.parts.config.node, endpoints=("127.0.0.9", *before.record.control)
        )
        other.parts.own._config = msgspec.structs.replace(other.parts.config, node=section)
        other.parts.own.publish()

        def seq() -> int:
            entry = node.parts.keeper.roster.get(gamma.node_id)
            assert entry is not None
            return entry.record.seq

        await until(lambda: seq() == before.record.seq + 1)
        assert node.parts.metrics.registry.get_sample_value("phantommesh_gossip_convergence_seconds_count")


def silence(node: Node, other: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing gets from one node's control port to another's any more."""
    really, port = node.parts.udp.send, other.parts.config.control.port

    def send(data: bytes, to: Address) -> None:
        if to.port != port:
            really(data, to)

    monkeypatch.setattr(node.parts.udp, "send", send)


async def test_a_member_that_another_reaches_is_partly_reachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beta and gamma no longer reach each other; alpha carries their questions. Their proofs are of the keys
    in their signed records."""
    _, beta, gamma = await make_mesh(tmp_path)
    async with serving(tmp_path / "a"), serving(tmp_path / "b") as node, serving(tmp_path / "c") as other:
        await until(lambda: linked(node, gamma.node_id) and linked(other, beta.node_id))
        await until(lambda: sees(node, gamma) and sees(other, beta))
        silence(node, other, monkeypatch)
        silence(other, node, monkeypatch)
        with capture_logs() as logs:
            await until(lambda: node.reporter.status().partly_reachable == 1)
        assert {peer.name: peer.through for peer in node.reporter.peers()} == {
            "alpha": [],
            "gamma": ["alpha"],
        }
        assert sees(node, gamma)
        [event] = node.parts.events.read(0, Filter.parse("peer.partly"), 9).events
        assert (event.node, event.data["through"], event.data["state"]) == ("gamma", ["alpha"], "alive")
        assert any(line["event"] == "member partly" for line in logs)
        assert (
            not node.parts.gossip.dropped["gossip-proof"] and not other.parts.gossip.dropped["gossip-proof"]
        )


async def test_a_revocation_and_the_next_key_go_on_without_the_authority(tmp_path: Path) -> None:
    """Alpha revokes gamma and tells only beta of it; delta hears it from beta."""
    state, beta, gamma = await make_mesh(tmp_path)
    async with serving(tmp_path / "a"):
        delta = await join(tmp_path / "d", make_invite(state), "delta")
    async with serving(tmp_path / "b") as second:
        async with serving(tmp_path / "a") as first:
            await until(lambda: linked(first, beta.node_id))
            await first.reporter.revoke("gamma", force=False, dry_run=False)
            await until(lambda: gamma.node_id in second.parts.state.revocations)
            await until(lambda: second.parts.keys.ring.newest == first.parts.keys.ring.newest)
        async with serving(tmp_path / "d") as fourth:
            assert gamma.node_id not in fourth.parts.state.revocations
            await until(lambda: gamma.node_id in fourth.parts.state.revocations)
            await until(lambda: fourth.parts.keys.ring.newest == second.parts.keys.ring.newest)
            assert sees(fourth, gamma, None) and fourth.parts.keeper.roster.get(gamma.node_id) is None
            assert delta.node_id not in second.parts.state.revocations


async def test_who_leaves_is_seen_to_leave_and_who_returns_to_return(tmp_path: Path) -> None:
    _, beta, gamma = await make_mesh(tmp_path)
    async with serving(tmp_path / "b") as node:
        async with serving(tmp_path / "c"):
            await until(lambda: sees(node, gamma))
            await until(lambda: linked(node, gamma.node_id))
        await until(lambda: sees(node, gamma, State.LEFT))
        assert not any("gamma" in reason for reason in node.reporter.status().degraded)
        async with serving(tmp_path / "c") as again:
            await until(lambda: sees(node, gamma) and sees(again, beta))
        changes = node.parts.metrics.registry.get_sample_value
        assert changes("phantommesh_membership_changes_total", {"state": "left"}) == 2


async def test_what_members_said_is_kept_and_a_later_start_has_a_greater_generation(tmp_path: Path) -> None:
    _, _, gamma = await make_mesh(tmp_path)
    async with serving(tmp_path / "b") as node, serving(tmp_path / "c") as other:
        view = node.parts.gossip.membership.member
        await until(
            lambda: (
                (seen := view(gamma.node_id)) is not None
                and seen.generation == other.parts.gossip.membership.generation
            )
        )
        first = node.parts.gossip.membership.generation
        await node.parts.gossip.save()
        await node.parts.keeper.save()  # a member that is in no roster is not taken from the disk
        kept = load_members(load_node(tmp_path / "b" / "state", time()))
    assert gamma.node_id in kept.ids
    async with serving(tmp_path / "b") as node:
        assert node.parts.gossip.membership.generation > first


async def test_no_rumour_stops_a_node_from_starting_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start number has 32 bits. Rumours once moved it beyond them."""
    state = make_authority(tmp_path / "a")
    me = state.identity.node_id
    monkeypatch.setattr(rumours, "MAX_LEAP", 2**48)
    for said in (2**40, 2**41, 2**48 - 1):
        forged = Event(me, said, 2**24 - 1, State.DEAD, 1, bytes(16)).encode()
        async with serving(tmp_path / "a") as node:
            driver = node.parts.gossip
            datagram = encode(GOSSIP, bytes(8), b"b" * 16, NOBODY, [forged])
            effects = driver.membership.receive(datagram, Address("192.0.2.1", 1), trio.current_time())
            driver._carry_out(driver.gossip.seal(effects, trio.current_time()))
            spoken = driver.membership.generation, driver.membership.incarnation
            assert spoken[0] >= said
        async with serving(tmp_path / "a") as node:  # it speaks on where it was
            assert spoken[0] < node.parts.gossip.membership.generation or spoken[0] == 2**48 - 1
    assert int(state.state.read(directory.GENERATION)) < time() + 60


@pytest.mark.parametrize("damage", [b"x", b"", b"-1", b"9" * 20])
async def test_a_damaged_leap_stops_no_start(tmp_path: Path, damage: bytes) -> None:
    state = make_authority(tmp_path / "a")
    state.state.write(directory.LEAP, damage)
    async with serving(tmp_path / "a") as node:
        assert node.parts.gossip.membership.generation == int(state.state.read(directory.GENERATION))


async def test_what_is_saved_last_is_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node leaves while its service is saving what was so a moment ago."""
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as node:
        generation = node.parts.gossip.membership.generation
        node.parts.gossip._carry_out([Persist(generation + 1)])
        with monkeypatch.context() as patch:
            come, go_on = hold_first(patch, directory.LEAP)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.parts.gossip.save)
                await until(come.is_set)
                node.parts.gossip._carry_out([Persist(generation + 2)])
                nursery.start_soon(node.parts.gossip.save)
                await trio.sleep(0.2)  # as long as it takes to write two files
                go_on.set()
            assert state.state.read(directory.LEAP) == b"2"


@pytest.mark.parametrize("damage", [b"x", b"x" * 48, bytes(47)])
async def test_damage_to_what_they_said_costs_no_more_than_that(tmp_path: Path, damage: bytes) -> None:
    state = make_authority(tmp_path / "a")
    state.state.write(directory.MEMBERS, damage)
    assert load_members(state).ids == ()


async def test_what_strangers_said_is_not_taken_from_the_disk(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    claim = b"s" * 16 + bytes(9) + b"\1" + bytes(22)
    state.state.write(directory.MEMBERS, claim)
    assert load_members(state).ids == ()


async def test_a_full_disk_is_reported_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_authority(tmp_path / "a")
    monkeypatch.setattr(saver, "SAVE_AGAIN", 0.1)
    write, refused = StateDir.write, list[str]()

    def refuse(self: StateDir, name: str, data: bytes) -> None:
        if name == directory.MEMBERS and len(refused) < 2:
            refused.append(name)
            raise StateError("cannot write it: No space left on device", fix="free some space")
        write(self, name, data)

    monkeypatch.setattr(StateDir, "write", refuse)
    with capture_logs() as logs:
        async with serving(tmp_path / "a") as node:
            node.parts.gossip._saver.mark()
            await until(lambda: "state-not-written" in {f.code for f in node.reporter.status().faults})
            await until(lambda: state.state.has(directory.MEMBERS))
    assert [entry["fix"] for entry in logs if entry["event"] == "members not written"] == [
        "free some space"
    ] * 2


async def test_one_member_cannot_have_us_look_for_ever_more_records(tmp_path: Path) -> None:
    make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as node:
        liar = NodeId(b"l" * 16)
        for i in range(10 * asking.FETCHES_PER_SOURCE):
            wanted = FetchRecord(bytes([i % 256]) * 16, 1, i.to_bytes(16), liar)
            node.parts.gossip._carry_out([wanted, wanted])
        assert len(node.parts.gossip.news.fetching) == asking.FETCHES_PER_SOURCE


async def test_records_that_nobody_has_are_given_up(tmp_path: Path) -> None:
    _, _, gamma = await make_mesh(tmp_path)
    async with serving(tmp_path / "b") as node, serving(tmp_path / "c"):
        await until(lambda: node.parts.sessions.newest(gamma.node_id) is not None)
        node.parts.gossip._carry_out([FetchRecord(b"s" * 16, 1, b"h" * 16, gamma.node_id)])
        await until(lambda: node.parts.gossip.dropped["gossip-record-not-found"] > 0)
        before = node.parts.gossip.dropped
        assert node.parts.gossip.answer_records(bytes(200)) == b""
        (reason,) = node.parts.gossip.dropped - before
        assert reason.startswith("records-")
        await until(lambda: not node.parts.gossip.news.fetching)


async def test_data_is_a_sign_of_life_and_keepalives_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is one of the time of the reading before: it may have come right after that."""
    make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as node:
        peer, seen = NodeId(b"p" * 16), list[tuple[bytes, float]]()

        def traffic_seen(who: bytes, now: float, *, age: float) -> list[Effect]:
            seen.append((who, now - age))
            return []

        monkeypatch.setattr(node.parts.gossip.membership, "traffic_seen", traffic_seen)
        node.parts.gossip.news.told[peer] = b""
        node.parts.gossip.read_interfaces(
            {peer: [10_000] * 7}
        )  # what came before the first reading says nothing
        before = trio.current_time()
        node.parts.gossip.read_interfaces({peer: [10_000 + DATA] * 7})
        after = trio.current_time()
        assert seen == []
        await trio.sleep(0.01)
        node.parts.gossip.read_interfaces({peer: [*[10_000 + DATA] * 6, 10_001 + 2 * DATA]})
        assert [who for who, _ in seen] == [peer]
        assert before <= seen[0][1] <= after
        node.parts.gossip.read_interfaces({peer: [0] * 7})  # its interfaces were made anew
        assert len(seen) == 1
