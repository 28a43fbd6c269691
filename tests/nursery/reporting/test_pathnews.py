# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes of ways, sizes and NATs that are told."""

from __future__ import annotations

from ipaddress import ip_address

import msgspec

from phantommesh.management.views import PathView
from phantommesh.management.wayview import WayKind
from phantommesh.node.natkind import Nat
from phantommesh.node.whereabouts import Place
from phantommesh.nursery.reporting.pathnews import Fits, Moved, NatChanged, PathNews
from tests.support.fakenode import path_view

HERE, THERE = Place(ip_address("203.0.113.7"), 40000), Place(ip_address("198.51.100.9"), 40000)


def path(way: WayKind, via: str | None = None, dimension: int = 3) -> PathView:
    return msgspec.structs.replace(path_view(1, dimension), way=way, via=via)


def moves(*steps: PathView) -> list[Moved]:
    news = PathNews()
    return [moved for step in steps for moved in news.moved([step])]


def test_a_dimension_that_takes_another_way_has_moved() -> None:
    [moved] = moves(path("relayed", "pm-3"), path("relayed", "pm-3"), path("direct"), path("direct"))
    assert moved == Moved("pm-1", "id001", 3, ("relayed", "pm-3"), ("direct", None))
    [moved] = moves(path("relayed", "pm-3"), path("relayed", "pm-4"))
    assert (moved.before, moved.after) == (("relayed", "pm-3"), ("relayed", "pm-4"))


def test_the_first_way_and_a_dark_while_are_no_move() -> None:
    assert moves(path("none"), path("direct"), path("none"), path("direct")) == []
    [moved] = moves(path("direct"), path("none"), path("none"), path("tcp"))
    assert (moved.before[0], moved.after[0]) == ("direct", "tcp")


def test_dimensions_and_peers_are_apart_and_forgotten_with_the_peer() -> None:
    news = PathNews()
    assert news.moved([path("direct"), path("tcp", dimension=4)]) == []
    assert news.moved([]) == []
    assert news.moved([path("tcp"), path("direct", dimension=4)]) == []  # a peer that is back is new
    assert len(news._ways) == 2


def test_another_size_is_told_and_the_full_one_is_not() -> None:
    news, sizes = PathNews(), {b"a": 1420, b"b": 1376}
    assert news.fitted(sizes, sizes.__getitem__, 1420) == [Fits(b"b", 1420, 1376)]
    assert news.fitted(sizes, sizes.__getitem__, 1420) == []
    sizes[b"b"] = 1420
    assert news.fitted(sizes, sizes.__getitem__, 1420) == [Fits(b"b", 1376, 1420)]
    assert news.fitted([], sizes.__getitem__, 1420) == []


def test_another_place_or_kind_of_nat_is_told_once() -> None:
    news = PathNews()
    first, second = Nat("other-port", (HERE,), 2), Nat("other-port", (THERE,), 3)
    assert news.seen({"ipv4": Nat("unknown")}) == []
    assert news.seen({"ipv4": first}) == []  # it begins
    assert news.seen({"ipv4": Nat("unknown")}) == []  # nobody answers now
    assert news.seen({"ipv4": Nat("other-port", (HERE,), 5)}) == []
    assert news.seen({"ipv4": second}) == [NatChanged("ipv4", "other-port", second)]
    assert news.seen({"ipv4": Nat("none"), "ipv6": Nat("none")}) == [
        NatChanged("ipv4", "other-port", Nat("none"))
    ]


def test_random_ports_change_without_a_word() -> None:
    news = PathNews()
    places = [Place(HERE.address, port) for port in range(40000, 40004)]
    assert news.seen({"ipv4": Nat("random", tuple(places[:2]), 2)}) == []
    assert news.seen({"ipv4": Nat("random", tuple(places[2:]), 2)}) == []
    assert len(news.seen({"ipv4": Nat("random", (THERE, places[0]), 2)})) == 1
