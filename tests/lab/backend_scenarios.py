# SPDX-License-Identifier: GPL-3.0-or-later
"""What a WireGuard backend and the reconciler must do, run inside a network namespace by test_backends.py.

A scenario is given ``kernel``, or the path of a userspace WireGuard, and fails with a traceback. Those in
ANYWHERE also run over the fake backend (``fake``), in tests/nursery/host/test_fake.py.
"""

import ctypes
import inspect
import json
import os
import signal
import struct
import subprocess
import sys
import traceback
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from random import Random
from socket import AF_UNIX, SO_PEERCRED, SOL_SOCKET, socket

import pytest
import structlog
import trio

from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.dataplane.reconciler import Reconciler
from phantommesh.nursery.host import kernel, userspace
from phantommesh.nursery.host.backend import Backend
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.fake import FakeBackend, FakeHost
from phantommesh.nursery.host.kernel import KernelBackend
from phantommesh.nursery.host.userspace import UserspaceBackend
from phantommesh.secret import Secret
from phantommesh.wireguard.device import (
    DeviceConfig,
    DeviceState,
    Endpoint,
    PeerConfig,
    Report,
    Route,
    peers_by_key,
    public_key_of,
)
from phantommesh.wireguard.netlink import decode_device
from tests.lab import witness

RANDOM = Random(1)
HOST = FakeHost()
"""What the fake backends of a scenario stand on, for one that starts a second."""

WITNESSED: list[int] = []
"""Of each dump that was read twice, how many messages it had; see ``decode_twice``."""
CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x00020000  # linux/sched.h
PATIENCE = 30.0  # seconds; only a guard against waiting for ever


def private_key() -> Secret:
    return Secret(RANDOM.randbytes(32))


def make_backend(kind: str) -> Backend:
    if kind == "fake":
        return FakeBackend(HOST)
    if kind == "kernel":
        pytest.MonkeyPatch().setattr(kernel, "decode_device", decode_twice)
        return KernelBackend()
    return UserspaceBackend(Path(kind))


def decode_twice(payloads: Iterable[bytes]) -> Report:
    """Read a dump of the kernel's with wgnlpy's classes, too: whatever a scenario reads has two readers."""
    dump = list(payloads)
    report = decode_device(dump)
    assert report == witness.decode_device(dump)
    WITNESSED.append(len(dump))
    return report


def make_peer(number: int) -> PeerConfig:
    return PeerConfig(
        public_key=public_key_of(private_key()),
        psk=Secret(RANDOM.randbytes(32)),
        endpoint=Endpoint(f"192.0.2.{number + 1}", 51820) if number % 2 else Endpoint("2001:db8::1", 51821),
        allowed_ips=frozenset(
            {ip_network(f"100.64.1.{number + 1}/32"), ip_network(f"fd00:1:2:3::{number + 1:x}/128")}
        ),
        keepalive=25,
    )


def make_desired(backend: Backend, peers: int = 2) -> dict[str, DeviceConfig]:
    addresses = {ip_interface("100.64.0.1/32")}
    networks = {ip_network("100.64.0.0/10")}
    if backend.ipv6:
        addresses.add(ip_interface("fd00:1:2:3::1000/128"))
        networks.add(ip_network("fd00:1:2::/48"))
    return {
        f"pm{index}": DeviceConfig(
            name=f"pm{index}",
            private_key=private_key(),
            listen_port=51820 + index,
            mtu=1400,
            addresses=frozenset(addresses),
            routes=frozenset(Route(network, 100 + index) for network in networks),
            peers=peers_by_key(make_peer(number) for number in range(peers)),
            fwmark=0x5000,
        )
        for index in range(DIMENSIONS)
    }


def make_reconciler(
    backend: Backend,
    desired: Mapping[str, DeviceConfig],
    on_actual: Callable[[Mapping[str, DeviceState]], None] = lambda actual: None,
    interval: float = 0.05,
) -> Reconciler:
    reconciler = Reconciler(backend, interval=interval, on_actual=on_actual, log=structlog.get_logger("test"))
    reconciler.follow(lambda: desired)
    return reconciler


def agrees(actual: Mapping[str, DeviceState], desired: Mapping[str, DeviceConfig]) -> bool:
    try:
        check(actual, desired)
    except AssertionError:
        return False
    return True


