# SPDX-License-Identifier: GPL-3.0-or-later
"""Trials of an authority and its members: newcomers, certificates, requests without end. Each asserts its
outcome, as those of `full_scenarios` do."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from phantommesh.control import messages
from phantommesh.control.sessions import Session
from phantommesh.endpoint import Address
from phantommesh.node.desk import JOINS, RENAMES, RENEWALS
from phantommesh.node.intake import NEWER_BURST, NEWER_RATE, RECORDS_RATE
from phantommesh.node.own import check_successor
from phantommesh.node.serving import PATIENCE, REFUSALS, REQUESTS
from phantommesh.rates import Rates
from phantommesh.records.record import CONTEXT
from phantommesh.records.roster import Entry, Roster
from phantommesh.secret import Secret
from phantommesh.state.invitebook import InviteEntry
from phantommesh.trust.certificates import DAY, Role
from phantommesh.trust.identity import NodeId
from phantommesh.trust.invites import Invite
from phantommesh.trust.issuing import make_csr
from tests.simulation import full_scenarios, reach_scenarios
from tests.simulation.full_joining import join
from tests.simulation.full_keeper import at_once
from tests.simulation.full_machines import Machine
from tests.simulation.full_node import Process
from tests.simulation.full_parts import Mesh, identity, plain_record
from tests.simulation.full_scenarios import (
    SMALL,
    bad_network,
    colliding,
    mesh,
    session_of,
    settle,
    shut_out,
)
from tests.simulation.full_sim import Simulation
from tests.simulation.full_views import agreed, disagreement, members, spread
from tests.simulation.route_scenarios import routed


def roles(seed: int, nodes: int) -> Simulation:
    """An invite gives its newcomer the role that it names, a relay or an authority, with everybody; and the
    new authority lets the next newcomer in, when no other authority runs."""
    sim = Simulation(nodes, seed=seed, network=bad_network(), authorities=1)
    sim.start_all(nodes - 3)
    settle(sim, 30)
    relay, authority, last = range(nodes - 3, nodes)
    join(sim, relay, 0, Role.RELAY)
    join(sim, authority, 0, Role.AUTHORITY)
    assert sim.run(30, lambda: len(sim.running()) == nodes - 1), sim.refused
    settle(sim, 40)
    assert roles_of(sim, relay) == {Role.RELAY}
    assert roles_of(sim, authority) == {Role.AUTHORITY}
    sim.crash(0)
    join(sim, last, authority)
    assert sim.run(30, lambda: sim.machines[last].process is not None), sim.refused
    sim.start(0)
    settle(sim, 40)
    assert roles_of(sim, last) == {Role.NODE}
    return sim


def roles_of(sim: Simulation, index: int) -> set[Role | None]:
    """A node's role by the certificate in its record, as each member holds it."""
    node_id = sim.machines[index].identity.node_id
    entries = [p.roster.get(node_id) for p in members(sim)]
    return {None if entry is None else entry.member.role for entry in entries}


def rush(seed: int, nodes: int) -> Simulation:
    """Newcomers come to a slow authority, all at once. Two want one name: one of them gets it,
    the other is told so and comes in under another. Two would take one address, and get two."""
    others = [identity(f"node {i}") for i in range(nodes - 2)]
    newcomers = range(nodes - 4, nodes)
    sim = Simulation(
        nodes, seed=seed, network=bad_network(), mesh=Mesh(SMALL), identities=[*others, *colliding()]
    )
    sim.start_all(nodes - 4)
    settle(sim, 30)
    sim.machines[0].disk_seconds = sim.machines[0].thread_seconds = 0.3
    twins = [sim.machines[index] for index in newcomers[:2]]
    for machine in twins:
        machine.name = "twin"
    for index in newcomers:
        join(sim, index, 0)
    assert sim.run(30, lambda: len(sim.running()) == nodes - 1 and bool(sim.refused)), sim.refused
    late = [machine for machine in twins if machine.process is None]
    assert len(late) == 1, "both are in under one name"
    assert sim.refused == {late[0].index: "the mesh has a node named twin already"}
    late[0].name = "other"
    assert sim.run(30, lambda: len(sim.running()) == nodes), sim.refused
    by_place = {sim.process(index).own.member.ip4 for index in newcomers}
    assert len(by_place) == len(newcomers), "two were given one address"
    settle(sim, 40)
    assert not any(p.roster.disputes(p.wall) for p in members(sim))
    return sim


