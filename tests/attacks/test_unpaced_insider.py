# SPDX-License-Identifier: GPL-3.0-or-later
"""A member that asks, announces and renews as fast as it can, and answers with as much as it can.

Played with the member's own keys against whole nodes on the loopback device. The costs of others are counted:
bytes in their log and on their disk, signatures, requests served, memory.
"""

import io
import logging
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import msgspec
import pytest
import structlog
import trio

from phantommesh.control import channel, messages, sessions
from phantommesh.link.effects import Opened
from phantommesh.node.desk import JOINS, RENEWALS
from phantommesh.node.intake import NEWER_BURST
from phantommesh.node.serving import REFUSALS
from phantommesh.nursery import logs
from phantommesh.nursery.members import enrolment
from phantommesh.nursery.members.enrolment import JoinError
from phantommesh.nursery.node import Node
from phantommesh.nursery.sockets import channels, framing
from phantommesh.records.record import RecordError, decode_records_untrusted, sign_record
from phantommesh.secret import Secret
from phantommesh.state.directory import StateDir
from phantommesh.state.start import NodeState, load_node
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.issuing import Authority, make_csr
from phantommesh.trust.revocations import Revocations
from tests.support.loopback import join, make_authority, make_invite, serving, until

SECONDS = 5.0  # that a flood lasts
MIB = 1 << 20


@dataclass
class Attack:
    """alpha, an authority, and beta, a member: its node gives the attacker links, its disk its keys."""

    alpha: Node
    beta: Node
    keys: NodeState

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[channels.Client]:
        async with self.beta.parts.caller.call(self.alpha.parts.state.identity.node_id) as client:
            yield client


@asynccontextmanager
async def attack(at: Path) -> AsyncIterator[Attack]:
    state = make_authority(at / "a")
    async with AsyncExitStack() as stack:
        alpha = await stack.enter_async_context(serving(at / "a"))
        await join(at / "b", make_invite(state), "beta")
        beta = await stack.enter_async_context(serving(at / "b"))
        me, other = beta.parts.state.identity.node_id, alpha.parts.state.identity.node_id
        await until(lambda: bool(beta.parts.sessions.newest(other) and alpha.parts.sessions.newest(me)))
        yield Attack(alpha, beta, load_node(at / "b" / "state", time()))


