# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from ipaddress import IPv4Interface, ip_network
from pkgutil import walk_packages

import pytest

import phantommesh
from phantommesh.nursery.host.leftovers import Found, device_of, held_closed
from phantommesh.nursery.host.netlink import Link
from phantommesh.nursery.host.owning import owned
from phantommesh.overlay.guard import table_name as guard_name
from phantommesh.overlay.prefixes import Closing
from phantommesh.routing.forwarding import table_name as relay_name
from phantommesh.routing.tagging import table_name as tags_name
from phantommesh.scatter.cgroups import table_name as cgroups_name
from phantommesh.scatter.ruleset import table_name as scatter_name
from phantommesh.wireguard.device import Route

WIDE, OTHER = ip_network("100.64.0.0/10"), ip_network("10.9.0.0/16")


def link(address: str, *routes: str) -> Link:
    routed = frozenset(Route(ip_network(route), 50) for route in routes)
    return Link(1, "tun", True, True, 1420, frozenset({IPv4Interface(address)}), routed, True)


def table_names() -> list[Callable[[str], str]]:
    """All functions of the package that name a table of nftables by its node's interface."""
    found = walk_packages(phantommesh.__path__, "phantommesh.")
    modules = [import_module(each.name) for each in found if not each.name.endswith("__main__")]
    return [
        named
        for module in modules
        if (named := vars(module).get("table_name")) and named.__module__ == module.__name__
    ]


@pytest.mark.parametrize("device", ["pm", "guard_pm", "a-b"])
def test_a_table_names_its_interface(device: str) -> None:
    named = table_names()
    assert {guard_name, relay_name, tags_name, cgroups_name} < set(named)
    for name in named:
        assert device_of(name(device), {device} if name is scatter_name else ()) == device, name.__module__


def test_other_programs_tables_name_none() -> None:
    for name in ("filter", "phantommesh", "phantommesh_", "xphantommesh_guard_pm"):
        assert device_of(name) is None


def test_what_a_running_node_routes_stays_closed() -> None:
    closed = [Closing(kind, network) for kind in ("route", "fence") for network in (WIDE, OTHER)]
    running = Found("pm", links={"pm": link("10.9.0.1/32", str(OTHER))})
    assert held_closed(closed, {}) == frozenset()
    assert {each.network for each in held_closed(closed, {"pm": running})} == {OTHER}
    starting = Found("qm")
    assert held_closed(closed, {"pm": running, "qm": starting}) == frozenset(closed)
    assert running.carries([OTHER]) and not running.carries([WIDE])


def test_an_interface_is_held_once() -> None:
    with owned("unit-test") as first, owned("unit-test") as second:
        assert first and not second
    with owned("unit-test") as again:
        assert again
