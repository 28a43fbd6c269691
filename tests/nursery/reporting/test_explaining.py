# SPDX-License-Identifier: GPL-3.0-or-later
"""Two whole nodes: which way traffic to a member, or to another address, goes by a node's own word."""

from __future__ import annotations

from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs
from structlog.testing import capture_logs

from phantommesh.client.http import ApiError, NodeClient
from phantommesh.config.sections import IntentSection, RelaySection, ScatterSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.management.explainview import Explanation, Refused
from phantommesh.nursery.members import own
from phantommesh.nursery.node import Node
from phantommesh.overlay.beyond import beyond
from phantommesh.scatter.epochs import ClassCounts, EpochCounts
from phantommesh.scatter.maps import Epoch
from phantommesh.scatter.peermap import Hits
from phantommesh.scatter.transactions import Snapshot
from tests.nursery.members.test_granting import advertise
from tests.nursery.members.test_taking import accept
from tests.support.loopback import join, make_authority, make_invite, serving, until

SITE, OTHER = ip_network("198.51.100.0/24"), ip_network("203.0.113.0/24")  # RFC 5737
TRIPS = (0.080, 0.060, 0.020, 0.070, 0.050, 0.040, 0.030)


def still(node: Node) -> None:
    """Nothing is probed: what is measured is made up."""
    node.parts.paths.run = trio.sleep_forever  # type: ignore[method-assign]


def edited(node: Node, **sections: Any) -> None:
    """The node follows a configuration that was edited."""
    node.reload(structs.replace(node.parts.config, **sections), {})


def measured(node: Node, peer: bytes) -> None:
    """Each dimension has answered in its time, and what is quickest is looked for anew."""
    paths, now = node.parts.paths.paths, trio.current_time()
    for i, trip in enumerate(TRIPS):
        path = paths.path(peer, i)
        assert path is not None
        for before in (3.0, 2.0, 1.0, 0.5):
            assert path.answered(path.ping(now - before - trip, 9.0), now - before) is not None
    paths.seek_quickest((), now)
    paths.seek_quickest((peer,), now)


def scattered(node: Node, peer: bytes) -> None:
    """As if the kernel had a map of two classes."""
    part = partial(ClassCounts, scheduler="flow", hits=Hits())
    classes = (
        part("ssh", "latency", cards=(0, 0, 10, 0, 0, 0, 0)),
        part("rest", None, cards=(10,) * DIMENSIONS),
    )
    counts = EpochCounts(
        Epoch(1, 0), "flow", (1.0,) * DIMENSIONS, (10,) * DIMENSIONS, Hits(), 0.0, classes=classes
    )  # fmt: skip
    snapshot = Snapshot(counts, None)
    node.parts.scattering.snapshot = {peer: snapshot}.get  # type: ignore[method-assign,assignment]


