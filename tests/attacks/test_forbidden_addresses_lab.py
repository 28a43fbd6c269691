# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh must not melt: an insider signs a record that names overlay addresses, and nobody has any traffic.

Before addresses were judged, the outer WireGuard packets to such an address were routed into the overlay,
encrypted, and sent there again: 80 to 145 MB/s from nothing. So this looks often, and ends everything early.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest
import trio

from phantommesh.dimensions import interface_names, master_name
from phantommesh.endpoint import format_endpoint
from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.mesh import converged, crash, pid_file, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.attacks.rig import Neighbour, counted, insider, run_inside, status_of
from tests.lab.conftest import PATIENCE_S

pytestmark = [pytest.mark.lab, pytest.mark.alone]

NODES = 3
SECONDS = 10.0  # that are measured
# Bytes/s that a node may send while nobody has any traffic. A record that names overlay addresses made
# packets go round: megabytes a second. Up to 85 kB/s were seen while each change of a way began a search for
# what the way carries, without pause (docs/decisions/0051-path-mtu.md).
MOST = 50_000.0
MELTING = 2_000_000  # bytes at which the measuring ends at once

# The real node, which from some moment on has another idea of where it is: it signs that with its own key.
INSIDER = """
import pathlib, sys
from msgspec import structs
from phantommesh.nursery import node
from phantommesh.nursery.members import own
true, lies = own.make_record, pathlib.Path(sys.argv[1])
def said(*a, **k):
    record = true(*a, **k)
    return structs.replace(record, control=tuple(lies.read_text().split())) if lies.exists() else record
own.make_record, node.REFRESH = said, 0.5
sys.argv = ["phantommesh", "run"]
from phantommesh.cli import main
main()
"""

# It keeps quiet: whatever it sent by WireGuard would tell the others where it really is.
QUIET = "table inet quiet { chain out { type filter hook output priority 0; udp dport 51820-51840 drop; }; }"


def judged(node: LabNode) -> list[str]:
    """What a node's status has against addresses of members' records."""
    return [line for line in status_of(node).degraded if "announces an address it may not" in line]


def until_announced(node: LabNode, name: str) -> None:
    """Wait until a node holds the forged record; melting nodes answer slowly."""
    give_up = monotonic() + PATIENCE_S
    while monotonic() < give_up:
        if any(name in line for line in judged(node)):
            return
        sleep(0.2)
    raise AssertionError(f"{node.name} never took the record")


@pytest.fixture
def forger(mesh: up.LabResult, spec: LabSpec) -> Iterator[LabNode]:
    """The last node, which lies while the test runs, and is honest after."""
    node = nodes_of(spec)[-1]
    yield node
    run_inside(node.name, "nft", "delete table inet quiet")
    for each in nodes_of(spec):
        trio.run(crash, each)
        trio.run(start, each)
    trio.run(converged, nodes_of(spec), PATIENCE_S)


def become_insider(nodes: list[LabNode], node: LabNode, lies: Path) -> None:
    """Start the node anew, honest until there is a file ``lies`` with endpoints."""
    trio.run(crash, node)
    pid = trio.run(net.start, node, [sys.executable, "-c", INSIDER, str(lies)])
    pid_file(node).write_text(f"{pid}\n", encoding="ascii")
    trio.run(converged, nodes, PATIENCE_S)


def rates(nodes: list[LabNode], spec: LabSpec) -> dict[str, dict[str, float]]:
    """Bytes a second that each node sends by its uplinks and by the overlay's interfaces, over `SECONDS`."""
    overlay = (*interface_names("pm"), master_name("pm"))
    kinds = {"underlay": [f"up{i}" for i in range(spec.uplinks)], "overlay": list(overlay)}
    before = {n.name: {kind: counted(n, names) for kind, names in kinds.items()} for n in nodes}
    began = monotonic()
    while (passed := monotonic() - began) < SECONDS:
        now = {n.name: {kind: counted(n, names) for kind, names in kinds.items()} for n in nodes}
        if any(now[n][kind] - before[n][kind] > MELTING for n in now for kind in kinds):
            break
        sleep(0.3)
    now = {n.name: {kind: counted(n, names) for kind, names in kinds.items()} for n in nodes}
    passed = monotonic() - began
    return {n: {kind: (now[n][kind] - before[n][kind]) / passed for kind in kinds} for n in now}


def own_ends(node: LabNode) -> set[str]:
    """The loopback endpoints at which the node takes WireGuard's packets, to carry them in frames over TCP.

    The silent forger answers over TCP alone, so such ends are right; the kernel tells whose sockets they are.
    """
    sockets = run_inside(node.name, "ss", "-H", "-u", "-l", "-n", "-p", "src", "127.0.0.1").out.splitlines()
    mine = f"pid={pid_file(node).read_text().strip()},"
    return {line.split()[3] for line in sockets if mine in line}


