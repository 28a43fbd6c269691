# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets told by the cgroup of their socket, by the real kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio

from phantommesh.config.sections import IntentSection
from phantommesh.nursery.dataplane.cgroups import CgroupMarks
from phantommesh.nursery.host import cgroups as host
from phantommesh.nursery.host.nft import Table
from phantommesh.scatter.epochs import EQUAL, Keying, Numbers, PeerScatter
from phantommesh.scatter.goals import SCHEDULES
from phantommesh.scatter.intents import Intents
from phantommesh.scatter.peermap import read_hits
from phantommesh.scatter.ruleset import FAMILY, HITS, Hook, render, ways
from phantommesh.secret import Secret
from tests.support.spaces import run, spaces, within
from tests.unit.scatter.test_plan import FRAME, at, peer

pytestmark = pytest.mark.lab

SPACE, TOP = "pm-cgroups", f"pm-test-{os.getpid()}"
DEEP = rf"{TOP}/made\x2danew.service"  # as systemd writes a name with a hyphen
INTENTS = (
    IntentSection("ports", "order", protocol="udp", ports=(9,), cgroup=TOP),
    IntentSection("deep", "order", cgroup=DEEP),
    IntentSection("all", "order", cgroup=TOP),
)
# Sends argv[3] datagrams to argv[1]:argv[2] from the cgroup of the path argv[4].
SEND = """
import os, pathlib, socket, sys
if sys.argv[4]:
    pathlib.Path(sys.argv[4], "cgroup.procs").write_text(str(os.getpid()))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    for _ in range(int(sys.argv[3])):
        out.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trio's worker threads may be those of an earlier test, and so in another namespace."""

    async def run_sync(act: Callable[..., object], *args: object, **_: object) -> object:
        await trio.lowlevel.checkpoint()
        return act(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.fixture
def top() -> Iterator[Path]:
    mounted = host.mount()
    if mounted is None:
        pytest.skip("this machine has no cgroups of version 2")
    path = host.ROOT / f"{mounted}{TOP}"
    path.mkdir()
    yield path
    for one in (*path.glob("*.service"), path):
        one.rmdir()


def send(packets: int, port: int, cgroup: Path | None) -> None:
    """From a process of its own: whoever is in a cgroup keeps that from being removed."""
    command = ["nsenter", f"--net=/run/netns/{SPACE}", sys.executable, "-c", SEND]
    where = "" if cgroup is None else str(cgroup)
    subprocess.run([*command, str(peer(2).ip4), str(port), str(packets), where], check=True)


def sent(hook: Hook) -> list[int]:
    """The packets so far by class, the rest first."""
    counters = within(SPACE, partial(trio.run, Table(FAMILY[hook], FRAME.table).counters, HITS))
    return [sum(read_hits(counters, 4, 1, number).packets) for number in range(4)]


def grown(hook: Hook, *calls: tuple[int, int, Path | None]) -> list[int]:
    before = sent(hook)
    for call in calls:
        send(*call)
    return [b - a for a, b in zip(before, sent(hook), strict=True)]


def looked(marks: CgroupMarks) -> None:
    within(SPACE, partial(trio.run, marks.look))


def scatter(hook: Hook, interface: str) -> str:
    found = PeerScatter(
        b"n" * 16, 4, (peer(2).ip4, peer(2).ip6), SCHEDULES["throughput"], 8, Numbers(),
        Intents(INTENTS).classes("db"),
    )  # fmt: skip
    made = found.open(Keying(1, Secret(b"1" * 32)), EQUAL, at(0.0))
    frame = FRAME.__class__(hook, *(getattr(FRAME, name) for name in FRAME.__slots__[1:]))
    index = int(run(SPACE, "cat", f"/sys/class/net/{interface}/ifindex"))
    return render(frame, ways([index] * 7), [made])


@pytest.mark.parametrize("hook", ["egress", "mark"])
def test_a_packet_is_of_the_class_of_its_cgroup_also_when_that_is_made_anew(hook: Hook, top: Path) -> None:
    paths: Sequence[str] = Intents(INTENTS).cgroups
    marks = CgroupMarks(FRAME.device, lambda: paths)
    with spaces([SPACE]):
        ip = partial(run, SPACE, "ip")
        ip("link", "add", FRAME.device, "type", "veth", "peer", "name", "out")
        for name in (FRAME.device, "out"):
            ip("link", "set", name, "up")
        ip("address", "add", f"{FRAME.own[0]}/32", "dev", FRAME.device)
        ip("route", "add", str(FRAME.networks[0]), "dev", FRAME.device, "src", str(FRAME.own[0]))
        ip("neighbor", "add", str(peer(2).ip4), "lladdr", "02:00:00:00:00:01", "dev", FRAME.device)
        run(SPACE, "nft", "-f", "-", script=scatter(hook, "out"))
        looked(marks)
        assert marks.missing == {DEEP} and marks.problem is None
        assert grown(hook, (3, 7, None), (5, 7, top), (7, 9, top)) == [3, 7, 0, 5]
        deep = top / Path(DEEP).name
        for _ in range(2):
            deep.mkdir()
            assert grown(hook, (5, 7, deep)) == [0, 0, 0, 5], "it is in the one above, too"
            looked(marks)
            assert not marks.missing
            assert grown(hook, (5, 7, deep), (7, 9, deep), (2, 7, top)) == [0, 7, 5, 2]
            deep.rmdir()
        paths = ()
        looked(marks)
        assert grown(hook, (5, 7, top)) == [5, 0, 0, 0] and not marks.missing
