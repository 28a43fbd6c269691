# SPDX-License-Identifier: GPL-3.0-or-later
"""FORTRESS against a flood and a scan from one machine, and against forged sources, with 20 honest members.

    python -m benchmarks.fortress [--pace DATAGRAMS_A_SECOND] [--turns N] [--json] [--quick]

Three namespaces on one segment (root is needed). The node that is attacked has its links, its control port,
its table of bans in the kernel, and FORTRESS under the council, all of them the node's own code in one
process; WireGuard and the rest of a node are left out, and a loop takes the agents' runner's place. The 20
members are 20 links in one process, each from an address of its own: one handshake after the other goes on
all the time. The attacker sends junk to the control port, and every twentieth datagram to one of WireGuard's
ports (`tests/attacks/junk.py`).

Turns: calm, the attacker under its own address, calm, the attacker under forged addresses (members', free
ones of the segment, and others), and the same datagrams to ports that nothing uses (``elsewhere``).
``banned_s`` runs from the attacker's first datagram to the ban in the kernel, ``ratio`` is the median
handshake of an attack's turns over that of the calm turns between. ``ratio_forged_to_elsewhere`` is what the
attack costs beside the work that its sender, and this machine's kernel, have with so many packets anyhow.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from itertools import islice
from pathlib import Path
from typing import Any

import structlog
import trio

from benchmarks.machine import describe
from phantommesh.acl.banrules import ARRIVED, ODD, SHED, Ports
from phantommesh.acl.bans import Ban, Shield, parse_network
from phantommesh.agents import actions
from phantommesh.agents.council import Council, Order
from phantommesh.agents.fortress import Fortress, FortressSeen, Source
from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.kem import provider
from phantommesh.link.context import Timing
from phantommesh.link.effects import Opened, PeerAuth
from phantommesh.link.machine import Links
from phantommesh.nursery.dataplane.banning import Banning
from phantommesh.nursery.due import moment
from phantommesh.nursery.members.links import LinkDriver
from phantommesh.nursery.sockets.udp import UdpPort
from phantommesh.routable import Network
from phantommesh.secret import Secret
from phantommesh.state.directory import StateDir
from phantommesh.trust.identity import Identity

MEMBERS = 20
CONTROL, WIREGUARD = 51800, 51820
UNUSED = 9, 40000  # ports where nothing listens, in place of these two
VICTIM, ATTACKER = "10.98.0.1", "10.98.0.250"
ADDRESSES = [f"10.98.0.{11 + i}" for i in range(MEMBERS)]
IDENTITIES = [Identity.from_seed(bytes([i + 1]) * 32) for i in range(MEMBERS + 1)]
WG_KEYS = [
    tuple(bytes([1 + end]) + bytes([1 + i]) * 31 for i in range(DIMENSIONS)) for end in range(MEMBERS + 1)
]
GAP = 0.04  # s between two handshakes: each member's own come 0.8 s apart, within its rate
PACE, TURNS, TURN_S, QUICK_S = 3000.0, 4, 8.0, 6.0
SETTLE = 1.0  # s of an attack's turn until its handshakes count: the ban has to come within
FORGED = (
    *(f"{address}/32" for address in ADDRESSES[:3]),
    "10.98.0.128/26",
    "198.51.100.0/24",
    "192.0.2.0/24",
)


class End:
    """The links of one end: of the node (number 0) with all members, of a member with the node."""

    def __init__(self, number: int, udp: UdpPort) -> None:
        """PSKs count as installed at once."""
        peers = range(1, MEMBERS + 1) if number == 0 else (0,)
        self.links = Links(
            node_id=IDENTITIES[number].node_id, wg_keys=WG_KEYS[number], admission=Secret(b"bench" * 8),
            kem=provider("cryptography"), random=os.urandom, now=trio.current_time(),
            timing=Timing(rotate=1e6), agree=lambda dimension, theirs: b"x" * 32,
        )  # fmt: skip
        self.opened = trio.Event()
        self.driver = LinkDriver(
            self.links, IDENTITIES[number], udp, install=self._install, opened=self._opened,
            alarmed=lambda alarm: None,
        )  # fmt: skip
        auths: dict[bytes, PeerAuth] = {IDENTITIES[i].node_id: _auth(i, number) for i in peers}
        self.driver.carry_out(self.links.set_peers(auths, trio.current_time()))

    def _install(self, peers: Sequence[bytes]) -> None:
        for peer in peers:
            now = trio.current_time()
            self.driver.carry_out(self.links.read_back(peer, ALL, [None] * DIMENSIONS, now))

    def _opened(self, _: Opened) -> None:
        self.opened.set()

    async def shake(self) -> float:
        """Start one handshake; return the seconds until ACK."""
        self.opened = trio.Event()
        began = time.perf_counter()
        now = trio.current_time()
        self.links.rotate(None, now)
        self.driver.carry_out(self.links.tick(now))
        await self.opened.wait()
        return time.perf_counter() - began


def _auth(number: int, to: int) -> PeerAuth:
    """A peer as another end knows it. Members start; the node knows where they are."""
    peer = IDENTITIES[number]
    endpoints = (Address(VICTIM, CONTROL),) if number == 0 else (Address(ADDRESSES[number - 1], CONTROL),)
    return PeerAuth(peer.node_id, peer.public_key, math.inf, WG_KEYS[number], endpoints if to else ())


class Around:
    """What the node of this rig knows of its surroundings."""

    async def refresh(self) -> None:
        """Nothing changes."""

    def ports(self) -> Ports:
        """What is protected."""
        wireguard = tuple(range(WIREGUARD, WIREGUARD + DIMENSIONS))
        return Ports("pm", ("pm0",), CONTROL, wireguard, (ip_network("10.98.0.0/24"),))

    def known(self) -> Collection[Network]:
        """The members' addresses."""
        return [ip_network(address) for address in ADDRESSES]

    def shield(self) -> Shield:
        """Members on one kind of evidence."""
        return Shield([(ip_network(VICTIM), "this host")], [(ip_network(a), "a member") for a in ADDRESSES])