def lost_number(seed: int, nodes: int) -> Simulation:
    """A node's disk fills up, the node tells something new, and crashes: its roster's file knows nothing of
    the record. When the node starts again it tells something else, under a number that is new: nobody sees
    two records with one number."""
    sim = mesh(seed, nodes)
    sim.machines[3].disk_full = True
    sim.publish(3, "lost")
    assert sim.run(20, lambda: spread(sim, 3)), "not everybody has the record"
    sim.crash(3)
    sim.machines[3].disk_full = False
    sim.machines[3].version = "found"
    subject = sim.machines[3].identity.node_id
    sim.start(3)

    def versions() -> set[str]:
        return {e.record.version for p in members(sim) if (e := p.roster.get(subject)) is not None}

    assert sim.run(30, lambda: versions() == {"found"}), versions()
    settle(sim, 40)
    liars = [p.machine.name for p in sim.running() if p.roster.equivocations]
    assert not liars, f"{liars} hold the node for one that lies"
    for _ in range(3):  # the keys were dated at the first start, and do not grow young
        dated = [key.made for key in sim.process(3).own.word.wg_keys.keys]
        assert all(made is not None and made < sim.wall for made in dated)
        sim.crash(3)
        sim.run(5)
        sim.start(3)
        assert [key.made for key in sim.process(3).own.word.wg_keys.keys] == dated
    settle(sim, 40)
    return sim


def certificates(seed: int, nodes: int) -> Simulation:
    """Four days go by: every certificate is renewed in time, once each. An authority renews its own."""
    sim = mesh(seed, nodes)
    before = {p.me: p.own.member for p in sim.running()}
    assert before[sim.process(0).me].not_after < sim.wall + 6.5 * DAY
    for _ in range(4):
        for index in range(nodes):
            sim.step_clock(index, DAY)
        sim.run(40)
    for process in sim.running():
        old, new = before[process.me], process.own.member
        assert new.not_after > old.not_after + 3 * DAY, f"{process.machine.name} was not renewed"
        assert (new.node_id, new.name, new.role, new.ip4) == (old.node_id, old.name, old.role, old.ip4)
    settle(sim, 60)
    assert sim.tally["certificate renewed"] == 2 * nodes - 2  # at the desk, and where it was asked for
    return sim


def greedy(seed: int, nodes: int) -> Simulation:
    """A member asks for the group keys 200 times at once, and announces nonsense 300 times. It is answered as
    often as a member may ask, then it waits, and requests that would wait too long are refused. Nobody else
    waits."""
    sim = mesh(seed, nodes)
    server = sim.process(0)
    greedy, other = (session_of(sim, index) for index in (4, 3))
    answers: list[messages.Answer] = []
    rate, burst = REQUESTS[messages.AskKeys]
    for _ in range(200):
        server.desk.serve(greedy, messages.AskKeys(), answers.append)
    assert len(answers) == burst
    server.desk.serve(other, messages.AskKeys(), answers.append)
    assert len(answers) == burst + 1, "another member waits"
    sim.run(10)
    assert burst + 9 * rate < len(answers) <= burst + 1 + 10 * rate
    sim.run(PATIENCE)
    assert len(answers) == 201
    served = sum(isinstance(answer, messages.KeysAre) for answer in answers)
    assert burst + 1 < served <= burst + 1 + PATIENCE * rate
    rate, burst = REFUSALS
    refusals: list[messages.Answer] = []
    for _ in range(300):
        server.desk.serve(greedy, messages.Announce(b"junk"), refusals.append)
    assert len(refusals) <= burst
    sim.run(10)
    assert len(refusals) <= burst + 10 * rate
    settle(sim, 60)
    return sim


