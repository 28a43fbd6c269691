# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules and routes of ``mark`` mode against the real kernel: what others did to them is mended."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from phantommesh.nursery.host.marking import FIRST_TABLE
from phantommesh.nursery.host.netlink import ROUTE_PROTOCOL

pytestmark = pytest.mark.lab

SPACE = f"pmmark{os.getpid()}"
NETWORKS = {"-4": "100.64.0.0/10", "-6": "fd00:6d::/64"}
BESIDE = {"-4": "10.99.0.0/16", "-6": "fd00:6f::/64"}  # another mesh's
# Each line that comes in is one call: "converge", "fit" or "remove". Ways 1 and 2 go to the links w1 and w2.
# "beside" and "beside-gone" are calls of another node, which has the link w3 alone.
INSIDE = """
import sys, trio
from ipaddress import ip_network
from socket import if_nametoindex
from phantommesh.nursery.host import marking
from phantommesh.wireguard.device import Route
async def main():
    routes = [Route(ip_network(text), marking.METRIC) for text in sys.argv[1:]]
    names = "w1", "w2"
    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        if line == "beside\\n":
            there = [Route(ip_network(text), marking.METRIC) for text in ("10.99.0.0/16", "fd00:6f::/64")]
            await marking.converge({way: (if_nametoindex("w3"), there) for way in (2, 3)}, ["w3"])
            print("done", flush=True)
        elif line == "beside-gone\\n":
            print(await marking.remove(["w3"]), flush=True)
        elif line == "remove\\n":
            print(await marking.remove(names), flush=True)
        elif line == "fit\\n":
            fitted = [Route(route.network, marking.METRIC, 1280, 1156) for route in routes]
            short = [Route(route.network, marking.METRIC, 1216, 1156) for route in routes[1:]]
            index = if_nametoindex("w1")
            await marking.converge({1: (index, fitted), marking.SEGMENTS: (index, short)}, names)
            print("done", flush=True)
        else:
            await marking.converge({way: (if_nametoindex(f"w{way}"), routes) for way in (1, 2)}, names)
            print("done", flush=True)
trio.run(main)
"""
PRIORITY = str(FIRST_TABLE + 1)
RULE = ["priority", PRIORITY, "protocol", str(ROUTE_PROTOCOL)]
MARKED = ["fwmark", "1/0xf"]
ADDRESS = {"-4": "192.0.2.1", "-6": "2001:db8::1"}
GATEWAY = {"-4": "192.0.2.9", "-6": "2001:db8::9"}