async def defend() -> None:
    """The node: serve, and answer each line on standard input with one on standard output."""
    with tempfile.TemporaryDirectory() as where, UdpPort(CONTROL, hosts=("0.0.0.0",)) as udp:
        end, banning = End(0, udp), Banning(Around(), StateDir(Path(where)))
        end.links.blame_by(banning.blame)
        came: list[tuple[Ban, float]] = []
        banning.changed = lambda ban, gone, why: None if gone else came.append((ban, time.time()))
        await banning.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(udp.receive, end.driver.receive)
            nursery.start_soon(end.driver.run)
            nursery.start_soon(banning.run)
            councils = [council()]
            nursery.start_soon(agents, banning, councils)
            lines = trio.lowlevel.FdStream(os.dup(0))
            print(json.dumps("ready"), flush=True)
            async for chunk in lines:
                if b"reset" in chunk:
                    for origin in ("own", "hinted"):
                        for ban in banning.bans.of(origin):
                            await banning.unban(ban.parsed)
                    await banning.limit(None)
                    came.clear()
                    councils.append(council())
                hits = await banning.hits()
                said: dict[str, Any] = {
                    "bans": [(b.network, b.kinds, at, hits.get((b.origin, b.network), 0)) for b, at in came],
                    "shed": banning.dropped["flood-shed"],
                    "cpu": time.process_time(),
                }  # fmt: skip
                print(json.dumps(said), flush=True)
            nursery.cancel_scope.cancel()


def council() -> Council:
    """FORTRESS alone, with nothing that stands."""
    return Council([Fortress()], trace=lambda: os.urandom(4).hex(), now=trio.current_time())


async def agents(banning: Banning, councils: Sequence[Council]) -> None:
    """FORTRESS under the last of these councils, every half second and at each threat."""
    woken = trio.Event()

    def wake(_: object) -> None:
        woken.set()

    banning.told = wake
    while True:
        with trio.move_on_after(0.5):
            await woken.wait()
        woken = trio.Event()
        now, wall = moment()
        sources = [
            Source(
                seen, times=banning.bans.times(seen.block, wall),
                never=banning.shield.always(parse_network(seen.block)),
                member=banning.shield.of_member(parse_network(seen.block)),
            )
            for seen in islice(banning.offences.bound(now), 64)
            if banning.bans.get(seen.block) is None
        ]  # fmt: skip
        rates = banning.rates
        seen = FortressSeen(tuple(sources), rates[ARRIVED], rates[SHED], rates[ODD])
        sitting = councils[-1]
        look = sitting.look("fortress", seen, (), moment())()
        for order in (*sitting.looked("fortress", look, 0.0, moment()).orders, *sitting.lapse(now)):
            await _carry(banning, order)


