# SPDX-License-Identifier: GPL-3.0-or-later
"""How many bytes of the roster a node writes in a day of its mesh.

    python -m benchmarks.roster_writes [--members N] [--hours H] [--seed S] [--json] [--quick]

The keeper and the roster's log of a node run as they are, on a virtual clock. The other members do what
members do in a day: each replaces its seven WireGuard keys, one by one and before each is a day old; renews
its certificate when two thirds of its week are over; changes its address twice; and starts again once, with a
new record (which a start makes only where something else has changed too). Every record is signed, verified
and put to disk as in life. The bytes are what the state directory was given to write. The figures of the
version before stand beside: at the same changes that version wrote all of the roster, with its pauses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, time
from unittest.mock import patch

import trio
import trio.testing

from benchmarks.machine import describe
from phantommesh.nursery.dataplane.rekeying import HASTE
from phantommesh.nursery.keeping import roster as keeping
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.records.record import NodeRecord, SignedRecord, sign_record
from phantommesh.state import directory as statedir
from phantommesh.state import rosterlog
from phantommesh.state.directory import StateDir
from phantommesh.state.files import Place
from phantommesh.state.start import load_node
from phantommesh.trust.certificates import NODE_LIFE, RENEW_AT, Role
from phantommesh.trust.identity import Identity
from phantommesh.trust.issuing import choose_ip4
from phantommesh.wireguard.keys import WgKeys
from phantommesh.wireguard.possession import prove
from tests.support.loopback import make_authority

GOAL = 200e6  # bytes a day at 1,000 members
DAY, KEY_LIFE = 86_400.0, 86_400.0  # s
MOVES, STARTS = 2, 1  # a day
KINDS = ("key", "certificate", "address", "start")


@dataclass(slots=True)
class Other:
    """Another member, which signs what it says of itself."""

    identity: Identity
    name: str
    keys: WgKeys
    proofs: tuple[bytes, ...]
    node_cert: bytes
    seq: int = 1
    address: int = 0

    def record(self, authority_cert: bytes) -> SignedRecord:
        """Sign the present words under the present number."""
        record = NodeRecord(
            self.identity.node_id,
            self.seq,
            (f"198.51.{self.address // 250}.{self.address % 250 + 1}:51800",),
            self.keys.public,
            self.keys.ports(51820, 2),
            "0.1.0",
            self.proofs,
        )
        return sign_record(self.identity, record, self.node_cert, authority_cert)


@dataclass(slots=True)
class Written:
    """The bytes that reached the disk: ``roster`` bytes in ``calls``, of which ``whole`` wrote the file
    anew."""

    roster: int = 0
    calls: int = 0
    whole: int = 0
    largest: int = 0
    changes: Counter[str] = field(default_factory=Counter)


class Before:
    """What the version before would have written: the whole roster at each change, then a pause."""

    def __init__(self) -> None:
        self.bytes = self.calls = 0
        self._rest_until = self._due = float("-inf")

    def change(self, now: float, size: int) -> None:
        """A record changed at ``now``, and the whole roster has ``size`` bytes."""
        at = max(now, self._rest_until)
        if at > self._due:  # else the write that is due has this change, too
            self._due = at
            self.bytes += size
            self.calls += 1
            pause = size / keeping.DISK_RATE
            self._rest_until = at + min(keeping.MOST_PAUSE, max(keeping.LEAST_PAUSE, pause))


async def _here(sync: Callable[..., object], *args: object) -> object:
    """Instead of a thread: the virtual clock jumps on while one is at work."""
    await trio.lowlevel.checkpoint()
    return sync(*args)


def _plan(members: int, seconds: float, rng: random.Random) -> list[tuple[float, int, str, int]]:
    """What happens: when, to which member, what of `KINDS`, and in which dimension."""
    plan = list[tuple[float, int, str, int]]()
    for member in range(members):
        for dimension in range(7):
            life = KEY_LIFE * rng.uniform(*HASTE)
            due = rng.uniform(0, life)
            while due < seconds:
                plan.append((due, member, "key", dimension))
                due += KEY_LIFE * rng.uniform(*HASTE)
        due = rng.uniform(0, RENEW_AT * NODE_LIFE)
        plan += [(due, member, "certificate", 0)] if due < seconds else []
        for kind, count in (("address", MOVES), ("start", STARTS)):
            moments = (rng.uniform(0, DAY) for _ in range(count))
            plan += [(moment, member, kind, 0) for moment in moments if moment < seconds]
    return sorted(plan)


async def _live(directory: Path, members: int, seconds: float, seed: int) -> tuple[Written, Before, int, int]:
    rng = random.Random(seed)  # a schedule, no key
    node = make_authority(directory)
    authority, written, before = node.authority, Written(), Before()
    assert authority is not None
    others = list[Other]()
    for number in range(members - 1):
        identity = Identity.generate()
        keys = WgKeys.generate()
        ip4 = choose_ip4(node.mesh, identity.node_id, ())
        cert = authority.issue(identity.spki, f"m{number}", Role.NODE, ip4, time())
        others.append(Other(identity, f"m{number}", keys, keys.proofs(identity.node_id), cert))
        node.roster.add(others[-1].record(authority.der), time())
        if sys.stderr.isatty() and not number % 50:
            print(f"\r{number} members made", end="", file=sys.stderr)
    node.state.write(statedir.ROSTER, rosterlog.encode(node.roster.in_order(revoked=True)))
    node = load_node(node.state.path, time())

    write, append = StateDir.write, StateDir.append

    def writing(self: StateDir, name: str, data: bytes) -> None:
        write(self, name, data)
        if name == statedir.ROSTER:
            count(len(data))
            written.whole += 1

    def appending(self: StateDir, name: str, place: Place, data: bytes) -> Place:
        count(len(data))
        return append(self, name, place, data)

    def count(size: int) -> None:
        written.roster += size
        written.calls += 1

    began, start = time(), trio.current_time()
    with (
        patch.object(trio.to_thread, "run_sync", _here),
        patch.object(keeping, "time", lambda: began + trio.current_time() - start),
        patch.object(StateDir, "write", writing),
        patch.object(StateDir, "append", appending),
    ):
        keeper = RosterKeeper(node, lambda: None)
        whole = len(keeper.roster.encode())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.keep)
            for due, number, kind, dimension in _plan(members - 1, seconds, rng):
                await trio.sleep_until(start + due)
                other = others[number]
                other.seq += 1
                if kind == "key":
                    other.keys = other.keys.replaced(dimension, 1, began + due, 0)
                    key = other.keys.keys[dimension]
                    fresh = prove(key.seed, key.public, other.identity.node_id, dimension)
                    other.proofs = (*other.proofs[:dimension], fresh, *other.proofs[dimension + 1 :])
                elif kind == "certificate":
                    ip4 = choose_ip4(node.mesh, other.identity.node_id, ())
                    spki = other.identity.spki
                    other.node_cert = authority.issue(spki, other.name, Role.NODE, ip4, began + due)
                elif kind == "address":
                    other.address = rng.randrange(60_000)
                written.changes[kind] += keeper.add(other.record(authority.der))
                before.change(due, whole)
                written.largest = max(written.largest, node.state.place(statedir.ROSTER).end)
            await keeper.save()
            nursery.cancel_scope.cancel()
    again = load_node(node.state.path, time() + seconds)
    assert again.roster.digest() == keeper.roster.digest(), "what is on disk is not what was taken"
    return written, before, whole, node.state.place(statedir.ROSTER).end


def main() -> None:
    """Print what was written, and fail if it is more than the goal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--members", type=int)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="50 members")
    options = parser.parse_args()
    members = options.members or (50 if options.quick else 1000)
    seconds = options.hours * 3600
    clock, began = trio.testing.MockClock(autojump_threshold=0), perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        written, before, whole, end = trio.run(
            _live, Path(directory), members, seconds, options.seed, clock=clock
        )
    goal = GOAL * members / 1000 * options.hours / 24
    result = {
        "members": members,
        "hours": options.hours,
        "changes": dict(written.changes),
        "before": {"bytes": before.bytes, "writes": before.calls, "file": whole},
        "after": {
            "bytes": written.roster,
            "writes": written.calls,
            "anew": written.whole,
            "file": end,
            "file_most": written.largest,
        },
        "goal": goal,
        "seconds": round(perf_counter() - began, 1),
        "machine": describe(),
    }
    if options.json:
        print(json.dumps(result))
    else:
        changes = ", ".join(f"{count} {kind}" for kind, count in written.changes.items())
        print(f"{members} members, {options.hours:g} h: {written.changes.total()} changes ({changes})")
        print(f"before: {before.bytes / 1e6:10.1f} MB in {before.calls} writes of the whole roster")
        print(
            f"after:  {written.roster / 1e6:10.1f} MB in {written.calls} writes, {written.whole} of them of "
            f"the whole roster; the file had at most {written.largest / 1e6:.1f} MB"
        )
        print(f"goal:   {goal / 1e6:10.1f} MB")
    if members >= 50 and written.roster > goal:
        raise SystemExit("more was written than the goal allows")


if __name__ == "__main__":
    os.umask(0o077)
    main()
