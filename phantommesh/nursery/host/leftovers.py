# SPDX-License-Identifier: GPL-3.0-or-later
"""Leftovers: what nodes have put into this network namespace, by the name of their scattering interface, and
the removal of what is left of a node that nobody runs.

A guard goes by its interfaces' names and stays when its node ends. Under other names (another
``wireguard.prefix``, a second mesh) it would drop all that comes by the new interfaces.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog
import trio

from phantommesh.acl import banrules
from phantommesh.acl import ruleset as aclrules
from phantommesh.dimensions import master_name
from phantommesh.nursery.host import netlink
from phantommesh.nursery.host.forwarding import close_for
from phantommesh.nursery.host.netlink import Link
from phantommesh.nursery.host.nft import NftError, Table, list_tables
from phantommesh.nursery.host.owning import owned
from phantommesh.nursery.host.userspace import UserspaceBackend
from phantommesh.overlay import guard
from phantommesh.overlay.prefixes import Closing
from phantommesh.routable import overlap
from phantommesh.routing import forwarding, gateway, tagging
from phantommesh.scatter import cgroups, coverrules, flows, ruleset
from phantommesh.wireguard.device import Network

log = structlog.get_logger("phantommesh.leftovers")


@dataclass(frozen=True, slots=True)
class Found:
    """The objects here under the names of one scattering interface, ``device``: tables as (family, name), and
    interfaces with our alias."""

    device: str
    tables: list[tuple[str, str]] = field(default_factory=list)
    links: dict[str, Link] = field(default_factory=dict)

    def carries(self, networks: Iterable[Network]) -> bool:
        """Whether an interface has an address in one of these networks."""
        addresses = [address.network for link in self.links.values() for address in link.addresses]
        return any(overlap(address, network) for network in networks for address in addresses)


def device_of(table: str, present: Collection[str] = ()) -> str | None:
    """The scattering interface that a table of ours is named after; None for somebody else's table. The guard
    of ``x`` and what scatters on ``guard_x`` are called the same: that is ``guard_x`` where it is
    ``present``."""
    wide, narrow = ruleset.table_name(""), guard.table_name("")
    names = (
        aclrules.table_name,
        banrules.table_name,
        forwarding.table_name,
        tagging.table_name,
        gateway.table_name,
        cgroups.table_name,
        flows.table_name,
        coverrules.table_name,
    )
    narrower = (narrow, *(name("") for name in names))
    prefixes = (wide,) if table.removeprefix(wide) in present else (*narrower, wide)
    for prefix in prefixes:
        if table.startswith(prefix) and table != prefix:
            return table.removeprefix(prefix)
    return None


async def find() -> dict[str, Found]:
    """Read what is here, by scattering interface. Raises NftError and BackendError."""
    found: dict[str, Found] = {}
    for name, link in (await trio.to_thread.run_sync(netlink.read_our_links)).items():
        device = master_name(name)
        found.setdefault(device, Found(device)).links[name] = link
    for family, name in await list_tables():
        if (owner := device_of(name, found)) is not None:
            found.setdefault(owner, Found(owner)).tables.append((family, name))
    return found


async def remove(found: Found) -> None:
    """Remove interfaces, then tables. A userspace WireGuard without its interface ends. Raises NftError and
    BackendError."""
    await UserspaceBackend(Path("wireguard-go")).close(remove=list(found.links))
    await trio.to_thread.run_sync(_delete_links, tuple(found.links))
    for family, name in found.tables:
        await _remove(family, name)


async def opened_beside(own: str) -> frozenset[str]:
    """The interfaces whose forwarding is on for relays and routers of other nodes here, or of this one, than
    the one with the table ``own``. None where the tables cannot be read."""
    found = set[str]()
    with suppress(NftError):
        for family, name in await list_tables():
            opened = _opened_in(family, name)
            if opened is not None and name != own:
                found.update(await Table(family, name).names(opened))
    return frozenset(found)


class Opened(Protocol):
    """The part of `Table` that is needed here."""

    async def names(self, name: str) -> list[str]: ...

    async def remove(self) -> None: ...


async def close_left(
    rules: Opened, table: str, opened: str, beside: Callable[[str], Awaitable[frozenset[str]]] = opened_beside
) -> None:
    """Give interfaces back what they were where a run that was killed has left them open, and remove its
    rules. ``opened`` is the set that has them; ``beside`` is as `opened_beside`. Raises NftError."""
    try:
        left = await rules.names(opened)
    except NftError:
        return  # there is no such table
    close_for(set(left) - await beside(table))
    await rules.remove()


def _opened_in(family: str, name: str) -> str | None:
    """The set of a relay's or a router's table that has the interfaces that it opened; None for another
    table."""
    if family == forwarding.FAMILY and name.startswith(forwarding.table_name("")):
        return forwarding.OPENED
    if family == gateway.FAMILY and name.startswith(gateway.table_name("")):
        return gateway.OPENED
    return None


async def _remove(family: str, name: str) -> None:
    """Remove a table. Where it is a relay's or a router's, the interfaces that it has opened are given back
    first what they were."""
    table = Table(family, name)
    if (opened := _opened_in(family, name)) is not None:
        try:
            close_for(set(await table.names(opened)) - await opened_beside(name))
        except NftError as error:
            log.warning("the interfaces that it opened are not known", table=name, error=str(error))
    await table.remove()


def _delete_links(names: tuple[str, ...]) -> None:
    """Delete those that are still there and ours."""
    for name, link in netlink.read_links(names).items():
        if link.ours:
            netlink.delete_link(name)


async def clear_tables(own: str) -> None:
    """Remove the tables of other nodes that nobody runs here, before the node of the interface ``own`` has
    its own. Interfaces that were kept for a restart keep their guard. Raises NftError and BackendError."""
    for found in (await find()).values():
        if found.device == own or found.links:
            continue
        with owned(found.device) as free:
            if not free:
                continue
            for family, name in found.tables:
                await _remove(family, name)
                log.info("a table that no running node owns is removed", table=f"{family} {name}")


def held_closed(closed: Iterable[Closing], running: Mapping[str, Found]) -> frozenset[Closing]:
    """Which of our closed prefixes belong to nodes that run: those that meet what their interfaces route. A
    node without a route has just started or is about to end, so all may be its."""
    routed = [[r.network for link in each.links.values() for r in link.routes] for each in running.values()]
    if not all(routed):
        return frozenset(closed)
    networks = [network for each in routed for network in each]
    return frozenset(c for c in closed if any(overlap(c.network, network) for network in networks))
