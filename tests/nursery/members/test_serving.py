# SPDX-License-Identifier: GPL-3.0-or-later
"""The roster while it changes: kept, merged, given out, followed."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import time
from typing import cast

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from phantommesh.control import messages
from phantommesh.control.sessions import Session
from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.membership.messages import GossipError
from phantommesh.node import desk as desk_module
from phantommesh.node import intake as module
from phantommesh.nursery.keeping import roster as keeping
from phantommesh.nursery.keeping import saver
from phantommesh.nursery.keeping.groupkeys import GroupKeys
from phantommesh.nursery.keeping.roster import LOOK, RosterKeeper
from phantommesh.nursery.members.authority import AuthorityDesk
from phantommesh.nursery.members.calling import reconcile
from phantommesh.nursery.members.serving import ControlServer
from phantommesh.nursery.node import Node
from phantommesh.nursery.sockets.channels import Client
from phantommesh.nursery.sockets.framing import StreamError, connect
from phantommesh.rates import Rates
from phantommesh.records.record import RecordError, SignedRecord, sign_record
from phantommesh.records.roster import Entry, Roster
from phantommesh.secret import Secret
from phantommesh.state import directory
from phantommesh.state.directory import StateDir
from phantommesh.state.files import StateError
from phantommesh.state.start import NodeState, load_node
from phantommesh.trust.certificates import NODE_LIFE, Role
from phantommesh.trust.groupkey import NO_KEY, decode_keys_untrusted, encode_keys
from phantommesh.trust.identity import Identity, NodeId, format_node_id
from phantommesh.trust.issuing import choose_ip4, make_csr
from phantommesh.trust.revocation import revoke
from phantommesh.trust.revocations import Revocations
from tests.support.dying import Killed, die_after, hold_first, watch
from tests.support.loopback import join, make_authority, make_invite, serving, until
from tests.support.makemesh import identity, plain_record

SOURCE = Address("127.0.0.1", 4000, "tcp")


class Mesh:
    """An authority's keeper and server, without a network."""

    def __init__(self, at: Path) -> None:
        self.state: NodeState = make_authority(at)
        self.changes = 0
        self.keys = GroupKeys(self.state)
        self.keeper = RosterKeeper(self.state, self._changed)
        self.desk = AuthorityDesk(self.state, self.keeper, self.keys)
        self.server = ControlServer(
            self.state, self.keeper, self.keys, self.desk,
            sync_answer=lambda opening, peer: b"answer to " + opening, sync_finish=lambda rest, peer: None,
            sight=lambda peer: messages.Sighting(f"192.0.2.{peer[0]}:7"),
        )  # fmt: skip

    def _changed(self) -> None:
        self.changes += 1

    def record(self, node: Identity, name: str, seq: int = 1) -> SignedRecord:
        authority = self.state.authority
        assert authority is not None
        ip4 = choose_ip4(self.state.mesh, node.node_id, ())
        cert = authority.issue(node.spki, name, Role.NODE, ip4, time())
        return sign_record(node, plain_record(node, seq), cert, authority.der)

    async def ask(self, who: Identity, request: messages.Request, invite: bytes = b"") -> messages.Answer:
        session = Session(who.node_id, b"session1", Secret(b"o" * 32), Secret(b"i" * 32), invite)
        with capture_logs():
            return await self.server.serve(session, request, SOURCE)

    def names(self) -> list[str]:
        return sorted(entry.member.name for entry in self.keeper.roster)

    def on_disk(self) -> list[str]:
        return sorted(entry.member.name for entry in load_node(self.state.state.path, time()).roster)


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path)


B, C = identity("b"), identity("c")


# --- the keeper


async def test_what_is_added_is_told_and_saved(mesh: Mesh) -> None:
    record = mesh.record(B, "beta")
    assert mesh.keeper.add(record)
    assert not mesh.keeper.add(record)  # no newer
    assert mesh.changes == 1
    await mesh.keeper.save()
    assert mesh.on_disk() == ["alpha", "beta"]


async def test_what_has_not_changed_is_not_written(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, lambda *_: pytest.fail("written"))
    await mesh.keeper.save()


