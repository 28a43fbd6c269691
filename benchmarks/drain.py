# SPDX-License-Identifier: GPL-3.0-or-later
"""A rolling restart of a mesh under load: which TCP connections are lost, and how long each is silent.

    python -m benchmarks.drain [--each N] [--backend B] [--without] [--remove] [--json] [--quick]

Five nodes of one uplink. Two of them (2 and 3) route one network beyond the mesh, without masquerade; the
others use it. The last two let nothing through between their WireGuard ports, so that they go over relays.
``--each`` TCP connections are open between each pair of nodes, and from each node to a host of the network;
each sends a number ten times a second and waits for the echo. Then each node in turn is drained (`phantommesh
drain --wait`), stopped with SIGTERM, started again, and taken back (`phantommesh undrain --wait`). The host's
route back to the mesh follows the router that members use, within a third of a second: that is a site's own
matter where it has two routers.

``lost`` counts connections that broke, that got another number than they sent, or that were silent for 90 s.
``silence_s`` is the longest wait for an echo: ``through`` for connections of which neither end was being
restarted, ``to`` for those with the node that was. ``--without`` restarts nodes without draining them;
``--remove`` has them take their interfaces down meanwhile, which is the default of the configuration
(`wireguard.keep_interfaces = false`); here they are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from time import time

import msgspec
import trio

from benchmarks.machine import describe
from benchmarks.relayed import apart, over
from phantommesh.client.http import NodeClient
from phantommesh.config.reading import load
from phantommesh.config.writing import render
from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.mesh import converged, kill, phantommesh, pid_file, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.support.lan import HOST, LAN, ip, network_behind

PORT = 9900
PATIENCE = 120.0  # s
FOLLOW = 0.3  # s between looks at who carries the network, for the route back
PACE = 0.1  # s between an echo and the next number
SILENT = 90.0  # s without an echo after which a connection counts as lost
SETTLED = 3.0  # s of undisturbed traffic before the first node and after the last one

SERVE = """
import socket, sys, threading
def echo(one):
    try:
        while data := one.recv(4096):
            one.sendall(data)
    except OSError:
        pass
made = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=256)
print("ready", flush=True)
while True:
    threading.Thread(target=echo, args=(made.accept()[0],), daemon=True).start()
