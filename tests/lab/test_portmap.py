# SPDX-License-Identifier: GPL-3.0-or-later
"""Port mapping against a real gateway: miniupnpd, with the rules of nftables, in a namespace.

miniupnpd opens no port where its own address is one of RFC 1918 or of documentation's networks, as a gateway
behind another NAT has. So the gateway has a public one, which its namespace keeps to itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import trio

from phantommesh.client.http import NodeClient
from phantommesh.management.netview import NetCheck
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import answering, kill
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.underlay import Underlay, parse_nat
from tests.attacks.rig import run_inside, status_of
from tests.lab.conftest import BACKEND, NAME, PATIENCE_S
from tests.lab.test_lab import is_gone, until

pytestmark = [pytest.mark.lab, pytest.mark.alone]

PUBLIC = "25.0.0.1"
PORTS = {("udp", 51800), ("tcp", 51800), *(("udp", 51820 + i) for i in range(7))}
# The router's rules of the lab let in nothing that was not asked for; these let in what miniupnpd has mapped.
RULES = """
flush ruleset
table inet filter {
    chain quiet { type filter hook input priority filter; policy accept; }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "l0" accept
        jump miniupnpd
    }
    chain miniupnpd {}
    chain prerouting { type nat hook prerouting priority dstnat; policy accept; jump prerouting_miniupnpd; }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        jump postrouting_miniupnpd
        oifname "w0" masquerade
    }
    chain prerouting_miniupnpd {}
    chain postrouting_miniupnpd {}
}
"""
SETTINGS = """
ext_ifname=w0
ext_ip=25.0.0.1
listening_ip=l0
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
system_uptime=no
min_lifetime=1
uuid=00000000-0000-0000-0000-000000000001
"""
CHAINS = ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd")
FORGET = "".join(f"flush chain inet filter {chain}\n" for chain in CHAINS)


def inside(namespace: str, *command: str) -> str:
    done = run_inside(namespace, *command)
    assert done.status == 0, done.err
    return done.out


@dataclass
class Gateway:
    """A router's namespace with miniupnpd in it."""

    namespace: str
    program: str
    folder: Path
    daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        settings = self.folder / "settings"
        settings.write_text(SETTINGS, encoding="ascii")
        command = [self.program, "-d", "-P", str(self.folder / "pid"), "-f", str(settings)]
        with (self.folder / "log").open("ab") as log:
            self.daemon = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command], stdout=log, stderr=log
            )

    def stop(self) -> None:
        """End it, and forget all mappings."""
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon = None
        self.rules(FORGET)

    def rules(self, text: str) -> None:
        """Have nftables take these lines."""
        path = self.folder / "rules"
        path.write_text(text, encoding="ascii")
        inside(self.namespace, "nft", "-f", str(path))

    @property
    def mapped(self) -> set[tuple[str, int]]:
        """The external ports that are forwarded, by the kernel's word."""
        out = inside(self.namespace, "nft", "-j", "list", "chain", "inet", "filter", "prerouting_miniupnpd")
        found = set()
        for entry in msgspec.json.decode(out)["nftables"]:
            matched = [one["match"] for one in entry.get("rule", {}).get("expr", ()) if "match" in one]
            right = {one["left"].get("payload", {}).get("field", "protocol"): one["right"] for one in matched}
            if "dport" in right:
                found.add(({17: "udp", 6: "tcp"}[right["protocol"]], right["dport"]))
        return found