def restless(seed: int, nodes: int) -> Simulation:
    """A member says something new about itself forty times in a minute. Its word comes into force elsewhere a
    few times at once and then four times a minute; the last word comes into force everywhere in the end. A
    comparison with a member that brings more records than a member may bring is cut short."""
    sim = mesh(seed, nodes)
    me, kept = sim.process(4).me, dict.fromkeys(range(nodes), 0)
    for index in range(nodes):
        count_kept(sim.process(index), me, kept)
    began = sim.now
    for number in range(40):
        sim.process(4).own.publish(f"restless {number}")
        sim.run(1.5)
    others = [kept[index] for index in range(nodes) if index != 4]
    assert kept[4] == 40
    assert max(others) <= NEWER_BURST + (sim.now - began) * NEWER_RATE + 1, others
    assert min(others) >= NEWER_BURST

    def heard() -> bool:
        return all(p.roster.get(me).record.version == "restless 39" for p in sim.running())  # type: ignore[union-attr]

    assert sim.run(60, heard), "the last word is not in force"
    records = [entry.signed.encode() for entry in sim.process(0).roster]
    keeper = sim.process(1).keeper
    keeper.roster = Roster(sim.mesh.root, sim.process(1).revocations)  # this one knows nobody
    keeper.verifications = Rates(RECORDS_RATE, 2)
    came = at_once(keeper.taking(records, sim.process(0).me))
    assert came == 2 and keeper.dropped["record-paced"] == len(records) - 2
    keeper.roster = sim.process(1).roster
    settle(sim, 60)
    return sim


def count_kept(process: Process, of: NodeId, kept: dict[int, int]) -> None:
    """Count in ``kept`` how often a new record of a member comes into force at a process."""

    def note(entry: Entry) -> None:
        kept[process.machine.index] += entry.member.node_id == of

    process.keeper._kept = note  # type: ignore[method-assign]


def strangers(seed: int, nodes: int) -> Simulation:
    """A member is answered; a newcomer that has not enrolled, a node that is not in the mesh, one whose
    certificate has run out and one that was revoked are not."""
    sim = Simulation(nodes, seed=seed, network=bad_network())
    sim.start_all(nodes - 1)
    settle(sim, 30)
    ask = messages.AskKeys()

    def answer(session: Session) -> messages.Answer:
        found: list[messages.Answer] = []
        sim.process(0).desk.serve(session, ask, found.append)
        return found[0]

    assert isinstance(answer(session_of(sim, 2)), messages.KeysAre)
    assert isinstance(answer(session_of(sim, 2, b"invite")), messages.Refused)
    assert isinstance(answer(session_of(sim, nodes - 1)), messages.Refused)
    sim.revoke(0, 3)
    sim.run(1)
    assert isinstance(answer(session_of(sim, 3)), messages.Refused)
    sim.step_clock(0, 8 * DAY)
    assert isinstance(answer(session_of(sim, 2)), messages.Refused)
    sim.step_clock(0, -8 * DAY)
    settle(sim, 60)
    return sim


def desk(seed: int, nodes: int) -> Simulation:
    """An authority renews a member's certificate a few times in a row, for its own key only. It has patience
    with a newcomer that comes again and again, as itself only. A member that is no authority, and an
    authority that was revoked, grant nothing."""
    sim = mesh(seed, nodes)
    csr = make_csr(sim.machines[3].identity, "n3")

    def ask(server: int, session: Session, request: messages.Request, times: int = 1) -> list[str]:
        """The answers: the reason of a refusal, or else the kind of the answer."""
        found: list[messages.Answer] = []
        for _ in range(times):
            sim.process(server).desk.serve(session, request, found.append)
        sim.run(5)
        assert len(found) == times
        return [a.message if isinstance(a, messages.Refused) else type(a).__name__ for a in found]

    answers = ask(0, session_of(sim, 3), messages.Renew(csr), RENEWALS + 1)
    assert sorted(answers) == ["Renewed"] * RENEWALS + ["the certificate of n3 was renewed too often"]
    assert ask(0, session_of(sim, 2), messages.Renew(csr)) == [
        "a certificate is renewed for its own key only"
    ]
    assert ask(3, session_of(sim, 2), messages.Renew(csr)) == ["this node is not an authority"]
    newcomer = identity("somebody new")
    session = Session(newcomer.node_id, b"", Secret(b""), Secret(b""), b"unknown", newcomer.spki)
    enrol = messages.Enrol(make_csr(newcomer, "new"), b"", b"")
    answers = ask(0, session, enrol, JOINS + 1)
    unknown, too_often = "the invite is not one of this authority's", "this node has joined several times"
    assert sorted(answers) == sorted([unknown] * JOINS + [f"{too_often} just now"])
    enrol = messages.Enrol(csr, b"", b"")
    other_key = "the certificate request is for another key than the handshake's"
    assert ask(0, session, enrol) == [other_key]
    assert ask(0, session_of(sim, 3), enrol) == ["an enrolment needs an invite"]
    sim.revoke(0, 1)
    outsider = sim.process(1)
    assert sim.run(60, lambda: outsider.revoked), "it was not told"
    assert ask(1, session_of(sim, 3), messages.Renew(csr)) == ["this authority was revoked"]
    shut_out(sim, 1, 60)
    settle(sim, 60)
    return sim