def check(actual: Mapping[str, DeviceState], desired: Mapping[str, DeviceConfig]) -> None:
    assert actual.keys() == desired.keys()
    for name, want in desired.items():
        have = actual[name]
        assert have.up and have.loose_rp and have.index > 0
        assert have.public_key == public_key_of(want.private_key)
        assert (have.listen_port, have.mtu, have.fwmark) == (want.listen_port, want.mtu, want.fwmark)
        assert (have.addresses, have.routes) == (want.addresses, want.routes)
        assert have.peers.keys() == want.peers.keys()
        for key, peer in want.peers.items():
            read = have.peers[key]
            assert read.psk == peer.psk
            assert (read.endpoint, read.allowed_ips) == (peer.endpoint, peer.allowed_ips)
            assert read.keepalive == peer.keepalive


def run(*command: str, given: str | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, input=given).stdout


def links(kind: str) -> str:
    """Name every interface that there is."""
    return " ".join(HOST.devices) if kind == "fake" else run("ip", "link", "show")


def delete_link(kind: str, name: str) -> None:
    """Delete an interface as someone else would."""
    if kind == "fake":
        del HOST.devices[name]
    else:
        run("ip", "link", "delete", name)


def text(key: bytes) -> str:
    return b64encode(key).decode()


def pid_of(name: str) -> int:
    with socket(AF_UNIX) as client:
        client.connect(f"/var/run/wireguard/{name}.sock")
        return int(struct.unpack("3i", client.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))[0])


