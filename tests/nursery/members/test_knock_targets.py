# SPDX-License-Identifier: GPL-3.0-or-later
"""At which ports of a peer's address it is knocked."""

from __future__ import annotations

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from msgspec import structs

from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.members.punching import PunchDriver
from phantommesh.paths.state import PathState
from phantommesh.records.candidate import Candidate, Kind
from phantommesh.routing.ways import Ways
from phantommesh.trust.identity import NodeId
from tests.support.makemesh import identity, plain_record

PUBLIC = ip_address("203.0.113.7")
MAPPED, SEEN = (tuple(range(first, first + DIMENSIONS)) for first in (51_820, 40_001))


def test_a_mapping_does_not_hide_the_ports_of_the_nat() -> None:
    """Some gateways list and renew a mapping, and forward nothing by it."""
    both = (
        Candidate.of(Kind.MAPPED, PUBLIC, 51_800, MAPPED),
        Candidate.of(Kind.SEEN, PUBLIC, 40_000, SEEN),
    )
    record = structs.replace(plain_record(identity("a")), control=("192.168.1.5:51800",), candidates=both)
    driver: Any = SimpleNamespace(
        _peers={b"a": SimpleNamespace(record=record)},
        _places=SimpleNamespace(
            targets=lambda entry: [(str(PUBLIC), 2, True)], uplinks=lambda entry: [(str(PUBLIC),)]
        ),
    )
    knocked = PunchDriver._targets(driver, b"a")
    assert [[target.address.port for target in each] for each in knocked] == [
        [mapped, seen] for mapped, seen in zip(MAPPED, SEEN, strict=True)
    ]


def test_each_dimension_prefers_its_own_uplink() -> None:
    """Dimension i goes by uplink i modulo their number; other addresses are for where that uplink fails."""
    hosts = ("192.0.2.1", "198.51.100.1")
    control = tuple(f"{host}:51800" for host in hosts)
    record = structs.replace(plain_record(identity("a")), control=control)
    driver: Any = SimpleNamespace(
        _peers={b"a": SimpleNamespace(record=record)},
        _places=SimpleNamespace(
            targets=lambda entry: [(host, 2, False) for host in hosts],
            uplinks=lambda entry: [(host,) for host in hosts],
        ),
    )
    best = [min(each, key=lambda target: target.rank) for each in PunchDriver._targets(driver, b"a")]
    assert [target.address.host for target in best] == [hosts[i % 2] for i in range(DIMENSIONS)]
    assert all(len(each) == 2 for each in PunchDriver._targets(driver, b"a"))


@pytest.mark.parametrize(("state", "soon"), [(PathState.DARK, True), (PathState.CLOSED, False)])
def test_a_dimension_that_fell_silent_is_searched_for_at_once(state: PathState, soon: bool) -> None:
    """One that never was is left to WireGuard for a moment."""
    asked: list[tuple[int, bool]] = []

    def want(peer: bytes, dimensions: int, now: float, *, soon: bool, up: int) -> list[object]:
        asked.append((dimensions, soon))
        return []

    states = [state, *[PathState.UP] * (DIMENSIONS - 1)]
    entry = SimpleNamespace(record=plain_record(identity("a")))
    driver: Any = SimpleNamespace(
        _peers=SimpleNamespace(get=lambda peer: entry, wg_keys_of=lambda found: found.record.wg_keys),
        _ports=SimpleNamespace(able=True), _places=SimpleNamespace(whereabouts=tuple), _own=(),
        _paths=lambda: SimpleNamespace(path=lambda peer, i: SimpleNamespace(state=states[i])),
        _ways=Ways(), _carry_out=list, punching=SimpleNamespace(want=want),
    )  # fmt: skip

    async def watch() -> None:
        PunchDriver.watch(driver, NodeId(b"a" * 16))

    trio.run(watch)
    assert asked == [(1, soon)]
