# SPDX-License-Identifier: GPL-3.0-or-later
"""Trials of whole nodes, each with the outcome that it must have.

Every scenario takes a seed and a number of nodes, raises AssertionError where the outcome is wrong, and
returns the simulation.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from functools import cache
from ipaddress import IPv4Network

from phantommesh.control import messages
from phantommesh.control.sessions import Session
from phantommesh.membership.effects import Changed
from phantommesh.membership.messages import State
from phantommesh.membership.presets import MIN_PURGE
from phantommesh.records.record import sign_record
from phantommesh.secret import Secret
from phantommesh.trust.groupkey import MAX_AGE
from phantommesh.trust.identity import Identity, overlay_ip4
from phantommesh.trust.revocations import Revocations
from tests.simulation.full_joining import join
from tests.simulation.full_machines import Network
from tests.simulation.full_node import Process
from tests.simulation.full_parts import Mesh, identity, plain_record
from tests.simulation.full_sim import Simulation
from tests.simulation.full_views import (
    agreed,
    disagreement,
    lacking,
    members,
    settled,
    spread,
    still_in,
    unkeyed,
)

SMALL = IPv4Network("10.99.0.0/24")


def bad_network() -> Network:
    """10 % loss, 5 to 40 ms one way."""
    return Network(loss=0.1, delay=(0.005, 0.04))


def mesh(seed: int, nodes: int, **options: bool | int) -> Simulation:
    """A mesh that has come to rest."""
    sim = Simulation(nodes, seed=seed, network=bad_network(), **options)  # type: ignore[arg-type]
    sim.start_all()
    settle(sim, 30)
    return sim


def settle(sim: Simulation, seconds: float) -> None:
    """Assert that within so many seconds there is one view, and every link is keyed."""
    assert sim.run(seconds, lambda: settled(sim)), (disagreement(sim), unkeyed(sim)[:5])


def shut_out(sim: Simulation, index: int, seconds: float) -> None:
    """Assert that within so many seconds a revoked node is shut out."""
    assert sim.run(seconds, lambda: not still_in(sim, index)), still_in(sim, index)


def deaths(sim: Simulation) -> list[str]:
    """From now on, gather which nodes are held for dead, and by which."""
    found: list[str] = []

    def heard(viewer: int, change: Changed, now: float) -> None:
        if change.event == "dead":
            found.append(f"{sim.by_id[change.node].name} by n{viewer} at {now}")  # type: ignore[index]

    sim.on_change = heard
    return found


def session_of(sim: Simulation, index: int, invite: bytes = b"") -> Session:
    """A session of this node with another, as a handshake leaves it."""
    return Session(sim.machines[index].identity.node_id, b"", Secret(b""), Secret(b""), invite)


def halves(border: int) -> Callable[[int, int], bool]:
    """A cut between the nodes below the border and the others."""
    return lambda a, b: (a < border) != (b < border)


def newcomers(seed: int, nodes: int) -> Simulation:
    """Three machines join by invites of an authority, which is off as soon as the last of them is in. All
    come to know all, and the next newcomer joins at the other authority."""
    sim = Simulation(nodes, seed=seed, network=bad_network())
    sim.start_all(nodes - 4)
    settle(sim, 30)
    for index in range(nodes - 4, nodes - 1):
        join(sim, index, 0)
    assert sim.run(30, lambda: len(sim.running()) == nodes - 1, every=0.01), "they did not get in"
    sim.crash(0)
    settle(sim, 40)
    assert len(members(sim)) == nodes - 2
    join(sim, nodes - 1, 1)
    assert sim.run(30, lambda: sim.machines[-1].process is not None), "the last one did not get in"
    settle(sim, 40)
    sim.start(0)
    settle(sim, 40)
    assert len(members(sim)) == nodes
    return sim


def updates(seed: int, nodes: int) -> Simulation:
    """A new record wins everywhere. An older record that a member sends to all rolls nobody back. Nor does
    the record of a node whose disk came back from a backup: the node goes on after the number that the mesh
    knows."""
    sim = mesh(seed, nodes)
    backup = dict(sim.machines[3].disk)
    subject = sim.machines[3].identity.node_id
    old = sim.process(3).roster.get(subject)
    assert old is not None
    sim.crash(nodes - 1)
    for version in ("v2", "v3"):
        sim.publish(3, version)
        assert sim.run(4, lambda: spread(sim, 3)), "not everybody has the record"
    sim.start(nodes - 1)
    answers: list[messages.Answer] = []
    for process in sim.running():
        process.desk.serve(session_of(sim, 2), messages.Announce(old.signed.encode()), answers.append)
    assert answers == [messages.Done()] * len(sim.running())
    settle(sim, 30)

    def versions() -> set[str]:
        return {e.record.version for p in members(sim) if (e := p.roster.get(subject)) is not None}

    assert versions() == {"v3"}
    sim.crash(3)
    sim.machines[3].disk = backup
    sim.machines[3].version = "restored"
    sim.start(3)
    assert sim.run(60, lambda: versions() == {"restored"} and agreed(sim)), versions()
    settle(sim, 60)
    return sim


def equivocation(seed: int, nodes: int) -> Simulation:
    """A node tells one half another record than the other half, with one number. Everybody comes to hold the
    proof, and the same one of the two records."""
    sim = mesh(seed, nodes)
    liar = sim.machines[4]
    for version in ("two", "faced"):
        record = plain_record(liar.identity, 7, liar.address, version)
        signed = sign_record(liar.identity, record, liar.node_cert, liar.authority_cert)
        for index in range(nodes):
            if index != 4 and (index % 2 == 0) == (version == "two"):
                sim.tell(index, lambda process, signed=signed: process.keeper.add(signed))  # type: ignore[misc]

    def noticed() -> int:
        return sum(liar.identity.node_id in p.roster.equivocations for p in members(sim))

    assert sim.run(60, lambda: noticed() == nodes), f"noticed by {noticed()}"
    settle(sim, 60)
    return sim


def revocation_through_a_cut(seed: int, nodes: int) -> Simulation:
    """An authority revokes a node that is on the other side of a cut. Its own side knows at once; the other
    shuts the node out once the cut is over, and the node learns of it."""
    sim = mesh(seed, nodes)
    gone, border = nodes - 2, nodes // 2
    sim.network.cut = halves(border)
    sim.run(15)
    sim.revoke(0, gone)
    sim.run(30)
    near = [p for p in sim.running() if p.machine.index < border]
    assert all(sim.machines[gone].identity.node_id in p.revocations for p in near)
    sim.network.cut = None
    shut_out(sim, gone, 60)
    settle(sim, 40)
    outsider = sim.process(gone)
    assert sim.run(60, lambda: outsider.revoked), "it was not told"
    assert not outsider.links._peers and not outsider.machine.kernel.psks
    return sim


def revoked_is_shut_out(seed: int, nodes: int) -> Simulation:
    """A revoked node goes on as if nothing had happened: everybody drops all that it sends."""
    sim = mesh(seed, nodes)
    gone = nodes - 1
    outsider = sim.process(gone)
    outsider.keeper._revocations = Revocations(sim.mesh.root)  # it does not listen
    for process in sim.running():
        process.asker.ask_revoked = lambda of, about=None: None  # type: ignore[method-assign]
    sim.revoke(0, gone)
    shut_out(sim, gone, 40)
    settle(sim, 30)
    before = [p.gossip.drops + p.links.drops for p in members(sim)]
    sim.run(30)
    reasons = {"gossip-revoked", "gossip-key", "unknown-node"}
    for process, then in zip(members(sim), before, strict=True):
        dropped = process.gossip.drops + process.links.drops - then
        assert sum(dropped[reason] for reason in reasons) > 0
    settle(sim, 10)
    assert not still_in(sim, gone)
    return sim


def revoker_crashes(seed: int, nodes: int, *, authorities: int = 2) -> Simulation:
    """The authority that revoked a node crashes when one member has heard of it, and before it made a key."""
    sim = mesh(seed, nodes, authorities=authorities)
    gone, told = nodes - 1, nodes - 2
    node_id = sim.machines[gone].identity.node_id
    sim.network.cut = lambda a, b: 0 in (a, b) and told not in (a, b)
    sim.process(0).make_key = lambda: None  # type: ignore[method-assign]  # it does not come to it
    sim.revoke(0, gone)
    assert sim.run(20, lambda: node_id in sim.process(told).revocations, every=0.001)
    sim.crash(0)
    assert sum(node_id in p.revocations for p in sim.running()) == 1
    sim.network.cut = None
    if authorities == 1:
        assert sim.run(30, lambda: all(node_id in p.revocations for p in sim.running()))
        assert all(node_id not in p.machine.kernel.psks for p in members(sim))
        sim.start(0)  # its revocation was on its disk, and its next key is due
    shut_out(sim, gone, 60)
    settle(sim, 60)
    return sim


def revoker_crashes_alone(seed: int, nodes: int) -> Simulation:
    """As `revoker_crashes`, where the revoker was the only authority: the news goes round without it, the key
    changes when it is back."""
    return revoker_crashes(seed, nodes, authorities=1)


def rotation(seed: int, nodes: int) -> Simulation:
    """The group key grows old and is replaced, three times: no member ever gets a datagram that it cannot
    open, and nobody is held for dead."""
    sim = mesh(seed, nodes)
    dead = deaths(sim)
    for _ in range(3):
        newest = sim.process(0).ring.newest
        assert newest is not None
        for index in range(nodes):
            sim.step_clock(index, MAX_AGE)
        assert sim.run(60, lambda old=newest: _all_send_with_another(sim, old.id))  # type: ignore[misc]
        sim.run(25)
        for process in members(sim):
            assert process.gossip.drops["gossip-key"] == 0
            assert process.ring.get(newest.id) is None, "the old key is still received with"
    assert not dead, dead
    settle(sim, 30)
    return sim


def _all_send_with_another(sim: Simulation, old: bytes) -> bool:
    return all(p.ring.active is not None and p.ring.active.id > old for p in members(sim))


def _purge(sim: Simulation) -> None:
    """Have all nodes that run forget who is down, as after 72 hours."""
    for process in sim.running():
        for down in process.membership._core.table.down.values():
            down.since -= MIN_PURGE
    assert sim.run(30, lambda: not any(p.membership._core.table.down for p in sim.running()))


def back_after_a_purge(seed: int, nodes: int) -> Simulation:
    """A node was away for so long that the others forgot it, though they hold its record. It returns, and is
    alive to all in 15 s; when it dies again all know in the usual time."""
    sim = mesh(seed, nodes)
    gone = nodes - 1
    node_id = sim.machines[gone].identity.node_id
    sim.crash(gone)
    views = [p.membership for p in sim.running()]
    assert sim.run(15, lambda: all(v.state(node_id) is State.DEAD for v in views))
    _purge(sim)
    assert all(v.state(node_id) is None for v in views)
    assert all(p.roster.get(node_id) is not None for p in sim.running())
    sim.publish(1, "later")  # a change of the roster alone brings back nobody
    sim.run(20)
    assert all(v.state(node_id) is None for v in views)
    sim.start(gone)
    assert sim.run(15, lambda: all(v.state(node_id) is State.ALIVE for v in views), every=0.1)
    settle(sim, 30)
    sim.crash(gone)
    assert sim.run(8, lambda: all(v.state(node_id) is State.DEAD for v in views), every=0.1)
    return sim


def halves_forget_each_other(seed: int, nodes: int) -> Simulation:
    """Two halves are cut off from each other for 73 hours. The members of one start again meanwhile, and no
    seed is on the other side: the last addresses of those that were forgotten bring the halves together."""
    sim = mesh(seed, nodes)
    border = nodes // 2
    sim.network.cut = halves(border)
    sim.run(40)
    _purge(sim)
    for process in sim.running():
        assert len([n for n in process.membership if n != process.me]) == border - 1
    for index in range(border, nodes):
        sim.process(index).write("members")
        sim.crash(index)
        sim.start(index)
    sim.run(40)
    _purge(sim)
    for process in sim.running():  # the authorities are seeds in this simulation: leave them out

        def last_only(process: Process = process) -> None:
            process.membership.set_seeds(process.lost.addresses())

        process.set_seeds = last_only  # type: ignore[method-assign]
        process.set_seeds()
    sim.network.cut = None
    settle(sim, 90)
    assert not any(len(process.lost) for process in sim.running())
    return sim


def partly_reachable(seed: int, nodes: int) -> Simulation:
    """Half of the nodes no longer reach the last one. That node is dead to nobody, all see which members
    reach it, and its next record comes to all; its real death is known in the usual time."""
    sim = mesh(seed, nodes)
    dead, last = deaths(sim), nodes - 1
    far = range(nodes // 2)
    sim.network.cut = lambda a, b: last in (a, b) and min(a, b) in far
    node_id = sim.machines[last].identity.node_id
    assert sim.run(40, lambda: all(sim.process(i).membership.through(node_id) for i in far))
    sim.publish(last, "told by others")
    assert sim.run(10, lambda: spread(sim, last)), f"{lacking(sim, last)} lack its record"
    sim.run(60)
    assert not dead, dead
    assert not any(process.gossip.drops["gossip-proof"] for process in sim.running())
    sim.network.cut = None
    settle(sim, 90)
    assert sim.run(30, lambda: not any(p.membership.through(node_id) for p in sim.running()))
    sim.network.cut = lambda a, b: last in (a, b) and min(a, b) in far
    sim.run(40)
    sim.crash(last)
    views = [process.membership for process in sim.running()]
    assert sim.run(9, lambda: all(v.state(node_id) is State.DEAD for v in views), every=0.1)
    sim.network.cut = None
    sim.start(last)
    settle(sim, 60)
    return sim


def partition(seed: int, nodes: int) -> Simulation:
    """Cut 60 to 40 for two minutes; each side has an authority, revokes a node, and publishes. Then one view:
    of members, records, revocations and keys."""
    sim = mesh(seed, nodes)
    left = [i for i in range(nodes) if i != 1][: round(nodes * 0.6)]  # authority 0 here, 1 there
    sim.network.cut = lambda a, b: (a in left) != (b in left)
    right = [i for i in range(nodes) if i not in left]
    sim.run(30)
    sim.publish(left[1], "left")
    sim.publish(right[1], "right")
    sim.revoke(0, right[-1])
    sim.revoke(1, left[-1])
    sim.run(90)
    sim.network.cut = None
    settle(sim, 60)
    for gone in (left[-1], right[-1]):
        shut_out(sim, gone, 60)
    assert spread(sim, left[1]) and spread(sim, right[1])
    assert len(members(sim)) == nodes - 2
    settle(sim, 30)
    return sim


def mass_restart(seed: int, nodes: int) -> Simulation:
    """All crash, with a revocation just made, and start within a second from what was on their disks."""
    sim = mesh(seed, nodes)
    sim.revoke(0, nodes - 1)
    sim.publish(2, "before")
    sim.run(1.0)
    for machine in sim.machines:
        sim.crash(machine.index)
    sim.run(5)
    for machine in sim.machines:
        sim.later(sim.rng.random(), lambda index=machine.index: sim.start(index))  # type: ignore[misc]
    sim.run(1)
    settle(sim, 60)
    shut_out(sim, nodes - 1, 30)
    assert spread(sim, 2)
    return sim


def asymmetric(seed: int, nodes: int) -> Simulation:
    """Some ways are closed in one direction for two minutes: nobody dies of it, and then all is well."""
    sim = mesh(seed, nodes)
    dead = deaths(sim)
    sim.network.cut = lambda a, b: (a, b) in ((1, 2), (4, 2), (5, 6))
    sim.publish(2, "heard")
    sim.run(120)
    assert not dead, dead
    assert spread(sim, 2)
    sim.network.cut = None
    settle(sim, 60)
    return sim


def deaf(seed: int, nodes: int) -> Simulation:
    """A node's control port gets no UDP any more, but its WireGuard carries data: nobody buries it."""
    sim = mesh(seed, nodes, traffic=True)
    dead = deaths(sim)
    sim.network.deaf = lambda a, b: b == 3
    sim.run(60)
    assert not [d for d in dead if d.startswith("n3 ")], dead
    sim.network.deaf = None
    settle(sim, 60)
    return sim


