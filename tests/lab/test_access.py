# SPDX-License-Identifier: GPL-3.0-or-later
"""Access rules in real nodes: each connection does as `acl check` says, whatever way it goes.

The first node has the rules. It serves ports itself, and publishes others of a machine behind it as container
runtimes do: by DNAT, in a table of its own, before the node's rules of the forward hook see a packet.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from phantommesh.client.http import NodeClient
from phantommesh.config.acl import RuleSection
from phantommesh.management.aclview import AclView
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged, kill, start
from phantommesh.nursery.lab.net import LabNode, nodes_of
from tests.attacks.rig import run_inside, status_of
from tests.lab import reaching
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.standing import Standing
from tests.lab.test_lab import is_gone, run_in
from tests.lab.test_node import edit
from tests.support.spaces import run

pytestmark = pytest.mark.lab

TAGS = (("data",), ("front",), ("ops",), ("front", "edge"), ("edge", "data"), ("data", "front"))
OWN, PUBLISHED = (22, 80, 8001), (9000, 9001)
HELD = 81  # of a machine behind and published, for connections that are held open
INSIDE = 80  # the port of the machine behind, for all that is published
PLENTY = 100  # datagrams of a stream, some twenty for each reload however fast those are
SETTLED_S, LOOKED_S = 1.0, 1.5  # s: a retransmission comes within the latter
FORGOTTEN_S = 5.0  # s in which the service sends again, and the entry of a reset connection has ended before
DNAT = """
table inet containers {{
  chain pre {{
    type nat hook prerouting priority dstnat;
    ip daddr {four} tcp dport {{ 9000, 9001 }} dnat ip to 172.31.7.2:80
    ip daddr {four} tcp dport 81 dnat ip to 172.31.7.2
    ip daddr {four} udp dport {{ 9000, 9001 }} dnat ip to 172.31.7.2:80
    ip6 daddr {six} tcp dport {{ 9000, 9001 }} dnat ip6 to [fd77::2]:80
    ip6 daddr {six} udp dport {{ 9000, 9001 }} dnat ip6 to [fd77::2]:80
    ip6 daddr {six} tcp dport 81 dnat ip6 to fd77::2
  }}
  chain post {{
    type nat hook postrouting priority srcnat;
    ip saddr 172.31.7.0/24 oifname != dock0 masquerade
    ip6 saddr fd77::/64 oifname != dock0 masquerade
  }}
}}
"""


@contextmanager
def started(space: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program of `reaching` in a namespace, once it is ready."""
    argv = ["ip", "netns", "exec", space, sys.executable, "-m", "tests.lab.reaching", *words]
    program = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    try:
        assert program.stdout is not None and program.stdout.readline() == "ready\n"
        yield program
    finally:
        program.kill()
        program.communicate()