def terms(seed: int, nodes: int) -> Simulation:
    """An invite binds the newcomer: to the name in it; to one node; to two names of that node at the most, as
    after a crash. A newcomer that names an address nobody would send to is told so, and its invite is not
    spent."""
    sim = Simulation(nodes, seed=seed, network=bad_network())
    sim.start_all(nodes - 2)
    settle(sim, 30)
    authority, one, two = sim.machines[0], sim.machines[-2], sim.machines[-1]
    any_name, named = b"i" * 16, b"n" * 16
    for invite, name in ((any_name, None), (named, "wanted")):
        authority.invites[invite] = InviteEntry(Role.NODE, name, int(sim.wall + DAY), 1, Secret(bytes(32)))

    def enrol(machine: Machine, invite: bytes, name: str, address: Address | None = None) -> str:
        """The reason why the node is not let in; empty where it is let in."""
        node = machine.identity
        session = Session(node.node_id, b"", Secret(b""), Secret(b""), invite, node.spki)
        body = msgspec.msgpack.encode(plain_record(node, 1, address or machine.address))
        answers: list[messages.Answer] = []
        request = messages.Enrol(make_csr(node, name), body, node.sign(body, CONTEXT))
        sim.process(0).desk.serve(session, request, answers.append)
        sim.run(6)
        assert isinstance(answers[0], messages.Refused | messages.Enrolled)
        return answers[0].message if isinstance(answers[0], messages.Refused) else ""

    slip = enrol(one, any_name, "first", Address("127.0.0.1", 51800))
    assert slip == "the endpoint 127.0.0.1:51800 of first is a loopback address"
    assert [enrol(one, any_name, name) for name in ("first", "second", "third")] == [
        "",
        "",
        "this invite has enrolled this node as first and second already",
    ]
    assert enrol(two, any_name, "other") == "the invite is used up"
    assert enrol(two, named, "other") == "the invite is for a node named wanted"
    assert not enrol(two, named, "wanted")
    held = [sim.process(0).roster.get(machine.identity.node_id) for machine in (one, two)]
    assert [entry and entry.member.name for entry in held] == ["second", "wanted"]
    assert sim.run(30, lambda: agreed(sim)), disagreement(sim)
    return sim