def clocks(seed: int, nodes: int) -> Simulation:
    """Clocks step by up to an hour and machines sleep: nobody dies of it; links, records and keys go on."""
    sim = mesh(seed, nodes)
    dead = deaths(sim)
    rng = random.Random(seed)
    for _ in range(6):
        sim.step_clock(rng.randrange(nodes), rng.uniform(-3600, 3600))
        sim.leap(rng.randrange(nodes), rng.uniform(1, 60))
        sim.publish(rng.randrange(nodes), f"v{rng.random():.5f}")
        sim.run(20)
    assert not dead, dead
    for machine in sim.machines:
        machine.wall_offset = 0.0
    settle(sim, 200)
    return sim


def clock_an_hour_back(seed: int, nodes: int) -> Simulation:
    """One node's clock is an hour behind when a newcomer joins, so that the newcomer's certificate begins in
    that node's future. The node takes the newcomer in as the others do, drops nobody, and starts again with
    such a clock."""
    sim = Simulation(nodes, seed=seed, network=bad_network())
    sim.start_all(nodes - 1)
    settle(sim, 30)
    dead = deaths(sim)
    sim.step_clock(2, -3600.0)
    join(sim, nodes - 1, 0)
    assert sim.run(30, lambda: sim.machines[-1].process is not None), "it did not get in"
    settle(sim, 60)
    assert len(members(sim)) == nodes
    sim.crash(2)
    sim.start(2)
    settle(sim, 60)
    assert len(list(sim.process(2).roster)) == nodes
    assert not dead, dead
    return sim