def tried(node: LabNode, wanted: Iterable[tuple[str, str, int]]) -> list[bool]:
    """Which of these a node gets an answer from."""
    argv = ["ip", "netns", "exec", node.name, sys.executable, "-m", "tests.lab.reaching", "try"]
    done = subprocess.run(
        argv, input=json.dumps(list(wanted)), capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    found: list[bool] = json.loads(done.stdout)
    return found


def eventually(met: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def rules_of(node: LabNode) -> AclView:
    return NodeClient(node.socket, timeout=30.0).acl()


def ruled(node: LabNode, default: str, *rules: RuleSection) -> None:
    """Have a node run with these rules, by its file and SIGHUP."""
    edit(node.config, acl={"default": default, "rule": rules})
    kill(node, signal.SIGHUP)
    wanted = [rule.name for rule in rules]

    def there() -> bool:
        found = rules_of(node)
        mine = [rule.name for rule in found.rules if not rule.builtin]
        return (found.default, mine, found.held) == (default, wanted, True)

    eventually(there, "the rules are not taken over")


@contextmanager
def machine_behind(node: LabNode) -> Iterator[str]:
    """A namespace behind a node's interface ``dock0``, whose ports the host publishes as 9000 and 9001."""
    space, status = f"{node.name}-dock", status_of(node)
    subprocess.run(["ip", "netns", "add", space], check=True)
    try:
        link = ["ip", "-n", node.name, "link", "add", "dock0", "type", "veth"]
        subprocess.run([*link, "peer", "name", "eth0", "netns", space], check=True)
        for where, device, last in ((node.name, "dock0", "1"), (space, "eth0", "2")):
            run(where, "ip", "address", "add", f"172.31.7.{last}/24", "dev", device)
            run(where, "ip", "address", "add", f"fd77::{last}/64", "dev", device, "nodad")
            run(where, "ip", "link", "set", device, "up")
        run(space, "ip", "link", "set", "lo", "up")
        run(space, "ip", "route", "add", "default", "via", "172.31.7.1")
        run(space, "ip", "-6", "route", "add", "default", "via", "fd77::1")
        run(node.name, "nft", "-f", "-", script=DNAT.format(four=status.ip4, six=status.ip6))
        run(node.name, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield space
    finally:
        for name in subprocess.run(
            ["ip", "netns", "pids", space], capture_output=True, text=True, check=False
        ).stdout.split():
            subprocess.run(["kill", "-9", name], check=False)
        subprocess.run(["ip", "netns", "delete", space], check=False)
        run_inside(node.name, "nft", "delete", "table", "inet", "containers")


def again(node: LabNode) -> None:
    """Stop a node as a service manager does, and start it."""
    kill(node, signal.SIGTERM)
    eventually(lambda: is_gone(node), "it does not stop")
    trio.run(start, node)


@pytest.fixture(scope="module")
def serving(standing: Standing) -> Iterator[list[LabNode]]:
    """Six nodes of four tags, the first of which serves, and publishes what a machine behind it serves."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    standing.down()
    spec = dataclasses.replace(make_spec("x", nodes=6, uplinks=1), tags=TAGS)
    trio.run(up.up, spec)
    try:
        nodes = nodes_of(spec)
        server = nodes[0]
        with machine_behind(server) as space:
            edit(server.config, guard={"forward": ("dock0",)})
            again(server)
            trio.run(converged, nodes, PATIENCE_S)
            with started(server.name, "serve", *map(str, OWN)), started(space, "serve", str(INSIDE)):
                yield nodes
    finally:
        trio.run(partial(up.down, spec.name))


def addresses(node: LabNode) -> tuple[str, str]:
    status = status_of(node)
    return status.ip4, status.ip6


def matrix(nodes: Sequence[LabNode]) -> dict[tuple[str, int, str, int], tuple[bool, bool]]:
    """Each cell by source, family, protocol and port: what `acl check` says, and what is."""
    server, *others = nodes
    ends, client = addresses(server), NodeClient(server.socket, timeout=30.0)
    cells = [
        (family, protocol, port)
        for family in (4, 6)
        for protocol in (reaching.TCP, reaching.UDP)
        for port in (*OWN, *PUBLISHED)
    ]
    found = {}
    for node in others:
        came = tried(node, [(ends[family == 6], protocol, port) for family, protocol, port in cells])
        for (family, protocol, port), answered in zip(cells, came, strict=True):
            said = client.acl_check(node.name, server.name, f"{port}/{protocol}", family=family)
            found[node.name, family, protocol, port] = said.allowed, answered
    return found


def test_each_cell_is_as_acl_check_says(serving: list[LabNode]) -> None:
    three = server, one, two = serving[:3]
    everything = matrix(three)
    assert set(everything.values()) == {(True, True)}, everything  # without rules all passes
    assert "phantommesh_acl_pm" not in run_in(server, "nft", "list", "tables")
    ruled(
        server, "deny",
        RuleSection("ssh", source=(one.name,), protocol="tcp", ports=(22,)),
        RuleSection("no-web", action="deny", source=(two.name,), target=(server.name,), ports=(80,)),
        RuleSection("web", target=(server.name,), ports=("80-8001",), protocol="tcp"),
        RuleSection("published", source=(two.name,), ports=(9000,)),
    )  # fmt: skip
    found = matrix(three)
    assert {cell: said for cell, (said, _) in found.items()} == {
        cell: answered for cell, (_, answered) in found.items()
    }
    open_ = {cell[0:1] + cell[2:] for cell, (said, _) in found.items() if said}
    assert open_ == {
        (one.name, "tcp", 22), (one.name, "tcp", 80), (one.name, "tcp", 8001),
        (two.name, "tcp", 8001), (two.name, "tcp", 9000), (two.name, "udp", 9000),
    }  # fmt: skip
    for node in (one, two):
        for family, address in zip("46", addresses(server), strict=True):
            assert run_inside(node.name, "ping", f"-{family}", "-c", "1", "-W", "5", address).status == 0
    counts = {rule.name: rule.packets for rule in rules_of(server).rules}
    assert counts["ssh"] and counts["no-web"] and counts["published"] and counts["(default)"]
    # What the server begins itself is answered.
    for node in (one, two):
        with started(node.name, "serve", "7001"):
            ends = addresses(node)
            assert tried(server, [(end, how, 7001) for end in ends for how in ("tcp", "udp")]) == 4 * [True]
    # The nodes go on measuring each other.
    eventually(
        lambda: not [fault for fault in status_of(server).faults if fault.severity != "low"],
        "the rules close what the mesh itself needs",
    )


def test_a_reload_drops_no_allowed_packet_and_passes_no_denied_one(serving: list[LabNode]) -> None:
    server, one = serving[:2]
    ssh = RuleSection("ssh", source=(one.name,), ports=(22,))
    ruled(server, "deny", ssh)
    with started(one.name, "stream", addresses(server)[0], "22", "80") as streaming:
        for number in range(5):
            ruled(server, "deny", ssh, RuleSection(f"more-{number}", ports=(8001,)))
        out, _ = streaming.communicate(input="", timeout=60.0)
    counted = json.loads(out)
    sent, came = counted["22"]
    assert sent > PLENTY and came == sent, counted
    assert counted["80"][0] > PLENTY and counted["80"][1] == 0, counted


def test_a_connection_that_is_open_ends_with_its_rule(serving: list[LabNode]) -> None:
    server, one = serving[:2]
    ruled(server, "deny", RuleSection("ssh", ports=(22,)))
    with started(one.name, "stream", addresses(server)[0], "22") as streaming:
        before = rules_of(server).denied or 0
        time.sleep(1.0)
        assert (rules_of(server).denied or 0) - before < 10
        ruled(server, "deny")
        allowed = next(one for one in rules_of(server).rules if one.name == "(default)").packets or 0
        eventually(lambda: (rules_of(server).denied or 0) > allowed + 20, "it goes on")
        out, _ = streaming.communicate(input="", timeout=60.0)
    sent, came = json.loads(out)["22"]
    assert 0 < came < sent


def came(program: subprocess.Popen[str], *, say: str = "?") -> int:
    """How many bytes have come to a program that holds a connection."""
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write(f"{say}\n")
    program.stdin.flush()
    return int(program.stdout.readline())


def go_on(*programs: subprocess.Popen[str]) -> list[bool]:
    """Whether more comes to each, once what was under way has come."""
    time.sleep(SETTLED_S)
    before = list(map(came, programs))
    time.sleep(LOOKED_S)
    return [came(program) > had for program, had in zip(programs, before, strict=True)]


def test_connections_that_stood_before_the_first_rule_are_told_apart(serving: list[LabNode]) -> None:
    """The first rule that denies ends what others had begun with this node, and nothing that it began."""
    node, peer = serving[2], serving[1]
    ruled(node, "allow")
    with ExitStack() as stack:
        service = stack.enter_context(started(node.name, "hold", "7100"))
        theirs = stack.enter_context(started(peer.name, "hold", "7101"))
        for end in addresses(node):
            stack.enter_context(started(peer.name, "call", end, "7100"))
        mine = [
            stack.enter_context(started(node.name, how, end, "7101"))
            for end in addresses(peer)
            for how in ("call", "listen")
        ]
        assert all(go_on(service, theirs, *mine))
        ruled(node, "deny")
        assert go_on(service) == [False]
        assert all(go_on(theirs, *mine))
        ruled(node, "deny", RuleSection("more", ports=(8001,)))  # another table
        assert go_on(service) == [False]
        assert all(go_on(theirs, *mine))
        ruled(node, "allow")
        eventually(lambda: all(go_on(service)), "they do not go on")


def test_a_denied_connection_that_the_kernel_has_forgotten_stays_denied(serving: list[LabNode]) -> None:
    """A reset or a pause has it forgotten, and then the service is the first to send."""
    entry = "net.netfilter.nf_conntrack_tcp_timeout_close"
    server, peer = serving[:2]
    allowed = RuleSection("held", source=(peer.name,), protocol="tcp", ports=(HELD, 7102))
    ruled(server, "deny", allowed)
    with ExitStack() as stack:
        services = [
            stack.enter_context(started(server.name, "hold", "7102")),
            stack.enter_context(started(f"{server.name}-dock", "hold", str(HELD))),
        ]
        callers = [
            stack.enter_context(started(peer.name, "call", end, str(port)))
            for end in addresses(server)
            for port in (7102, HELD)
        ]
        stack.enter_context(started(peer.name, "hold", "7103"))
        mine = [stack.enter_context(started(server.name, "call", end, "7103")) for end in addresses(peer)]
        assert all(go_on(*services, *mine))
        ruled(server, "deny")
        assert not any(go_on(*services))
        before = run_inside(server.name, "sysctl", "-n", entry).out.strip()
        run(server.name, "sysctl", "-qw", f"{entry}=1")
        for caller in callers[:2]:  # those of IPv4
            came(caller, say="reset")
        time.sleep(FORGOTTEN_S)
        assert not any(go_on(*services))
        run(server.name, "sysctl", "-qw", f"{entry}={before}")
        assert run_inside(server.name, sys.executable, "-m", "tests.lab.reaching", "forget").status == 0
        time.sleep(FORGOTTEN_S)
        assert not any(go_on(*services))
        assert all(go_on(*mine))


def test_what_somebody_flushed_is_there_again(serving: list[LabNode]) -> None:
    server, one = serving[:2]
    ruled(server, "deny")
    run_in(server, "nft", "delete", "table", "inet", "phantommesh_acl_pm")
    eventually(lambda: "phantommesh_acl_pm" in run_in(server, "nft", "list", "tables"), "it stays away")
    assert tried(one, [(addresses(server)[0], "tcp", 22)]) == [False]
    ruled(server, "allow")
    eventually(lambda: "phantommesh_acl_pm" not in run_in(server, "nft", "list", "tables"), "it stays")


def test_a_matrix_of_nodes_tags_and_ports_is_as_acl_check_says(serving: list[LabNode]) -> None:
    server, last = serving[0], serving[-1]
    assert {one.name: one.tags for one in rules_of(server).members} == {
        node.name: sorted(tags) for node, tags in zip(serving, TAGS, strict=True)
    }
    ruled(
        server, "deny",
        RuleSection("ops", source=("tag:ops",), protocol="tcp", ports=(22, 8001)),
        RuleSection("no-data", action="deny", source=("tag:data",), ports=(80,)),
        RuleSection("edge", source=("tag:edge",), target=("tag:data",), ports=(80, 9000)),
        RuleSection("front", source=("tag:front",), protocol="tcp", ports=(9001,)),
        RuleSection("last", source=(last.name,), protocol="udp", ports=("8000-9000",)),
    )  # fmt: skip
    found = matrix(serving)
    assert len(found) == 5 * 2 * 2 * len(OWN + PUBLISHED)
    wrong = {cell: both for cell, both in found.items() if both[0] != both[1]}
    assert not wrong
    by_name = {node.name: number for number, node in enumerate(serving, 1)}
    assert {(by_name[name], how, port) for (name, _, how, port), (said, _) in found.items() if said} == {
        (2, "tcp", 9001),
        (3, "tcp", 22), (3, "tcp", 8001),
        (4, "tcp", 80), (4, "udp", 80), (4, "tcp", 9000), (4, "udp", 9000), (4, "tcp", 9001),
        (5, "tcp", 9000), (5, "udp", 9000),
        (6, "tcp", 9001), (6, "udp", 8001), (6, "udp", 9000),
    }  # fmt: skip
