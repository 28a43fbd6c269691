# SPDX-License-Identifier: GPL-3.0-or-later
"""Joining over the loopback device, at a whole authority."""

import shutil
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import pytest
import trio
from msgspec import structs
from structlog.testing import capture_logs

from phantommesh.control import channel, messages, sessions
from phantommesh.errors import PhantomMeshError
from phantommesh.link import attempt as initiation
from phantommesh.node import desk
from phantommesh.nursery.members import enrolment
from phantommesh.nursery.members.enrolment import JoinError
from phantommesh.nursery.node import Node
from phantommesh.nursery.sockets import channels, framing
from phantommesh.records.record import MAX_MEMBERS, MAX_RECORD_BYTES, NodeRecord
from phantommesh.secret import Secret
from phantommesh.state import directory
from phantommesh.state.files import StateError
from phantommesh.state.start import load_node, make_record
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.invites import Invite
from phantommesh.trust.issuing import make_csr
from tests.support.dying import watch
from tests.support.loopback import free_port, join, make_authority, make_invite, serving, until
from tests.support.makemesh import identity


class PowerCutError(Exception):
    pass


def cut_power(*_: object, **__: object) -> None:
    raise PowerCutError


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon where there is no answer."""
    monkeypatch.setattr(initiation, "TRIES", 3)


def names(node: Node) -> list[str]:
    return sorted(entry.member.name for entry in node.parts.keeper.roster)


async def test_a_machine_with_an_invite_becomes_a_member(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as authority:
        summary = await join(tmp_path / "b", make_invite(state), "beta")
        assert (summary.mesh, summary.name, summary.role) == ("pm", "beta", "node")
        entry = authority.parts.keeper.roster.get(summary.node_id)
        assert entry is not None
        assert (entry.member.name, entry.member.ip4) == ("beta", summary.ip4)
        # Already on disk: a crash now would not leave the newcomer with a mesh that does not know it.
        assert summary.node_id in {e.member.node_id for e in load_node(tmp_path / "a/state", time()).roster}
    joined = load_node(tmp_path / "b" / "state", time())
    there = load_node(tmp_path / "a" / "state", time())
    assert (
        joined.admission.newest == there.admission.newest != state.admission.newest
    )  # the first group key's
    assert sorted(entry.member.name for entry in joined.roster) == ["alpha", "beta"]
    assert joined.authority is None


@pytest.mark.usefixtures("hasty")
async def test_a_crash_after_enrolment_is_made_good_by_the_same_invite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path / "a")
    invite = make_invite(state)
    async with serving(tmp_path / "a") as authority:
        with monkeypatch.context() as patch:
            patch.setattr(enrolment, "finish_join", cut_power)
            with pytest.raises(PowerCutError):
                await join(tmp_path / "b", invite, "beta")
        assert names(authority) == ["alpha", "beta"]
        assert not (tmp_path / "b" / "state").exists()
        first = next(e.member for e in authority.parts.keeper.roster if e.member.name == "beta")
        summary = await join(tmp_path / "b", invite, "beta")
        assert (summary.node_id, summary.ip4) == (first.node_id, first.ip4)
        assert names(authority) == ["alpha", "beta"]
        with pytest.raises(JoinError, match="did not accept the invite"):
            await join(tmp_path / "c", invite, "gamma")  # another machine, so another node


async def test_a_crashed_joiner_may_choose_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path / "a")
    invite = make_invite(state)
    async with serving(tmp_path / "a") as authority:
        with monkeypatch.context() as patch:
            patch.setattr(enrolment, "finish_join", cut_power)
            with pytest.raises(PowerCutError):
                await join(tmp_path / "b", invite, "beta")
        assert (await join(tmp_path / "b", invite, "gamma")).name == "gamma"
        async with serving(tmp_path / "b"):
            await until(lambda: names(authority) == ["alpha", "gamma"])


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("taken", ["alpha", "beta"])
async def test_a_name_is_given_once_and_the_invite_is_not_spent(tmp_path: Path, taken: str) -> None:
    state = make_authority(tmp_path / "a")
    invite = make_invite(state, uses=2)
    async with serving(tmp_path / "a"):
        await join(tmp_path / "b", invite, "beta")
        with capture_logs(), pytest.raises(JoinError, match=f"a node named {taken} already") as raised:
            await join(tmp_path / "c", invite, taken)
        assert "--name" in raised.value.fix
        assert (await join(tmp_path / "c", invite, "gamma")).name == "gamma"
        with pytest.raises(JoinError, match="did not accept the invite"):
            await join(tmp_path / "d", invite, "delta")


async def test_the_name_of_an_expired_member_is_free_when_its_grace_is_over(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as authority:
        before = await join(tmp_path / "b", make_invite(state), "beta")
        shutil.rmtree(tmp_path / "b")
        roster = authority.parts.keeper.roster
        entry = roster._entries[before.node_id]
        for since, free in ((0.0, False), (state.mesh.grace - 60, False), (state.mesh.grace + 60, True)):
            member = replace(entry.member, not_after=time() - 1 - since)
            roster._entries[before.node_id] = replace(entry, member=member)
            if free:
                after = await join(tmp_path / "b", make_invite(state), "beta")
                assert after.node_id != before.node_id
            else:
                with capture_logs(), pytest.raises(JoinError, match="a node named beta already") as raised:
                    await join(tmp_path / "b", make_invite(state), "beta")
                assert "phantommesh invite --replace beta" in raised.value.fix


async def test_an_invite_for_one_name_is_for_that_name(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    invite = make_invite(state, name="beta")
    async with serving(tmp_path / "a"):
        with capture_logs(), pytest.raises(JoinError, match="a node named beta") as raised:
            await join(tmp_path / "c", invite, "gamma")
        assert raised.value.fix == "join with --name beta"
        assert (await join(tmp_path / "c", invite, "beta")).name == "beta"


@pytest.mark.usefixtures("hasty")
async def test_two_at_once_share_neither_an_address_nor_the_last_use(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    invite, outcomes = make_invite(state, uses=2), list[str]()
    async with serving(tmp_path / "a") as authority:

        async def attempt(name: str) -> None:
            try:
                outcomes.append(str((await join(tmp_path / name, invite, name)).ip4))
            except JoinError as error:
                outcomes.append(str(error))

        with capture_logs():
            async with trio.open_nursery() as nursery:
                for name in ("b", "c", "d"):
                    nursery.start_soon(attempt, name)
        refused = [outcome for outcome in outcomes if " " in outcome]
        assert len(refused) == 1 and len(set(outcomes)) == 3
        assert len(names(authority)) == 3


@pytest.mark.usefixtures("hasty")
async def test_an_expired_invite_is_refused_by_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path / "a")
    expired = make_invite(state, ttl=-10)
    async with serving(tmp_path / "a"):
        with pytest.raises(TrustError, match=r"expired .* by this machine's clock"):
            await join(tmp_path / "b", expired, "beta")
        monkeypatch.setattr(Invite, "check_expiry", lambda *_: None)  # a joiner whose clock is slow
        with pytest.raises(JoinError, match="it has expired") as raised:
            await join(tmp_path / "b", expired, "beta")
        assert "clocks" in raised.value.fix


@pytest.mark.usefixtures("hasty")
async def test_a_wrong_secret_is_refused(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as authority:
        with pytest.raises(JoinError, match="did not accept the invite"):
            await join(tmp_path / "b", replace(make_invite(state), secret=Secret(b"x" * 32)), "beta")
        assert names(authority) == ["alpha"]
        assert not (tmp_path / "b" / "state").exists() and not (tmp_path / "b" / "pm.toml").exists()


async def test_nobody_there(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    ports = [free_port(), free_port()]
    invite = make_invite(state, tuple(f"127.0.0.1:{port}" for port in ports))
    with pytest.raises(JoinError, match="no authority could be reached") as raised:
        await join(tmp_path / "b", invite, "beta")
    for port in ports:
        assert f"127.0.0.1:{port}: " in str(raised.value)
    assert "Connection refused" in str(raised.value)
    assert "control port" in raised.value.fix


@pytest.mark.usefixtures("hasty")
async def test_the_next_endpoint_is_tried_where_one_is_not_the_authority(tmp_path: Path) -> None:
    """Neither a node of the mesh that is no authority nor something else on that port will do."""
    state = make_authority(tmp_path / "a")
    me = state.roster.get(state.identity.node_id)
    assert me is not None
    async with serving(tmp_path / "a") as authority:
        await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as node, trio.open_nursery() as nursery:

            async def hang_up(stream: trio.SocketStream) -> None:
                await stream.aclose()

            (listener, *_) = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
            ports = (listener.socket.getsockname()[1], node.parts.config.control.port)
            others = tuple(f"127.0.0.1:{port}" for port in ports)
            with pytest.raises(JoinError, match=r"ended.*did not answer the handshake"):
                await join(tmp_path / "c", make_invite(state, others), "gamma")
            await join(tmp_path / "c", make_invite(state, (*others, *me.record.control)), "gamma")
            assert "gamma" in names(authority)
            nursery.cancel_scope.cancel()


async def test_another_version_of_an_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path / "a")

    async def done(*_: object) -> messages.Answer:
        await trio.lowlevel.checkpoint()
        return messages.Done()

    def change(node: Node) -> None:
        node.parts.tcp._serve = done

    async with serving(tmp_path / "a", change):
        with pytest.raises(JoinError, match="not one to an enrolment"):
            await join(tmp_path / "b", make_invite(state), "beta")


async def test_an_authority_that_falls_silent_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path / "a")

    async def silent(*_: object) -> messages.Answer:
        await trio.sleep_forever()

    def change(node: Node) -> None:
        node.parts.tcp._serve = silent

    monkeypatch.setattr(enrolment, "ANSWER_SECONDS", 0.1)
    async with serving(tmp_path / "a", change):
        with pytest.raises(JoinError, match="did not answer in time"):
            await join(tmp_path / "b", make_invite(state), "beta")


async def test_the_answer_may_hold_a_full_roster(tmp_path: Path) -> None:
    """It is larger than anything that members ask of each other."""
    state = make_authority(tmp_path / "a")

    async def long(*_: object) -> messages.Answer:
        await trio.lowlevel.checkpoint()
        return messages.Refused("x" * (channel.MAX_FRAME + 1))

    def change(node: Node) -> None:
        node.parts.tcp._serve = long

    async with serving(tmp_path / "a", change):
        with pytest.raises(JoinError, match="the authority refused: xxx"):
            await join(tmp_path / "b", make_invite(state), "beta")
    assert enrolment.MAX_ANSWER > MAX_MEMBERS * MAX_RECORD_BYTES


async def test_a_dropped_datagram_is_sent_again(tmp_path: Path) -> None:
    """An authority that is busy drops what it cannot take, also what came over TCP."""
    state, dropped = make_authority(tmp_path / "a"), list[bytes]()

    def change(node: Node) -> None:
        def receive(datagram: bytes, source: object) -> None:
            if len(dropped) < 2:
                dropped.append(datagram)
            else:
                node.parts.driver.receive(datagram, source)  # type: ignore[arg-type]

        node.parts.tcp._dispatch = receive

    async with serving(tmp_path / "a", change):
        await join(tmp_path / "b", make_invite(state), "beta")
        assert len(dropped) == 2


async def test_a_request_for_another_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_authority(tmp_path / "a")
    monkeypatch.setattr(enrolment, "make_csr", lambda _, name: make_csr(identity("other"), name))
    async with serving(tmp_path / "a") as authority:
        with capture_logs(), pytest.raises(JoinError, match="another key"):
            await join(tmp_path / "b", make_invite(state), "beta")
        assert names(authority) == ["alpha"]


@pytest.mark.parametrize("field", ["record", "signature"])
async def test_a_bad_record_is_refused_and_costs_no_invite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    state = make_authority(tmp_path / "a")
    invite = make_invite(state)
    ask = channels.Client.ask

    async def spoilt(self: channels.Client, request: messages.Request, *, limit: int) -> messages.Answer:
        value = b"x" * 3309 if field == "signature" else b"x"
        return await ask(self, structs.replace(request, **{field: value}), limit=limit)

    async with serving(tmp_path / "a") as authority:
        with monkeypatch.context() as patch, capture_logs():
            patch.setattr(channels.Client, "ask", spoilt)
            with pytest.raises(JoinError, match="signature"):
                await join(tmp_path / "b", invite, "beta")
        assert names(authority) == ["alpha"]
        await join(tmp_path / "c", invite, "beta")


async def test_a_disk_that_refuses_is_said_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path / "a")
    invite = make_invite(state)

    def refuse(self: directory.StateDir, name: str, data: bytes) -> None:
        if name == directory.ROSTER and self.path == (tmp_path / "a" / "state"):
            raise StateError("cannot write roster.bin: No space left on device")

    async with serving(tmp_path / "a"):
        with monkeypatch.context() as patch, capture_logs():
            watch(patch, refuse)
            with pytest.raises(JoinError, match="No space left"):
                await join(tmp_path / "b", invite, "beta")
        await join(tmp_path / "b", invite, "beta")
    assert len(load_node(tmp_path / "a" / "state", time()).roster) == 2


@pytest.mark.usefixtures("hasty")
async def test_one_use_lets_one_in_however_the_enrolment_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a node that was let in names its certificate, and every member passes it on. So whoever
    has seen the record of a node whose keys it made is that member too."""
    state = make_authority(tmp_path / "a")
    invite = make_invite(state)

    def refuse(self: directory.StateDir, name: str, data: bytes) -> None:
        if name == directory.ROSTER and self.path == (tmp_path / "a" / "state"):
            raise StateError("cannot write roster.bin: No space left on device")

    async with serving(tmp_path / "a") as authority:
        with monkeypatch.context() as patch, capture_logs():
            watch(patch, refuse)
            with pytest.raises(JoinError, match="No space left"):
                await join(tmp_path / "b", invite, "beta")
            with pytest.raises(JoinError, match="did not accept the invite"):
                await join(tmp_path / "c", invite, "gamma")  # the same holder, with other keys
        await join(tmp_path / "b", invite, "beta")
        assert names(authority) == ["alpha", "beta"]


