# SPDX-License-Identifier: GPL-3.0-or-later
"""When a node relays of its own accord: only where its own address says that others reach it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from ipaddress import ip_address, ip_network
from typing import cast

import pytest
import trio

from phantommesh.config.sections import Config, NodeSection, RelaySection
from phantommesh.node.peers import Peers
from phantommesh.nursery.dataplane.lending import Lending
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.members.places import Places
from phantommesh.reachable import HostAddress, HostNetworks, Reach
from phantommesh.trust.identity import NodeId

UPLINK = 7


async def untouched(table: str) -> None:
    pass


def lending(
    address: str,
    kind: str = "",
    *,
    relay: RelaySection | None = None,
    clear: Callable[[str], Awaitable[None]] = untouched,
) -> Lending:
    """Of a node of which nothing is configured, whose default route leads over an interface with this."""
    config, nobody = Config(NodeSection("a", "m"), relay=relay or RelaySection()), cast("Peers", None)
    places = Places(config, [ip_network("fd00:1::/48")], lambda host: [host])
    places.reach = Reach(places.reach.overlay, HostNetworks(uplinks=frozenset({UPLINK})))

    async def read(names: Collection[str]) -> Sequence[HostAddress]:
        return [HostAddress(ip_address(address), UPLINK, "up", kind)]

    return Lending(
        config, NodeId(bytes(32)), nobody, places, cast("Caller", None),
        far=lambda peer: None, publish=lambda: None, read=read, clear=clear,
    )  # fmt: skip


async def test_a_public_address_offers() -> None:
    frame = await lending("203.0.113.7")._frame()
    assert frame is not None
    assert str(frame.here4) == "203.0.113.7"


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("192.168.1.5", ""),
        ("100.64.3.4", ""),  # of a carrier's NAT
        ("192.0.0.1", "tun"),  # of a translator (464XLAT), on a host with IPv6 alone
        ("198.18.0.1", "tun"),  # of a proxy that takes the default route
    ],
)
async def test_an_address_that_others_have_too_does_not(address: str, kind: str) -> None:
    assert await lending(address, kind)._frame() is None


async def test_what_a_killed_run_left_is_removed_also_where_this_one_does_not_relay() -> None:
    """It went on forwarding for its pairs, revoked ones among them, for as long as the host ran."""
    cleared = list[str]()

    async def clear(table: str) -> None:
        await trio.lowlevel.checkpoint()
        cleared.append(table)

    for one in (
        lending("203.0.113.7", relay=RelaySection(offer=False), clear=clear),
        lending("192.168.1.5", clear=clear),
    ):
        with trio.move_on_after(0.05):
            await one.run()
    assert cleared == ["phantommesh_relay_pm"] * 2
