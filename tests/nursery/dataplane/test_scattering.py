# SPDX-License-Identifier: GPL-3.0-or-later
"""The service, over a kernel that is played here: which table it leaves there, and when."""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
import trio
import trio.testing
from msgspec import structs

from phantommesh.config.sections import ScatterSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.dataplane import scattering as service
from phantommesh.nursery.dataplane.scattering import Scattering
from phantommesh.nursery.host import marking, master
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.nft import Fingerprint, NftError
from phantommesh.scatter.epochs import EpochCounts, ScatterPeer
from phantommesh.scatter.goals import SCHEDULES
from phantommesh.scatter.intents import TrafficClass
from phantommesh.scatter.limits import Limits
from phantommesh.scatter.peermap import CLOSED, mark
from phantommesh.scatter.plan import ADOPTED
from phantommesh.secret import Secret
from phantommesh.wireguard.device import DeviceState, Network, Route
from phantommesh.wireguard.fits import Fitted

NAMES = [f"pm{i}" for i in range(DIMENSIONS)]
INTERVAL = 2.0


@dataclass
class Kernel:
    """Tables by family, their maps and counters; the mesh's interface; and what to refuse."""

    tables: dict[str, dict[str, dict[int, int]]] = field(default_factory=dict)
    peers: dict[str, str] = field(default_factory=dict)  # address to chain
    counters: dict[int, tuple[int, int]] = field(default_factory=dict)
    flows: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)  # by bucket
    handle: int = 0
    interface: bool = False
    routes: bool = False
    marked: dict[int, tuple[int, frozenset[Route]]] = field(default_factory=dict)
    refusals: dict[str, NftError] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    swaps: int = 0

    def run(self, family: str, text: str) -> None:
        if family in self.refusals:
            raise self.refusals[family]
        self.texts.append(text)
        self.handle += 1
        if "delete table" in text:
            self.tables[family], self.peers, self.counters = {}, {}, {}
        for listed in re.findall(rf"add element {family} \S+ hits {{ (.*?) }}", text):
            self.counters |= {int(word): (0, 0) for word in listed.split(", ")}
        for verb, name, listed in re.findall(rf"(add|delete) element {family} \S+ (\S+) {{ (.*?) }}", text):
            pairs = [one.partition(" : ")[::2] for one in listed.split(", ")]
            if name in ("peers4", "peers6"):
                for key, value in pairs:
                    self.peers.pop(key) if verb == "delete" else self.peers.update({key: value})
            elif name.startswith("flows_"):
                self.flows[name] = {int(key): (0, 0) for key, _ in pairs}
            elif name != "hits":
                self.tables[family][name] = {int(key): int(value) for key, value in pairs}
        for name in re.findall(rf"delete map {family} \S+ (\S+)", text):
            del self.tables[family][name]

    def deck(self, slot: int = 1, family: str = "netdev") -> dict[int, int]:
        return self.tables[family][f"deck_{slot}"]

    def dimensions(self, slot: int = 1) -> set[int]:
        return {(value & 15) - 1 for value in self.deck(slot).values()}

    def send(self, packets: int, slot: int = 1) -> None:
        """Send by the map as it is, the same number to each dimension."""
        parity = next(iter(self.deck(slot).values())) >> 4 & 1
        for i in range(DIMENSIONS):
            had = self.counters.get(mark(slot, parity, i), (0, 0))
            self.counters[mark(slot, parity, i)] = had[0] + packets, had[1] + 10 * packets