async def test_a_member_is_explained_by_any_of_its_names_with_class_choice_and_costs(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a", still) as alpha:
        beta = await join(tmp_path / "b", make_invite(state), "beta")
        await join(tmp_path / "c", make_invite(state), "gamma")
        async with serving(tmp_path / "b", still) as other, serving(tmp_path / "c", still):
            with capture_logs():
                await until(lambda: len(alpha.parts.peers.entries) == 2)
                edited(
                    alpha,
                    intent=(IntentSection("ssh", "latency", ports=(22,)),),
                    scatter=ScatterSection(goal="order", peers={"beta": "throughput"}, hook="off"),
                )
                peer = other.parts.state.identity.node_id
                await until(lambda: all(one.state != "closed" for one in alpha.reporter.explain("beta").ways))
                before = alpha.reporter.explain("beta")
                assert [one.dimension for one in before.classes] == [0, 0] and before.quickest is None
                assert all('scatter.hook is "off"' in one.choice for one in before.classes)
                assert "scatter.hook" in before.would_change[0]
                measured(alpha, peer)
                scattered(alpha, peer)
                alpha.parts.settings.config = structs.replace(
                    alpha.parts.config, relay=RelaySection(never=("gamma",))
                )
                found = alpha.reporter.explain("beta")
                for dest in (found.node_id or "", str(beta.ip4), str(beta.ip6), f"::ffff:{beta.ip4}"):
                    same = alpha.reporter.explain(dest)
                    assert (same.leads, same.peer, same.node_id) == ("member", "beta", found.node_id)

                client = NodeClient(tmp_path / "a" / "api.sock")
                told = await trio.to_thread.run_sync(client.explain, "beta")
                assert (told.classes, told.constraints) == (found.classes, found.constraints)
                with pytest.raises(ApiError) as refused:
                    await trio.to_thread.run_sync(client.explain, "bete")
                assert "did you mean beta?" in refused.value.fix
                with pytest.raises(ApiError) as network:
                    await trio.to_thread.run_sync(client.explain, "10.0.0.0/8")
                assert "an address in it" in network.value.fix

    ssh, rest = found.classes
    assert (ssh.name, ssh.goal, ssh.key, ssh.dimension) == ("ssh", "latency", "intent ssh", 2)
    assert ssh.matches == "ports 22" and ssh.shares == [0, 0, 1, 0, 0, 0, 0]
    assert (rest.name, rest.goal, rest.key, rest.dimension) == (
        "rest", "throughput", "scatter.peers.beta", None,
    )  # fmt: skip
    assert found.quickest is not None and found.quickest.dimension == 2
    assert "cost least" in found.quickest.reason
    costs = [one.cost_s for one in found.ways]
    assert all(cost is not None and cost >= trip for cost, trip in zip(costs, TRIPS, strict=True))
    assert found.ways[2].smoothed_s is not None
    assert found.constraints == ["relay.never = gamma"]
    assert (found.refused, found.refused_total) == ([Refused(name="gamma", key="relay.never")], 1)
    assert any("another dimension is taken once it costs less than" in one for one in found.would_change)


async def test_addresses_that_are_no_members_lead_where_the_routes_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "ASK_ROUTES_SOON", 0.2)
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", make_invite(state), "beta")
        router = (await join(tmp_path / "c", make_invite(state), "gamma")).node_id
        accept(tmp_path / "b", str(SITE))
        advertise(tmp_path / "c", str(SITE), str(OTHER))
        async with serving(tmp_path / "b") as beta, serving(tmp_path / "c") as gamma:

            def at(node: Node, dest: str) -> Explanation:
                return node.reporter.explain(dest)

            with capture_logs():
                await until(lambda: at(alpha, "203.0.113.7").leads == "asked")
                assert "route approve gamma 203.0.113.0/24" in at(alpha, "203.0.113.7").would_change[0]
                assert at(beta, "203.0.113.7").leads == "elsewhere"
                await alpha.reporter.approve_routes("gamma", [str(SITE), str(OTHER)])
                await until(lambda: at(beta, "203.0.113.7").leads == "offered")
                await until(lambda: at(beta, "198.51.100.7").leads == "refused")
                offered, refused = at(beta, "203.0.113.7"), at(beta, "198.51.100.7")
                assert "gamma routes 203.0.113.0/24" in offered.answer
                assert "routes.accept" in offered.would_change[0]
                assert refused.prefix == str(SITE) and [one.name for one in refused.routers] == ["gamma"]
                assert not refused.routers[0].works and refused.classes == []

                beta.parts.failover.answered(router, (SITE,), trio.current_time())
                carried = at(beta, "198.51.100.7")
                assert (carried.leads, carried.peer) == ("carried", "gamma")
                assert carried.routers[0].carries and carried.classes and len(carried.ways) == DIMENSIONS
                assert "is refused here once gamma is silent" in carried.would_change[0]
                beta.parts.beyond.plan = beyond([SITE, OTHER], {SITE: router}, ())
                assert at(beta, "203.0.113.7").leads == "refused"  # it was taken once
                assert "nobody offers it" in at(beta, "203.0.113.7").answer

                assert at(gamma, "203.0.113.7").leads == "own"
                assert at(beta, "192.0.2.1").leads == "elsewhere"
                assert at(beta, "100.127.255.254").leads == "unclaimed"
                for name in ("beta", str(beta.parts.own.member.ip4)):
                    assert at(beta, name).leads == "self"