async def flood(client: channels.Client, requests: Iterator[messages.Request]) -> list[messages.Answer]:
    """Ask as fast as answers come, and return these."""
    answers = []
    with trio.move_on_after(SECONDS):
        for request in requests:
            answers.append(await client.ask(request))
    return answers


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("debug", "json", stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


async def test_refused_requests_fill_neither_the_log_nor_the_node(tmp_path: Path, log: io.StringIO) -> None:
    """Before: 1,572 of them in 5 s wrote 313 kB."""
    async with attack(tmp_path) as it, it.channel() as client:
        start, began = log.tell(), trio.current_time()
        answers = await flood(client, (messages.Announce(b"junk") for _ in range(100_000)))
        elapsed = trio.current_time() - began
        said = log.getvalue()[start:]
    assert all(isinstance(answer, messages.Refused) for answer in answers)
    rate, burst = REFUSALS
    assert len(answers) <= burst + rate * (elapsed + 1)
    assert said.count("request refused") < 10
    assert len(said) < 10_000
    assert '"peer": "beta"' in said  # an operator hears of it, and of whom


async def test_own_records_cost_others_few_writes_and_the_last_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: 560 of them in 8 s wrote 9.8 MB for a roster of 45 kB."""
    write, written = StateDir.write, list[int]()

    def count(self: StateDir, name: str, data: bytes) -> None:
        if self.path == tmp_path / "a" / "state":
            written.append(len(data))
        write(self, name, data)

    async with attack(tmp_path) as it, it.channel() as client:
        me = it.keys.identity
        held = it.alpha.parts.keeper.roster.get(me.node_id)
        assert held is not None

        def records(number: int) -> Iterator[messages.Request]:
            for i in range(number):
                said = msgspec.structs.replace(held.record, seq=held.record.seq + 1 + i, version=f"{i}")
                signed = sign_record(me, said, held.signed.node_cert, held.signed.authority_cert)
                yield messages.Announce(signed.encode())

        changes = 0
        changed = it.alpha.parts.keeper._told

        def note() -> None:
            nonlocal changes
            changes += 1
            changed()

        it.alpha.parts.keeper._told = note
        monkeypatch.setattr(StateDir, "write", count)
        began = trio.current_time()
        for request in records(300):
            assert await client.ask(request) == messages.Done()
        elapsed = trio.current_time() - began
        size = len(it.alpha.parts.keeper.roster.encode())
        assert changes <= NEWER_BURST + 1 + elapsed / 10
        assert sum(written) <= size * (2 + elapsed / 2) + 64 * 1024 * elapsed
        newest = it.alpha.parts.keeper.roster.seen(me.node_id)
        assert newest is not None and newest.record.seq == held.record.seq + 300
        # It comes into force, without being told again.
        it.alpha.parts.keeper._newer._rate = 100.0
        it.alpha.parts.keeper._newer._buckets.clear()
        await until(lambda: seq(it.alpha, me.node_id) == held.record.seq + 300)


def seq(node: Node, node_id: bytes) -> int:
    entry = node.parts.keeper.roster.get(node_id)  # type: ignore[arg-type]
    return 0 if entry is None else entry.record.seq


@pytest.fixture
def signatures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    issue, names = Authority.issue, list[str]()

    def count(self: Authority, spki: bytes, name: str, *rest: Any, **more: Any) -> bytes:
        names.append(name)
        return issue(self, spki, name, *rest, **more)

    monkeypatch.setattr(Authority, "issue", count)
    return names


async def test_renewals_cost_an_authority_few_signatures(tmp_path: Path, signatures: list[str]) -> None:
    async with attack(tmp_path) as it, it.channel() as client:
        signatures.clear()
        csr = make_csr(it.keys.identity, "beta")
        answers = await flood(client, (messages.Renew(csr) for _ in range(100_000)))
    assert len(signatures) <= RENEWALS
    refused = [answer for answer in answers if isinstance(answer, messages.Refused)]
    assert refused and refused[0].fix.startswith("try again in ")


async def test_a_spent_invite_is_no_licence_to_rename(
    tmp_path: Path, signatures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path / "a")
    invite = make_invite(state)
    monkeypatch.setattr("phantommesh.link.admission.INIT_BURST", 100.0)

    class StopError(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise StopError  # the attacker keeps its key, and comes again

    monkeypatch.setattr(enrolment, "finish_join", stop)
    async with serving(tmp_path / "a"):
        signatures.clear()
        for i in range(4):
            with pytest.raises((StopError, JoinError)):
                await join(tmp_path / "b", invite, f"beta-{i}")
    assert signatures == ["beta-0", "beta-1"]
    assert len(signatures) <= JOINS


def evil_list(item: bytes) -> bytes:
    """16 MiB of the smallest items there are."""
    number = (16 * MIB - 16) // len(item)
    return b"\xdd" + number.to_bytes(4) + item * number


def test_a_list_of_millions_is_refused_at_its_head() -> None:
    """Before: it held the loop for 0.3 s and 230 MiB."""
    records = evil_list(b"\x94\xc4\x00\xc4\x00\xc4\x00\xc4\x00")
    revocations = evil_list(b"\x94\xc4\x00\x00\xc4\x00\xc4\x00")
    state_root = None
    tracemalloc.start()
    try:
        with pytest.raises(RecordError):
            decode_records_untrusted(records)
        with pytest.raises(TrustError):
            Revocations(state_root).unpack(revocations)  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB


async def test_an_answer_has_the_size_of_what_was_asked(tmp_path: Path) -> None:
    async with attack(tmp_path) as it:
        session = it.beta.parts.sessions.newest(it.alpha.parts.state.identity.node_id)
        assert session is not None

        async def answer(stream: trio.SocketStream) -> None:
            framed = framing.FramedStream(stream)
            name, _ = channel.parse_hello_untrusted(await framed.receive(1000))
            assert name == session.name
            await framed.send(channel.answer(bytes(16)))
            await framed.receive(channel.MAX_REQUEST)
            with pytest.raises(framing.StreamError):
                await framed.send(bytes(channel.MAX_FRAME))

        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, answer, 0, host="127.0.0.1")
            listeners: list[trio.SocketListener] = await nursery.start(serve)
            port = listeners[0].socket.getsockname()[1]
            for request in (
                messages.Fetch((bytes(16),)),
                messages.Compare(bytes(2048)),
                messages.SyncOpen(b""),
            ):
                async with framing.connect("127.0.0.1", port) as framed:
                    client = await channels.Client.open(framed, session)
                    with pytest.raises(framing.StreamError, match="too long"):
                        await client.ask(request)
            nursery.cancel_scope.cancel()


async def test_a_stolen_session_name_takes_nobodys_place(tmp_path: Path) -> None:
    """The id of a handshake is in clear on the network: an insider finishes one of its own with it first."""
    async with attack(tmp_path) as it:
        me, victim = it.alpha.parts.state.identity, it.keys.identity.node_id
        out, back, other = Secret(b"o" * 32), Secret(b"i" * 32), Secret(b"x" * 32)
        it.alpha.parts.sessions.add(
            sessions.Session.of(Opened(b"t" * 16, "responder", b"session1", other, other, 1, 0.1))
        )
        it.alpha.parts.sessions.add(
            sessions.Session.of(Opened(victim, "responder", b"session1", out, back, 1, 0.1))
        )
        session = sessions.Session.of(Opened(me.node_id, "initiator", b"session1", back, out, 1, 0.1))
        async with framing.connect("127.0.0.1", it.alpha.parts.config.control.port) as framed:
            client = await channels.Client.open(framed, session)
            assert isinstance(await client.ask(messages.AskKeys()), messages.KeysAre)
