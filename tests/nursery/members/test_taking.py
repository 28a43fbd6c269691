# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole nodes: which routes of others one takes, what a false claim does, and what an operator is told."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
import trio
from msgspec import structs
from structlog.testing import capture_logs

from phantommesh.control import messages
from phantommesh.management.events import Filter
from phantommesh.node import routes
from phantommesh.nursery.dataplane import beyond
from phantommesh.nursery.members import own
from phantommesh.nursery.node import Node
from phantommesh.nursery.overlay import hostview
from phantommesh.nursery.overlay.hostview import HostView
from phantommesh.nursery.reporting import routing
from phantommesh.nursery.reporting.localcauses import ROUTE_STOLEN
from phantommesh.overlay.prefixes import HostRange
from phantommesh.routing.prefixes import Taken
from tests.nursery.members.test_granting import advertise, follow
from tests.support.loopback import join, make_authority, make_invite, serving, until

# RFC 5737: no host that runs this has the first of these itself.
SITE, OTHER = ip_network("198.51.100.0/24"), ip_network("203.0.113.0/24")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "ASK_ROUTES_SOON", 0.2)


def accept(at: Path, *prefixes: str) -> None:
    config = at / "pm.toml"
    text = config.read_text()
    assert "accept = []" in text
    listed = ", ".join(f'"{prefix}"' for prefix in prefixes)
    config.write_text(text.replace("accept = []", f"accept = [{listed}]"))


def codes(node: Node) -> set[str]:
    """The faults of the trust side: no packet moves here."""
    found = {fault.code for fault in node.reporter.faults() if fault.code.startswith("route")}
    return found - {beyond.NOT_CARRIED.code, ROUTE_STOLEN.code}


def kinds(node: Node) -> list[str]:
    read = node.parts.events.read(0, Filter.parse("route.*"), 100)
    return [event.type for event in read.events]


