# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways that shrink and grow under traffic: how soon full-size packets pass again, and how long TCP stalls.

    python -m benchmarks.mtu [--rounds N] [--backend B] [--watch S] [--json] [--quick]

One node pings the other with packets as long as their interfaces take, ten a second. Four TCP flows run
beside that: one by IPv4 and one by IPv6, and one of each from a machine for which the first node forwards.
Then the way changes, step by step:

- `cable 1450`: the bridge between the nodes drops what is longer, without a word.
- `hop 1380`: a router between the nodes sends what is longer in fragments, and the next hop drops fragments.
- `uplink 1450`: the nodes' own uplinks get that MTU, and the bridge drops fragments.

A step's ``whole_s`` is the time from the change until ten pings in a row are answered, all of them included.
``lost_later`` counts those that were lost after that, ``stalls`` has the longest pause of each flow. At the
end of a step new connections show what segments both ends of a forwarded one agreed on: ``segments``, in
bytes, by IP version, the lower of those that the ends send.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from benchmarks.machine import describe
from phantommesh.config.sections import GuardSection
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of

LARGEST = 1420  # bytes, `wireguard.mtu`
PING = 0.1  # s
ROW = 10  # pings
LATE = 2.0  # s until a ping counts as lost
BEHIND = "behind0"  # the interface by which the first node forwards
WARM = 5.0  # s of traffic before the first change

# Prints each pause, its begin and its end: again and again while it lasts, for ever once the flow has ended.
SINK = """
import socket, sys, time
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)
connection, last = None, time.time()
server.settimeout(0.25)
while True:
    try:
        if connection is None:
            connection = server.accept()[0]
            connection.settimeout(0.25)
        if not connection.recv(1 << 16):
            time.sleep(0.25)
            raise TimeoutError
        now = time.time()
        if now - last > 0.1:
            print(last, now, flush=True)
        last = now
    except OSError:
        print(last, time.time(), flush=True)
"""
SOURCE = """
import itertools, socket, sys, time
connection, due = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20), time.time()
connection.settimeout(None)
while True:
    connection.sendall(bytes(10_000))
    due = max(due + 0.02, time.time() - 0.1)
    time.sleep(max(0.0, due - time.time()))
"""
# Tells who calls the size of the segments that it sends; a caller prints the lower of that and its own.
SEGMENTS = """
import socket, sys
server = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection = server.accept()[0]
    connection.sendall(str(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)).encode())
    connection.close()
"""
CALL = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
print(min(int(connection.recv(100)), connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)))
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One change: its name, and the underlay's MTU at the cables, at a router between the nodes (0: there is
    none) and at the nodes' own uplinks."""

    name: str
    cable: int = 1500
    hop: int = 0
    uplink: int = 1500


# From the top down, and at once to the bottom: a path that has shrunk once tries larger sizes after minutes
# only, so an uplink's change has it begin at the top again.
STEPS = (
    Step("cable 1450", cable=1450),
    Step("cable 1380", cable=1380),
    Step("cable 1280", cable=1280),
    Step("cable 1500"),
    Step("uplink 1450", uplink=1450),
    Step("uplink 1500"),
    Step("cable 1280 at once", cable=1280),
    Step("uplink 1380", uplink=1380),
    Step("uplink 1500"),
    Step("hop 1380", hop=1380),
    Step("uplink 1280", uplink=1280),
    Step("uplink 1500"),
)
QUICK = (STEPS[1], STEPS[3], STEPS[4])


@dataclass(slots=True)
class Found:
    """What one step showed. ``whole_s`` is None where ten pings in a row were not answered while it was
    watched; ``stalls`` is by flow, in seconds."""

    step: str
    whole_s: float | None
    lost: int
    lost_later: int
    stalls: dict[str, float] = field(default_factory=dict)
    segments: dict[int, int] = field(default_factory=dict)


def _run(command: str, script: str = "") -> None:
    subprocess.run(command.split(), input=script.encode(), check=True)


def prepare(spec: LabSpec) -> None:
    """Have fragments dropped on the way, and let a router be there: see `apply`."""
    hub, ports = f"{spec.name}-net", [f"n{node.number}u0" for node in nodes_of(spec)]
    # The first table is for a router, which makes fragments itself: only behind it can they be dropped.
    _run(
        f"ip netns exec {hub} nft -f -",
        f"""table netdev fragments {{
            chain leaving {{
                type filter hook egress devices = {{ {", ".join(ports)} }} priority 0; policy accept;
                ip frag-off & 0x3fff != 0 counter drop
            }}
        }}
        table bridge fragments {{
            chain passing {{
                type filter hook prerouting priority -400; policy accept;
                ip frag-off & 0x3fff != 0 counter drop
            }}
        }}
        """,
    )
    for port in ports:
        for name in (f"ipv4.conf.{port}.proxy_arp", f"ipv4.conf.{port}.forwarding"):
            _run(f"ip netns exec {hub} sysctl -qw net.{name}=1")