def stalls(seed: int, nodes: int) -> Simulation:
    """At any time some node is stopped for 1 s: nobody is held for dead, and news get round."""
    sim = mesh(seed, nodes)
    dead = deaths(sim)
    for round_ in range(60):
        sim.stall(sim.rng.randrange(nodes), 1.0)
        if round_ % 5 == 0:
            sim.publish(sim.rng.randrange(nodes), f"v{round_}")
        sim.run(1.0)
    assert not dead, dead
    sim.run(2.0)
    settle(sim, 30)
    return sim


@cache
def colliding() -> tuple[Identity, Identity]:
    """Two machines that would take the same address, the lower node id first."""
    found: dict[object, Identity] = {}
    for i in range(10_000):
        node = identity(f"collide {i}")
        other = found.setdefault(overlay_ip4(SMALL, node.node_id), node)
        if other is not node:
            first, second = sorted((node, other), key=lambda who: who.node_id)
            return first, second
    raise AssertionError("no two collide")


def collision(seed: int, nodes: int) -> Simulation:
    """Two authorities on two sides of a cut give one address to two newcomers. When the cut is over the lower
    node id keeps the address, the other newcomer gets another certificate, and the two link. No interface
    ever has two peers of one address: until then the interfaces leave the other newcomer out."""
    lower, higher = colliding()
    others = [identity(f"node {i}") for i in range(nodes - 2)]
    pair = [lower, higher] if seed % 2 else [higher, lower]
    sim = Simulation(nodes, seed=seed, network=bad_network(), mesh=Mesh(SMALL), identities=[*others, *pair])
    sim.start_all(nodes - 2)
    settle(sim, 30)
    side = {0, *range(2, nodes // 2), nodes - 2}
    sim.network.cut = lambda a, b: (a in side) != (b in side)
    join(sim, nodes - 2, 0)
    join(sim, nodes - 1, 1)
    assert sim.run(30, lambda: len(sim.running()) == nodes), "they did not get in"
    ip4 = overlay_ip4(SMALL, lower.node_id)
    assert [sim.process(i).own.member.ip4 for i in (nodes - 2, nodes - 1)] == [ip4, ip4]
    sim.run(20)
    sim.network.cut = None
    third = [p for p in sim.running() if p.me not in (lower.node_id, higher.node_id)]

    def left_out() -> bool:
        """Whether some node knows of the dispute, and its interfaces have only the newcomer that keeps the
        address."""
        return any(
            p.roster.disputes(p.wall)
            and lower.node_id in p.machine.kernel.psks
            and higher.node_id not in p.machine.kernel.psks
            and higher.node_id in p.links._peers  # a link needs no overlay address
            for p in third
        )

    assert sim.run(30, left_out, every=0.01), "nobody left the loser of the dispute out of the interfaces"
    settle(sim, 90)
    kept, moved = (sim.by_id[node.node_id].process for node in (lower, higher))
    assert kept is not None and moved is not None
    assert kept.own.member.ip4 == ip4 and moved.own.member.ip4 != ip4
    assert not any(p.roster.disputes(p.wall) for p in members(sim))
    return sim


def soak(seed: int, nodes: int) -> Simulation:
    """Any faults at all; then quiet, and one view with all links keyed."""
    rng = random.Random(zlib.crc32(b"soak %d" % seed))
    sim = mesh(seed, nodes)
    network = sim.network
    network.loss, network.duplicate = rng.random() * 0.25, rng.random() * 0.3
    network.delay = (0.001, rng.random() * 0.2)
    revocable = {nodes - 1, nodes - 2}
    for step in range(20):
        index = rng.randrange(nodes)
        running = sim.machines[index].process is not None
        match rng.randrange(10):
            case 0 if running and len(sim.running()) > 1:
                sim.crash(index)
            case 1 if not running:
                sim.start(index)
            case 2:
                sim.stall(index, rng.random() * 8)
            case 3:
                group = {i for i in range(nodes) if rng.random() < 0.5}
                network.cut = lambda a, b, group=group: (a in group) != (b in group)
            case 4:
                pairs = {(rng.randrange(nodes), rng.randrange(nodes)) for _ in range(nodes)}
                network.cut = lambda a, b, pairs=pairs: (a, b) in pairs
            case 5:
                sim.step_clock(index, rng.uniform(-3600, 3600))
            case 6:
                sim.leap(index, rng.uniform(0, 100))
            case 7:
                sim.publish(index, f"v{step}")
            case 8 if revocable and step > 10:
                sim.revoke(rng.randrange(2), revocable.pop())
            case _:
                network.cut = None
        sim.run(rng.random() * 15)
    network.cut, network.loss = None, min(network.loss, 0.1)
    sim.run(10)
    for machine in sim.machines:
        machine.wall_offset = 0.0
        if machine.process is None:
            sim.start(machine.index)
    settle(sim, 300)
    for index in {nodes - 1, nodes - 2} - revocable:
        if any(sim.machines[index].identity.node_id in p.revocations for p in sim.running()):
            shut_out(sim, index, 60)
    settle(sim, 60)
    return sim


def news(seed: int, nodes: int) -> Simulation:
    """A large mesh: a new record and a death are with 99 % of the nodes in few seconds."""
    sim = Simulation(nodes, seed=seed, network=bad_network(), large=True)
    sim.start_all()
    sim.run(1)
    dead = deaths(sim)
    sim.publish(5, "news")
    sim.crash(7)
    assert sim.run(4, lambda: lacking(sim, 5) <= nodes // 100, every=0.25), (
        f"{lacking(sim, 5)} lack the record"
    )
    assert sim.run(5, lambda: len(dead) >= 0.99 * (nodes - 1), every=0.25), f"{len(dead)} know of the death"
    assert {d.split()[0] for d in dead} == {sim.machines[7].name}
    return sim


def large(seed: int, nodes: int) -> Simulation:
    """As `news`; then a revocation and its new key reach all, and the revoked node is shut out."""
    sim = news(seed, nodes)
    gone, before = sim.machines[9].identity.node_id, sim.process(0).ring.newest
    sim.revoke(0, 9)
    assert sim.run(0.1, lambda: sim.process(0).ring.newest != before, every=0.001), "no key was made"
    newest = sim.process(0).ring.newest

    def known() -> bool:
        return all(gone in p.revocations and p.ring.newest == newest for p in members(sim))

    assert sim.run(6, known, every=0.25), "not everybody has the revocation and the key"
    shut_out(sim, 9, 30)
    assert not lacking(sim, 5)
    assert sim.run(60, lambda: agreed(sim), every=1.0), disagreement(sim)
    return sim


SCENARIOS: dict[str, tuple[Callable[[int, int], Simulation], int]] = {
    scenario.__name__.replace("_", "-"): (scenario, nodes)
    for scenario, nodes in (
        (newcomers, 10), (updates, 8), (equivocation, 9), (revocation_through_a_cut, 10),
        (revoked_is_shut_out, 7), (revoker_crashes, 8), (revoker_crashes_alone, 7), (rotation, 8),
        (back_after_a_purge, 8), (halves_forget_each_other, 8), (partly_reachable, 8),
        (partition, 12), (mass_restart, 12), (asymmetric, 9), (deaf, 7), (clocks, 8),
        (clock_an_hour_back, 6), (stalls, 10),
        (collision, 8), (soak, 7), (news, 1000), (large, 200),
    )
}  # fmt: skip