async def test_a_newcomer_that_is_no_member_yet_may_ask_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path / "a")
    asked = list[messages.Answer]()

    async def ask_all(
        framed: framing.FramedStream, session: sessions.Session, *_: object, **__: object
    ) -> messages.Enrolled:
        client = await channels.Client.open(framed, session)
        for request in (messages.AskKeys(), messages.Renew(b""), messages.Announce(b"")):
            asked.append(await client.ask(request))
        raise JoinError("enough")

    monkeypatch.setattr(enrolment, "_enrol", ask_all)
    async with serving(tmp_path / "a"):
        with capture_logs(), pytest.raises(JoinError, match="enough"):
            await join(tmp_path / "b", make_invite(state), "beta")
    assert [type(answer) for answer in asked] == [messages.Refused] * 3
    assert isinstance(asked[0], messages.Refused) and "only a member" in asked[0].message


@pytest.mark.parametrize("host", ["overlay", "100.99.98.97", "169.254.169.254", "[ff02::1]"])
async def test_an_endpoint_that_nobody_would_use_is_said_and_costs_no_invite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    state = make_authority(tmp_path / "a")
    invite = make_invite(state)
    slip = f"{state.member_at_issue().ip4 if host == 'overlay' else host}:51800"

    def lying(*given: Any, **named: Any) -> NodeRecord:
        return structs.replace(make_record(*given, **named), control=(slip,))

    async with serving(tmp_path / "a") as authority:
        with monkeypatch.context() as patched:
            patched.setattr(enrolment, "make_record", lying)
            with pytest.raises(JoinError, match=r"the endpoint .* of beta is") as caught:
                await join(tmp_path / "b", invite, "beta")
        assert "--endpoint" in caught.value.fix and "beta" not in names(authority)
        await join(tmp_path / "b", invite, "beta")