async def test_a_route_is_taken_where_it_is_accepted_and_lost_when_it_is_withdrawn(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", make_invite(state), "beta")
        router = (await join(tmp_path / "c", make_invite(state), "gamma")).node_id
        accept(tmp_path / "b", "198.51.100.0/22")
        advertise(tmp_path / "c", str(SITE), str(OTHER))
        async with serving(tmp_path / "b") as beta, serving(tmp_path / "c") as gamma:
            with capture_logs():
                await until(lambda: "route-not-approved" in codes(gamma))
                wishes = [(row.prefix, row.router, row.asked) for row in gamma.reporter.routes().routes]
                assert wishes == [(str(SITE), "gamma", True), (str(OTHER), "gamma", True)]
                await alpha.reporter.approve_routes("gamma", [str(SITE), str(OTHER)])
                await until(lambda: beta.parts.taking.taken == (Taken(SITE, (router,)),))
                await until(lambda: not codes(gamma))
                assert alpha.parts.taking.taken == ()  # it accepts nothing

                rows = {(row.prefix, row.router): row for row in beta.reporter.routes().routes}
                mine, other = rows[str(SITE), "gamma"], rows[str(OTHER), "gamma"]
                assert mine.certified and mine.claimed and mine.accepted and mine.rank == 0
                assert other.certified and other.claimed and not other.accepted
                assert not mine.carried  # nothing moves packets here, so the view may not say so
                beta.parts.taking.carried = lambda: {SITE: router}
                assert [row.prefix for row in beta.reporter.routes().routes if row.carried] == [str(SITE)]

                await alpha.reporter.withdraw_routes("gamma", [str(SITE)])
                await until(lambda: beta.parts.taking.taken == ())
                assert kinds(beta) == ["route.taken", "route.lost"]


async def test_a_conflict_with_the_host_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_range = HostRange("route", ip_network("198.51.0.0/16"), "eth0")
    monkeypatch.setattr(hostview, "look", lambda networks, names: HostView((own_range,), frozenset()))
    state = make_authority(tmp_path / "a")
    accept(tmp_path / "a", "all")
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", make_invite(state), "beta")
        advertise(tmp_path / "b", str(SITE), str(OTHER))
        async with serving(tmp_path / "b"):
            with capture_logs():
                await until(lambda: bool(alpha.parts.desk.desk.granting.open_requests(0.0)))
                waiting = [row for row in alpha.reporter.routes().routes if row.asked]
                assert [(row.prefix, row.router) for row in waiting] == [
                    (str(SITE), "beta"),
                    (str(OTHER), "beta"),
                ]
                await alpha.reporter.approve_routes("beta", [str(SITE), str(OTHER)])
                await until(lambda: [one.prefix for one in alpha.parts.taking.taken] == [OTHER])
                await until(lambda: codes(alpha) == {routes.CONFLICT.code})
                faults = {fault.code: fault for fault in alpha.reporter.faults()}
                assert str(own_range) in faults[routes.CONFLICT.code].text
                (row,) = (row for row in alpha.reporter.routes().routes if row.conflict)
                assert (row.prefix, row.accepted) == (str(SITE), False)


async def test_an_approval_has_the_member_ask_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", make_invite(state), "beta")
        advertise(tmp_path / "b", str(SITE))
        async with serving(tmp_path / "b") as beta:
            with capture_logs():
                await until(lambda: bool(alpha.parts.desk.desk.granting.open_requests(0.0)))
                monkeypatch.setattr(own, "ASK_ROUTES_SOON", 3600.0)
                await trio.sleep(0.3)  # until it has asked once more, and waits
                monkeypatch.setattr(routing, "CERTIFIED_WITHIN", 60.0)
                made = await alpha.reporter.approve_routes("beta", [str(SITE)])
                assert (made.certified, made.waiting) == ([str(SITE)], [])
                answer = await beta.parts.caller.ask(
                    alpha.parts.state.identity.node_id, messages.Approved(), 30.0
                )
                assert isinstance(answer.answer, messages.Refused)  # beta is no authority


async def test_a_member_that_claims_a_prefix_without_a_certificate_moves_nothing(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    accept(tmp_path / "a", "all")
    async with serving(tmp_path / "a") as alpha:
        liar = (await join(tmp_path / "b", make_invite(state), "beta")).node_id

        def lie(node: Node) -> None:
            """Have the node say in its record what its certificate does not have."""
            words = node.parts.own.word._words
            node.parts.own.word._words = lambda keys, seq: structs.replace(
                words(keys, seq), routes=(str(SITE),)
            )

        with capture_logs():
            async with serving(tmp_path / "b", lie):
                await until(lambda: bool(alpha.parts.taking.routes.claims))
                assert alpha.parts.taking.taken == ()
                assert alpha.parts.taking.dropped == {"route-not-certified": 1}
                await until(lambda: codes(alpha) == {routes.NOT_CERTIFIED.code})
                entry = alpha.parts.keeper.roster.get(liar)
                assert entry is not None and entry.record.routes == (str(SITE),)


async def test_a_running_node_follows_what_it_accepts(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    advertise(tmp_path / "a", str(SITE))
    async with serving(tmp_path / "a") as alpha:
        router = alpha.parts.own.member.node_id
        await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as beta:
            with capture_logs():
                await alpha.reporter.approve_routes("alpha", [str(SITE)])
                await until(lambda: any(row.claimed for row in beta.reporter.routes().routes))
                assert beta.parts.taking.taken == ()
                follow(beta, accept=("198.51.100.0/22",))
                await until(lambda: beta.parts.beyond.taken == (Taken(SITE, (router,)),))
                assert beta.parts.beyond._allows(SITE)
                follow(beta, accept=())
                assert not beta.parts.beyond._allows(SITE)  # it is opened, whoever offers it
                await until(lambda: beta.parts.beyond.taken == ())


async def test_a_router_that_stops_carries_nothing_from_then_on(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        router = (await join(tmp_path / "b", make_invite(state), "beta")).node_id
        failover = alpha.parts.failover
        with capture_logs():
            async with serving(tmp_path / "b"):
                await until(lambda: any(e.member.node_id == router for e in alpha.parts.peers.entries))
                never = trio.current_time() + 3600.0  # when its silence would be noticed, at the earliest
                failover.take((Taken(SITE, (router,)),), never)
                assert failover.answered(router, (SITE,), never)
            await until(lambda: not failover.carried)
