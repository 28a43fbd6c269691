# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's own record and certificate: signed anew when something changes, renewed in time."""

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from time import time

import pytest
import trio
from msgspec import structs
from structlog.testing import capture_logs

from phantommesh.config.reading import load
from phantommesh.config.sections import Config
from phantommesh.control.messages import Renewed
from phantommesh.control.sessions import Sessions
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members import own
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.members.own import OwnRecord
from phantommesh.nursery.node import Node
from phantommesh.records.record import sign_record
from phantommesh.records.roster import Entry
from phantommesh.state import directory, start
from phantommesh.state.directory import StateDir
from phantommesh.state.files import StateError
from phantommesh.state.start import NodeState, load_node, make_record, renewal_files
from phantommesh.trust.certificates import NODE_LIFE, Role, validity
from phantommesh.trust.identity import Identity
from phantommesh.trust.issuing import Authority, issue_authority
from tests.support.dying import Killed, die_after
from tests.support.loopback import join, make_authority, make_invite, serving, until
from tests.support.makemesh import identity

FILES = len(renewal_files(b"", b""))
CLOCKED = ("members.own", "due", "members.working", "keeping.groupkeys")


class Clock:
    """Unix time as the modules under test see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        for name in CLOCKED:
            monkeypatch.setattr(f"phantommesh.nursery.{name}.time", self)

    def __call__(self) -> float:
        return time() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Parts:
    """What is needed to speak for oneself, without a network."""

    def __init__(self, state: NodeState, config: Config) -> None:
        self.state = state
        self.changes = 0
        self.keeper = RosterKeeper(state, self._changed)
        self.own = OwnRecord(config, state, self.keeper, lambda *_: False)
        self.caller = Caller(state, self.keeper, Sessions(), lambda member: ())

    def _changed(self) -> None:
        self.changes += 1

    @property
    def held(self) -> Entry:
        entry = self.keeper.roster.get(self.state.identity.node_id)
        assert entry is not None
        return entry


@pytest.fixture
def state(tmp_path: Path) -> NodeState:
    return make_authority(tmp_path)


def parts(tmp_path: Path, change: Callable[[Config], Config] = lambda config: config) -> Parts:
    return Parts(load_node(tmp_path / "state", time()), change(load(tmp_path / "pm.toml")))


def move(config: Config) -> Config:
    return structs.replace(config, node=structs.replace(config.node, endpoints=("192.0.2.9:1",)))


def test_the_same_words_are_not_signed_again(state: NodeState, tmp_path: Path) -> None:
    it = parts(tmp_path)
    before = it.held.signed
    it.own.publish()
    assert it.held.signed is before
    assert it.changes == 0


async def test_a_changed_configuration_is_published(state: NodeState, tmp_path: Path) -> None:
    it = parts(tmp_path, move)
    it.own.publish()
    assert (it.held.record.control, it.held.record.seq) == (("192.0.2.9:1",), 2)
    assert it.changes == 1
    it.own.publish()
    assert it.held.record.seq == 2


async def test_a_new_version_is_published(
    state: NodeState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "__version__", "99.0")
    it = parts(tmp_path)
    it.own.publish()
    assert (it.held.record.version, it.held.record.seq) == ("99.0", 2)


async def test_a_record_of_ours_that_came_back_from_the_mesh_is_replaced(
    state: NodeState, tmp_path: Path
) -> None:
    """The state was restored from a backup: others hold a later record, which says something else."""
    it = parts(tmp_path)
    later = make_record(state.identity, state.wg_keys, move(load(tmp_path / "pm.toml")), seq=7)
    it.keeper.add(sign_record(state.identity, later, state.node_cert, state.authority_cert))
    it.own.publish()
    assert it.held.record.seq == 8
    assert it.held.record.control != ("192.0.2.9:1",)


def test_a_record_that_nobody_would_take_is_said_and_the_old_one_stands(
    state: NodeState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "__version__", "x" * 100)
    it = parts(tmp_path)
    with capture_logs() as logs:
        it.own.publish()
    assert [entry["event"] for entry in logs] == ["our own record is not acceptable"]
    assert it.held.record.seq == 1


async def test_a_changed_configuration_reaches_the_mesh(tmp_path: Path) -> None:
    """From the start of a node on, where everything that hangs on the roster is just being made."""
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as authority:
        joined = await join(tmp_path / "b", make_invite(state), "beta")
        config = tmp_path / "b" / "pm.toml"
        port = load(config).control.port
        config.write_text(
            config.read_text().replace(f'["127.0.0.1:{port}"]', f'["127.0.0.1:{port}", "127.0.0.9:1"]')
        )
        async with serving(tmp_path / "b"):

            def arrived() -> bool:
                entry = authority.parts.keeper.roster.get(joined.node_id)
                return entry is not None and entry.record.control[1:] == ("127.0.0.9:1",)

            await until(arrived)


def test_renewal_is_due_at_two_thirds(state: NodeState, tmp_path: Path) -> None:
    it = parts(tmp_path)
    begin, end = validity(it.state.node_cert)
    assert it.own.renewal_due() == pytest.approx(begin + (end - begin) * 2 / 3)


async def test_an_authority_renews_its_own_certificate(
    state: NodeState, tmp_path: Path, clock: Clock
) -> None:
    it = parts(tmp_path)
    before = it.own.member
    clock.ahead = NODE_LIFE * 0.6
    await it.own.renew_if_due(it.caller)
    assert it.own.member == before
    clock.ahead = NODE_LIFE * 0.7
    await it.own.renew_if_due(it.caller)
    after = it.own.member
    assert after.not_after > before.not_after
    assert (after.node_id, after.name, after.role, after.ip4) == (
        before.node_id, before.name, before.role, before.ip4,
    )  # fmt: skip
    assert it.held.member.not_after == after.not_after
    assert it.held.record.seq == 2
    assert validity((tmp_path / "state" / directory.NODE_CERT).read_bytes())[1] == after.not_after
    assert it.own.renewal_error is None
    await it.own.renew_if_due(it.caller)
    assert it.own.member == after


async def test_an_expired_authority_renews_itself(state: NodeState, tmp_path: Path, clock: Clock) -> None:
    it = parts(tmp_path)
    clock.ahead = NODE_LIFE * 3
    it.own.publish()
    await it.own.renew_if_due(it.caller)
    assert it.own.member.not_after > clock()
    assert it.held.member == it.own.member


async def test_a_renewal_that_cannot_be_written_is_tried_again(
    state: NodeState, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = parts(tmp_path)
    before = it.own.member
    clock.ahead = NODE_LIFE * 0.7

    def refuse(*_: object) -> None:
        raise StateError("cannot write node.crt: No space left on device", fix="free some space")

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(StateDir, "write", refuse)
        await it.own.renew_if_due(it.caller)
    assert it.own.member == before
    assert isinstance(it.own.renewal_error, StateError)
    assert [entry["fix"] for entry in logs] == ["free some space"]
    await it.own.renew_if_due(it.caller)
    assert it.own.member.not_after > before.not_after


async def test_without_an_authority_to_ask_the_reason_is_kept(tmp_path: Path, clock: Clock) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a"):
        await join(tmp_path / "b", make_invite(state), "beta")
    it = parts(tmp_path / "b")
    clock.ahead = NODE_LIFE * 0.7
    with capture_logs():
        await it.own.renew_if_due(it.caller)
    assert it.own.renewal_error is not None
    assert "no authority renewed the certificate" in str(it.own.renewal_error)


async def test_another_nodes_certificate_is_not_taken(tmp_path: Path, clock: Clock) -> None:
    state = make_authority(tmp_path / "a")
    assert state.authority is not None
    async with serving(tmp_path / "a"):
        joined = await join(tmp_path / "b", make_invite(state), "beta")
    it = parts(tmp_path / "b")
    cert = state.authority.issue(identity("other").spki, "beta", Role.NODE, joined.ip4, time())

    async def wrong(csr: bytes, evidence: bytes = b"") -> Renewed:
        await trio.lowlevel.checkpoint()
        assert state.authority is not None
        return Renewed(cert, state.authority.der)

    it.caller.renew = wrong  # type: ignore[method-assign]
    clock.ahead = NODE_LIFE * 0.7
    with capture_logs():
        await it.own.renew_if_due(it.caller)
    assert "another node's key" in str(it.own.renewal_error)
    assert load_node(tmp_path / "b" / "state", time()).name == "beta"


async def test_a_node_that_dies_while_it_writes_another_authoritys_renewal_starts_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it died, and wherever it dies at the next renewal, by yet another authority."""
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a"):
        joined = await join(tmp_path / "b", make_invite(state), "beta")
    clock.ahead = NODE_LIFE * 0.7
    issued: list[bytes] = []

    async def renew(at: Path, writes: int) -> bool:
        """Renew with so many writes before the node dies; say whether it lived."""
        key, node_id = Identity.generate(), identity(f"authority {len(issued)}").node_id
        issuer = Authority(
            state.root, issue_authority(state.root, state.root_key(), key.spki, node_id, clock()), key
        )
        it = Parts(load_node(at, clock()), load(tmp_path / "b" / "pm.toml"))
        issued.append(issuer.issue(it.state.identity.spki, "beta", Role.NODE, joined.ip4, clock()))

        async def other(csr: bytes, evidence: bytes = b"") -> Renewed:
            await trio.lowlevel.checkpoint()
            return Renewed(issued[-1], issuer.der)

        it.caller.renew = other  # type: ignore[method-assign]
        with monkeypatch.context() as patch:
            die_after(patch, writes)
            try:
                await it.own._do(it.own.word.renew(moment()), it.caller)
            except Killed:
                return False
        return True

    for first, second in product(range(FILES + 1), repeat=2):
        at = tmp_path / f"{first}-{second}"
        shutil.copytree(tmp_path / "b" / "state", at)
        assert await renew(at, first) == (first == FILES)
        before = load_node(at, clock()).node_cert
        assert await renew(at, second) == (second == FILES)
        after = load_node(at, clock()).node_cert
        assert after == issued[-1] if second == FILES else after in (before, issued[-1])
    at = tmp_path / f"{FILES}-{FILES}"
    (at / directory.RENEWAL).write_bytes(b"junk")
    load_node(at, clock())  # it is for nothing but what was cut short
    (at / directory.NODE_CERT).write_bytes(b"junk")
    with pytest.raises(StateError, match=r"node\.crt is damaged"):
        load_node(at, clock())


async def test_a_member_renews_over_a_channel(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "LOOK", 0.05)
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as authority:
        joined = await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as node:
            await until(lambda: node.parts.sessions.newest(state.identity.node_id) is not None)
            before = node.parts.own.member
            clock.ahead = NODE_LIFE * 0.7
            await until(lambda: node.parts.own.member.not_after > before.not_after)
            assert (node.parts.own.member.node_id, node.parts.own.member.ip4) == (joined.node_id, joined.ip4)

            def known(at: Node) -> bool:
                entry = at.parts.keeper.roster.get(joined.node_id)
                return entry is not None and entry.member.not_after == node.parts.own.member.not_after

            assert known(node)
            await until(lambda: known(authority))
            renewed = validity((tmp_path / "b" / "state" / directory.NODE_CERT).read_bytes())[1]
            assert renewed == node.parts.own.member.not_after
            assert node.parts.own.renewal_error is None