def test_an_insider_at_overlay_addresses_costs_nobody_anything(
    spec: LabSpec, forger: LabNode, tmp_path: Path
) -> None:
    nodes = nodes_of(spec)
    victim, honest = nodes[:-1], nodes[:-1]
    overlay = {}
    for node in nodes:
        status = status_of(node)
        overlay[node.name] = (status.ip4, status.ip6)
    _, state = insider(forger)
    assert state.identity is not None  # it signs with its own key
    mine, theirs = overlay[forger.name], overlay[victim[0].name]
    said = [
        format_endpoint(host, port)
        for host, port in (
            *((mine[0], 51800), (theirs[0], 51800), (mine[1], 51800), (theirs[1], 51800)),
            *(("127.0.0.1", 51800), ("169.254.169.254", 80), (forger.address(0), 51800)),
        )
    ]
    try:
        become_insider(nodes, forger, lies := tmp_path / "lies")
        assert run_inside(forger.name, "nft", QUIET).status == 0
        (tmp_path / "new").write_text(" ".join(said))
        (tmp_path / "new").rename(lies)
        for node in victim:
            until_announced(node, forger.name)
        measured = rates(nodes, spec)
    except BaseException:
        trio.run(net.kill, [node.name for node in nodes])
        raise
    if any(rate >= MOST for sent in measured.values() for rate in sent.values()):
        trio.run(net.kill, [node.name for node in nodes])  # what goes round goes on by itself
    print(measured)
    for name, sent in measured.items():
        for kind, rate in sent.items():
            assert rate < MOST, f"{name} sends {rate / 1e3:.0f} kB/s by its {kind}: {measured}"
    forbidden = {"127.0.0.1", "169.254.169.254", *mine, *theirs}
    for node in honest:
        shown = run_inside(node.name, *node.inside(["wg", "show", "all", "endpoints"])[4:]).out
        endpoints = {line.split()[-1] for line in shown.splitlines()} - own_ends(node)
        assert not {each.rpartition(":")[0].strip("[]") for each in endpoints} & forbidden, shown
        assert [forger.name in line for line in judged(node)] == [True]


def test_an_operators_slip_is_refused_before_anything_starts(spec: LabSpec, mesh: up.LabResult) -> None:
    node = nodes_of(spec)[-1]
    good = node.config.read_text()
    config, _ = insider(node)
    own = status_of(node).ip4
    trio.run(crash, node)
    try:
        bad = good.replace(f'"{config.node.endpoints[0]}"', f'"{own}"')
        assert bad != good
        node.config.write_text(bad)
        done = run_inside(
            node.name, "env", *(f"{k}={v}" for k, v in node.environment().items() if k.startswith("PHANTOM")),
            sys.executable, "-m", "phantommesh", "run",
        )  # fmt: skip
        assert done.status != 0
        assert "overlay" in done.err and own in done.err and "Traceback" not in done.err
    finally:
        node.config.write_text(good)
        trio.run(start, node)
        trio.run(converged, nodes_of(spec), PATIENCE_S)


READ_HOST = """
from phantommesh.nursery.host.hostroutes import read_host
from phantommesh.reachable import Reach
reach = Reach(host=read_host())
for host in ("172.17.0.2", "fd17::2", "172.17.0.1", "172.17.255.255", "10.201.0.9", "10.66.0.9", "10.77.0.1"):
    why = reach.refuses(host, seen=False)
    print(host, "-" if why is None else why.label)
"""


def test_a_machine_knows_its_own_bridges_and_uplinks(mesh: up.LabResult, neighbour: Neighbour) -> None:
    for line in (
        "link add docker0 type bridge",
        "address add 172.17.0.1/16 broadcast 172.17.255.255 dev docker0",
        "-6 address add fd17::1/64 dev docker0 nodad",
        "link set docker0 up",
        "link add many type veth peer name other",
        "link set other up",
        "address add 10.66.0.1/24 dev many",
        "link set many up",
        f"route add default nexthop via {neighbour.address()[:-3]}1 dev up0 nexthop via 10.66.0.2 dev many",
        "route add local 10.77.0.0/24 dev lo",
    ):
        done = neighbour.run("ip", *line.split())
        assert done.status == 0, (line, done.err)
    done = neighbour.python(READ_HOST)
    found = dict(line.split() for line in done.out.splitlines())
    assert found == {
        "172.17.0.2": "host-network",
        "fd17::2": "host-network",
        "172.17.0.1": "own",
        "172.17.255.255": "broadcast",
        "10.201.0.9": "-",  # both of the default route's ways are uplinks
        "10.66.0.9": "-",
        "10.77.0.1": "own",
    }, done.err


LOOK = """
from ipaddress import ip_network
from phantommesh.nursery.host.hostroutes import read_host
from phantommesh.nursery.overlay.hostview import look
from phantommesh.reachable import Reach
view = look([ip_network("100.64.0.0/10"), ip_network("fd00::/48")], ["pm"])
print([str(taken) for taken in view.ranges], Reach(host=read_host()).refuses("203.0.113.5", seen=False))
"""


def test_the_routes_of_a_transparent_proxy_are_no_addresses_of_the_host(
    mesh: up.LabResult, neighbour: Neighbour
) -> None:
    """As Istio and others have them: marked packets are delivered here, whatever their address."""
    lines = ["rule add fwmark 1337 lookup 133"]
    for network in ("default", "0.0.0.0/1", "128.0.0.0/1"):
        lines.append(f"route add local {network} dev lo table 133")
    lines.append("-6 route add local default dev lo table 133")
    for line in lines:
        assert neighbour.run("ip", *line.split()).status == 0
    done = neighbour.python(LOOK)
    assert done.out == "[] None\n", done.err