"""

CALL = """
import json, socket, sys, threading, time
targets, pace, silent = json.loads(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
stop, found = threading.Event(), []
def run(name, host, port, entry):
    try:
        one = socket.create_connection((host, port), timeout=silent)
        one.settimeout(silent)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = 0
        while True:
            last = stop.is_set()
            number += 1
            sent, began = b"%16d" % number, time.time()
            one.sendall(sent)
            got = b""
            while len(got) < len(sent):
                data = one.recv(len(sent) - len(got))
                if not data:
                    raise OSError("closed")
                got += data
            if got != sent:
                raise OSError("another number")
            entry["echoes"] = number
            if time.time() - began > 0.5:
                entry["silences"].append((began, time.time() - began))
            entry["up"].set()
            if last:
                return
            stop.wait(pace)
    except OSError as error:
        entry["error"] = str(error) or type(error).__name__
    finally:
        entry["up"].set()
threads = []
for name, host, port in targets:
    entry = {"name": name, "echoes": 0, "silences": [], "error": "", "up": threading.Event()}
    found.append(entry)
    threads.append(threading.Thread(target=run, args=(name, host, port, entry), daemon=True))
    threads[-1].start()
for entry in found:
    entry["up"].wait()
print("ready", flush=True)
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join(silent + 5)
for entry in found:
    del entry["up"]
print(json.dumps(found), flush=True)
"""


@dataclass(slots=True)
class Result:
    """One rolling restart. ``phases``: node, and when it was stopped and back, in Unix seconds."""

    drained: bool
    kept: bool
    connections: dict[str, int] = field(default_factory=dict)
    echoes: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    silence_s: dict[str, float] = field(default_factory=dict)
    drain_s: list[float] = field(default_factory=list)
    restart_s: list[float] = field(default_factory=list)


def make_spec(backend: str) -> LabSpec:
    """The lab."""
    return LabSpec(f"dr{os.getpid() % 10000}", nodes=5, uplinks=1, backend=backend, patience_s=PATIENCE)


def back_by(lan: str, number: int) -> None:
    """Have the network answer members by the router with this number."""
    ip("-n", lan, "route", "replace", "100.64.0.0/10", "via", f"192.168.50.{number}")


def edit(node: LabNode, **sections: dict[str, object]) -> None:
    """Change a node's configuration."""
    config = load(node.config)
    changed = {key: msgspec.structs.replace(getattr(config, key), **new) for key, new in sections.items()}
    node.config.write_text(render(msgspec.structs.replace(config, **changed)), encoding="ascii")


async def stop(node: LabNode) -> None:
    """Stop a node as a service manager does."""
    pid = int(pid_file(node).read_text(encoding="ascii"))
    kill(node, signal.SIGTERM)
    await until(lambda: pid not in net.processes_in([node.name]))


async def until(so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    with trio.fail_after(PATIENCE):
        while True:
            if await trio.to_thread.run_sync(so):
                return
            await trio.sleep(0.1)


async def reached(node: LabNode, address: str) -> None:
    """Wait until an address answers a node's pings."""
    with trio.fail_after(PATIENCE):
        while True:
            ping = node.inside(["ping", "-c", "1", "-W", "1", address])
            if (await trio.run_process(ping, check=False, stdout=subprocess.DEVNULL)).returncode == 0:
                return


@asynccontextmanager
async def meshed(spec: LabSpec, *, keep: bool) -> AsyncIterator[tuple[list[LabNode], str]]:
    """The mesh with its routers, its network and its relayed pair."""
    try:
        await up.up(spec)
        nodes = nodes_of(spec)
        routers, takers = nodes[1:3], [nodes[0], *nodes[3:]]
        with ExitStack() as stack:
            lan = stack.enter_context(network_behind(spec, *routers))
            back_by(lan, 2)
            for node in nodes:
                edit(node, wireguard={"keep_interfaces": keep})
            for router in routers:
                edit(router, routes={"advertise": (LAN,), "masquerade": False, "probe": {LAN: HOST}})
            for node in takers:
                edit(node, routes={"accept": (LAN,)})
            for node in nodes:
                await stop(node)
                await start(node)
            await converged(nodes, PATIENCE)
            for router in routers:
                await phantommesh(nodes[0], "route", "approve", router.name, LAN)
            stack.enter_context(apart(nodes[3], nodes[4]))
            await until(lambda: sum(over(nodes[3], nodes[4], relay) for relay in nodes[:3]) == DIMENSIONS)
            yield nodes, lan
    finally:
        with trio.CancelScope(shield=True):
            await up.down(spec.name)


def carrier(node: LabNode) -> str:
    """Who carries the network for a node now."""
    return next((one.router for one in NodeClient(node.socket).routes().routes if one.carried), "")


class Load:
    """The connections, by the node that opened them."""

    def __init__(self, nodes: Sequence[LabNode], lan: str, each: int) -> None:
        self._nodes, self._lan, self._each = nodes, lan, each
        self._programs: list[subprocess.Popen[str]] = []
        self._callers: list[subprocess.Popen[str]] = []

    def _run(self, space: str, program: str, *words: str) -> subprocess.Popen[str]:
        argv = ["ip", "netns", "exec", space, sys.executable, "-c", program, *words]
        made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._programs.append(made)
        return made

    def begin(self) -> None:
        """Serve everywhere, and open all connections."""
        addresses = {}
        for node in self._nodes:
            addresses[node.name] = NodeClient(node.socket).status().ip4
        for space in (*addresses, self._lan):
            served = self._run(space, SERVE, str(PORT))
            assert served.stdout is not None and served.stdout.readline() == "ready\n"
        for place, node in enumerate(self._nodes):
            wanted = [
                (f"{node.name} {other.name}", addresses[other.name], PORT)
                for other in self._nodes[place + 1 :]
            ]
            if place not in (1, 2):
                wanted.append((f"{node.name} lan", HOST, PORT))
            if wanted:
                every = [target for target in wanted for _ in range(self._each)]
                self._callers.append(self._run(node.name, CALL, json.dumps(every), str(PACE), str(SILENT)))
        for caller in self._callers:
            assert caller.stdout is not None and caller.stdout.readline() == "ready\n"

    def end(self) -> list[dict[str, object]]:
        """Have each connection send and get one number more, and return how each fared."""
        for caller in self._callers:
            assert caller.stdin is not None
            caller.stdin.close()
        found = list[dict[str, object]]()
        for caller in self._callers:
            assert caller.stdout is not None
            found += json.loads(caller.stdout.readline())
        return found

    def kill(self) -> None:
        """End what is left."""
        for program in self._programs:
            with program:  # closes the pipes, and waits
                program.kill()


async def roll(spec: LabSpec, *, each: int, drained: bool, keep: bool) -> Result:
    """Restart all nodes, one after the other."""
    result = Result(drained, keep)
    async with meshed(spec, keep=keep) as (nodes, lan), AsyncExitStack() as stack:
        # The route back has to be by the router that carries: WireGuard takes the network from that one only.
        number = {nodes[1].name: 2, nodes[2].name: 3}
        await until(lambda: carrier(nodes[0]) in number)
        back_by(lan, number[carrier(nodes[0])])
        for node in (nodes[0], *nodes[3:]):
            await reached(node, HOST)
        await stack.enter_async_context(followed(nodes[0], lan, number))
        load, phases = Load(nodes, lan, each), list[tuple[str, float, float]]()
        try:
            await trio.to_thread.run_sync(load.begin)
            await trio.sleep(SETTLED)
            for node in nodes:
                began = trio.current_time()
                if drained:
                    await phantommesh(node, "drain", "--wait", "--timeout", "60s")
                result.drain_s.append(round(trio.current_time() - began, 2))
                gone = time()
                await stop(node)
                await start(node)
                await until(node.socket.exists)
                await converged(nodes, PATIENCE, of=[node])
                await phantommesh(node, "undrain", "--wait")
                phases.append((node.name, gone, time()))
                result.restart_s.append(round(time() - gone, 2))
                print(
                    f"{node.name}: drained in {result.drain_s[-1]} s, restarted in {result.restart_s[-1]} s",
                    file=sys.stderr,
                )
            await trio.sleep(SETTLED)
            found = await trio.to_thread.run_sync(load.end)
        finally:
            load.kill()
    for one in found:
        name = str(one["name"])
        first, second = name.split()
        ends = {f"{spec.name}-4", f"{spec.name}-5"}
        kind = "routed" if second == "lan" else "relayed" if {first, second} == ends else "direct"
        result.connections[kind] = result.connections.get(kind, 0) + 1
        result.echoes += int(str(one["echoes"]))
        result.lost[kind] = result.lost.get(kind, 0) + bool(one["error"])
        if one["error"]:
            result.errors.append(f"{name}: {one['error']}")
        silences = one["silences"]
        assert isinstance(silences, list)
        for at, seconds in silences:
            restarting = next((who for who, gone, back in phases if at < back and at + seconds > gone), "")
            where = f"{kind} to" if restarting in (first, second) else f"{kind} through"
            result.silence_s[where] = max(result.silence_s.get(where, 0.0), round(seconds, 2))
    return result


@asynccontextmanager
async def followed(node: LabNode, lan: str, number: dict[str, int]) -> AsyncIterator[None]:
    """Have the network answer by whom members use, whenever that changes, as a site's own routing does."""

    def look() -> None:
        with suppress(PhantomMeshError):  # the node that is asked is being restarted
            if (by := carrier(node)) in number:
                back_by(lan, number[by])

    async def follow() -> None:
        while True:
            await trio.to_thread.run_sync(look)
            await trio.sleep(FOLLOW)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        yield
        nursery.cancel_scope.cancel()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--each", type=int, default=4)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--without", action="store_true")
    parser.add_argument("--remove", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    each = 1 if given.quick else given.each
    try:
        result = trio.run(
            partial(
                roll, make_spec(given.backend), each=each, drained=not given.without, keep=not given.remove
            )
        )
    except PhantomMeshError as error:
        print(f"{error}; {error.fix}" if error.fix else error, file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps({"name": "drain", "machine": describe(), "runs": 1, **asdict(result)}))
        return 0
    print(describe())
    for key, value in asdict(result).items():
        print(f"  {key:12} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
