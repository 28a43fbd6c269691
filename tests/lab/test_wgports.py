# SPDX-License-Identifier: GPL-3.0-or-later
"""Datagrams from and to the ports of a running WireGuard, which goes on undisturbed."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from phantommesh.endpoint import Address
from phantommesh.nursery.sockets.wgports import WireguardPorts
from phantommesh.routing.knocks import SIZE
from tests.support.spaces import cable, run, spaces, within

pytestmark = pytest.mark.lab

ME = os.getpid()
A, B = f"wgports{ME}a", f"wgports{ME}b"
MAGIC, OTHER = 0x11223344, 0x55667788
PORTS = {A: 51820, B: 51900}
HOSTS = {A: ("10.92.1.1", "fd92:1::1"), B: ("10.92.1.2", "fd92:1::2")}
INSIDE = {A: "10.93.0.1", B: "10.93.0.2"}
PATIENCE = 20.0  # s


@pytest.fixture(scope="module", autouse=True)
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two namespaces, each with a wireguard-go, joined."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    keys = {
        space: subprocess.run(["wg", "genkey"], capture_output=True, check=True).stdout for space in (A, B)
    }
    public = {
        space: subprocess.run(["wg", "pubkey"], input=key, capture_output=True, check=True).stdout.decode()
        for space, key in keys.items()
    }
    started = list[subprocess.Popen[bytes]]()
    with spaces((A, B)):
        cable(A, "up0", B, "up0")
        try:
            for space, other in ((A, B), (B, A)):
                v4, v6 = HOSTS[space]
                run(space, "ip", "addr", "add", f"{v4}/24", "dev", "up0")
                run(space, "ip", "addr", "add", f"{v6}/64", "dev", "up0", "nodad")
                name = f"pt{ME % 10000}{space[-1]}"
                argv = ["ip", "netns", "exec", space, "wireguard-go", "-f", name]
                started.append(subprocess.Popen(argv, stderr=subprocess.DEVNULL))
                while not Path(f"/var/run/wireguard/{name}.sock").exists():
                    assert started[-1].poll() is None
                key = tmp_path_factory.mktemp("wg") / "key"
                key.write_bytes(keys[space])
                run(
                    space, "wg", "set", name, "listen-port", str(PORTS[space]), "private-key", str(key),
                    "peer", public[other].strip(), "allowed-ips", "10.93.0.0/24",
                    "endpoint", f"{HOSTS[other][0]}:{PORTS[other]}",
                )  # fmt: skip
                run(space, "ip", "addr", "add", f"{INSIDE[space]}/24", "dev", name)
                run(space, "ip", "link", "set", name, "up")
            yield
        finally:
            for process in started:
                process.terminate()
                process.wait()


def make(space: str) -> WireguardPorts:
    ports = WireguardPorts(lambda host: host.startswith("127."))
    ports.open_ports((PORTS[space],))
    return ports


def datagram(magic: int = MAGIC) -> bytes:
    return magic.to_bytes(4, "big") + os.urandom(SIZE - 4)


@pytest.mark.parametrize("family", [0, 1])
def test_tagged_datagrams_go_from_one_wireguard_port_to_the_other(family: int) -> None:
    """And back. Others are not seen, and the tunnel carries its packets all the while."""
    sent, unknown = datagram(), datagram(OTHER)
    answered = list[tuple[int, Address, bytes]]()
    ready, done = trio.Event(), trio.Event()

    async def answer() -> None:
        ports = make(B)

        def echo(dimension: int, source: Address, data: bytes) -> None:
            assert ports.send(dimension, source, data)

        ports.listen(MAGIC, echo)
        await ports.run()

    async def ask() -> None:
        ports = make(A)

        def take(dimension: int, source: Address, data: bytes) -> None:
            answered.append((dimension, source, data))
            done.set()

        ports.listen(MAGIC, take)
        there = Address(HOSTS[B][family], PORTS[B])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ports.run)
            with trio.fail_after(PATIENCE):
                while not done.is_set():  # the other end may not listen yet
                    await trio.sleep(0.1)
                    assert not ports.open or ports.send(0, there, unknown)
                    assert not ports.open or ports.send(0, there, sent)
            nursery.cancel_scope.cancel()
        assert not ports.dropped

    async def serve() -> None:
        with trio.move_on_after(PATIENCE) as scope:
            ready.set()
            scopes.append((scope, trio.lowlevel.current_trio_token()))
            await answer()

    scopes = list[tuple[trio.CancelScope, trio.lowlevel.TrioToken]]()
    pinging = subprocess.Popen(
        ["ip", "netns", "exec", A, "ping", "-qnc5", "-i0.1", "-W5", INSIDE[B]], stdout=subprocess.PIPE
    )

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, within, B, lambda: trio.run(serve))
            await trio.to_thread.run_sync(within, A, lambda: trio.run(ask))
            for scope, token in scopes:
                token.run_sync_soon(scope.cancel)

    trio.run(both)
    assert (0, Address(HOSTS[B][family], PORTS[B]), sent) in answered
    assert all(data == sent for _, _, data in answered)
    assert b" 0% packet loss" in pinging.communicate()[0]


def test_a_filter_follows_the_ports() -> None:
    """A datagram to a port that is no longer WireGuard's is not seen; without a port none is."""
    seen = list[tuple[int, bytes]]()

    async def main() -> None:
        ports = make(B)
        ports.listen(MAGIC, lambda dimension, source, data: seen.append((dimension, data)))
        with within(A, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ports.run)
                await trio.testing.wait_all_tasks_blocked()
                old, new = datagram(), datagram()
                ports.open_ports((7, 4711))
                sender.sendto(old, (HOSTS[B][0], PORTS[B]))
                sender.sendto(new, (HOSTS[B][0], 4711))
                with trio.fail_after(PATIENCE):
                    while not seen:
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
        assert seen == [(1, new)]
        assert not ports.dropped

    within(B, lambda: trio.run(main))
