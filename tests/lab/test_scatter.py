# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic of real nodes, scattered by the kernel over seven real WireGuards."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
import trio

from phantommesh.acl import banrules
from phantommesh.client.http import NodeClient
from phantommesh.dimensions import DIMENSIONS, SLOTS
from phantommesh.management.views import ScatterView
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged, kill, start, view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.overlay import guard
from phantommesh.scatter import flows
from phantommesh.scatter.maps import (
    SCHEDULERS,
    Epoch,
    Scheduler,
    cards,
    deal,
    entropy_bits,
    epoch_keys,
)
from phantommesh.scatter.peermap import PeerMap, length_of
from phantommesh.scatter.ruleset import Frame, render, table_name, ways
from phantommesh.secret import Secret
from tests.lab.conftest import BACKEND, PATIENCE_S
from tests.lab.test_lab import INTERFACES, is_gone, run_in, until
from tests.lab.test_node import configured, edit, stop

pytestmark = pytest.mark.lab

MASTER = "pm"
TABLE = table_name(MASTER)
ENTROPY = 2.7  # bits, of the 2.807 of seven equal shares
PACKETS = 1400  # 200 a dimension; at random they spread by 7 %, which costs 0.004 bits
BATCH = 8

# Sends datagrams of argv[4] bytes to argv[1]:argv[2], argv[3] of them, ARGV[5] seconds apart.
SEND = """
import socket, sys, time
host, port, count, size, gap = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as out:
    due = time.monotonic()
    for number in range(count):
        out.sendto(number.to_bytes(8, "big").ljust(size, b"."), (host, port))
        due = max(due + gap, time.monotonic() - 5 * gap)  # a late one is not made up for by a long burst
        time.sleep(max(0.0, due - time.monotonic()))
"""
# Receives datagrams until there is silence, and prints how many different ones there were.
RECEIVE = """
import socket, sys
host, port, silence = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as into:
    into.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
    into.bind((host, port))
    print("up", flush=True)
    into.settimeout(60 * silence)
    seen = set()
    try:
        while True:
            seen.add(into.recv(65536)[:8])
            into.settimeout(silence)
    except TimeoutError:
        print(len(seen))
"""
SILENCE_S = 20.0 if BACKEND == "kernel" else 3.0


def scatter_of(node: LabNode) -> dict[str, ScatterView]:
    return {view.peer: view for view in NodeClient(node.socket).get_all("/v1/scatter", ScatterView)}


def sent_by(node: LabNode, names: Sequence[str] = INTERFACES) -> list[int]:
    """Packets that each interface of a node has sent."""
    links = json.loads(run_in(node, "ip", "-j", "-s", "link"))
    found = {link["ifname"]: link["stats64"]["tx"]["packets"] for link in links}
    return [found[name] for name in names]


def since(after: Sequence[int], before: Sequence[int]) -> list[int]:
    return [a - b for a, b in zip(after, before, strict=True)]


def ping(node: LabNode, address: str, count: int = PACKETS, size: int = 56) -> int:
    """Ping as fast as answers come; return how many did."""
    command = ["ping", "-q", "-f", "-c", str(count), "-s", str(size), "-w", str(int(PATIENCE_S)), address]
    done = subprocess.run(node.inside(command), capture_output=True, text=True, check=False)
    return int(done.stdout.split(" received")[0].split()[-1])