async def _carry(banning: Banning, order: Order) -> None:
    match order.proposal.action:
        case actions.Shed(rate):
            await banning.limit(None if order.lift else rate)
        case actions.Ban(network, seconds) if not order.lift:
            kinds = [e.what.removesuffix("_count") for e in order.proposal.evidence]
            await banning.ban(parse_network(network), "own", seconds, order.proposal.why, kinds=kinds)
        case _:
            pass


async def behave() -> None:
    """The members: shake hands in turn; after each line on standard input print the seconds that each took
    since the last one, with the time at which it began."""
    async with trio.open_nursery() as nursery:
        ends = []
        for i, address in enumerate(ADDRESSES):
            udp = UdpPort(CONTROL, hosts=(address,))
            end = End(i + 1, udp)
            nursery.start_soon(udp.receive, end.driver.receive)
            nursery.start_soon(end.driver.run)
            ends.append(end)
        walls: list[tuple[float, float]] = []

        async def shaking() -> None:
            while True:
                for end in ends:
                    began, due = time.time(), trio.current_time() + GAP
                    with trio.move_on_after(5.0) as patience:
                        walls.append((began, await end.shake()))
                    if patience.cancelled_caught:
                        walls.append((began, 5.0))
                    await trio.sleep_until(due)

        nursery.start_soon(shaking)
        print(json.dumps("ready"), flush=True)
        async for _ in trio.lowlevel.FdStream(os.dup(0)):
            print(json.dumps(walls), flush=True)
            walls.clear()
        nursery.cancel_scope.cancel()