def apply(spec: LabSpec, step: Step) -> None:
    """Make the way as a step says, in as few commands as can be: while they run there may be none. A router
    answers for each node at the other's cable (proxy ARP, RFC 1027), so the nodes keep their addresses."""
    lines = list[str]()
    for node in nodes_of(spec):
        port = f"n{node.number}u0"
        lines.append(f"link set {port} mtu {step.hop or step.cable}")
        if step.hop:
            lines += [
                f"link set {port} nomaster",
                f"address replace 10.201.0.254/32 dev {port}",
                f"route replace {node.address(0)}/32 dev {port}",
            ]
        else:
            lines += [f"address flush dev {port}", f"link set {port} master seg0"]
    _run(f"ip -n {spec.name}-net -batch -", "\n".join(lines))
    for node in nodes_of(spec):
        _run(f"ip -n {node.name} -batch -", f"link set up0 mtu {step.uplink}\nneighbour flush dev up0\n")


@contextmanager
def machine_behind(spec: LabSpec, node: LabNode) -> Iterator[str]:
    """A machine for which a node forwards, under the node's own overlay address; yield its namespace."""
    name = f"{spec.name}-behind"
    _run(f"ip netns add {name}")
    try:
        _run(f"ip -n {node.name} link add {BEHIND} type veth peer name eth0 netns {name}")
        for where, device, host in ((node.name, BEHIND, 1), (name, "eth0", 2)):
            _run(f"ip -n {where} link set {device} up")
            _run(f"ip -n {where} address add 10.202.0.{host}/24 dev {device}")
            _run(f"ip -n {where} address add fd02::{host}/64 dev {device} nodad")
        _run(f"ip -n {name} route add default via 10.202.0.1")
        _run(f"ip -n {name} route add default via fd02::1")
        for switch in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            _run(f"ip netns exec {node.name} sysctl -qw net.{switch}=1")
        _run(
            f"ip netns exec {node.name} nft -f -",
            f"""table inet behind {{
                chain out {{
                    type nat hook postrouting priority srcnat; policy accept;
                    iifname "{BEHIND}" oifname "pm*" masquerade
                }}
            }}
            """,
        )
        yield name
    finally:
        subprocess.run(["ip", "-n", node.name, "link", "delete", BEHIND], check=False, capture_output=True)
        _run(f"ip netns delete {name}")


class Pings:
    """Full-size pings, from a file that ``ping -D`` writes."""

    def __init__(self, output: Path) -> None:
        found = re.findall(r"^\[([\d.]+)\].*icmp_seq=(\d+) .*time=([\d.]+) ms", output.read_text(), re.M)
        self.sent = {int(number): float(at) - float(rtt) / 1e3 for at, number, rtt in found}

    def between(self, begin: float, end: float) -> list[tuple[float, bool]]:
        """When each ping of this span was sent, and whether it was answered. Lost ones are taken to have been
        sent evenly between answered ones."""
        known = sorted(self.sent.items())
        pings = list[tuple[float, bool]]()
        for (number, at), (following, then) in pairwise(known):
            pings.append((at, True))
            gap = (then - at) / (following - number)
            pings += [(at + i * gap, False) for i in range(1, following - number)]
        pings += [(at, True) for _, at in known[-1:]]
        last = known[-1][1] if known else begin
        pings += [(last + i * PING, False) for i in range(1, max(0, int((end - last) / PING)))]
        return [(at, answered) for at, answered in pings if begin <= at < end]


def judge(step: Step, pings: Sequence[tuple[float, bool]], began: float) -> Found:
    """Find out when the first row of answered pings was whole, and what was lost before and after."""
    row, whole = 0, None
    lost = later = 0
    for at, answered in pings:
        row = row + 1 if answered else 0
        if whole is None and row == ROW:
            whole = at - began
        lost += not answered
        later += not answered and whole is not None
    return Found(step.name, whole, lost, later)