class FakeTable:
    kernel: Kernel

    def __init__(self, family: str, name: str) -> None:
        self.family, self.name = family, name

    async def install(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        self.kernel.run(self.family, text)

    async def replace(self, maps: Mapping[str, Mapping[int, int]]) -> None:
        await trio.lowlevel.checkpoint()
        if "replace" in self.kernel.refusals:
            raise self.kernel.refusals["replace"]
        self.kernel.swaps += 1
        for name, elements in maps.items():
            self.kernel.tables[self.family][name] = dict(elements)
            self.kernel.replaced.append(name)

    async def remove(self) -> None:
        await trio.lowlevel.checkpoint()
        self.kernel.tables.pop(self.family, None)

    async def fingerprint(self, *sets: str) -> Fingerprint | None:
        await trio.lowlevel.checkpoint()
        if self.family not in self.kernel.tables:
            return None
        held = {"ways": self.kernel.tables[self.family].get("ways"), "peers4": self.kernel.peers}
        return Fingerprint(
            self.kernel.handle,
            frozenset(),
            tuple(frozenset([repr(held.get(name)).encode()]) for name in sets),
        )

    async def counters(self, name: str) -> dict[int, tuple[int, int]]:
        await trio.lowlevel.checkpoint()
        return dict(self.kernel.counters if name == "hits" else self.kernel.flows[name])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()

    class Table(FakeTable):
        kernel = made

    async def converge(want: object, *, routes: bool) -> int:
        await trio.lowlevel.checkpoint()
        if "master" in made.refusals:
            raise made.refusals["master"]
        made.interface, made.routes = True, made.routes or routes
        return 99

    async def remove(name: str) -> None:
        await trio.lowlevel.checkpoint()
        made.interface = made.routes = False

    async def mark_converge(tables: marking.Tables, names: Collection[str]) -> None:
        assert set(names) == {*NAMES, "pm"}  # no other node's are touched
        await trio.lowlevel.checkpoint()
        if "tables" in made.refusals:
            raise made.refusals["tables"]
        made.marked = {way: (index, frozenset(routes)) for way, (index, routes) in tables.items()}

    async def mark_remove(names: Collection[str]) -> None:
        assert set(names) == {*NAMES, "pm"}
        await trio.lowlevel.checkpoint()
        made.marked = {}

    monkeypatch.setattr(service, "Table", Table)
    monkeypatch.setattr(master, "converge", converge)
    monkeypatch.setattr(master, "remove", remove)
    monkeypatch.setattr(marking, "converge", mark_converge)
    monkeypatch.setattr(marking, "remove", mark_remove)
    return made


def peer(number: int, link: int | None = 1) -> ScatterPeer:
    ip4, ip6 = IPv4Address("100.64.0.0") + number, IPv6Address("fd00::") + number
    keying = None if link is None else (link, Secret(bytes([number, link]) * 16))
    return ScatterPeer(bytes([number]) * 16, ip4, ip6, keying, SCHEDULES["throughput"])


def devices(missing: set[int] = set()) -> dict[str, DeviceState]:  # noqa: B006  # never changed
    blank = DeviceState("", 0, True, None, 1, 1420, frozenset(), frozenset(), {})
    return {name: replace(blank, name=name, index=10 + i) for i, name in enumerate(NAMES) if i not in missing}


NETWORKS = IPv4Network("100.64.0.0/10"), IPv6Network("fd00::/48")


def make(
    settings: ScatterSection = ScatterSection(),
    ended: list[EpochCounts] | None = None,
    fits: Callable[[], list[Fitted]] = list,
    *,
    closes: bool = False,
) -> Scattering:
    return Scattering(
        settings,
        device="pm",
        names=NAMES,
        kind="tun",
        mtu=1420,
        ipv6=lambda: True,
        me=b"m" * 16,
        addresses=lambda: (IPv4Address("100.64.0.1"), IPv6Address("fd00::1")),
        routed=lambda: NETWORKS,
        interval=INTERVAL,
        fits=fits,
        closes=lambda: closes,
        on_epoch=lambda node_id, counts: None if ended is None else ended.append(counts),
    )


@asynccontextmanager
async def running(scatter: Scattering) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scatter.run)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


def problem(scatter: Scattering) -> str | None:
    return None if scatter.problem is None else str(scatter.problem)


def has_routes(kernel: Kernel) -> bool:
    return kernel.routes


def has_interface(kernel: Kernel) -> bool:
    return kernel.interface


async def test_a_keyed_peer_is_scattered_over_all_seven(kernel: Kernel, autojump_clock: object) -> None:
    scatter = make()
    scatter.update([peer(2), peer(3, None)])
    async with running(scatter):
        assert not has_interface(kernel) and not kernel.tables  # nothing to send to yet
        scatter.devices(devices())
        await settle()
        assert kernel.peers == {"100.64.0.2": "goto peer_1", "fd00::2": "goto peer_1"}
        assert kernel.dimensions() == set(range(7))
        assert kernel.tables["netdev"]["ways"] == {i + 1: 10 + i for i in range(7)} | {8: 10}
        assert has_routes(kernel)
        assert scatter.snapshot(peer(3).node_id) is None
        scatter.update([peer(2), peer(3)])
        await settle()
        assert set(kernel.peers) == {"100.64.0.2", "fd00::2", "100.64.0.3", "fd00::3"}
        assert len(kernel.texts) == 2 and "delete table" not in kernel.texts[1]