class Space:
    """A network namespace, and a process in it that calls what is tested."""

    def __init__(self) -> None:
        inside = ["ip", "netns", "exec", SPACE, sys.executable, "-c", INSIDE, *NETWORKS.values()]
        self.process = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call(self, name: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def ip(self, *command: str) -> str:
        done = self.tried(*command)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def tried(self, *command: str) -> subprocess.CompletedProcess[str]:
        run = ["ip", "-n", SPACE, *command]
        return subprocess.run(run, capture_output=True, text=True, check=False)

    def converge(self) -> None:
        assert self.call("converge") == "done"


@pytest.fixture
def space() -> Iterator[Space]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    subprocess.run(["ip", "netns", "add", SPACE], check=True)
    try:
        for name in ("lo", "w1", "w2"):
            if name != "lo":
                subprocess.run(["ip", "-n", SPACE, "tuntap", "add", "dev", name, "mode", "tun"], check=True)
            subprocess.run(["ip", "-n", SPACE, "link", "set", name, "up"], check=True)
        made = Space()
        try:
            yield made
        finally:
            made.process.kill()
            made.process.communicate()
    finally:
        subprocess.run(["ip", "netns", "delete", SPACE], check=True)


def there(space: Space, family: str) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """The rules, by priority and order, and the routes of the marks' tables."""
    rules = json.loads(space.ip("-j", family, "rule"))
    routes = json.loads(space.ip("-j", "-N", family, "route", "show", "table", "all"))
    ours = [route for route in routes if str(route.get("table", "")).startswith("112")]
    return rules, sorted(ours, key=str)


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_rule_of_ours_with_another_content_is_mended(space: Space, family: str) -> None:
    space.converge()
    whole = there(space, family)
    table = ["table", PRIORITY]
    assert len(whole[1]) == 2
    for wrong in (
        ["fwmark", "3/0xf", *table],
        ["fwmark", "1/0xff", *table],
        ["fwmark", "1", *table],
        [*table],
        [*MARKED, "table", str(FIRST_TABLE + 2)],
        [*MARKED, "table", "main"],
        ["from", ADDRESS[family], *MARKED, *table],
        ["to", ADDRESS[family], *MARKED, *table],
        ["not", *MARKED, *table],
        ["iif", "lo", *MARKED, *table],
        ["oif", "w2", *MARKED, *table],
        ["uidrange", "1000-1000", *MARKED, *table],
        ["ipproto", "udp", "dport", "53", *MARKED, *table],
        [*MARKED, *table, "suppress_prefixlength", "0"],
        [*MARKED, "blackhole"],
        [*MARKED, "goto", "32766"],
    ):
        space.ip(family, "rule", "del", *RULE)
        space.ip(family, "rule", "add", *wrong, *RULE)
        assert there(space, family) != whole, wrong
        space.converge()
        assert there(space, family) == whole, wrong
        beside = space.tried(family, "rule", "add", *wrong, *RULE)
        # The kernel takes no rule for another that differs in being inverted alone.
        assert (beside.returncode == 0) == (wrong[0] != "not"), beside.stderr
        space.converge()
        assert there(space, family) == whole, wrong
    space.converge()
    assert there(space, family) == whole


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_rule_of_somebody_elses_stays_where_it_is(space: Space, family: str) -> None:
    """Also at the priority of one of ours that is mended."""
    foreign = ["priority", PRIORITY, "fwmark", "0x700", "table", "77", "protocol", "99"]
    space.ip(family, "rule", "add", *foreign)
    space.converge()
    space.ip(family, "rule", "del", *RULE)
    space.ip(family, "rule", "add", "fwmark", "5/0xf", "table", "main", *RULE)
    space.converge()
    rules = [rule for rule in there(space, family)[0] if rule["priority"] == FIRST_TABLE + 1]
    assert [(rule["fwmark"], rule["table"]) for rule in rules] == [("0x700", "77"), ("0x1", PRIORITY)]
    assert space.call("remove") == "True"
    assert [rule["table"] for rule in there(space, family)[0] if rule["priority"] == FIRST_TABLE + 1] == [
        "77"
    ]
    assert space.call("remove") == "False"


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_route_of_ours_with_another_content_is_mended(space: Space, family: str) -> None:
    space.converge()
    whole, network = there(space, family), NETWORKS[family]
    space.ip(family, "address", "add", ADDRESS[family], "dev", "w1")
    gateway = ["via", GATEWAY[family], "dev", "w1", "onlink"]
    ours = ["proto", str(ROUTE_PROTOCOL), "table", PRIORITY]
    for wrong in (
        [network, "dev", "w2", "metric", "1"],
        [network, "dev", "w1", "metric", "9"],
        [network, *gateway, "metric", "1"],
        [network, "dev", "w1", "src", ADDRESS[family], "metric", "1"],
        ["blackhole", network, "metric", "1"],
        ["unreachable", network, "metric", "1"],
        [network, "metric", "1", "nexthop", *gateway, "nexthop", *gateway[:3], "w2", "onlink"],
    ):
        space.ip(family, "route", "del", network, *ours)
        space.ip(family, "route", "add", *ours, *wrong)
        assert there(space, family)[1] != whole[1], wrong
        space.converge()
        assert there(space, family)[1] == whole[1], wrong


def mtu_to(space: Space, *how: str) -> int:
    """The MTU of the route that a packet would take."""
    (found,) = json.loads(space.ip("-j", "-6", "route", "get", "fd00:6d::9", *how))
    return int(found["metrics"][0]["mtu"])


def test_a_tables_routes_follow_what_its_ways_carry_and_tcp_over_ipv6_has_a_table_of_its_own(
    space: Space,
) -> None:
    space.converge()
    bare = there(space, "-6")
    assert space.call("fit") == "done"
    assert mtu_to(space, "mark", "1") == 1280 and mtu_to(space, "ipproto", "tcp") == 1216
    # What is forwarded goes by the main table, which has nothing here: Linux would forward no packet of 1280
    # bytes by a route that says less.
    forwarded = ("from", "fd00:6e::1", "iif", "w2", "ipproto", "tcp")
    assert "unreachable" in space.tried("-6", "route", "get", "fd00:6d::9", *forwarded).stderr
    whole = there(space, "-6")
    rule = ["priority", str(FIRST_TABLE + 15), "protocol", str(ROUTE_PROTOCOL)]
    space.ip("-6", "rule", "del", *rule)
    space.ip("-6", "rule", "add", "ipproto", "udp", "table", str(FIRST_TABLE + 15), *rule)
    assert space.call("fit") == "done" and there(space, "-6") == whole
    space.converge()
    assert there(space, "-6") == bare
    assert space.call("remove") == "True" and space.call("remove") == "False"


def test_two_nodes_of_one_host_share_the_tables(space: Space) -> None:
    """Each makes and removes its own routes, and the rules that the other needs stay."""
    space.ip("tuntap", "add", "dev", "w3", "mode", "tun")
    for name in ("w1", "w2", "w3"):
        space.ip("link", "set", name, "up", "alias", "phantommesh")

    def both(family: str) -> tuple[list[tuple[int, str]], list[int]]:
        rules, routes = there(space, family)
        ways = [rule["priority"] for rule in rules if str(rule.get("protocol")) == str(ROUTE_PROTOCOL)]
        found = sorted((int(str(route["table"])) - FIRST_TABLE, str(route["dst"])) for route in routes)
        return found, sorted(int(str(way)) - FIRST_TABLE for way in ways)

    for family, network in NETWORKS.items():
        mine, theirs = [(way, network) for way in (1, 2)], [(way, BESIDE[family]) for way in (2, 3)]
        for first, second in (("converge", "beside"), ("beside", "converge")):
            assert space.call(first) == space.call(second) == "done"
            assert both(family) == (sorted(mine + theirs), [1, 2, 3])
            assert space.call(first) == space.call(second) == "done"  # neither mends what is the other's
            assert both(family) == (sorted(mine + theirs), [1, 2, 3])
            assert space.call("beside-gone") == "True"
            assert both(family) == (mine, [1, 2])
            assert space.call("beside-gone") == "False"
            assert space.call("beside") == "done"
            assert space.call("remove") == "True"
            assert both(family) == (theirs, [2, 3])
            # A route of ours that leads to the other's interface is mended all the same.
            ours = ["proto", str(ROUTE_PROTOCOL), "table", PRIORITY]
            space.ip(family, "route", "add", *ours, network, "dev", "w3", "metric", "1")
            assert space.call("converge") == "done"
            assert both(family) == (sorted(mine + theirs), [1, 2, 3])
            assert space.call("remove") == space.call("beside-gone") == "True"
            assert both(family) == ([], [])