async def answering(name: str) -> None:
    """Wait until a socket is there and something listens on it."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                pid_of(name)
                return
            except OSError:
                await trio.sleep(0.02)


async def start_process(kind: str, name: str) -> None:
    """Start a userspace WireGuard as someone else would."""
    flags = ["-f", "--disable-drop-privileges"] if kind.endswith("boringtun-cli") else ["-f"]
    await trio.run_process(["sh", "-c", '"$@" >/dev/null 2>&1 &', "sh", kind, *flags, name])
    await answering(name)


def wg_agrees(desired: Mapping[str, DeviceConfig]) -> None:
    """Check what ``wg`` shows."""
    shown: dict[str, dict[str, list[str]]] = {name: {} for name in desired}
    for line in run("wg", "show", "all", "dump").splitlines():
        name, key, *fields = line.split("\t")
        if len(fields) > 3:
            shown[name][key] = fields
    for name, config in desired.items():
        assert shown[name].keys() == {text(key) for key in config.peers}
        for public_key, peer in config.peers.items():
            psk, endpoint, networks, _, _, _, keepalive = shown[name][text(public_key)]
            assert psk == text(peer.psk.reveal())
            assert endpoint == str(peer.endpoint)
            assert {ip_network(network) for network in networks.split(",")} == peer.allowed_ips
            assert keepalive == str(peer.keepalive)


async def agreement(kind: str) -> None:
    """The devices read back are the desired ones, ``wg`` agrees, and a second pass has nothing to do."""
    backend = make_backend(kind)
    assert await backend.devices(["pm0"]) == {}
    desired = make_desired(backend)
    reconciler = make_reconciler(backend, desired)
    check(await reconciler.converge(), desired)

    if kind != "fake":
        wg_agrees(desired)
    before = dict(backend.batches)
    check(await reconciler.converge(), desired)
    assert backend.batches == before
    assert reconciler.failures == 0
    assert (kind == "kernel") == bool(WITNESSED)


async def large(kind: str) -> None:
    """A peer with more networks than one message of a dump holds is read whole."""
    backend = make_backend(kind)
    desired = make_desired(backend, peers=3)
    peers = [
        replace(
            peer, allowed_ips=frozenset(ip_network((0x64500000 + 4096 * slot + n, 32)) for n in range(900))
        )
        for slot, peer in enumerate(desired["pm0"].peers.values())
    ]
    desired = {"pm0": replace(desired["pm0"], peers=peers_by_key(peers))}
    reconciler = make_reconciler(backend, desired)
    check(await reconciler.converge(), desired)
    assert reconciler.failures == 0
    assert kind != "kernel" or max(WITNESSED) > 1  # else no dump was split


async def change(kind: str) -> None:
    """Changes of what is desired arrive, a key rotation among them, and what leaves it is removed."""
    backend = make_backend(kind)
    desired = make_desired(backend)
    reconciler = make_reconciler(backend, desired)
    check(await reconciler.converge(), desired)

    first, second = desired["pm0"].peers.values()
    peers = [
        replace(
            first, psk=Secret(RANDOM.randbytes(32)), endpoint=Endpoint("198.51.100.9", 4500), keepalive=0
        ),
        replace(second, allowed_ips=frozenset({ip_network("100.64.9.0/24")})),
        make_peer(7),
    ]
    desired["pm0"] = replace(desired["pm0"], peers=peers_by_key(peers), listen_port=51900, mtu=1380)
    desired["pm1"] = replace(
        desired["pm1"], private_key=private_key(), routes=frozenset({Route(ip_network("100.64.0.0/10"), 100)})
    )
    pm0_routes = frozenset({Route(ip_network("100.64.0.0/10"), 101)})  # the two swap metrics
    desired["pm0"] = replace(
        desired["pm0"], routes=pm0_routes, addresses=frozenset({ip_interface("100.64.0.2/32")})
    )
    del desired["pm6"]
    reconciler.follow(lambda: desired)
    check(await reconciler.converge(), desired)
    for limits in ((1376, 0), (1280, 1156), (0, 0)):
        routes = frozenset(replace(r, mtu=limits[0], advmss=limits[1]) for r in desired["pm2"].routes)
        desired["pm2"] = replace(desired["pm2"], routes=routes)
        reconciler.follow(lambda: desired)
        check(await reconciler.converge(), desired)
    assert "pm6" not in links(kind)
    assert reconciler.failures == 0


async def rival(kind: str) -> None:
    """Whatever another program does to an interface is undone."""
    backend = make_backend(kind)
    desired = make_desired(backend)
    reconciler = make_reconciler(backend, desired)
    check(await reconciler.converge(), desired)
    first, second = (text(key) for key in desired["pm0"].peers)
    stranger = text(public_key_of(private_key()))
    other_psk = Path("psk")
    other_psk.write_text(text(RANDOM.randbytes(32)))
    in_place: list[tuple[str, ...]] = [
        ("wg", "set", "pm0", "peer", first, "preshared-key", str(other_psk)),
        ("wg", "set", "pm0", "peer", first, "preshared-key", "/dev/null"),
        ("wg", "set", "pm0", "peer", second, "allowed-ips", "100.64.77.0/24"),
        ("wg", "set", "pm0", "peer", second, "allowed-ips", "100.64.1.1/32"),  # taken from the first
        ("wg", "set", "pm0", "peer", first, "endpoint", "203.0.113.5:9"),
        ("wg", "set", "pm0", "peer", first, "persistent-keepalive", "3"),
    ]
    whole: list[tuple[str, ...]] = [
        ("wg", "set", "pm0", "peer", stranger, "allowed-ips", "100.64.1.2/32"),
        ("wg", "set", "pm0", "peer", second, "remove"),
        ("wg", "set", "pm0", "fwmark", "0"),
        ("wg", "set", "pm0", "listen-port", "52000"),
        ("wg", "set", "pm0", "private-key", str(other_psk)),
        ("ip", "link", "set", "pm0", "down"),
        ("ip", "link", "set", "pm0", "mtu", "1300"),
        ("ip", "address", "flush", "dev", "pm0"),
        ("ip", "address", "add", "10.9.8.7/32", "dev", "pm0"),
        ("ip", "route", "del", "100.64.0.0/10", "dev", "pm0"),
        ("sysctl", "-qw", "net.ipv4.conf.pm0.rp_filter=1"),
    ]
    # boringtun aborts on `wg set` of an existing peer.
    for command in whole if kind.endswith("boringtun-cli") else in_place + whole:
        run(*command)
        assert not agrees(await backend.devices(desired), desired), command
        check(await reconciler.converge(), desired)


async def untouched(kind: str) -> None:
    """A change of one peer is one message that names no other peer, and other interfaces get none."""
    backend = make_backend(kind)
    desired = make_desired(backend)
    reconciler = make_reconciler(backend, desired)
    check(await reconciler.converge(), desired)
    before = dict(backend.batches)
    key, peer = next(iter(desired["pm3"].peers.items()))
    peers = {**desired["pm3"].peers, key: replace(peer, psk=Secret(RANDOM.randbytes(32)))}
    desired["pm3"] = replace(desired["pm3"], peers=peers)
    reconciler.follow(lambda: desired)
    check(await reconciler.converge(), desired)
    changed = {name for name in desired if backend.batches[name] != before[name]}
    assert changed == {"pm3"}


async def deleted(kind: str) -> None:
    """A deleted interface comes back, found by the running loop."""
    backend = make_backend(kind)
    desired = make_desired(backend)
    well = trio.Event()

    def on_actual(actual: Mapping[str, DeviceState]) -> None:
        if agrees(actual, desired):
            well.set()

    reconciler = make_reconciler(backend, desired, on_actual)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(reconciler.run)
            await well.wait()
            index = (await backend.devices(["pm2"]))["pm2"].index
            delete_link(kind, "pm2")
            while agrees(await backend.devices(desired), desired):
                await trio.sleep(0.01)
            well = trio.Event()
            await well.wait()
            assert (await backend.devices(["pm2"]))["pm2"].index != index
            nursery.cancel_scope.cancel()


async def killed(kind: str) -> None:
    """A killed and a hung process are replaced; the other processes stay."""
    backend = make_backend(kind)
    desired = make_desired(backend)
    reconciler = make_reconciler(backend, desired)
    check(await reconciler.converge(), desired)
    pids = {name: pid_of(name) for name in desired}
    userspace._ANSWER_SECONDS = 1.0  # how long the test takes, not what it shows
    os.kill(pids["pm4"], signal.SIGKILL)
    os.kill(pids["pm5"], signal.SIGSTOP)
    with trio.fail_after(PATIENCE):
        while not agrees(await reconciler.converge(), desired):
            await trio.sleep(0.1)
    after = {name: pid_of(name) for name in desired}
    assert {name for name in desired if after[name] != pids[name]} == {"pm4", "pm5"}


async def foreign(kind: str) -> None:
    """Interfaces that are not ours are left alone, also under a name that we want."""
    backend = make_backend(kind)
    desired = make_desired(backend)
    run("ip", "link", "add", "other", "type", "bridge")
    run("ip", "link", "add", "pm1", "type", "bridge")
    run("ip", "link", "set", "pm1", "mtu", "1234")
    if kind == "kernel":
        run("ip", "link", "add", "pm2", "type", "wireguard")
    else:
        await start_process(kind, "pm2")
    run("wg", "set", "pm2", "private-key", "/dev/stdin", given=text(private_key().reveal()))
    links = run("ip", "-o", "link", "show", "dev", "pm1"), run("wg", "show", "pm2", "dump")

    reconciler = make_reconciler(backend, desired)
    actual = await reconciler.converge()
    check(actual, {name: config for name, config in desired.items() if name not in ("pm1", "pm2")})
    assert reconciler.failures == 1
    with pytest.raises(BackendError, match="pm1") as refused:
        await backend.create("pm1", 1400)
    assert "prefix" in refused.value.fix
    await backend.close(remove=[*desired, "other"])
    assert (run("ip", "-o", "link", "show", "dev", "pm1"), run("wg", "show", "pm2", "dump")) == links
    assert "other" in run("ip", "link", "show")
    assert await backend.devices(desired) == {}
    assert "pm0" not in run("ip", "link", "show")


async def restarted(kind: str) -> None:
    """A node that comes back without having closed takes over what runs, and changes nothing."""
    first = make_backend(kind)
    desired = make_desired(first)
    before = await make_reconciler(first, desired).converge()
    pids = None if kind in ("kernel", "fake") else {name: pid_of(name) for name in desired}
    second = make_backend(kind)
    after = await make_reconciler(second, desired).converge()
    check(after, desired)
    assert not second.batches
    assert {name: state.index for name, state in before.items()} == {
        name: state.index for name, state in after.items()
    }
    assert pids is None or pids == {name: pid_of(name) for name in desired}


def parent_killed(kind: str) -> None:
    """kill -9 of the process that made the interfaces leaves them working, and the next run adopts them."""
    backend = make_backend(kind)
    desired = make_desired(backend)
    child = os.fork()
    if child == 0:
        trio.run(make_reconciler(backend, desired).converge)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    check(trio.run(make_reconciler(backend, desired).converge), desired)
    assert not backend.batches


async def left_over(kind: str) -> None:
    """An interface of ours that the other backend left is replaced."""
    backend = make_backend(kind)
    if kind == "kernel":
        run("ip", "link", "add", "pm0", "type", "bridge")  # any other kind will do; the test VM has no tun
    else:
        run("ip", "tuntap", "add", "pm0", "mode", "tun")
    run("ip", "link", "set", "pm0", "alias", "phantommesh")
    desired = make_desired(backend)
    check(await make_reconciler(backend, desired).converge(), desired)


async def socket_lost(kind: str) -> None:
    """A process whose socket file was removed is replaced."""
    backend = make_backend(kind)
    desired = make_desired(backend)
    reconciler = make_reconciler(backend, desired)
    check(await reconciler.converge(), desired)
    Path("/var/run/wireguard/pm0.sock").unlink()
    with trio.fail_after(PATIENCE):
        while not agrees(await reconciler.converge(), desired):
            await trio.sleep(0.1)


async def elsewhere(kind: str) -> None:
    """A socket of another network namespace in the same directory is reported, and its process left alone."""
    backend = make_backend(kind)
    desired = make_desired(backend)
    flags = ["-f", "--disable-drop-privileges"] if kind.endswith("boringtun-cli") else ["-f"]
    await trio.run_process(
        ["sh", "-c", 'unshare --net "$@" >/dev/null 2>&1 & echo $! >stranger', "sh", kind, *flags, "pm0"]
    )
    await answering("pm0")
    reconciler = make_reconciler(backend, desired)
    actual = await reconciler.converge()
    assert reconciler.failures == 1
    check(actual, {name: config for name, config in desired.items() if name != "pm0"})
    with pytest.raises(BackendError, match="another network namespace"):
        await backend.create("pm0", 1400)
    assert pid_of("pm0") == int(await trio.Path("stranger").read_text())
    os.kill(pid_of("pm0"), signal.SIGKILL)


async def blank(kind: str) -> None:
    """An interface left by a crash between making and marking it is taken over, not refused."""
    backend = make_backend(kind)
    if kind == "kernel":
        run("ip", "link", "add", "pm0", "type", "wireguard")
    else:
        await start_process(kind, "pm0")
    desired = make_desired(backend)
    check(await make_reconciler(backend, desired).converge(), desired)


async def batches(kind: str) -> None:
    """50 peers on each of 7 interfaces take one set operation an interface."""
    backend = make_backend(kind)
    desired = make_desired(backend, peers=50)
    check(await make_reconciler(backend, desired).converge(), desired)
    assert backend.batches == dict.fromkeys(desired, 1)


ANYWHERE = (agreement, large, change, untouched, deleted, restarted, batches)

SCENARIOS: dict[str, Callable[[str], Awaitable[None] | None]] = {
    scenario.__name__: scenario
    for scenario in (
        *ANYWHERE,
        rival,
        killed,
        foreign,
        parent_killed,
        left_over,
        socket_lost,
        elsewhere,
        blank,
    )
}


def run_scenario(namespace: str, directory: str, kind: str, scenario: str) -> None:
    """Enter a network namespace, put ``directory`` over /var/run/wireguard, and run there."""
    signal.alarm(120)
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET) or libc.unshare(CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "cannot enter the namespace")
    run("mount", "--make-rprivate", "/")
    run("mount", "--bind", directory, "/var/run/wireguard")
    os.chdir(directory)
    function = SCENARIOS[scenario]
    if inspect.iscoroutinefunction(function):
        trio.run(function, kind)
    else:
        function(kind)


def serve() -> None:
    """For each line ``[namespace, directory, kind, scenario]`` run one in a fork; its output goes to a file.

    Starting an interpreter for each would take far longer than most scenarios do, above all in an emulated
    machine.
    """
    for line in sys.stdin:
        arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            output = os.open(f"{arguments[1]}/output", os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            try:
                run_scenario(*arguments)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
