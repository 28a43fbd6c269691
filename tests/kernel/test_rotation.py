# SPDX-License-Identifier: GPL-3.0-or-later
"""What the link relies on: WireGuard keeps a live session while the two ends' PSKs differ for a while.

A rotation starts 90 s after a WireGuard handshake, as the link schedules it; one end follows the other
``skew`` seconds later. WireGuard asks for a new session at 120 s and gives up the old one at 180 s. Ends that
are close to each other rotate every few seconds. A ping every 10 ms runs all the time.
"""

import base64
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import trio

from phantommesh.nursery.host.kernel import kernel_has_wireguard
from phantommesh.nursery.lab.mesh import answered
from phantommesh.nursery.lab.ping import Flow, open_traffic

pytestmark = pytest.mark.kernel

SKEWS = (0, 2, 20, 60)
PING_EVERY_S = 0.01
ROTATE_AFTER_S = 90.0  # after a handshake: phantommesh.config.reading's rotate_seconds
EVERY_S = (
    7.0  # between two rotations where the skew is small; no multiple of the 5 s at which WireGuard retries
)
SETTLE_S = 20.0  # for the handshake after the last rotation: WireGuard retries every 5 s
PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two namespaces with one WireGuard each, keys and PSKs as text."""

    skew: int
    names: tuple[str, str]
    private: tuple[str, str]
    public: tuple[str, str]

    def run(self, end: int, *command: str, stdin: str = "") -> str:
        argv = ["ip", "netns", "exec", self.names[end], *command]
        return subprocess.run(argv, input=stdin, check=True, capture_output=True, text=True).stdout

    def set_psk(self, end: int, psk: str) -> None:
        self.run(
            end, "wg", "set", "wg0", "peer", self.public[1 - end], "preshared-key", "/dev/stdin", stdin=psk
        )

    def last_handshake(self) -> int:
        return int(self.run(0, "wg", "show", "wg0", "latest-handshakes").split()[1])


def make_pair(skew: int) -> Pair:
    def wg(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(["wg", *arguments], input=stdin, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    names = (f"k{os.getpid()}-{skew}a", f"k{os.getpid()}-{skew}b")
    private = (wg("genkey"), wg("genkey"))
    pair = Pair(skew, names, private, (wg("pubkey", stdin=private[0]), wg("pubkey", stdin=private[1])))
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    pair.run(0, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", names[1])
    psk = make_psk()
    for end in (0, 1):
        for line in (
            "link set lo up",
            f"address add 10.202.0.{end + 1}/24 dev up0",
            "link set up0 up",
            "link add wg0 type wireguard",
            f"address add 10.203.0.{end + 1}/24 dev wg0",
            "link set wg0 mtu 1420 up",
        ):
            pair.run(end, "ip", *line.split())
        peer = f"peer {pair.public[1 - end]} endpoint 10.202.0.{2 - end}:51820 allowed-ips 10.203.0.0/24"
        settings = f"wg set wg0 listen-port 51820 private-key /dev/stdin {peer}".split()
        pair.run(end, *settings, stdin=private[end])
        pair.set_psk(end, psk)
    return pair


def make_psk() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode("ascii")


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    if not kernel_has_wireguard():
        pytest.skip("this kernel has no WireGuard; run `make test-kernel`")
    made = []
    try:
        for skew in SKEWS:
            made.append(make_pair(skew))
        yield made
    finally:
        for name in (f"k{os.getpid()}-{skew}{end}" for skew in SKEWS for end in "ab"):
            subprocess.run(["ip", "netns", "delete", name], check=False)


async def rotate(pair: Pair) -> None:
    """Rotate for one life of a session: as often as the skew allows before WireGuard would go dark."""
    await trio.sleep(0 if pair.skew < EVERY_S else ROTATE_AFTER_S)
    for _ in range(int((ROTATE_AFTER_S + 60.0) // EVERY_S) if pair.skew < EVERY_S else 1):
        psk = make_psk()
        await trio.to_thread.run_sync(pair.set_psk, 0, psk)
        await trio.sleep(pair.skew)
        await trio.to_thread.run_sync(pair.set_psk, 1, psk)
        await trio.sleep(max(EVERY_S - pair.skew, 0))
    await trio.sleep(SETTLE_S)


async def test_skewed_rotation_loses_no_packet_of_a_live_session(pairs: list[Pair]) -> None:
    flows = [Flow(pair.names[0], pair.names[1], "10.203.0.2") for pair in pairs]
    async with open_traffic(flows, PING_EVERY_S) as traffic:
        await answered(traffic, -1.0, PATIENCE_S)
        await traffic.settle()
        for flow in flows:  # what was sent before there was a session is not what this is about
            flow.sent = flow.received = 0
        before = [await trio.to_thread.run_sync(pair.last_handshake) for pair in pairs]
        traffic.resume()
        async with trio.open_nursery() as nursery:
            for pair in pairs:
                nursery.start_soon(partial(rotate, pair))
        await traffic.settle(10.0)
        after = [await trio.to_thread.run_sync(pair.last_handshake) for pair in pairs]
    # Each went through a handshake with a rotated PSK, so nothing here lived on the first session alone.
    assert all(new > old for new, old in zip(after, before, strict=True))
    assert {
        pair.skew: flow.sent - flow.received for pair, flow in zip(pairs, flows, strict=True)
    } == dict.fromkeys(SKEWS, 0)