@contextmanager
def gateway_in(namespace: str, folder: Path) -> Iterator[Gateway]:
    """A gateway in a router's namespace, with a public address."""
    program = shutil.which("miniupnpd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "miniupnpd is missing: run `make setup`"
    made = Gateway(namespace, program, folder)
    made.rules(RULES)
    inside(namespace, "ip", "address", "add", f"{PUBLIC}/32", "dev", "w0")
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def host_in(namespace: str) -> Iterator[list[str]]:
    """The driver alone in a node's namespace: the lines that it prints."""
    lines = list[str]()
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-m", "tests.lab.mapped"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    out = process.stdout
    reader = threading.Thread(target=lambda: lines.extend(iter(out.readline, "")))
    reader.start()
    try:
        yield lines
    finally:
        process.stdin.close()
        assert process.wait(30) == 0
        reader.join()
        out.close()


def netcheck(node: LabNode) -> NetCheck:
    return msgspec.json.decode(NodeClient(node.socket).request("GET", "/v1/netcheck"), type=NetCheck)


def send(namespace: str, text: str) -> None:
    """Send a datagram from outside to the control port as it is mapped."""
    script = "import socket,sys; socket.socket(2, 2).sendto(sys.argv[1].encode(), (sys.argv[2], 51800))"
    inside(namespace, sys.executable, "-c", script, text, PUBLIC)


async def test_a_gateway_maps_a_nodes_ports(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    underlay = Underlay(nat=parse_nat("preserve-drop"))
    spec = LabSpec(f"{NAME}m", nodes=2, uplinks=1, backend=BACKEND, patience_s=PATIENCE_S, underlay=underlay)
    (router,) = spec.routers
    outside, node = nodes_of(spec)
    async with up.running(spec, pairs=False):
        with gateway_in(router.namespace, tmp_path) as gateway:
            await _a_node(gateway, node)
            inside(outside.name, "ip", "route", "add", PUBLIC, "via", node.address(0))
            await _by_pcp(gateway, node, outside)
            await _by_nat_pmp(gateway, node, outside)
            await _by_upnp(gateway, node, outside)


async def _a_node(gateway: Gateway, node: LabNode) -> None:
    """A whole node hears of the gateway when it starts, starts again, and gives the ports back."""
    gateway.start()
    await until(lambda: gateway.mapped == PORTS)
    await answering(node, PATIENCE_S)
    whole = [("mapped", "pcp", f"{PUBLIC}:51800", len(PORTS))]
    await until(
        lambda: (
            [(one.state, one.method, one.endpoint, one.ports) for one in netcheck(node).portmap.gateways]
            == whole
        )
    )
    await until(
        lambda: (
            ("mapped", f"{PUBLIC}:51800")
            in {(one.found, one.endpoint) for one in status_of(node).whereabouts.candidates}
        )
    )
    gateway.stop()
    gateway.start()
    await until(lambda: gateway.mapped == PORTS)
    kill(node, signal.SIGTERM)
    await until(lambda: is_gone(node))
    await until(lambda: not gateway.mapped)


async def _by_pcp(gateway: Gateway, node: LabNode, outside: LabNode) -> None:
    """Mapped, reached from outside, renewed."""
    with host_in(node.name) as lines:
        await _reached(gateway, outside, lines, "pcp")
        await trio.sleep(4.5)  # each mapping lasts 4 s: those that are there now were renewed
        await until(lambda: gateway.mapped == PORTS)
    gateway.stop()


async def _by_nat_pmp(gateway: Gateway, node: LabNode, outside: LabNode) -> None:
    """A gateway that hears NAT-PMP only, which begins with a 0."""
    gateway.rules("add rule inet filter quiet udp dport 5351 @th,64,8 2 drop")
    gateway.start()
    with host_in(node.name) as lines:
        await _reached(gateway, outside, lines, "nat-pmp")
        gateway.stop()
        gateway.start()
        await until(lambda: gateway.mapped == PORTS)
    await until(lambda: not gateway.mapped)
    gateway.stop()


async def _by_upnp(gateway: Gateway, node: LabNode, outside: LabNode) -> None:
    """A gateway that hears UPnP only."""
    gateway.rules("add rule inet filter quiet udp dport 5351 drop")
    gateway.start()
    with host_in(node.name) as lines:
        await _reached(gateway, outside, lines, "upnp")
    await until(lambda: not gateway.mapped)


async def _reached(gateway: Gateway, outside: LabNode, lines: list[str], method: str) -> None:
    """All ports are mapped by this protocol, and a datagram from outside comes in."""
    await until(lambda: f"192.168.0.254 {method} 9/9 51800 None\n" in lines)
    assert gateway.mapped == PORTS
    send(outside.name, method)
    await until(lambda: f"heard {method}\n" in lines)