async def test_a_disk_that_refuses_does_not_end_the_keeping(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = 0

    def refuse_twice(self: StateDir, name: str, data: bytes) -> None:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise StateError("cannot write it: No space left on device", fix="free some space")

    watch(monkeypatch, refuse_twice)
    monkeypatch.setattr(saver, "SAVE_AGAIN", 0.01)
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mesh.keeper.keep)
            mesh.keeper.add(mesh.record(B, "beta"))
            await until(lambda: mesh.on_disk() == ["alpha", "beta"])
            nursery.cancel_scope.cancel()
    assert [(entry["event"], entry["fix"]) for entry in logs] == [
        ("roster not written", "free some space")
    ] * 2


async def test_two_savers_do_not_write_over_each_other(mesh: Mesh) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mesh.keeper.keep)
        for i in range(5):
            mesh.keeper.add(mesh.record(B, "beta", seq=i + 1))
            nursery.start_soon(mesh.keeper.save)
            await trio.lowlevel.checkpoint()
        await mesh.keeper.save()
        nursery.cancel_scope.cancel()
    held = load_node(mesh.state.state.path, time()).roster.get(B.node_id)
    assert held is not None and held.record.seq == 5


async def test_newer_records_of_one_member_wait_and_the_newest_wins(
    mesh: Mesh, autojump_clock: object
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mesh.keeper.keep)
        for seq in range(1, 41):
            mesh.keeper.add(mesh.record(B, "beta", seq=seq))
        at_once = 1 + module.NEWER_BURST
        held = mesh.keeper.roster.get(B.node_id)
        assert held is not None and held.record.seq == at_once == mesh.changes
        waits = mesh.keeper.roster.seen(B.node_id)
        assert waits is not None and waits.record.seq == 40
        assert mesh.keeper.add(mesh.record(C, "gamma"))  # nobody else waits
        mesh.keeper.add(mesh.record(C, "gamma", seq=2))
        await trio.sleep(1 / module.NEWER_RATE + 2 * LOOK)
        held = mesh.keeper.roster.get(B.node_id)
        assert held is not None and held.record.seq == 40
        assert not mesh.keeper.roster.waiting
        nursery.cancel_scope.cancel()
    assert mesh.changes == at_once + 3


async def test_what_waits_is_dropped_where_its_member_is_revoked_meanwhile(
    mesh: Mesh, autojump_clock: object
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mesh.keeper.keep)
        for seq in range(1, 41):
            mesh.keeper.add(mesh.record(B, "beta", seq=seq))
        authority = mesh.state.authority
        assert authority is not None
        mesh.keeper.revoke(revoke(authority, B.node_id, time()))
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert mesh.names() == ["alpha"]
    assert not mesh.keeper.roster.waiting