class Rig:
    """The three namespaces, and a process in two of them."""

    def __init__(self, stem: str) -> None:
        self.net, self.victim, self.honest, self.attacker = (f"{stem}{end}" for end in "nvha")

    def build(self) -> None:
        """Join them by a bridge."""
        for name in (self.net, self.victim, self.honest, self.attacker):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", self.net, "link", "add", "seg", "type", "bridge")
        _ip("-n", self.net, "link", "set", "seg", "up")
        for i, (name, addresses) in enumerate(
            ((self.victim, [VICTIM]), (self.honest, ADDRESSES), (self.attacker, [ATTACKER]))
        ):
            _ip("-n", self.net, "link", "add", f"p{i}", "type", "veth", "peer", "name", "up0", "netns", name)
            _ip("-n", self.net, "link", "set", f"p{i}", "master", "seg", "up")
            for address in addresses:
                _ip("-n", name, "address", "add", f"{address}/24", "dev", "up0")
            _ip("-n", name, "link", "set", "up0", "up")

    def destroy(self) -> None:
        """Remove them."""
        for name in (self.net, self.victim, self.honest, self.attacker):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def start(self, space: str, *words: str) -> subprocess.Popen[str]:
        """Start this module's part there."""
        return subprocess.Popen(
            ["ip", "netns", "exec", space, sys.executable, "-m", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def ask(process: subprocess.Popen[str], line: str = "") -> Any:
    """Say a line, if there is one, and read one."""
    assert process.stdin is not None and process.stdout is not None
    if line:
        print(line, file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


@contextmanager
def standing() -> Iterator[tuple[Rig, subprocess.Popen[str], subprocess.Popen[str]]]:
    """The rig with its node and its members, for as long as the block takes."""
    rig, started = Rig(f"zf{os.getpid()}"), list[subprocess.Popen[str]]()
    try:
        rig.build()
        for space, part in ((rig.victim, "defend"), (rig.honest, "behave")):
            started.append(rig.start(space, "benchmarks.fortress", "--part", part))
            if ask(started[-1]) != "ready":
                raise RuntimeError(f"{part} did not start")
        yield rig, started[0], started[1]
    finally:
        for process in started:
            process.kill()
            process.wait()
        rig.destroy()


def turn(rig: Rig, node: Any, members: Any, how: str, pace: float, seconds: float) -> dict[str, Any]:
    """One turn: calm, own, forged or elsewhere."""
    ask(node, "reset")
    time.sleep(0.5)
    before, _ = ask(node, "look"), ask(members, "look")
    sent, began = {"sent": 0}, time.time()
    if how == "calm":
        time.sleep(seconds)
    else:
        control, wireguard = UNUSED if how == "elsewhere" else (CONTROL, WIREGUARD)
        words = ["own" if how == "own" else "forged", VICTIM, *map(str, (control, wireguard, pace, seconds))]
        flood = rig.start(rig.attacker, "tests.attacks.junk", *words, *(() if how == "own" else FORGED))
        assert flood.stdout is not None
        began, sent = ask(flood)["began"], ask(flood)
        flood.wait()
    after, walls = ask(node, "look"), ask(members, "look")
    return {
        "how": how, "sent": sent["sent"],
        "walls": [took for at, took in walls if at >= began + SETTLE],
        "early": [took for at, took in walls if began <= at < began + SETTLE],
        "bans": [(network, kinds, round(at - began, 3), hits) for network, kinds, at, hits in after["bans"]],
        "shed": after["shed"] - before["shed"],
        "cpu_share": round((after["cpu"] - before["cpu"]) / seconds, 4),
    }  # fmt: skip


def measure(pace: float, turns: int, seconds: float) -> dict[str, Any]:
    """All turns, and the figures."""
    found = []
    with standing() as (rig, node, members):
        turn(rig, node, members, "calm", pace, 3.0)
        for _ in range(turns):
            found += [
                turn(rig, node, members, how, pace, seconds)
                for how in ("calm", "own", "calm", "forged", "elsewhere")
            ]
    walls = {
        how: [w for one in found if one["how"] == how for w in one["walls"]]
        for how in ("calm", "own", "forged", "elsewhere")
    }
    medians = {how: statistics.median(each) * 1e3 for how, each in walls.items()}
    own = [one for one in found if one["how"] == "own"]
    banned = [ban for one in own for ban in one["bans"]]
    return {
        "members": MEMBERS, "pace": pace, "turns": turns, "turn_s": seconds,
        "banned": sorted({network for network, *_ in banned}),
        "kinds": sorted({kind for _, kinds, *_ in banned for kind in kinds}),
        "attacks": len(own), "attacks_banned": sum(bool(one["bans"]) for one in own),
        "banned_s": [after for _, _, after, _ in banned],
        "banned_s_worst": max((after for _, _, after, _ in banned), default=None),
        "let_through_before": [one["sent"] - hits for one in own for *_, hits in one["bans"]],
        "banned_of_forged": sorted({n for one in found if one["how"] == "forged" for n, *_ in one["bans"]}),
        "forged_sent": sum(one["sent"] for one in found if one["how"] == "forged"),
        "forged_shed": sum(one["shed"] for one in found if one["how"] == "forged"),
        "handshakes": {how: len(each) for how, each in walls.items()},
        "calm_ms_median": round(medians["calm"], 3),
        "own_ms_median": round(medians["own"], 3),
        "forged_ms_median": round(medians["forged"], 3),
        "ratio": round(medians["own"] / medians["calm"], 3),
        "elsewhere_ms_median": round(medians["elsewhere"], 3),
        "ratio_forged": round(medians["forged"] / medians["calm"], 3),
        "ratio_forged_to_elsewhere": round(medians["forged"] / medians["elsewhere"], 3),
        "first_second_ms_median": round(
            statistics.median([w for one in own for w in one["early"]] or [math.nan]) * 1e3, 3
        ),
        "cpu_share": {
            how: round(statistics.mean(one["cpu_share"] for one in found if one["how"] == how), 4)
            for how in walls
        },
    }  # fmt: skip


def main() -> None:
    """Print the figures; with --json as one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fortress")
    parser.add_argument("--pace", type=float, default=PACE)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one turn of each kind, of six seconds")
    parser.add_argument("--part", choices=["defend", "behave"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part is not None:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
        trio.run(defend if given.part == "defend" else behave)
        return
    if os.geteuid() != 0:
        parser.error("this makes network namespaces: run it as root")
    turns, seconds = (1, QUICK_S) if given.quick else (given.turns, TURN_S)
    found = measure(given.pace, turns, seconds)
    document = {"name": "fortress", "machine": describe(), "runs": turns, **found}
    print(
        f"{found['attacks_banned']} of {found['attacks']} attacks banned, after {found['banned_s']} s; "
        f"handshakes {found['calm_ms_median']} ms in calm, {found['own_ms_median']} ms beside the attack "
        f"({found['ratio']}x); {found['forged_sent']} datagrams of forged sources: "
        f"{len(found['banned_of_forged'])} banned, {found['forged_shed']} shed, handshakes "
        f"{found['forged_ms_median']} ms ({found['ratio_forged']}x; {found['ratio_forged_to_elsewhere']}x "
        "of what the same datagrams to unused ports cost)"
    )
    if given.json:
        print(json.dumps(document))


if __name__ == "__main__":
    main()