async def test_a_peer_that_loses_its_keys_is_dropped(kernel: Kernel, autojump_clock: object) -> None:
    ended: list[EpochCounts] = []
    scatter = make(ended=ended)
    scatter.update([peer(2), peer(3)])
    scatter.devices(devices())
    async with running(scatter):
        kernel.send(6, slot=1)
        scatter.update([peer(2, None), peer(3)])
        await settle()
        assert set(kernel.peers) == {"100.64.0.3", "fd00::3"}
        assert [counts.hits.packets for counts in ended] == [(6,) * 7]
        scatter.update([])
        await settle()
        assert kernel.peers == {}


async def test_a_drain_swaps_the_map_before_it_returns(kernel: Kernel, autojump_clock: object) -> None:
    ended: list[EpochCounts] = []
    scatter = make(ended=ended)
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        kernel.send(9)
        await scatter.set_scores({peer(2).node_id: (1, 1, 1, 0, 1, 1, 0)})
        assert kernel.dimensions() == {0, 1, 2, 4, 5}
        assert kernel.replaced == ["deck_1"]
        (before,) = ended
        assert before.hits.packets == (9,) * 7 and before.ended is not None
        kernel.send(4)
        await scatter.refresh()
        snapshot = scatter.snapshot(peer(2).node_id)
        assert snapshot is not None and snapshot.previous == before
        assert snapshot.current.scores == (1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0)
        assert snapshot.current.hits.packets == (4,) * 7
        assert snapshot.current.epoch.number == before.epoch.number + 1
        await scatter.set_scores({peer(2).node_id: (1, 1, 1, 0, 1, 1, 0)})  # no change
        assert len(ended) == 1
        await scatter.set_scores({peer(2).node_id: (0.0,) * 7})
        assert kernel.dimensions() == {14}
        with pytest.raises(ValueError, match="seven"):
            await scatter.set_scores({peer(2).node_id: (1.0,) * 6})
        with pytest.raises(ValueError, match="seven"):
            await scatter.set_scores({peer(2).node_id: (*(1.0,) * 6, -1.0)})
        await scatter.set_scores({b"nobody": (1.0,) * 7})
        assert len(ended) == 2


async def test_what_changes_together_is_swapped_in_one_transaction(
    kernel: Kernel, autojump_clock: object
) -> None:
    scatter = make()
    scatter.update([peer(2), peer(3)])
    scatter.devices(devices())
    async with running(scatter):
        swaps, drained = kernel.swaps, (1, 1, 1, 0, 1, 1, 0)
        await scatter.set_scores({peer(2).node_id: drained, peer(3).node_id: drained})
        assert kernel.swaps == swaps + 1
        assert sorted(kernel.replaced[-2:]) == ["deck_1", "deck_2"]


async def test_maps_change_with_every_epoch_and_secrets_with_the_link(
    kernel: Kernel, autojump_clock: object
) -> None:
    ended: list[EpochCounts] = []
    scatter = make(ScatterSection(epoch_seconds=10.0), ended)
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        decks = [kernel.deck()]
        for _ in range(4):
            await trio.sleep(11.1)
            decks.append(kernel.deck())
        assert len({tuple(deck.values()) for deck in decks}) == 5
        scatter.update([peer(2, link=7)])
        await trio.sleep(22.2)
        seen = [(counts.epoch.link, counts.epoch.number) for counts in ended]
        assert seen[:4] == [(1, 0), (1, 1), (1, 2), (1, 3)]
        assert (7, 0) in seen
        assert len(kernel.texts) == 1  # not one of them took a child