async def test_an_invite_at_an_address_that_nobody_is_at_is_refused(tmp_path: Path) -> None:
    """Whoever made the invite must not choose what this machine connects to, of what only it reaches."""
    state = make_authority(tmp_path / "a")
    hosts = ("169.254.169.254:80", "[::ffff:127.0.0.1]:51800", "0x7f000001:51800")
    invite = make_invite(state, hosts).encode()
    with pytest.raises(JoinError) as caught:
        await enrolment.join(
            tmp_path / "b" / "state", tmp_path / "b" / "pm.toml", invite, name="beta",
            endpoints=("192.0.2.9",),
        )  # fmt: skip
    assert str(caught.value).count("may not be used") == len(hosts)


async def test_a_token_that_is_none_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(PhantomMeshError, match="not an invite"):
        await enrolment.join(tmp_path / "s", tmp_path / "c", "pm2_x", name="beta", endpoints=())
    assert list(tmp_path.iterdir()) == []


async def test_without_endpoints_the_address_that_reached_the_authority_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "all_loopback", lambda hosts: True)  # else loopback has to be asked for
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a"):
        await enrolment.join(
            tmp_path / "b" / "state", tmp_path / "b" / "pm.toml", make_invite(state).encode(),
            name="beta", endpoints=(),
        )  # fmt: skip
    joined = load_node(tmp_path / "b" / "state", time())
    me = joined.roster.get(joined.identity.node_id)
    assert me is not None and me.record.control == ("127.0.0.1:51800",)