async def test_the_rosters_writes_keep_to_their_budget(
    mesh: Mesh, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = list[tuple[float, str, int]]()

    def count(self: StateDir, name: str, data: bytes) -> None:
        written.append((clock.current_time(), name, len(data)))

    async def here(sync: Callable[..., object], *args: object) -> object:
        await trio.lowlevel.checkpoint()
        return sync(*args)  # the clock jumps while nothing but a thread is at work

    clock = cast("trio.abc.Clock", autojump_clock)
    monkeypatch.setattr(trio.to_thread, "run_sync", here)
    watch(monkeypatch, count)
    monkeypatch.setattr(keeping, "DISK_RATE", 1024)
    others = [identity(f"other {i}") for i in range(4)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mesh.keeper.keep)
        start = trio.current_time()
        for seq in range(1, 6):
            for i, other in enumerate(others):
                mesh.keeper.add(mesh.record(other, f"other-{i}", seq=seq))
                await trio.sleep(5)
        seconds = trio.current_time() - start
        largest = max(size for _, _, size in written)
        assert sum(size for _, _, size in written) <= largest + 1024 * seconds
        authority = mesh.state.authority
        assert authority is not None
        mesh.keeper.revoke(revoke(authority, others[0].node_id, time()))
        now = trio.current_time()
        await trio.sleep(1)
        assert [name for when, name, _ in written if when >= now] == [directory.REVOCATIONS]
        await trio.sleep(largest / 1024 + 1)
        assert mesh.on_disk() == ["alpha", "other-1", "other-2", "other-3"]
        await mesh.keeper.save()
        count_before = len(written)
        await mesh.keeper.save()
        assert len(written) == count_before
        nursery.cancel_scope.cancel()


async def test_a_flood_of_one_members_records_is_written_seldom_and_in_small_parts(
    mesh: Mesh, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One a second for two minutes: what comes into force is written, and no more than that."""
    written = list[int]()

    async def here(sync: Callable[..., object], *args: object) -> object:
        await trio.lowlevel.checkpoint()
        return sync(*args)

    for i in range(8):
        mesh.keeper.add(mesh.record(identity(f"other {i}"), f"other-{i}"))
    await mesh.keeper.save()
    flood = [mesh.record(B, "beta", seq=seq) for seq in range(1, 121)]
    one = 2 * len(flood[0].node_cert) + len(flood[0].body)  # a record with a new certificate, and its frames
    watch(monkeypatch, lambda _, name, data: written.append(len(data)))
    monkeypatch.setattr(trio.to_thread, "run_sync", here)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mesh.keeper.keep)
        for signed in flood:
            mesh.keeper.add(signed)
            await trio.sleep(1)
        in_force = 1 + module.NEWER_BURST + 120 * module.NEWER_RATE + 1
        assert 5 <= len(written) <= in_force
        assert sum(written) <= in_force * one
        await mesh.keeper.save()
        nursery.cancel_scope.cancel()
    held = load_node(mesh.state.state.path, time()).roster.get(B.node_id)
    assert held == mesh.keeper.roster.get(B.node_id)


async def test_a_damaged_roster_is_named_and_mended_and_its_node_runs(mesh: Mesh) -> None:
    for who, name in ((B, "beta"), (C, "gamma")):
        mesh.keeper.add(mesh.record(who, name))
    await mesh.keeper.save()
    path, me = mesh.state.state.path / directory.ROSTER, mesh.state.identity.node_id
    entry = mesh.keeper.roster.get(B.node_id)
    assert entry is not None
    path.write_bytes(path.read_bytes().replace(entry.signed.body, bytes(len(entry.signed.body))) + b"torn")
    node = load_node(mesh.state.state.path, time())
    keeper = RosterKeeper(node, lambda: None)
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.keep)
            await until(lambda: not load_node(node.state.path, time()).roster_log.damage)
            nursery.cancel_scope.cancel()
    line, torn = logs
    assert line["file"] == torn["file"] == str(path)
    assert "cannot be read" in line["event"] and "bytes from byte" in line["error"] and line["fix"]
    assert torn["bytes"] == 4
    assert sorted(e.member.node_id for e in keeper.roster) == sorted((me, C.node_id))
    assert keeper.add(entry.signed)  # others give it again
    await keeper.save()
    assert mesh.on_disk() == ["alpha", "beta", "gamma"]


async def test_this_nodes_own_record_is_written_at_once(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "LEAST_PAUSE", 600.0)
    me = mesh.state.identity
    held = mesh.keeper.roster.get(me.node_id)
    assert held is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mesh.keeper.keep)
        mesh.keeper.add(mesh.record(B, "beta"))
        await until(lambda: mesh.on_disk() == ["alpha", "beta"])
        mesh.keeper.add(mesh.record(B, "beta", seq=2))
        own = msgspec.structs.replace(held.record, seq=held.record.seq + 1)
        mesh.keeper.add(sign_record(me, own, held.signed.node_cert, held.signed.authority_cert))

        def stored() -> int:
            mine = load_node(mesh.state.state.path, time()).roster.get(me.node_id)
            return 0 if mine is None else mine.record.seq

        await until(lambda: stored() == own.seq)
        nursery.cancel_scope.cancel()


async def test_a_batch_is_merged_and_told_once(mesh: Mesh) -> None:
    stranger = Identity.generate()
    bad = replace_signature(mesh.record(stranger, "bad"))
    with capture_logs() as logs:
        batch = [signed.encode() for signed in (mesh.record(B, "beta"), bad, mesh.record(C, "gamma"))]
        assert await mesh.keeper.take([*batch, b"junk"], B.node_id) == 2
    assert mesh.names() == ["alpha", "beta", "gamma"]
    assert mesh.changes == 1
    assert [(entry["event"], entry["peer"], entry["count"]) for entry in logs] == [
        ("records refused", format_node_id(B.node_id), 2)
    ]
    assert await mesh.keeper.take([batch[0], batch[2]], B.node_id) == 0
    assert mesh.changes == 1


def replace_signature(signed: SignedRecord) -> SignedRecord:
    return msgspec.structs.replace(signed, signature=bytes(len(signed.signature)))


class Verifications:
    """How many records the keeper has verified."""

    def __init__(self, keeper: RosterKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, verify = 0, keeper.roster.verify

        def counted(signed: SignedRecord, now: float) -> Entry:
            self.count += 1
            return verify(signed, now)

        monkeypatch.setattr(keeper.roster, "verify", counted)


async def test_what_is_held_or_waits_is_not_verified_again(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    verified = Verifications(mesh.keeper, monkeypatch)
    made = [mesh.record(B, "beta", seq=seq) for seq in range(1, module.NEWER_BURST + 3)]
    for signed in made:
        mesh.keeper.add(signed)
    assert made[-1] is mesh.keeper.roster.waiting[B.node_id].signed
    assert verified.count == len(made)
    again = [made[-1].encode()] * 50
    held = mesh.keeper.roster.get(B.node_id)
    assert held is not None
    again += [held.signed.encode()] * 50
    assert await mesh.keeper.take(again, C.node_id) == 0
    assert not mesh.keeper.add(held.signed)
    assert verified.count == len(made)
    assert mesh.keeper.dropped == {"record-held": 100}


@pytest.mark.parametrize("of", [B.node_id, SOURCE])
async def test_who_answers_pays_for_what_is_verified_as_who_announces(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, autojump_clock: object, of: NodeId | Address
) -> None:
    mesh.keeper.verifications = Rates(module.RECORDS_RATE, 5)
    mesh.server.serving.rates[messages.Announce] = mesh.keeper.verifications
    verified = Verifications(mesh.keeper, monkeypatch)
    bad = replace_signature(mesh.record(Identity.generate(), "bad")).encode()
    with capture_logs():
        await mesh.keeper.take([bad] * 40, of)
        assert verified.count == 5
        assert mesh.keeper.dropped == {"record": 5, "record-paced": 35}
        await mesh.keeper.take([bad], C.node_id)  # nobody else pays
        assert verified.count == 6
        await trio.sleep(2 / module.RECORDS_RATE)
        await mesh.keeper.take([bad] * 40, of)
    assert verified.count == 8


async def test_an_error_that_nobody_expected_costs_one_record(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, broken = mesh.keeper.roster.verify, mesh.record(B, "beta")

    def fail(signed: SignedRecord, now: float) -> Entry:
        if signed == broken:
            raise ZeroDivisionError("what was sent")
        return verify(signed, now)

    monkeypatch.setattr(mesh.keeper.roster, "verify", fail)
    with capture_logs() as logs:
        assert await mesh.keeper.take([broken.encode(), mesh.record(C, "gamma").encode()], B.node_id) == 1
        with pytest.raises(RecordError):
            mesh.keeper.add(broken, B.node_id)
    assert mesh.names() == ["alpha", "gamma"]
    assert mesh.keeper.dropped == {"record-broken": 2}
    lines = [entry for entry in logs if entry["log_level"] == "error"]
    assert [(entry["error"], entry["peer"]) for entry in lines] == [
        ("ZeroDivisionError", format_node_id(B.node_id))
    ] * 2
    assert all(entry["at"].startswith("test_serving.py:") for entry in lines)
    assert "what was sent" not in str(logs)


async def test_a_revoked_member_is_gone_for_good(mesh: Mesh) -> None:
    mesh.keeper.add(mesh.record(B, "beta"))
    authority = mesh.state.authority
    assert authority is not None
    revocations = Revocations(mesh.state.root)
    revocations.add(revoke(authority, B.node_id, time()), time())
    assert mesh.keeper.take_revocations(revocations.encode())
    assert not mesh.keeper.take_revocations(revocations.encode())
    with capture_logs():
        assert await mesh.keeper.take([mesh.record(B, "beta", seq=9).encode()], C.node_id) == 0
    assert mesh.names() == ["alpha"]
    assert mesh.changes == 2
    await mesh.keeper.save()
    assert mesh.on_disk() == ["alpha"]


@pytest.mark.parametrize("written", [0, 1])
async def test_a_node_that_dies_while_it_writes_a_revocation_starts_again(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    mesh.keeper.add(mesh.record(B, "beta"))
    await mesh.keeper.save()
    authority = mesh.state.authority
    assert authority is not None
    mesh.keeper.revoke(revoke(authority, B.node_id, time()))
    with monkeypatch.context() as patch:
        die_after(patch, written)
        with pytest.raises(Killed) if written == 0 else nullcontext():
            await mesh.keeper.save()  # the revocations alone: revoked nodes stay in the roster's file
    assert mesh.on_disk() == (["alpha", "beta"] if written == 0 else ["alpha"])


@pytest.mark.parametrize("revocations", [b"junk", b"\x91" * 5000])
async def test_revocations_that_cannot_be_read_change_nothing(mesh: Mesh, revocations: bytes) -> None:
    with pytest.raises(PhantomMeshError):
        mesh.keeper.take_revocations(revocations)
    assert mesh.changes == 0


# --- the server


REQUESTS = [
    messages.AskKeys(),
    messages.Look(),
    messages.SyncOpen(b""),
    messages.SyncClose(b""),
    messages.Compare(bytes(2048)),
    messages.Fetch(()),
    messages.Announce(b""),
    messages.Renew(make_csr(B, "beta")),
    messages.Enrol(make_csr(B, "beta"), b"", b""),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
async def test_strangers_get_nothing(mesh: Mesh, request_: messages.Request) -> None:
    assert isinstance(await mesh.ask(B, request_), messages.Refused)
    assert mesh.names() == ["alpha"]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
async def test_nor_does_a_member_whose_certificate_has_expired(
    mesh: Mesh, request_: messages.Request
) -> None:
    mesh.keeper.add(mesh.record(B, "beta"))
    entry = mesh.keeper.roster._entries[B.node_id]
    mesh.keeper.roster._entries[B.node_id] = replace(
        entry, member=replace(entry.member, not_after=time() - 1)
    )
    answer = await mesh.ask(B, request_)
    assert isinstance(answer, messages.Refused)
    assert ("has expired" in answer.message) != isinstance(request_, messages.Enrol)


async def test_a_sync_is_answered_in_two_steps(mesh: Mesh) -> None:
    mesh.keeper.add(mesh.record(B, "beta"))
    assert await mesh.ask(B, messages.SyncOpen(b"x")) == messages.SyncAnswer(b"answer to x")
    assert await mesh.ask(B, messages.SyncClose(b"y")) == messages.Done()


async def test_a_member_hears_where_it_is_seen(mesh: Mesh) -> None:
    mesh.keeper.add(mesh.record(B, "beta"))
    assert await mesh.ask(B, messages.Look()) == messages.Sighting(f"192.0.2.{B.node_id[0]}:7")


async def test_a_member_that_brings_ever_more_records_is_slowed(mesh: Mesh, autojump_clock: object) -> None:
    mesh.server.serving.rates[messages.Announce] = Rates(module.RECORDS_RATE, 5)
    for who, name in ((B, "beta"), (C, "gamma")):
        mesh.keeper.add(mesh.record(who, name))
    record = mesh.record(B, "beta").encode()
    start = trio.current_time()
    for _ in range(5):
        assert await mesh.ask(B, messages.Announce(record)) == messages.Done()
    assert trio.current_time() == start
    for _ in range(40):
        await mesh.ask(B, messages.Announce(record))
    assert trio.current_time() - start == pytest.approx(40 / module.RECORDS_RATE)
    now = trio.current_time()
    await mesh.ask(C, messages.Announce(record))
    assert trio.current_time() == now  # nobody else waits


async def test_what_is_no_message_of_a_sync_is_refused(mesh: Mesh) -> None:
    mesh.keeper.add(mesh.record(B, "beta"))

    def cannot(_: bytes, peer: bytes) -> bytes:
        raise GossipError("length")

    mesh.server._sync_answer = cannot
    answer = await mesh.ask(B, messages.SyncOpen(b"x"))
    assert answer == messages.Refused("not a message of a sync (length)")


async def test_a_newer_record_is_taken_from_anybody_who_is_a_member(mesh: Mesh) -> None:
    mesh.keeper.add(mesh.record(B, "beta"))
    answer = await mesh.ask(B, messages.Announce(mesh.record(C, "gamma").encode()))
    assert answer == messages.Done()
    assert mesh.names() == ["alpha", "beta", "gamma"]
    for junk in (b"", b"junk", replace_signature(mesh.record(C, "gamma", 2)).encode()):
        assert isinstance(await mesh.ask(B, messages.Announce(junk)), messages.Refused)


class Direct:
    """A client whose other end is a server in this process."""

    def __init__(self, mesh: Mesh, who: Identity) -> None:
        self._mesh, self._who, self.asked = mesh, who, list[str]()

    async def ask(self, request: messages.Request) -> messages.Answer:
        self.asked.append(type(request).__name__)
        return await self._mesh.ask(self._who, request)


async def test_two_members_exchange_what_either_lacks(mesh: Mesh) -> None:
    mesh.keeper.add(mesh.record(B, "beta"))
    mesh.keeper.add(mesh.record(C, "gamma", seq=2))
    roster = Roster(mesh.state.root, Revocations(mesh.state.root))
    mine = RosterKeeper(replace(mesh.state, roster=roster), lambda: None)
    mine.add(mesh.record(B, "beta", seq=3))
    direct = Direct(mesh, B)
    client = cast("Client", direct)
    assert await reconcile(client, mine, mesh.state.identity.node_id) == 2  # alpha and gamma
    assert direct.asked == ["Compare", "Fetch", "Announce"]
    assert mine.roster.digest() == mesh.keeper.roster.digest()
    held = mesh.keeper.roster.get(B.node_id)
    assert held is not None and held.record.seq == 3
    assert await reconcile(client, mine, mesh.state.identity.node_id) == 0
    assert direct.asked[3:] == ["Compare"]


@pytest.mark.parametrize("request_", [messages.Compare(b"junk"), messages.Fetch((b"", b"x" * 16))])
async def test_odd_comparisons_are_answered(mesh: Mesh, request_: messages.Request) -> None:
    mesh.keeper.add(mesh.record(B, "beta"))
    answer = await mesh.ask(B, request_)
    assert answer == messages.Records(()) or isinstance(answer, messages.Refused)


async def test_a_member_gets_the_group_keys(mesh: Mesh) -> None:
    mesh.keeper.add(mesh.record(B, "beta"))
    made = await mesh.keys.rotate()
    assert made is not None
    assert await mesh.keys.rotate() is None
    answer = await mesh.ask(B, messages.AskKeys())
    assert isinstance(answer, messages.KeysAre)
    assert (decode_keys_untrusted(answer.keys), answer.active_key) == ([made], made.id)
    other = GroupKeys(replace(mesh.state, keyring=b""))
    assert other.merge(answer.keys, answer.active_key, B.node_id)
    assert not other.merge(answer.keys, answer.active_key, B.node_id)
    assert other.ring.active == made
    assert other.digest() == mesh.keys.digest()
    with capture_logs() as logs:
        other.merge(encode_keys([msgspec.structs.replace(made, epoch=9)]), b"", B.node_id)
    assert [(entry["event"], entry["peer"]) for entry in logs] == [
        ("group key refused", format_node_id(B.node_id))
    ]
    assert other.ring.keys == [made]


async def test_the_newest_group_keys_are_written_last(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is made while the ring is being saved, as it was before."""
    first = await mesh.keys.rotate()
    assert first is not None
    mesh.keys._saver.mark()
    authority = mesh.state.authority
    assert authority is not None
    mesh.keeper.revoke(revoke(authority, B.node_id, time()))
    come, go_on = hold_first(monkeypatch, directory.KEYRING)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mesh.keys.save)
        await until(come.is_set)
        nursery.start_soon(mesh.keys.rotate)
        await trio.sleep(0.2)  # as long as it takes to make a key and write it
        go_on.set()
    assert len(mesh.keys.ring.keys) == 2
    assert load_node(mesh.state.state.path, time()).keyring == mesh.keys.ring.encode()


async def test_what_a_new_key_changed_in_the_ring_is_saved(mesh: Mesh) -> None:
    await mesh.keys.rotate()
    assert mesh.keys.active_id != NO_KEY
    await mesh.keys.save()
    assert load_node(mesh.state.state.path, time()).keyring == mesh.keys.ring.encode()


async def test_equivocation_is_reported_once(mesh: Mesh) -> None:
    first = mesh.record(B, "beta")
    lie = sign_record(
        B, msgspec.structs.replace(plain_record(B), version="9"), first.node_cert, first.authority_cert
    )
    with capture_logs() as logs:
        for signed in (first, lie, first, lie):
            mesh.keeper.add(signed)
    assert [entry["event"].split(":")[0] for entry in logs] == [
        "a node signed two different records with one number"
    ]


async def test_a_certificate_is_renewed_for_its_own_key_name_and_role(mesh: Mesh) -> None:
    mesh.keeper.add(mesh.record(B, "beta"))
    answer = await mesh.ask(B, messages.Renew(make_csr(B, "alpha")))
    assert isinstance(answer, messages.Renewed)
    renewed = sign_record(B, plain_record(B, 2), answer.node_cert, answer.authority_cert)
    mesh.keeper.add(renewed)
    assert mesh.names() == ["alpha", "beta"]
    wrong = await mesh.ask(B, messages.Renew(make_csr(C, "beta")))
    assert isinstance(wrong, messages.Refused) and "its own key" in wrong.message
    assert isinstance(await mesh.ask(B, messages.Renew(b"junk")), messages.Refused)


# --- whole nodes


async def test_a_new_member_is_known_to_all_and_linked(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as authority:
        await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as beta:
            await join(tmp_path / "c", make_invite(state), "gamma")
            async with serving(tmp_path / "c") as gamma:
                nodes = {"alpha": authority, "beta": beta, "gamma": gamma}

                def linked(node: Node) -> list[str]:
                    return sorted(link.peer for link in node.reporter.links() if link.state == "fresh")

                await until(lambda: all(linked(n) == sorted({*nodes} - {name}) for name, n in nodes.items()))
                await until(lambda: len({node.parts.keeper.roster.digest() for node in nodes.values()}) == 1)


@pytest.mark.parametrize("direction", ["joiner", "authority"])
async def test_handshakes_go_over_tcp_where_udp_does_not(tmp_path: Path, direction: str) -> None:
    """Either end alone may lose all it sends by UDP."""
    state = make_authority(tmp_path / "a")

    def mute(node: Node) -> None:
        node.parts.udp.send = lambda *_: None  # type: ignore[method-assign]

    def leave(node: Node) -> None:
        pass

    changes = (leave, mute) if direction == "joiner" else (mute, leave)
    async with serving(tmp_path / "a", changes[0]) as authority:
        joined = await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b", changes[1]) as node:
            await until(
                lambda: (
                    authority.parts.links.keyed(joined.node_id)
                    and node.parts.links.keyed(state.identity.node_id)
                )
            )


async def test_an_authority_that_restarts_is_followed_again(tmp_path: Path) -> None:
    """It has lost all sessions; the links make new ones."""
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a"):
        await join(tmp_path / "b", make_invite(state), "beta")
    async with serving(tmp_path / "b") as node:
        async with serving(tmp_path / "a"):
            await until(lambda: node.parts.sessions.newest(state.identity.node_id) is not None)
        async with serving(tmp_path / "a") as authority:
            await join(tmp_path / "c", make_invite(state), "gamma")
            await until(lambda: node.parts.keeper.roster.digest() == authority.parts.keeper.roster.digest())
            assert len(node.parts.keeper.roster) == 3


async def test_a_peer_that_left_the_roster_is_dropped_everywhere(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as authority:
        joined = await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as node:
            session = node.parts.sessions
            await until(lambda: authority.parts.sessions.newest(joined.node_id) is not None)
            await until(lambda: session.newest(state.identity.node_id) is not None)
            signer = authority.parts.state.authority
            assert signer is not None
            revocations = Revocations(state.root)
            revocations.add(revoke(signer, joined.node_id, time()), time())
            mine = session.newest(state.identity.node_id)
            authority.parts.keeper.take_revocations(revocations.encode())
            assert authority.reporter.links() == []
            assert authority.parts.sessions.newest(joined.node_id) is None
            assert not any(device.peers for device in authority.parts.reconciler.desired.values())
            assert mine is not None
            async with connect("127.0.0.1", authority.parts.config.control.port) as framed:
                with pytest.raises(StreamError):
                    await Client.open(framed, mine)


async def test_a_members_certificate_is_not_renewed_without_end(mesh: Mesh, autojump_clock: object) -> None:
    for who, name in ((B, "beta"), (C, "gamma")):
        mesh.keeper.add(mesh.record(who, name))
    request_ = messages.Renew(make_csr(B, "beta"))
    for _ in range(desk_module.RENEWALS):
        assert isinstance(await mesh.ask(B, request_), messages.Renewed)
    refused = await mesh.ask(B, request_)
    assert refused == messages.Refused("the certificate of beta was renewed too often", "try again in 2 h")
    assert isinstance(await mesh.ask(C, messages.Renew(make_csr(C, "gamma"))), messages.Renewed)
    await trio.sleep(NODE_LIFE / desk_module.RENEWALS_LIFE + 1)
    assert isinstance(await mesh.ask(B, request_), messages.Renewed)
    assert isinstance(await mesh.ask(B, request_), messages.Refused)
