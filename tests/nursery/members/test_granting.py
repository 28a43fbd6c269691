# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole nodes: a member asks for a route, an operator approves and withdraws it, and all others follow."""

from __future__ import annotations

import stat
from ipaddress import ip_network
from pathlib import Path
from time import time

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from phantommesh.control import messages
from phantommesh.nursery.members import own
from phantommesh.nursery.node import Node
from phantommesh.routable import Network
from phantommesh.state.start import load_node
from phantommesh.trust.certificates import TrustError, verify_chain
from phantommesh.trust.identity import NodeId
from phantommesh.trust.issuing import make_csr
from phantommesh.trust.routes import RouteError
from tests.support.loopback import join, make_authority, make_invite, serving, until

SITE, LAB = ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "ASK_ROUTES_SOON", 0.2)


def advertise(at: Path, *prefixes: str) -> None:
    config = at / "pm.toml"
    listed = ", ".join(f'"{prefix}"' for prefix in prefixes)
    text = config.read_text()
    assert "advertise = []" in text
    config.write_text(text.replace("advertise = []", f"advertise = [{listed}]"))


def seen(node: Node, member: NodeId) -> tuple[tuple[Network, ...], tuple[str, ...]]:
    """What a node knows of a member: the routes in its certificate, and those that it offers."""
    entry = node.parts.keeper.roster.get(member)
    return ((), ()) if entry is None else (entry.member.routes, entry.record.routes)


async def test_a_route_is_asked_for_approved_offered_and_withdrawn(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", make_invite(state), "beta")
        router = (await join(tmp_path / "c", make_invite(state), "gamma")).node_id
        advertise(tmp_path / "c", str(SITE), str(LAB))
        desk = alpha.parts.desk
        async with serving(tmp_path / "b") as beta, serving(tmp_path / "c") as gamma:
            with capture_logs():
                await until(lambda: bool(desk.desk.granting.open_requests(0.0)))
                asked = desk.desk.granting.open_requests(0.0)
                assert [(one.node_id, one.prefixes) for one in asked] == [(router, (SITE, LAB))]
                assert seen(beta, router) == ((), ())  # asking alone moves nothing

                await desk.approve("gamma", [SITE])
                await until(lambda: seen(beta, router) == ((SITE,), (str(SITE),)))
                assert [*gamma.parts.own.word.routes.lacking] == [LAB]
                assert [one.prefixes for one in desk.desk.granting.open_requests(0.0)] == [(LAB,)]
                book = tmp_path / "a" / "state" / "routes.json"
                assert stat.S_IMODE(book.stat().st_mode) == 0o600
                await desk.approve("gamma", [SITE])  # once more changes nothing
                assert len(load_node(tmp_path / "a" / "state", time()).approvals) == 1

                renamed = await gamma.reporter.rename("delta")  # another certificate keeps the route
                assert renamed.name == "delta"
                assert gamma.parts.own.member.routes == (SITE,)
                await until(lambda: "delta" in {e.member.name for e in alpha.parts.keeper.roster})

                await desk.withdraw("delta", [SITE])
                await until(lambda: seen(beta, router) == ((), ()))
                await until(lambda: [*gamma.parts.own.word.routes.lacking] == [SITE, LAB])
                assert load_node(tmp_path / "a" / "state", time()).approvals == ()
                assert beta.parts.keeper.roster.get(router) is not None  # it is a member as before

                await desk.approve("delta", [SITE])  # a new grant, under the next number
                await until(lambda: seen(beta, router)[1] == (str(SITE),))
                entry = beta.parts.keeper.roster.get(router)
                assert entry is not None and entry.member.grants[0].number == 1


async def test_a_certificate_made_by_an_older_record_keeps_the_approved_route(tmp_path: Path) -> None:
    """The record of the certificate before may still be on its way to the authority."""
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        router = (await join(tmp_path / "c", make_invite(state), "gamma")).node_id
        advertise(tmp_path / "c", str(SITE))
        desk = alpha.parts.desk
        async with serving(tmp_path / "c") as gamma:
            with capture_logs():
                await until(lambda: bool(desk.desk.granting.open_requests(0.0)))
                older = alpha.parts.keeper.roster.get(router)
                assert older is not None and older.member.routes == ()
                await desk.approve("gamma", [SITE])
                csr = make_csr(gamma.parts.state.identity, "delta")
                made = await desk.rename(older, messages.Rename(csr))
                member = verify_chain(state.root, made.authority_cert, made.node_cert, time())
                assert (member.name, member.routes) == ("delta", (SITE,))


async def test_an_authority_routes_too_and_only_once_it_is_approved(tmp_path: Path) -> None:
    make_authority(tmp_path / "a")
    advertise(tmp_path / "a", str(SITE))
    async with serving(tmp_path / "a") as alpha:
        me, desk = alpha.parts.own.member.node_id, alpha.parts.desk
        with capture_logs():
            await until(lambda: bool(desk.desk.granting.open_requests(0.0)))
            assert seen(alpha, me) == ((), ())
            await desk.approve("alpha", [SITE])
            await until(lambda: seen(alpha, me) == ((SITE,), (str(SITE),)))
            await desk.withdraw("alpha", [SITE])
            await until(lambda: seen(alpha, me) == ((), ()))


async def test_slips_of_the_operator_are_named(tmp_path: Path) -> None:
    make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        desk = alpha.parts.desk
        with capture_logs():
            with pytest.raises(RouteError, match="overlaps the overlay"):
                await desk.approve("alpha", [ip_network("100.64.1.0/24")])
            with pytest.raises(RouteError, match="loopback"):
                await desk.approve("alpha", [ip_network("127.0.0.0/8")])
            with pytest.raises(RouteError, match="at most"):
                await desk.approve("alpha", [ip_network(f"10.{n}.0.0/16") for n in range(17)])
            with pytest.raises(TrustError, match="has no route to"):
                await desk.withdraw("alpha", [SITE])
            with pytest.raises(Exception, match="nobody"):
                await desk.approve("nobody", [SITE])
    assert not (tmp_path / "a" / "state" / "routes.json").exists()


def follow(node: Node, **keys: object) -> None:
    """The node follows other keys of `[routes]`, as after SIGHUP."""
    config = node.parts.config
    node.reload(structs.replace(config, routes=structs.replace(config.routes, **keys)), {})


async def test_a_running_node_follows_what_it_is_to_advertise(tmp_path: Path) -> None:
    make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        me, desk, gateway = alpha.parts.own.member.node_id, alpha.parts.desk, alpha.parts.gateway
        with capture_logs():
            await desk.approve("alpha", [SITE])
            follow(alpha, advertise=(str(SITE),))
            assert alpha.parts.settings.waiting == ()
            await until(lambda: seen(alpha, me) == ((SITE,), (str(SITE),)))
            await until(lambda: gateway._routes == (SITE,))
            follow(alpha, sites={str(SITE): str(LAB)}, masquerade=False)
            guard = alpha.parts.guarding._want()
            assert guard.behind == (LAB,) and guard.returns
            assert alpha.parts.beyond._own == (LAB,)
            assert gateway._sites == {SITE: LAB} and not gateway.settings.masquerade
            assert alpha.reporter.routes().sites == {str(SITE): str(LAB)}
            assert alpha.reporter.status().routes == {str(SITE): str(LAB)}
            follow(alpha, advertise=(), sites={})
            assert seen(alpha, me) == ((SITE,), ()) and gateway._routes == ()
            follow(alpha, advertise=(str(SITE),))  # what was granted needs nobody's word again
            assert seen(alpha, me) == ((SITE,), (str(SITE),))
