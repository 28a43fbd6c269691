# SPDX-License-Identifier: GPL-3.0-or-later
"""Another program's check of the reverse path, as firewalld's rules have it, is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.lab

STRICT, LOOSE = "fib saddr . mark . iif oif missing", "fib saddr . mark oif missing"

RULES = """
table inet firewalld {{
  chain mangle_PREROUTING {{
    type filter hook prerouting priority mangle + 10; policy accept;
    icmpv6 type {{ nd-router-advert, nd-neighbor-solicit }} accept
    {coming}
  }}
  chain filter_FORWARD {{
    type filter hook forward priority filter + 10; policy accept;
    {forwarded}
  }}
}}
"""


LOOK = """
import trio
from ipaddress import ip_address
from phantommesh.nursery.overlay.guarding import Guarding
from phantommesh.overlay.guard import Guard

def want():
    return Guard("pm", ("pm3",), (ip_address("100.64.0.1"), ip_address("fd00::1")), (), 51800, (51820,))

async def main():
    guarding = Guarding(want)
    with trio.move_on_after(2.0):
        await guarding.run()
    print("faults:", *(fault.code for fault in guarding.faults()))

trio.run(main)
"""


@pytest.fixture
def space() -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    name = f"rv{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


def load(space: str, coming: str, forwarded: str) -> None:
    text = RULES.format(coming=coming, forwarded=forwarded)
    subprocess.run(["ip", "netns", "exec", space, "nft", "-f", "-"], input=text, text=True, check=True)


def codes(space: str) -> list[str]:
    command = ["ip", "netns", "exec", space, sys.executable, "-c", LOOK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]  # the log goes before


@pytest.mark.parametrize(
    ("coming", "forwarded", "found"),
    [
        (f"meta nfproto ipv6 {STRICT} drop", "", ["ipv6-dropped"]),
        (f"meta nfproto ipv6 {LOOSE} drop", "", []),
        ("", f"meta nfproto ipv6 {STRICT} drop", []),  # strict-forward
        ("", "", []),
    ],
    ids=["strict", "loose", "strict-forward", "no"],
)
def test_a_strict_check_of_what_comes_in_is_named(
    space: str, coming: str, forwarded: str, found: list[str]
) -> None:
    assert codes(space) == []  # firewalld is not there
    load(space, coming, forwarded)
    assert codes(space) == found
