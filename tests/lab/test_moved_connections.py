# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP connections that move from one router of a network to another and back, by the guard's rules alone.

A member, two routers and a host of the network, each a namespace; cables stand for the mesh. The routers
have the guard's real rules and do not masquerade.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from phantommesh.overlay.guard import Guard, render

pytestmark = pytest.mark.lab

MEMBER, HOST = "100.64.0.1", "192.168.50.10"
OVERLAY, LAN = IPv4Network("100.64.0.0/10"), IPv4Network("192.168.50.0/24")

# Echoes each line that it gets; of "stream" it answers with a line each 50 ms until the connection ends.
SERVE = """
import socket, time
made = socket.create_server(("0.0.0.0", 9900))
print("ready", flush=True)
one = made.accept()[0]
for line in one.makefile("rb"):
    one.sendall(line)
    while line == b"stream\\n":
        time.sleep(0.05)
        one.sendall(b"more\\n")
"""

# Sends what it is told to, line by line; with an empty line it only listens for 20 lines more.
CALL = """
import socket, sys
one = socket.create_connection((sys.argv[1], 9900), timeout=20)
got = one.makefile("rb")
print("ready", flush=True)
for line in sys.stdin:
    try:
        if line.strip():
            one.sendall(line.encode())
            print(got.readline().decode().strip(), flush=True)
        else:
            print(len([got.readline() for _ in range(20)]), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


def run(space: str, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    argv = ["ip", "netns", "exec", space, *words]
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=False)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Site:
    """The namespaces, by the first letter of what they are."""

    member: str
    routers: tuple[str, str]
    lan: str

    def by(self, there: int, back: int | None = None) -> None:
        """Have packets to the network go by one router, and those to the member by the same or another."""
        back = there if back is None else back
        ip("-n", self.member, "route", "replace", str(LAN), "via", f"100.64.{there + 1}.2",
           "src", MEMBER)  # fmt: skip
        ip("-n", self.lan, "route", "replace", str(OVERLAY), "via", f"192.168.50.{back + 2}")


@pytest.fixture
def site() -> Iterator[Site]:
    """The site, with both ways by the first router."""
    name = f"mv{os.getpid() % 10000}"
    made = Site(f"{name}m", (f"{name}a", f"{name}b"), f"{name}l")
    spaces = (made.member, *made.routers, made.lan)
    try:
        for space in spaces:
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("-n", made.member, "address", "add", f"{MEMBER}/32", "dev", "lo")
        ip("-n", made.lan, "link", "add", "br0", "type", "bridge")
        ip("-n", made.lan, "link", "set", "br0", "up")
        ip("-n", made.lan, "address", "add", f"{HOST}/24", "dev", "br0")
        for number, router in enumerate(made.routers):
            ip("-n", router, "link", "add", "pm0", "type", "veth", "peer", "name", f"m{number}",
               "netns", made.member)  # fmt: skip
            ip("-n", router, "link", "add", "lan0", "type", "veth", "peer", "name", f"l{number}",
               "netns", made.lan)  # fmt: skip
            ip("-n", made.lan, "link", "set", f"l{number}", "master", "br0", "up")
            ip("-n", made.member, "address", "add", f"100.64.{number + 1}.1/30", "dev", f"m{number}")
            ip("-n", made.member, "link", "set", f"m{number}", "up")
            ip("-n", router, "address", "add", f"100.64.{number + 1}.2/30", "dev", "pm0")
            ip("-n", router, "address", "add", f"192.168.50.{number + 2}/24", "dev", "lan0")
            for device in ("pm0", "lan0"):
                ip("-n", router, "link", "set", device, "up")
            ip("-n", router, "route", "add", f"{MEMBER}/32", "via", f"100.64.{number + 1}.1")
            own = (IPv4Address(f"100.64.{number + 1}.2"), IPv6Address("fd00::1"))
            rules = render(
                Guard("pm", ("pm0",), own, (OVERLAY,), 51900, (51820,), routes=(LAN,), returns=True)
            )
            made_by = run(
                router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward && nft -f -", text=rules
            )
            assert made_by.returncode == 0, made_by.stderr
        for device in ("all", "m0", "m1"):  # packets come by both
            run(made.member, "sh", "-c", f"echo 0 > /proc/sys/net/ipv4/conf/{device}/rp_filter")
        made.by(0)
        yield made
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)


class Connection:
    """One connection from the member to the host."""

    def __init__(self, site: Site) -> None:
        self.programs = list[subprocess.Popen[str]]()
        self._start(site.lan, SERVE)
        self.caller = self._start(site.member, CALL, HOST)

    def _start(self, space: str, program: str, *words: str) -> subprocess.Popen[str]:
        argv = ["ip", "netns", "exec", space, sys.executable, "-c", program, *words]
        made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.programs.append(made)
        assert made.stdout is not None and made.stdout.readline() == "ready\n"
        return made

    def say(self, line: str) -> str:
        """Send a line and return the answer; of an empty one, the number of lines that came."""
        assert self.caller.stdin is not None and self.caller.stdout is not None
        self.caller.stdin.write(f"{line}\n")
        self.caller.stdin.flush()
        return self.caller.stdout.readline().strip()

    def end(self) -> None:
        for program in self.programs:
            program.kill()
            program.communicate()


@pytest.fixture
def connection(site: Site) -> Iterator[Connection]:
    made = Connection(site)
    yield made
    made.end()


def test_a_connection_goes_on_by_the_other_router_and_by_the_first_again(
    site: Site, connection: Connection
) -> None:
    """The first router has seen nothing of what both ends said meanwhile, and still knows the connection."""
    for router in (0, 1, 0, 1, 0):
        site.by(router)
        for number in range(3):
            assert connection.say(f"{router} {number}") == f"{router} {number}"


def test_a_connection_goes_on_where_only_the_network_speaks(site: Site, connection: Connection) -> None:
    """A download: the member has nothing to say until something comes."""
    assert connection.say("stream") == "stream"
    for router in (0, 1, 0, 1):
        site.by(1 - router, router)  # what comes meanwhile is answered by the other way
        site.by(router)
        assert connection.say("") == "20"


def test_the_network_begins_no_connection(site: Site) -> None:
    """Nor does it ping a member."""
    listen = subprocess.Popen(
        ["ip", "netns", "exec", site.member, sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True
    )
    try:
        assert listen.stdout is not None and listen.stdout.readline() == "ready\n"
        call = f"import socket; socket.create_connection(('{MEMBER}', 9900), timeout=3)"
        assert "TimeoutError" in run(site.lan, sys.executable, "-c", call).stderr
        assert run(site.lan, "ping", "-c", "1", "-W", "1", MEMBER).returncode == 1
        # From the other side all is open, so the way is there.
        assert run(site.member, "ping", "-c", "1", "-W", "1", "-I", MEMBER, HOST).returncode == 0
    finally:
        listen.kill()
        listen.communicate()