def exchange(a: LabNode, b: LabNode, host: str, count: int, size: int, gap: float = 0.0005) -> int:
    """Send datagrams from a to b; return how many came."""
    receive = b.inside([sys.executable, "-c", RECEIVE, host, "20777", str(SILENCE_S)])
    with subprocess.Popen(receive, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None and receiver.stdout.readline() == "up\n"
        run_in(a, sys.executable, "-c", SEND, host, "20777", str(count), str(size), str(gap))
        return int(receiver.communicate()[0])


def addresses(node: LabNode) -> tuple[str, str]:
    status = NodeClient(node.socket).status()
    return status.ip4, status.ip6


def has_table(node: LabNode) -> bool:
    return f" {TABLE}" in run_in(node, "nft", "list", "tables")


def has_routes(node: LabNode) -> bool:
    routes = [*run_in(node, "ip", "route").splitlines(), *run_in(node, "ip", "-6", "route").splitlines()]
    return sum(f" dev {MASTER} " in f"{route} " for route in routes) >= 2


async def scattered(nodes: Sequence[LabNode]) -> None:
    """Wait until every node scatters to all others."""
    await until(lambda: all(len(scatter_of(node)) == len(nodes) - 1 and has_routes(node) for node in nodes))


@pytest.fixture
def nodes(mesh: up.LabResult, spec: LabSpec) -> list[LabNode]:
    found = nodes_of(spec)
    trio.run(scattered, found)
    return found


def test_every_dimension_carries_its_share_both_ways(nodes: list[LabNode]) -> None:
    for address in addresses(nodes[1]):
        before = sent_by(nodes[0]), sent_by(nodes[1])
        assert ping(nodes[0], address) == PACKETS
        for end, then in enumerate(before):
            sent = since(sent_by(nodes[end]), then)
            assert sum(sent) >= PACKETS
            assert min(sent) > 0
            assert entropy_bits(sent) >= ENTROPY


def test_one_underlay_carries_no_more_than_its_share(nodes: list[LabNode], spec: LabSpec) -> None:
    uplinks = [f"up{number}" for number in range(spec.uplinks)]

    def shares() -> list[float]:  # dimension i goes by uplink i modulo their number
        weights = [d.weight for d in scatter_of(nodes[0])[nodes[1].name].dimensions]
        return [sum(weights[number :: spec.uplinks]) for number in range(spec.uplinks)]

    earlier, before = shares(), sent_by(nodes[0], uplinks)
    assert ping(nodes[0], addresses(nodes[1])[0], size=1000) == PACKETS
    sent = since(sent_by(nodes[0], uplinks), before)
    # A dimension that was silent on a busy machine may have come back meanwhile, or gone.
    for count, shared in zip(sent, zip(earlier, shares(), strict=True), strict=True):
        assert count / sum(sent) <= max(shared) + 0.05


async def test_what_is_reported_is_what_was_sent(nodes: list[LabNode]) -> None:
    node, peer = nodes[0], nodes[2]
    # A path that lost probes in the floods before has to prove itself, under traffic.
    address = addresses(peer)[0]
    await until(
        lambda: (
            ping(node, address, 20) == 20
            and {d.score for d in scatter_of(node)[peer.name].dimensions} == {1.0}
        )
    )
    assert abs(sum(d.weight for d in scatter_of(node)[peer.name].dimensions) - 1.0) < 0.001
    assert await trio.to_thread.run_sync(ping, node, addresses(peer)[0]) == PACKETS
    # A new map may have begun meanwhile; what is reported of entropy spans two.
    await until(lambda: (scatter_of(node)[peer.name].entropy_bits or 0.0) >= 2.6)
    shown = await trio.to_thread.run_sync(run_in, node, "phantommesh", "scatter")
    assert peer.name in shown and "deck" in shown
    names = {
        f'phantommesh_scatter_weight{{dimension="6",peer="{peer.name}"}}',
        f'phantommesh_scatter_entropy_bits{{peer="{peer.name}"}}',
    }

    def measured() -> bool:
        """As of the last look at the interfaces."""
        metrics = NodeClient(node.socket).request("GET", "/metrics").decode()
        return all(name in metrics for name in names)

    await until(measured)


def test_what_is_for_nobody_is_dropped_and_counted(nodes: list[LabNode]) -> None:
    mine = IPv4Address(addresses(nodes[0])[0])
    stranger = next(str(mine + i) for i in (1, -1) if str(mine + i) not in [addresses(n)[0] for n in nodes])
    before = sent_by(nodes[0], [MASTER]), unknown(nodes[0])
    run = ["ping", "-q", "-c", "20", "-i", "0.01", "-W", "1", stranger]
    assert subprocess.run(nodes[0].inside(run), capture_output=True, check=False).returncode == 1
    assert unknown(nodes[0]) >= before[1] + 20
    assert sent_by(nodes[0], [MASTER]) == before[0]


def unknown(node: LabNode) -> int:
    listed = json.loads(run_in(node, "nft", "-j", "list", "set", "netdev", TABLE, "hits"))
    (hits,) = (item["set"]["elem"] for item in listed["nftables"] if "set" in item)
    return int(next(e["elem"]["counter"]["packets"] for e in hits if e["elem"]["val"] == 0))


async def test_what_others_remove_is_put_back(nodes: list[LabNode]) -> None:
    node, (address, _) = nodes[0], addresses(nodes[1])
    rivals = [
        ["nft", "flush", "ruleset"],
        ["nft", "flush", "chain", "netdev", TABLE, "out"],
        ["nft", "flush", "map", "netdev", TABLE, "peers4"],
        ["ip", "link", "delete", MASTER],
        ["ip", "address", "flush", "dev", MASTER],
        ["ip", "route", "flush", "dev", MASTER],
    ]
    for rival in rivals:
        run_in(node, *rival)
        await until(lambda: has_table(node) and whole_chain(node) and has_routes(node) and addressed(node))
        before = sent_by(node)
        assert await trio.to_thread.run_sync(ping, node, address, 700) == 700
        assert entropy_bits(since(sent_by(node), before)) >= 2.6, rival
    status = (await view_of(node)).status
    assert not [reason for reason in status.degraded if "dimension 0" in reason]


def whole_chain(node: LabNode) -> bool:
    listed = run_in(node, "nft", "list", "chain", "netdev", TABLE, "out")
    return "fwd to" in listed and "goto" in run_in(node, "nft", "list", "map", "netdev", TABLE, "peers4")


def addressed(node: LabNode) -> bool:
    return run_in(node, "ip", "-o", "address", "show", "dev", MASTER).count("inet") >= 2


async def test_leaving_leaves_nothing_and_a_crash_is_taken_over(nodes: list[LabNode], spec: LabSpec) -> None:
    node = nodes[1]
    await stop(node)
    assert not has_table(node)
    assert MASTER not in [link["ifname"] for link in json.loads(run_in(node, "ip", "-j", "link"))]
    await start(node)
    await converged(nodes, PATIENCE_S)
    await scattered(nodes)
    kill(node)
    await until(lambda: is_gone(node))
    assert has_table(node) and has_routes(node)
    await start(node)
    await converged(nodes, PATIENCE_S)
    await scattered(nodes)
    tables = run_in(node, "nft", "list", "tables").splitlines()
    assert sorted(tables) == sorted(
        [
            f"table netdev {TABLE}",
            *(f"table {family} {guard.table_name(MASTER)}" for family in ("inet", "arp")),
            *(f"table inet {name(MASTER)}" for name in (flows.table_name, banrules.table_name)),
        ]
    )
    assert await trio.to_thread.run_sync(ping, node, addresses(nodes[0])[0], 100) == 100


async def test_an_interface_that_a_killed_node_had_not_yet_marked_is_made_again(nodes: list[LabNode]) -> None:
    node = nodes[1]
    await stop(node)
    kind = ["type", "wireguard"] if BACKEND == "kernel" else ["mode", "tun"]
    run_in(node, "ip", *(["link"] if BACKEND == "kernel" else ["tuntap"]), "add", "dev", MASTER, *kind)
    await start(node)
    await converged(nodes, PATIENCE_S)
    await scattered(nodes)


async def test_without_nft_traffic_takes_dimension_0_and_status_says_so(
    nodes: list[LabNode], tmp_path: Path
) -> None:
    """The command is gone while the node runs. A node that starts without it does not start."""
    node = nodes[1]
    for name in ("ip", "sh", "mount", "wireguard-go"):
        if (found := shutil.which(name)) is not None:
            (tmp_path / name).symlink_to(found)
    await stop(node)
    bare = {**node.environment(), "PATH": str(tmp_path)}
    run = node.inside([sys.executable, "-m", "phantommesh", "run"])
    refused = await trio.to_thread.run_sync(
        partial(subprocess.run, run, env=bare, capture_output=True, text=True)
    )
    assert refused.returncode == 1
    assert "error: the command nft is missing" in refused.stderr and "fix: install nftables" in refused.stderr
    nft = tmp_path / "nft"
    nft.symlink_to(shutil.which("nft") or "")
    process = subprocess.Popen(run, env=bare, stderr=subprocess.DEVNULL)
    try:
        await until(node.socket.exists)
        await converged(nodes, PATIENCE_S)
        await scattered(nodes)
        nft.unlink()
        run_in(node, "nft", "delete", "table", "netdev", TABLE)
        await until(lambda: any("dimension 0" in r for r in NodeClient(node.socket).status().degraded))
        assert not has_routes(node)
        before = sent_by(node)
        assert await trio.to_thread.run_sync(ping, node, addresses(nodes[0])[0], 200) == 200
        sent = since(sent_by(node), before)
        assert sent[0] >= 200 and max(sent[1:]) < 50
        NodeClient(node.socket).request("GET", "/readyz")  # it does its work
    finally:
        process.terminate()
        await trio.to_thread.run_sync(process.wait)
        await start(node)
    await converged(nodes, PATIENCE_S)
    await scattered(nodes)


async def test_marks_and_rules_do_it_too(nodes: list[LabNode]) -> None:
    node = nodes[1]
    with configured(node, scatter={"hook": "mark"}):
        await stop(node)
        await start(node)
        await converged(nodes, PATIENCE_S)
        await scattered(nodes)
        for address in addresses(nodes[0]):
            before = sent_by(node)
            assert await trio.to_thread.run_sync(ping, node, address) == PACKETS
            assert entropy_bits(since(sent_by(node), before)) >= ENTROPY
        assert {view.hook for view in scatter_of(node).values()} == {"mark"}
        await stop(node)
        tables = run_in(node, "nft", "list", "tables").splitlines()
        stay = guard.table_name(MASTER), banrules.table_name(MASTER)
        assert {table.split()[-1] for table in tables} == set(stay)
        marked = [rule for rule in run_in(node, "ip", "rule").splitlines() if "fwmark" in rule]
        assert [rule for rule in marked if "proto 112" in rule] == []
        routes = run_in(node, "ip", "route", "show", "table", "all").splitlines()
        assert all(route.startswith("unreachable ") for route in routes if "proto 112" in route)
    await start(node)
    await converged(nodes, PATIENCE_S)
    await scattered(nodes)


async def test_forwarded_traffic_is_scattered_too(nodes: list[LabNode]) -> None:
    """A machine behind a node, whose traffic that node sends on under its own address."""
    node, client = nodes[0], f"{nodes[0].name}c"
    own, peer = addresses(node)[0], addresses(nodes[1])[0]
    hook = "type nat hook postrouting priority srcnat ; ip saddr 10.9.0.2"
    nat = f"table ip nat_c {{ chain out {{ {hook} snat to {own} ; }} ; }}"
    steps = [
        f"ip netns add {client}",
        f"ip -n {node.name} link add behind type veth peer name up0 netns {client}",
        f"ip -n {node.name} address add 10.9.0.1/24 dev behind",
        f"ip -n {node.name} link set behind up",
        f"ip -n {client} address add 10.9.0.2/24 dev up0",
        f"ip -n {client} link set up0 up",
        f"ip -n {client} route add default via 10.9.0.1",
        f"ip netns exec {node.name} sysctl -qw net.ipv4.ip_forward=1",
    ]
    try:
        for step in steps:
            subprocess.run(step.split(), check=True)
        subprocess.run(node.inside(["nft", nat]), check=True)
        closed = ["ip", "netns", "exec", client, "ping", "-q", "-c", "3", "-i", "0.2", "-W", "1", peer]
        done = await trio.to_thread.run_sync(partial(subprocess.run, closed, capture_output=True, text=True))
        assert " 0 received" in done.stdout  # nothing is forwarded unless the configuration says so
        with configured(node, guard={"forward": ("behind",)}):
            await stop(node)
            await start(node)
            await converged(nodes, PATIENCE_S)
            await scattered(nodes)
            before = sent_by(node)
            flood = ["ip", "netns", "exec", client, "ping", "-q", "-f", "-c", str(PACKETS), peer]
            done = await trio.to_thread.run_sync(
                partial(subprocess.run, flood, capture_output=True, text=True)
            )
            assert f" {PACKETS} received" in done.stdout
            assert entropy_bits(since(sent_by(node), before)) >= ENTROPY
    finally:
        await stop(node)
        await start(node)
        await converged(nodes, PATIENCE_S)
        subprocess.run(["ip", "netns", "delete", client], check=False)
        subprocess.run(node.inside(["nft", "delete", "table", "ip", "nat_c"]), check=False)


def install(a: LabNode, b: LabNode, scheduler: Scheduler) -> None:
    """Put a table in place by hand, as a node would."""
    indexes = {link["ifname"]: link["ifindex"] for link in json.loads(run_in(a, "ip", "-j", "link"))}
    mine, theirs = ADDRESSES[a.name], ADDRESSES[b.name]
    frame = Frame(
        "egress", TABLE, MASTER, (IPv4Network("100.64.0.0/10"), IPv6Network("fd00::/8")), mine, 7, 60
    )
    keys = epoch_keys(Secret(bytes(32)), bytes(16), Epoch(1, 0))
    committed = cards([1.0] * DIMENSIONS, keys.noise, SLOTS[scheduler])
    dealt = deal(committed, scheduler, keys.stream, BATCH)
    peer = PeerMap(1, *theirs, scheduler, length_of(scheduler, BATCH), 0, dealt)
    text = render(frame, ways([indexes[name] for name in INTERFACES]), [peer])
    subprocess.run(a.inside(["nft", "-f", "-"]), input=text, text=True, check=True)


ADDRESSES: dict[str, tuple[IPv4Address, IPv6Address]] = {}
SCATTERING: tuple[Scheduler, ...] = ("packet", "deck", "batch")


@pytest.mark.slow  # a busy machine drops some of its many fragments
async def test_every_scheduler_carries_every_kind_of_packet(other: LabSpec) -> None:
    """The nodes are killed: what they have set up goes on, and nobody puts the tables back."""
    await up.up(other)
    a, b = nodes_of(other)
    await scattered([a, b])
    for node in (a, b):
        four, six = addresses(node)
        ADDRESSES[node.name] = IPv4Address(four), IPv6Address(six)
    for node in (a, b):
        kill(node)
        await until(lambda node=node: is_gone(node))  # type: ignore[misc]
    for scheduler in SCHEDULERS:
        install(a, b, scheduler)
        install(b, a, scheduler)
        for address in map(str, ADDRESSES[b.name]):
            for size in (56, 3000):  # whole, and in three fragments
                before = sent_by(a), sent_by(b)
                assert ping(a, address, 350, size) == 350, (scheduler, size)
                if scheduler in SCATTERING:
                    for end, node in enumerate((a, b)):
                        assert entropy_bits(since(sent_by(node), before[end])) >= 2.6, (scheduler, size)
            for size in (100, 4000):
                assert exchange(a, b, address, 700, size) == 700, (scheduler, size)
            before = sent_by(a), sent_by(b)
            assert tcp(a, b, address) == TCP_BYTES
            used = sum(count > 10 for count in since(sent_by(a), before[0]))
            assert used == DIMENSIONS if scheduler in SCATTERING else used >= 1
    install(a, b, "flow")
    before = sent_by(a), sent_by(b)
    assert exchange(a, b, str(ADDRESSES[b.name][0]), 300, 100) == 300
    sent = sorted(since(sent_by(a), before[0]))
    assert sent[-1] >= 300 and sum(sent[:-1]) < 60  # one flow goes one way; the rest are keepalives
    before = sent_by(a), sent_by(b)
    for _ in range(40):
        tcp(a, b, str(ADDRESSES[b.name][0]), 2000)
    assert sum(count >= 3 for count in since(sent_by(a), before[0])) >= 5  # and forty go many


TCP_BYTES = 1 << 20
# Reads from one connection until its end, and prints how much that was.
SINK = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], 0), family=family) as server:
    print(server.getsockname()[1], flush=True)
    with server.accept()[0] as taken:
        print(sum(iter(lambda: len(taken.recv(65536)), 0)))
