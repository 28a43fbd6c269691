# SPDX-License-Identifier: GPL-3.0-or-later
"""Further TCP ports: served as the control port is, told to others, and a fault where they cannot be had."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from phantommesh.config.reading import load
from phantommesh.config.sections import ConfigError
from phantommesh.control import messages
from phantommesh.nursery.node import Node
from phantommesh.nursery.sockets import furtherports
from phantommesh.nursery.sockets.furtherports import TCP_PORT_REFUSED, FurtherPorts
from phantommesh.trust.identity import NodeId
from tests.support.loopback import PATIENCE, free_port, join, make_authority, make_invite, serving, until

HERE = "127.0.0.1"


async def test_a_port_that_is_taken_is_a_fault_until_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(furtherports, "AGAIN", 0.05)
    taken, free, told = free_port(), free_port(), list[tuple[int, ...]]()
    served = list[trio.SocketStream]()
    ports = FurtherPorts((taken, free), lambda: told.append(ports.open))

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            served.append(stream)

    listeners = await trio.open_tcp_listeners(taken, host=None)
    await ports.listen()
    assert ports.open == (free,)
    [fault] = ports.faults()
    assert fault.code == TCP_PORT_REFUSED.code and str(taken) in fault.text and "stop what uses" in fault.fix
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ports.run, handle)
        async with await trio.open_tcp_stream(HERE, free) as stream:
            await stream.receive_some()
        for listener in listeners:
            await listener.aclose()
        await until(lambda: told == [(taken, free)])
        assert not list(ports.faults())
        async with await trio.open_tcp_stream(HERE, taken) as stream:
            await stream.receive_some()
        assert len(served) == 2
        nursery.cancel_scope.cancel()
    assert not ports.open


async def test_a_port_that_needs_a_capability_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(port: int, *, host: None) -> Sequence[trio.SocketListener]:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(trio, "open_tcp_listeners", refuse)
    ports = FurtherPorts((443,))
    await ports.listen()
    [fault] = ports.faults()
    assert "CAP_NET_BIND_SERVICE" in fault.fix and ports.open == ()


def name_ports(at: Path, ports: Sequence[int]) -> None:
    text = (at / "pm.toml").read_text()
    assert "tcp_ports = []" in text
    (at / "pm.toml").write_text(text.replace("tcp_ports = []", f"tcp_ports = {list(ports)}"))


async def test_a_member_whose_control_port_takes_no_tcp_is_called_at_its_further_port(tmp_path: Path) -> None:
    state, port = make_authority(tmp_path / "alpha"), free_port()
    async with serving(tmp_path / "alpha"):
        await join(tmp_path / "beta", make_invite(state), "beta")
    name_ports(tmp_path / "alpha", (port,))

    def elsewhere(node: Node) -> None:
        node.parts.tcp._port = free_port()  # so nothing listens for TCP at the control port

    async with serving(tmp_path / "alpha", elsewhere) as alpha, serving(tmp_path / "beta") as beta:
        me = NodeId(alpha.parts.state.identity.node_id)

        def known() -> bool:
            entry = beta.parts.keeper.roster.get(me)
            return entry is not None and entry.record.tcp_ports == (port,)

        await until(lambda: beta.parts.sessions.newest(me) is not None and known())
        with trio.fail_after(PATIENCE):
            async with beta.parts.caller.dial_direct(me) as client:
                assert isinstance(await client.ask(messages.AskKeys()), messages.KeysAre)
        await until(lambda: (port,) in beta.parts.tcp.callable.values())  # and a handshake would be, too


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("tcp_ports = []", "tcp_ports = [443, 80, 22]"),
        ("tcp_ports = []", "tcp_ports = [0]"),
        ("tcp = true\ntcp_ports = []", "tcp = false\ntcp_ports = [443]"),
    ],
)
def test_ports_that_cannot_be_are_refused_with_a_fix(tmp_path: Path, was: str, becomes: str) -> None:
    make_authority(tmp_path)
    text = (tmp_path / "pm.toml").read_text()
    assert was in text
    (tmp_path / "pm.toml").write_text(text.replace(was, becomes))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "pm.toml")
    assert "control.tcp" in str(caught.value) and caught.value.fix


def test_the_control_port_is_no_further_port(tmp_path: Path) -> None:
    make_authority(tmp_path)
    name_ports(tmp_path, [load(tmp_path / "pm.toml").control.port])
    with pytest.raises(ConfigError, match=r"which is control\.port"):
        load(tmp_path / "pm.toml")