async def test_what_a_rival_removes_is_put_back(kernel: Kernel, autojump_clock: object) -> None:
    ended: list[EpochCounts] = []
    scatter = make(ended=ended)
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        kernel.send(5)
        await trio.sleep(INTERVAL + 0.1)
        kernel.tables.clear()
        await trio.sleep(INTERVAL + 0.1)
        assert kernel.dimensions() == set(range(7))
        assert [(counts.hits.packets, counts.whole) for counts in ended] == [((5,) * 7, False)]
        kernel.handle += 1  # somebody edited it
        await trio.sleep(INTERVAL + 0.1)
        assert len(kernel.texts) == 3
        await trio.sleep(10 * INTERVAL)
        assert len(kernel.texts) == 3


async def test_what_a_rival_takes_out_of_a_map_is_put_back(kernel: Kernel, autojump_clock: object) -> None:
    scatter = make()
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        installs = 1
        rivals: list[Callable[[], None]] = [
            lambda: kernel.peers.clear(),
            lambda: kernel.tables["netdev"]["ways"].clear(),
            lambda: kernel.counters.clear(),
            lambda: kernel.counters.update({kernel.deck()[0] & ~0xFF: (3, 300)}),  # missed: the deck is empty
        ]
        for rival in rivals:
            rival()
            await trio.sleep(2 * INTERVAL + 0.1)
            installs += 1
            assert len(kernel.texts) == installs
            assert kernel.peers and len(kernel.tables["netdev"]["ways"]) == 8 and len(kernel.counters) == 18
        await trio.sleep(10 * INTERVAL)
        assert len(kernel.texts) == installs


async def test_a_swap_that_finds_no_table_does_not_take_the_interface_down(
    kernel: Kernel, autojump_clock: object
) -> None:
    scatter = make(ScatterSection(epoch_seconds=0.5))
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        kernel.refusals["replace"] = NftError("gone", code=errno.ENOENT)
        await trio.sleep(0.6)
        assert has_routes(kernel) and problem(scatter) is None
        del kernel.refusals["replace"]
        await trio.sleep(3.0)
        assert kernel.replaced


async def test_an_interface_that_is_gone_gets_no_cards(kernel: Kernel, autojump_clock: object) -> None:
    scatter = make()
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        scatter.devices(devices({0, 5}))
        await settle()
        assert kernel.dimensions() == {1, 2, 3, 4, 6}
        assert kernel.tables["netdev"]["ways"] == {2: 11, 3: 12, 4: 13, 5: 14, 7: 16, 8: 11}
        scatter.devices(devices())
        await settle()
        assert kernel.dimensions() == set(range(7))


async def test_a_start_waits_for_all_seven_but_not_for_ever(kernel: Kernel, autojump_clock: object) -> None:
    scatter = make()
    scatter.update([peer(2)])
    scatter.devices(devices({6}))
    async with running(scatter):
        await trio.sleep(service.PATIENCE / 2)
        assert not has_interface(kernel)
        await trio.sleep(service.PATIENCE)
        assert has_interface(kernel) and kernel.dimensions() == set(range(6))


async def test_where_nothing_can_be_installed_traffic_takes_dimension_0(
    kernel: Kernel, autojump_clock: object
) -> None:
    scatter = make()
    scatter.update([peer(2)])
    scatter.devices(devices())
    kernel.refusals["netdev"] = NftError("the command nft is missing", fix="install nftables")
    async with running(scatter):
        assert problem(scatter) == "the command nft is missing"
        assert not has_interface(kernel) and not has_routes(kernel)
        assert scatter.snapshot(peer(2).node_id) is None
        await scatter.set_scores({peer(2).node_id: (0, 1, 1, 1, 1, 1, 1)})  # remembered
        del kernel.refusals["netdev"]
        await trio.sleep(60)
        assert problem(scatter) is None and has_routes(kernel)
        assert kernel.dimensions() == set(range(1, 7))


async def test_where_classes_are_confined_nothing_is_sent_unscattered(
    kernel: Kernel, autojump_clock: object
) -> None:
    scatter = make(closes=True)
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        assert has_routes(kernel) and kernel.dimensions() == set(range(7))
        kernel.refusals["inet"] = NftError("no memory")
        scatter.settings = structs.replace(scatter.settings, hook="mark")
        scatter.hook, scatter._seen = "mark", None
        scatter.kick()
        await settle()
        assert problem(scatter) == "no memory"
        assert has_interface(kernel) and has_routes(kernel) and "inet" not in kernel.tables
        del kernel.refusals["inet"]
        await trio.sleep(60)
        assert problem(scatter) is None and "inet" in kernel.tables


