# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel has the rules that were rendered, and those that were packed by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.maps import SCHEDULERS
from phantommesh.scatter.peermap import CLOSED
from phantommesh.scatter.ruleset import Hook, render, render_peer, render_removal, ways
from tests.unit.scatter.test_classes import with_classes
from tests.unit.scatter.test_scatter_ruleset import FRAME, HOOKS, peer, splitting

pytestmark = pytest.mark.lab

SPACE = f"nft{os.getpid()}"
# Run in the namespace: calls methods of a Table, and prints what each returned, or its errno.
INSIDE = """
import json, sys, trio
from phantommesh.nursery.host.nft import NftError, Table

async def main():
    family, name, calls = json.loads(sys.argv[1])
    table, results = Table(family, name), []
    for method, *arguments in calls:
        if method == "replace":
            arguments = [{m: {int(k): v for k, v in e.items()} for m, e in arguments[0].items()}]
        try:
            result = await getattr(table, method)(*arguments)
        except NftError as error:
            result = {"errno": error.code, "fix": error.fix}
        if method == "fingerprint" and result is not None:
            result = [result.table, sorted(result.rules), [len(held) for held in result.elements]]
        results.append(result)
    print(json.dumps(results))

trio.run(main)
"""


@pytest.fixture
def space() -> Iterator[list[str]]:
    """The argv that enters a namespace with the interfaces of a node."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    subprocess.run(["ip", "netns", "add", SPACE], check=True)
    try:
        for name in ("pm", *(f"pm{i}" for i in range(DIMENSIONS))):
            subprocess.run(["ip", "-n", SPACE, "tuntap", "add", "dev", name, "mode", "tun"], check=True)
            subprocess.run(["ip", "-n", SPACE, "link", "set", name, "up"], check=True)
        yield ["ip", "netns", "exec", SPACE]
    finally:
        subprocess.run(["ip", "netns", "delete", SPACE], check=True)


def call(space: list[str], family: str, *calls: list[Any]) -> list[Any]:
    asked = json.dumps([family, FRAME.table, calls])
    run = [*space, sys.executable, "-c", INSIDE, asked]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout)
    return found


def index_of(space: list[str]) -> list[int]:
    links = json.loads(subprocess.run([*space, "ip", "-j", "link"], capture_output=True, check=True).stdout)
    found = {link["ifname"]: link["ifindex"] for link in links}
    return [found[f"pm{i}"] for i in range(DIMENSIONS)]


def listed(space: list[str], family: str) -> dict[str, Any]:
    """Read the table with nft: its maps and sets by name, and the rules of each chain, as text."""
    run = [*space, "nft", "-j", "list", "table", family, FRAME.table]
    items = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)["nftables"]
    found: dict[str, Any] = {}
    for item in items:
        for kind in ("map", "set"):
            if kind in item:
                found[item[kind]["name"]] = item[kind].get("elem", [])
        if "rule" in item:
            found.setdefault(f"chain {item['rule']['chain']}", []).append(item["rule"]["expr"])
    return found


@pytest.mark.parametrize("hook", HOOKS)
def test_the_kernel_has_what_was_rendered(space: list[str], hook: Hook) -> None:
    frame, way = replace(FRAME, hook=hook), ways(index_of(space))
    peers = [peer(i + 1, scheduler) for i, scheduler in enumerate(SCHEDULERS)]
    peers[1] = replace(peers[1], segments=True)
    peers.append(splitting(9, 3, 200))
    peers.append(with_classes(12))
    for _ in range(2):  # the second takes the place of the first
        subprocess.run([*space, "nft", "-f", "-"], input=render(frame, way, peers).encode(), check=True)
    found = listed(space, frame.family)
    targets = [f"peer_12_{part.number}" for part in peers[-1].classes for _ in part.matches]
    assert [rule[-1] for rule in found["chain peer_12"][: len(targets)]] == [
        {"goto": {"target": target}} for target in targets
    ]
    for each in peers:
        for name, elements in each.maps.items():
            assert dict(found[name]) == elements
        assert [str(each.ip4), {"goto": {"target": f"peer_{each.slot}"}}] in found["peers4"]
        assert [str(each.ip6), {"goto": {"target": f"peer_{each.slot}"}}] in found["peers6"]
    names = {i + 1: f"pm{i}" for i in range(DIMENSIONS)} | {8: "pm0"}
    assert dict(found["ways"]) == names
    hits = {element["elem"]["val"] for element in found["hits"]}
    assert hits == {0, 8} | {
        each.slot << 8 | part.number << 5 | low
        for each in peers
        for part in each.each
        for low in (0, 15, *range(1, 8), *range(0x11, 0x18), *([CLOSED] if part.number else []))
    }
    assert call(space, frame.family, ["elements", "ways"]) == [{str(k): v for k, v in way.items()}]


@pytest.mark.parametrize("hook", HOOKS)
def test_peers_come_and_go_without_a_trace(space: list[str], hook: Hook) -> None:
    frame, way = replace(FRAME, hook=hook), ways(index_of(space))
    subprocess.run([*space, "nft", "-f", "-"], input=render(frame, way, [peer(1)]).encode(), check=True)
    before = listed(space, frame.family)
    plain = [peer(i + 2, scheduler) for i, scheduler in enumerate(SCHEDULERS)]
    for i, each in enumerate((*plain, splitting(9, 3, 200), with_classes(12))):
        made = replace(each, segments=bool(i % 2))
        for text in (render_peer(frame, made), render_removal(frame, made)):
            assert listed(space, frame.family).keys() != {made.name}
            subprocess.run([*space, "nft", "-f", "-"], input=text.encode(), check=True)
    assert listed(space, frame.family) == before


def test_a_map_is_replaced_by_hand_packed_messages(space: list[str]) -> None:
    frame, way = FRAME, ways(index_of(space))
    deck, batch = peer(1, "deck"), peer(2, "batch")  # 1022 cards in one message, 1024 in two
    text = render(frame, way, [deck, batch])
    subprocess.run([*space, "nft", "-f", "-"], input=text.encode(), check=True)
    new = {each.name: replace(each, parity=1).elements for each in (deck, batch)}
    before, *_, after, counters = call(
        space,
        frame.family,
        ["fingerprint"],
        *(["replace", {name: elements}] for name, elements in new.items()),
        ["replace", {"flowlets": {}, "ways": way}],
        ["fingerprint"],
        ["counters", "hits"],
    )
    found = listed(space, frame.family)
    assert all(dict(found[name]) == elements for name, elements in new.items())
    assert before == after and before is not None  # no rule has changed
    assert len(counters) == 2 + 2 * 16 and set(map(tuple, counters.values())) == {(0, 0)}


def test_what_others_do_shows_and_errors_are_told(space: list[str]) -> None:
    frame = FRAME
    assert call(space, frame.family, ["fingerprint"], ["remove"]) == [None, None]
    (refused,) = call(space, frame.family, ["install", "table netdev x { chain y { nonsense }\n }\n"])
    assert refused["fix"]
    (refused,) = call(space, frame.family, ["replace", {"deck_1": {"0": 1}}])
    assert refused["errno"] == 2  # ENOENT
    text = render(frame, ways(index_of(space)), [peer(1)])
    whole = call(space, frame.family, ["install", text], ["fingerprint"])[1]
    tool = [*space, "nft"]
    sets = ["fingerprint", "ways", "peers4", "peers6"]
    assert call(space, frame.family, sets)[0][2] == [8, 1, 1]
    subprocess.run([*tool, "flush", "map", "netdev", frame.table, "peers6"], check=True)
    assert call(space, frame.family, sets)[0][2] == [8, 1, 0]
    whole = call(space, frame.family, ["install", text], ["fingerprint"])[1]
    subprocess.run([*tool, "flush", "chain", "netdev", frame.table, "out"], check=True)
    edited = call(space, frame.family, ["fingerprint"])[0]
    assert edited[0] == whole[0] and set(edited[1]) < set(whole[1])
    again = call(space, frame.family, ["install", text], ["fingerprint"])[1]
    assert again[0] != whole[0]
    deck = peer(1)
    (too_many,) = call(space, frame.family, ["replace", {deck.name: dict.fromkeys(range(2000), 1)}])
    assert too_many["errno"] == 23  # ENFILE: a transaction that does not fit leaves the map as it was
    assert dict(listed(space, frame.family)[deck.name]) == deck.elements
    assert call(space, frame.family, ["remove"], ["fingerprint"]) == [None, None]
