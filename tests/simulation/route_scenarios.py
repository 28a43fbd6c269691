# SPDX-License-Identifier: GPL-3.0-or-later
"""Trials of routes beyond the mesh: asked for, approved, offered, carried on, withdrawn. Each asserts its
outcome, as those of `full_scenarios` do."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from phantommesh.errors import PhantomMeshError
from phantommesh.node.routes import offered
from phantommesh.routable import Network
from phantommesh.trust.certificates import DAY
from tests.simulation.full_scenarios import bad_network, settle
from tests.simulation.full_sim import Simulation
from tests.simulation.full_views import members

SITE, LAB = ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")
ROUTER = 3


def routed(seed: int, nodes: int) -> Simulation:
    """A member advertises two prefixes, and one of two authorities approves one: all take it from then on,
    also when the other authority renews the certificate and the first is gone. The other one withdraws the
    route: nobody takes it any more, though the member keeps its record and its certificate as they were, and
    stays a member. Approved anew it counts, at the next certificate, as the next grant; until the member's
    own record no longer offers it."""
    sim = Simulation(nodes, seed=seed, network=bad_network(), authorities=2)
    sim.machines[ROUTER].advertised = (SITE, LAB)
    sim.start_all()
    settle(sim, 30)
    router = sim.machines[ROUTER].identity.node_id

    def waits() -> bool:
        process = sim.process(0)
        return any(one.node_id == router for one in process.desk.desk.granting.open_requests(process.now))

    assert sim.run(30, waits), "the authority was not asked"
    sim.run(20)
    assert honoured(sim) == {()}, "nothing is approved"

    decide(sim, 0, "approve", [SITE])
    assert sim.run(30, lambda: honoured(sim) == {(SITE,)}), honoured(sim)
    assert sim.machines[0].approvals, "the book is not on disk"

    sim.crash(0)
    for index in range(1, nodes):
        sim.step_clock(index, 5 * DAY)
    before = sim.process(ROUTER).own.member.not_after
    assert sim.run(120, lambda: sim.process(ROUTER).own.member.not_after > before), "not renewed"
    assert sim.run(60, lambda: honoured(sim) == {(SITE,)}), "the renewal lost the route"

    sim.process(ROUTER).own.look = lambda: None  # type: ignore[method-assign]  # it keeps what it has
    decide(sim, 1, "withdraw", [SITE])
    assert sim.run(20, lambda: honoured(sim) == {()}), "it is still taken"
    held = [process.roster.get(router) for process in members(sim)]
    assert all(entry is not None and entry.record.routes == (str(SITE),) for entry in held)

    decide(sim, 1, "approve", [SITE])
    sim.run(20)
    assert honoured(sim) == {()}, "the old certificate counts again"
    sim.crash(ROUTER)
    sim.start(ROUTER)
    assert sim.run(60, lambda: honoured(sim) == {(SITE,)}), "the new grant does not count"
    assert sim.process(ROUTER).own.member.grants[0].number == 1

    sim.machines[ROUTER].advertised = (LAB,)
    sim.crash(ROUTER)
    sim.start(ROUTER)
    assert sim.run(60, lambda: honoured(sim) == {()}), "its record did not withdraw the offer"
    assert sim.process(ROUTER).own.member.routes == (SITE,)
    return sim


def honoured(sim: Simulation) -> set[tuple[Network, ...]]:
    """What each other member takes the router's offer for."""
    router, found = sim.machines[ROUTER].identity.node_id, set[tuple[Network, ...]]()
    for process in members(sim):
        entry = process.roster.get(router)
        if process.me != router:
            found.add(() if entry is None else offered(entry, process.revocations))
    return found


def decide(sim: Simulation, index: int, what: str, prefixes: Sequence[Network]) -> None:
    """Have an authority approve or withdraw prefixes of the router."""
    desk, said = sim.process(index).desk, list[object]()
    granting, name, at = desk.desk.granting, sim.process(ROUTER).own.member.name, desk.worker.moment()
    work = granting.approve if what == "approve" else granting.withdraw
    desk.worker.do(work(name, prefixes, at), said.append)
    assert sim.run(5, lambda: bool(said)), "no outcome"
    assert not isinstance(said[0], PhantomMeshError), said[0]
