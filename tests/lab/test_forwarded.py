# SPDX-License-Identifier: GPL-3.0-or-later
"""What a router of prefixes says where the host's own rules drop what it forwards.

No mesh: the interface that scatters is a cable to a namespace that stands for a member.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.lab

LIFE = """
import sys, trio
from functools import partial
from ipaddress import ip_network
from phantommesh.config.sections import RoutesSection
from phantommesh.nursery.dataplane.gateway import GatewayDriver

async def main():
    driver = GatewayDriver(RoutesSection(), ("pm",), networks=lambda: [ip_network("100.64.0.0/10")])
    driver.offer([ip_network("192.168.50.0/24")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            driver.kick()
            await trio.sleep(1.0)
            print("faults:", *(fault.code for fault in driver.faults()), flush=True)
        nursery.cancel_scope.cancel()

trio.run(main)
"""

DROPPED = {
    "everything": "type filter hook forward priority filter; policy drop;",
    "answers": 'type filter hook forward priority filter; policy accept; oifname "pm" drop',
}


def ip(space: str, *words: str) -> None:
    subprocess.run(["ip", "-n", space, *words], check=True, capture_output=True)


@pytest.fixture
def spaces() -> Iterator[tuple[str, str]]:
    """A router and a member; what is behind the router is a third one, ``NAME-lan``."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    router, member, lan = (f"fw{os.getpid()}{which}" for which in ("", "-member", "-lan"))
    try:
        for space in (router, member, lan):
            subprocess.run(["ip", "netns", "add", space], check=True)
        for device, space, own, other in (
            ("pm", member, "100.64.0.1/10", "100.64.0.2/10"),
            ("lan0", lan, "192.168.50.1/24", "192.168.50.10/24"),
        ):
            ip(router, "link", "add", device, "type", "veth", "peer", "name", device, "netns", space)
            for end, address in ((router, own), (space, other)):
                ip(end, "address", "add", address, "dev", device)
                ip(end, "link", "set", device, "up")
        ip(member, "route", "add", "192.168.50.0/24", "via", "100.64.0.1")
        yield router, member
    finally:
        for space in (router, member, lan):
            subprocess.run(["ip", "netns", "delete", space], check=False)


@pytest.mark.parametrize("dropped", DROPPED)
def test_a_host_that_drops_what_is_forwarded_is_named(spaces: tuple[str, str], dropped: str) -> None:
    router, member = spaces

    def ping() -> bool:
        words = ["ping", "-q", "-c", "12", "-i", "0.05", "-W", "1", "192.168.50.10"]
        done = subprocess.run(["ip", "netns", "exec", member, *words], capture_output=True, check=False)
        return done.returncode == 0

    def nft(text: str) -> None:
        subprocess.run(["ip", "netns", "exec", router, "nft", "-f", "-"], input=text, text=True, check=True)

    command = ["ip", "netns", "exec", router, sys.executable, "-c", LIFE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdin is not None and node.stdout is not None
        entered, shown = node.stdin, node.stdout

        def faults() -> str:
            entered.write("\n")
            entered.flush()
            return next(line for line in shown if line.startswith("faults:")).strip()

        assert faults() == "faults:" and ping() and faults() == "faults:"
        nft(f"table ip other {{\n chain forward {{\n {DROPPED[dropped]}\n }}\n}}\n")
        assert not ping() and faults() == "faults: routes-blocked"
        nft("delete table ip other")
        assert ping() and faults() == "faults:"
        entered.close()