"""
SOURCE = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as s:
    s.sendall(bytes(int(sys.argv[3])))
"""


def tcp(a: LabNode, b: LabNode, host: str, size: int = TCP_BYTES) -> int:
    """Send that many bytes from a to b over TCP; return how many came."""
    sink = b.inside([sys.executable, "-c", SINK, host])
    with subprocess.Popen(sink, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        run_in(a, sys.executable, "-c", SOURCE, host, port, str(size))
        return int(process.communicate()[0])


# Takes so many connections, and prints the largest segment that each may be sent.
SEGMENTS = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    taken = [server.accept()[0] for _ in range(int(sys.argv[2]))]
    print(*(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for each in taken))
"""


async def test_a_private_peer_gets_unequal_weights_and_segments_of_many_sizes(other: LabSpec) -> None:
    await up.up(other)
    a, b = nodes_of(other)
    edit(a.config, scatter={"peers": {b.name: "private"}})
    await stop(a)
    await start(a)
    await converged([a, b], PATIENCE_S)
    await scattered([a, b])
    assert {node.name: scatter_of(node)[peer.name].scheduler for node, peer in ((a, b), (b, a))} == {
        a.name: "batch",
        b.name: "deck",
    }
    assert (scatter_of(a)[b.name].goal, scatter_of(b)[a.name].goal) == ("private", "throughput")
    weights = [dimension.weight for dimension in scatter_of(a)[b.name].dimensions]
    assert max(weights) > 1.4 / DIMENSIONS and min(weights) < 0.6 / DIMENSIONS
    connections = 12
    for here, there, many in ((a, b, True), (b, a, False)):
        host = addresses(there)[0]
        sink = there.inside([sys.executable, "-c", SEGMENTS, host, str(connections)])
        with subprocess.Popen(sink, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            for _ in range(connections):
                run_in(here, sys.executable, "-c", SOURCE, host, port, "1")
            sizes = [int(word) + 12 for word in process.communicate()[0].split()]  # 12: time stamps
        assert len(sizes) == connections and all(1128 <= size <= 1380 for size in sizes)
        assert len(set(sizes)) > 5 if many else set(sizes) == {1380}
    assert tcp(a, b, addresses(b)[0]) == tcp(b, a, addresses(a)[0]) == TCP_BYTES


@pytest.mark.parametrize("seconds", [5.0, pytest.param(60.0, marks=pytest.mark.slow)])
async def test_maps_that_change_twenty_times_a_second_lose_nothing(other: LabSpec, seconds: float) -> None:
    await up.up(other)
    a, b = nodes_of(other)
    for node in (a, b):
        edit(node.config, scatter={"epoch_seconds": 0.05})
        await stop(node)
        await start(node)
    await converged([a, b], PATIENCE_S)
    await scattered([a, b])
    rate = 300 if BACKEND == "kernel" else 3000
    count = int(seconds * rate)
    began = scatter_of(a)[b.name]
    before = sent_by(a), sent_by(b)
    came = await trio.to_thread.run_sync(exchange, a, b, addresses(b)[0], count, 100, 1 / rate)
    assert came == count
    sent = since(sent_by(a), before[0])
    assert sum(sent) >= count and entropy_bits(sent) >= ENTROPY
    ended = scatter_of(a)[b.name]
    if BACKEND != "kernel" and ended.link_epoch == began.link_epoch:  # an emulated machine is slower
        assert ended.epoch - began.epoch >= 10 * seconds