def new_identity(seed: int, nodes: int) -> Simulation:
    """Two members each get an invite in place of their identity. One of them is revoked, and does not come
    back by its invite. The other joins by it, at an authority with a slow disk that crashes meanwhile, under
    its name and its address; its old identity is revoked, and nobody else gets in by the invite."""
    sim = Simulation(nodes, seed=seed, network=bad_network())
    sim.start_all(nodes - 3)
    settle(sim, 30)
    old, gone, new, other, last = 3, 4, *range(nodes - 3, nodes)
    granted: list[Invite] = []
    for index in (old, gone):
        answers: list[messages.Answer] = []
        sim.process(0).desk.serve(session_of(sim, index), messages.Replace(), answers.append)
        sim.run(1)
        assert isinstance(answers[0], messages.Replacement)
        granted.append(Invite.parse_untrusted(answers[0].invite))
        check_successor(granted[-1], sim.mesh.described, sim.wall)
    before = sim.process(old).own.member
    sim.revoke(0, gone)
    shut_out(sim, gone, 60)
    sim.machines[other].name = sim.machines[gone].name
    join(sim, other, 0, given=granted[1])
    assert sim.run(30, lambda: other in sim.refused), "it was let in, or nobody answered"
    assert sim.refused[other] == "the identity that this invite replaces was revoked meanwhile"
    sim.machines[new].name = before.name
    sim.machines[0].disk_seconds = 0.3
    join(sim, new, 0, given=granted[0])
    sim.run(sim.rng.uniform(0.2, 2.5))
    sim.crash(0)
    sim.run(1)
    sim.start(0)
    assert sim.run(60, lambda: sim.machines[new].process is not None), sim.refused
    after = sim.process(new).own.member
    assert (after.name, after.ip4, after.role) == (before.name, before.ip4, before.role)
    shut_out(sim, old, 60)
    sim.machines[last].name = before.name
    join(sim, last, 0, given=granted[0])
    sim.run(30)
    assert all(sim.machines[i].process is None for i in (other, last)), "two got in by one invite"
    settle(sim, 60)
    return sim


def renamed(seed: int, nodes: int) -> Simulation:
    """A member gets another name, and the authority gives itself one: everybody hears of it, and node ids and
    addresses are what they were. A name that is taken is refused. Two members want one name at once: one gets
    it. Names without end are refused. The new names outlive a crash and a renewal."""
    sim = Simulation(nodes, seed=seed, network=bad_network(), authorities=1)
    sim.start_all(nodes)
    settle(sim, 30)
    before = {p.me: p.own.member for p in sim.running()}

    def rename(*wanted: tuple[int, str]) -> list[str]:
        """Ask for these names at once; return the reasons of the refusals."""
        said: list[object] = []
        for index, name in wanted:
            sim.process(index).own.rename(name, said.append)
        assert sim.run(30, lambda: len(said) == len(wanted)), "no answer"
        return [str(outcome) for outcome in said if outcome is not None]

    def told(index: int, name: str) -> bool:
        """Whether everybody knows this node by this name."""
        entries = [p.roster.get(sim.machines[index].identity.node_id) for p in members(sim)]
        return all(entry is not None and entry.member.name == name for entry in entries)

    assert rename((3, "another"), (0, "first")) == []
    assert sim.run(40, lambda: told(3, "another") and told(0, "first")), "not everybody has heard"
    assert rename((4, "first")) == ["the mesh has a node named first already"]
    assert rename((4, "wanted"), (5, "wanted")) == ["the mesh has a node named wanted already"]
    for number in range(1, RENAMES):
        assert rename((3, f"again-{number}")) == []
    (refused,) = rename((3, "too-often"))
    assert "renamed too often" in refused
    last = f"again-{RENAMES - 1}"
    sim.crash(3)
    sim.start(3)
    assert sim.process(3).own.member.name == last
    for index in range(nodes):
        sim.step_clock(index, 5 * DAY)
    sim.run(60)
    settle(sim, 60)
    assert told(3, last) and told(0, "first")
    assert not any(p.roster.disputes(p.wall) for p in members(sim)), "two have one name"
    for process in sim.running():
        old, new = before[process.me], process.own.member
        assert (new.node_id, new.role, new.ip4, new.ip6) == (old.node_id, old.role, old.ip4, old.ip6)
        assert new.not_after > old.not_after
    return sim


SCENARIOS: dict[str, tuple[Callable[[int, int], Simulation], int]] = {
    **full_scenarios.SCENARIOS,
    **reach_scenarios.SCENARIOS,
    **{
        scenario.__name__.replace("_", "-"): (scenario, nodes)
        for scenario, nodes in (
            (roles, 7), (rush, 8), (lost_number, 6), (certificates, 6), (greedy, 6), (restless, 6),
            (strangers, 6), (desk, 6), (terms, 7), (new_identity, 9),
            (renamed, 7), (routed, 6),
        )
    },
}  # fmt: skip