async def test_a_class_is_confined_before_it_returns(kernel: Kernel, autojump_clock: object) -> None:
    scatter = make()
    ssh = TrafficClass("ssh", "order", SCHEDULES["order"], ("th dport 22",))
    free = replace(peer(2), classes=(ssh,))
    scatter.update([free])
    scatter.devices(devices())

    def cards() -> set[int]:
        return {value & 15 for value in kernel.tables["netdev"]["deck_1_1"].values()}

    async with running(scatter):
        swaps = kernel.swaps
        await scatter.confine()
        assert kernel.swaps == swaps and not scatter.closed()
        scatter.change(replace(free, limits=Limits((0b1000,))))
        await scatter.confine()
        assert cards() == {4} and kernel.swaps == swaps + 1
        scatter.change(replace(free, limits=Limits((0,))))
        await scatter.confine()
        assert cards() == {CLOSED} and scatter.closed() == {"ssh": [peer(2).node_id]}
        kernel.refusals["replace"] = NftError("no memory", code=errno.ENOMEM)
        scatter.change(free)
        await scatter.confine()
        assert cards() == {CLOSED}
        del kernel.refusals["replace"]
        await settle()
        assert cards() == set(range(1, 8))


async def test_a_refused_swap_is_made_good(kernel: Kernel, autojump_clock: object) -> None:
    scatter = make()
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        kernel.refusals["replace"] = NftError("no memory", code=errno.ENOMEM)
        with pytest.raises(NftError):
            await scatter.set_scores({peer(2).node_id: (0, 1, 1, 1, 1, 1, 1)})
        del kernel.refusals["replace"]
        await settle()
        assert kernel.dimensions() == set(range(1, 7))


async def test_an_interface_of_somebody_else_is_an_error_with_a_fix(
    kernel: Kernel, autojump_clock: object
) -> None:
    scatter = make()
    scatter.update([peer(2)])
    scatter.devices(devices())
    kernel.refusals["master"] = BackendError("pm is not ours", fix="remove it")  # type: ignore[assignment]
    async with running(scatter):
        assert scatter.problem is not None and scatter.problem.fix == "remove it"
        assert not kernel.tables


async def test_without_an_egress_hook_marks_do_it(kernel: Kernel, autojump_clock: object) -> None:
    kernel.refusals["netdev"] = NftError("no such hook", code=errno.EOPNOTSUPP)
    scatter = make()
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        assert scatter.hook == "mark" and problem(scatter) is None
        assert set(kernel.tables) == {"inet"} and kernel.marked[8] == (
            10,
            frozenset(Route(network, 1) for network in NETWORKS),
        )
        await scatter.close()
        assert not kernel.tables and not kernel.marked


def fitted(number: int, mtu: int) -> Fitted:
    one = peer(number)
    assert one.ip4 is not None
    return Fitted(one.ip4, one.ip6, mtu)


async def test_the_routes_of_marks_are_kept_to_what_a_peers_paths_carry(
    kernel: Kernel, autojump_clock: object
) -> None:
    fits = [fitted(2, 1420), fitted(3, 1376)]
    scatter = make(ScatterSection(hook="mark"), fits=lambda: fits)
    scatter.update([peer(2), peer(3)])
    scatter.devices(devices())
    async with running(scatter):
        hosts: tuple[Network, ...] = (IPv4Network("100.64.0.3/32"), IPv6Network("fd00::3/128"))
        wanted = {*(Route(network, 1) for network in NETWORKS), *(Route(host, 1, 1376) for host in hosts)}
        assert set(kernel.marked) == set(range(1, 9))
        assert all(routes == wanted for _, routes in kernel.marked.values())
        fits[1] = fitted(3, 1420)
        scatter.kick()
        await settle()
        assert all(len(routes) == 2 for _, routes in kernel.marked.values())