async def test_a_spent_invite_does_not_rename_its_node_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "JOINS", 3)
    state = make_authority(tmp_path / "a")
    invite = make_invite(state)
    async with serving(tmp_path / "a") as authority:
        monkeypatch.setattr(enrolment, "finish_join", cut_power)
        for name in ("beta", "gamma"):
            with pytest.raises(PowerCutError):
                await join(tmp_path / "b", invite, name)
        with capture_logs(), pytest.raises(JoinError, match="as beta and gamma already") as raised:
            await join(tmp_path / "b", invite, "delta")
        assert raised.value.fix.startswith("join with --name gamma, or get a new invite")
        assert names(authority) == ["alpha", "gamma"]
        # Nor does the same name without end.
        with capture_logs(), pytest.raises(JoinError, match="joined several times just now") as raised:
            await join(tmp_path / "b", invite, "gamma")
        assert raised.value.fix == "try again in 10 min"


@pytest.mark.usefixtures("hasty")
async def test_an_authority_that_was_too_busy_to_answer_is_asked_once_more(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    taken = 0
    async with serving(tmp_path / "a") as authority, trio.open_nursery() as nursery:
        control = authority.parts.config.control.port

        async def busy(stream: trio.SocketStream) -> None:
            """Take the first connection and say nothing; pass the others on."""
            nonlocal taken
            taken += 1
            if taken == 1:
                await trio.sleep_forever()
            onward = await trio.open_tcp_stream("127.0.0.1", control)
            async with onward, trio.open_nursery() as both:
                both.start_soon(_copy, stream, onward)
                both.start_soon(_copy, onward, stream)

        (listener, *_) = await nursery.start(partial(trio.serve_tcp, busy, 0, host="127.0.0.1"))
        there = (f"127.0.0.1:{listener.socket.getsockname()[1]}",)
        await join(tmp_path / "b", make_invite(state, there), "beta")
        assert "beta" in names(authority) and taken == 2
        nursery.cancel_scope.cancel()


async def _copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await sink.send_all(data)