async def one_round(spec: LabSpec, steps: Sequence[Step], watch: float) -> list[Found]:
    """Run all steps once in a lab of its own."""
    found, began, segments = list[Found](), list[float](), list[dict[int, int]]()
    with TemporaryDirectory() as directory:
        files = Path(directory)
        async with up.running(spec):
            first, second = nodes_of(spec)
            status = (await view_of(second)).status
            prepare(spec)
            with machine_behind(spec, first) as behind, ExitStack() as started:

                def start(name: str, command: Sequence[str]) -> None:
                    output = started.enter_context((files / name).open("wb"))
                    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
                    started.callback(process.wait)
                    started.callback(process.kill)

                def segment(host: str) -> int:
                    # As a machine that was never told of sizes: what it heard by ICMP it keeps for minutes.
                    _run(f"ip -n {behind} route flush cache")
                    call = ["ip", "netns", "exec", behind, "python3", "-c", CALL, host, "7770"]
                    return int(subprocess.run(call, capture_output=True, text=True, check=False).stdout or 0)

                def beyond(command: Sequence[str]) -> list[str]:
                    return ["ip", "netns", "exec", behind, *command]

                inside = first.inside
                flows: dict[str, tuple[str, int, Callable[[Sequence[str]], list[str]]]] = {
                    "ip4": (status.ip4, 7771, inside),
                    "ip6": (status.ip6, 7772, inside),
                    "forwarded4": (status.ip4, 7773, beyond),
                    "forwarded6": (status.ip6, 7774, beyond),
                }
                for name, (address, port, _) in flows.items():
                    start(f"sink-{name}", second.inside(["python3", "-c", SINK, address, str(port)]))
                start("segments", second.inside(["python3", "-c", SEGMENTS, "7770"]))
                await trio.sleep(1.0)
                for name, (address, port, within) in flows.items():
                    start(f"source-{name}", within(["python3", "-c", SOURCE, address, str(port)]))
                size = str(LARGEST - 28)
                start("ping", inside(["ping", "-D", "-n", "-i", str(PING), "-s", size, status.ip4]))
                await trio.sleep(WARM)
                for step in steps:
                    began.append(time.time())
                    await trio.to_thread.run_sync(apply, spec, step)
                    await trio.sleep(watch)
                    calls = {4: status.ip4, 6: status.ip6}
                    segments.append(
                        {v: await trio.to_thread.run_sync(segment, host) for v, host in calls.items()}
                    )
                began.append(time.time())
                await trio.sleep(LATE)
        pings = Pings(files / "ping")
        for step, (begin, end), agreed in zip(steps, pairwise(began), segments, strict=True):
            one = judge(step, pings.between(begin, end), begin)
            for name in flows:
                lines = (files / f"sink-{name}").read_text().splitlines()
                gaps = [tuple(map(float, line.split())) for line in lines if re.fullmatch(r"[\d. ]+", line)]
                one.stalls[name] = max(
                    (min(last, end) - max(at, begin) for at, last in gaps if at < end and last > begin),
                    default=0.0,
                )
            one.segments = agreed
            found.append(one)
    return found


def table(rounds: Sequence[Sequence[Found]]) -> list[str]:
    """One line a step: median and worst of all rounds."""
    columns = (
        "whole after, s",
        "lost",
        "later",
        "stall ip4, s",
        "ip6, s",
        "forwarded4, s",
        "forwarded6, s",
        "segments 4, 6",
    )
    lines = [f"{'step':<20}" + "".join(f"{name:>16}" for name in columns)]
    for turn, step in enumerate(rounds[0]):
        runs = [one[turn] for one in rounds]
        whole = [run.whole_s for run in runs if run.whole_s is not None]
        never = len(runs) - len(whole)
        shown = f"{statistics.median(whole):.1f} ({max(whole):.1f})" if whole else "-"
        line = f"{step.step:<20}{shown + (f', {never} never' if never else ''):>16}"
        line += f"{max(run.lost for run in runs):>16}{max(run.lost_later for run in runs):>16}"
        for flow in step.stalls:
            stalls = [run.stalls[flow] for run in runs]
            line += f"{f'{statistics.median(stalls):.1f} ({max(stalls):.1f})':>16}"
        lines.append(line + f"{', '.join(map(str, step.segments.values())):>16}")
    return lines


def main() -> None:
    """Print one line a step, median (worst); with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mtu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="auto", choices=("auto", "kernel", "userspace"))
    parser.add_argument("--watch", type=float, default=12.0, help="seconds that each change is watched")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one round of three changes")
    given = parser.parse_args()
    steps, count = (QUICK, 1) if given.quick else (STEPS, given.rounds)
    rounds = []
    try:
        for number in range(count):
            spec = LabSpec(
                f"mtu{os.getpid()}r{number}", nodes=2, uplinks=1, backend=given.backend,
                guard=GuardSection(forward=(BEHIND,)), patience_s=600.0,
            )  # fmt: skip
            rounds.append(trio.run(one_round, spec, steps, given.watch))
    except PhantomMeshError as error:
        parser.exit(1, f"error: {error}\nfix: {error.fix}\n")
    print("\n".join(table(rounds)))
    if given.json:
        whole = [run.whole_s for found in rounds for run in found]
        stalls = [run.stalls["ip4"] for found in rounds for run in found]
        document = {
            "name": "mtu",
            "machine": describe(),
            "runs": [[asdict(run) for run in found] for found in rounds],
            "whole_s_worst": None if None in whole else max(filter(None, whole)),
            "stall_s_worst": max(stalls),
        }
        print(json.dumps(document))


if __name__ == "__main__":
    main()