async def test_tcp_over_ipv6_has_a_table_where_a_peers_paths_carry_less_than_1280_bytes(
    kernel: Kernel, autojump_clock: object
) -> None:
    fits = [fitted(2, 1420), fitted(3, 1376)]
    scatter = make(fits=lambda: fits)
    scatter.update([peer(2), peer(3)])
    scatter.devices(devices())
    async with running(scatter):
        assert scatter.hook == "egress" and not kernel.marked
        fits[1] = fitted(3, 1216)
        scatter.kick()
        await settle()
        assert kernel.marked == {15: (99, frozenset([Route(IPv6Network("fd00::3/128"), 1, 1216, 1156)]))}
        fits[1] = fitted(3, 1280)
        scatter.kick()
        await settle()
        assert not kernel.marked
        # It is not worth to scatter nothing for it.
        kernel.refusals["tables"] = BackendError("no rules", fix="none")  # type: ignore[assignment]
        fits[1] = fitted(3, 1216)
        scatter.kick()
        await settle()
        assert problem(scatter) is None and has_routes(kernel)


async def test_egress_alone_is_not_replaced_by_marks(kernel: Kernel, autojump_clock: object) -> None:
    kernel.refusals["netdev"] = NftError("no such hook", code=errno.EOPNOTSUPP)
    scatter = make(ScatterSection(hook="egress"))
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        assert scatter.hook == "egress" and problem(scatter) is not None
        assert not kernel.tables and not has_interface(kernel)


async def test_a_table_that_was_left_scatters_on_until_its_peers_are_keyed(
    kernel: Kernel, autojump_clock: object
) -> None:
    kernel.tables["netdev"] = {}
    ended: list[EpochCounts] = []
    scatter = make(ended=ended)
    scatter.update([peer(2, None), peer(3, None)])
    scatter.devices(devices())
    async with running(scatter):
        assert set(kernel.peers) == {"100.64.0.2", "fd00::2", "100.64.0.3", "fd00::3"}
        scatter.update([peer(2), peer(3, None)])
        await trio.sleep(70.0)  # over to a map that both ends know, at its time
        assert any(counts.epoch.link == 0 for counts in ended)
        snapshot = scatter.snapshot(peer(2).node_id)
        assert snapshot is not None and snapshot.current.epoch.link == 1
        scatter.update([peer(2, None), peer(3, None)])  # failed closed
        await settle()
        assert set(kernel.peers) == {"100.64.0.3", "fd00::3"}
        await trio.sleep(ADOPTED)
        assert kernel.peers == {}


async def test_off_removes_what_was_left(kernel: Kernel, autojump_clock: object) -> None:
    kernel.tables["netdev"], kernel.interface, kernel.routes = {}, True, True
    scatter = make(ScatterSection(hook="off"))
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        assert not kernel.tables and not has_interface(kernel)
        assert problem(scatter) is None


async def test_a_peer_can_have_an_goal_of_its_own(kernel: Kernel, autojump_clock: object) -> None:
    scatter = make()
    scatter.update([peer(2), peer(3)])
    scatter.devices(devices())
    async with running(scatter):
        scatter.update([peer(2), replace(peer(3), schedule=SCHEDULES["private"])])
        await settle()
        text = kernel.texts[-1]
        assert "numgen inc mod 1024" in text and "maxseg size set" in text and "mod 1022" not in text
        assert kernel.peers["100.64.0.2"] == "goto peer_1" and kernel.peers["100.64.0.3"] == "goto peer_3"
        snapshot = scatter.snapshot(peer(3).node_id)
        assert snapshot is not None and snapshot.current.scheduler == "batch"
        assert max(snapshot.current.cards) > 2 * min(snapshot.current.cards)
        assert snapshot.current.epoch.number == 1  # 0 was the deck's


async def test_drops_are_counted_once(kernel: Kernel, autojump_clock: object) -> None:
    scatter = make()
    scatter.update([peer(2)])
    scatter.devices(devices())
    async with running(scatter):
        kernel.counters[0] = (4, 400)
        await scatter.refresh()
        await scatter.refresh()
        assert scatter.dropped["scatter-unknown"] == 4
        kernel.tables.clear()  # and its counters with it
        kernel.counters.clear()
        await trio.sleep(INTERVAL + 0.1)
        kernel.counters[0] = (3, 300)
        await scatter.refresh()
        assert scatter.dropped["scatter-unknown"] == 7
