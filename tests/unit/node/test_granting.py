# SPDX-License-Identifier: GPL-3.0-or-later
"""An authority's desk for routes: what members can make it do, and what its operator's word comes to."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from phantommesh.acl.signedpolicy import Policies
from phantommesh.control import messages
from phantommesh.node import steps
from phantommesh.node.granting import ASKED_LASTS, GRANTS, MAX_ASKING, Asked, Granting
from phantommesh.node.revoking import Revoking
from phantommesh.node.steps import Moment
from phantommesh.records.record import sign_record
from phantommesh.records.roster import Entry, Roster
from phantommesh.routable import Network
from phantommesh.state.routebook import Approval, decode_approvals, encode_approvals
from phantommesh.trust.certificates import Mesh, Role, TrustError
from phantommesh.trust.identity import Identity, NodeId
from phantommesh.trust.issuing import Authority, choose_ip4, make_csr
from phantommesh.trust.meshsecret import MeshSecrets
from phantommesh.trust.revocations import Revocations
from phantommesh.trust.routes import Grant, RouteError, standing
from tests.support.makemesh import NOW, identity, make_mesh, plain_record

MESH = make_mesh()
ALPHA, BETA, GAMMA = identity("mesh first"), identity("beta"), identity("gamma")
SITE, LAB, SIX = (ip_network(n) for n in ("10.1.0.0/16", "10.2.0.0/16", "2001:db8::/32"))


@dataclass
class Holdings:
    """An authority with two members."""

    identity: Identity = ALPHA
    root: x509.Certificate = MESH.root
    mesh: Mesh = MESH.mesh
    authority: Authority | None = MESH.authority
    revocations: Revocations = field(default_factory=lambda: Revocations(MESH.root))
    policies: Policies = field(default_factory=Policies)
    roster: Roster = field(init=False)

    def __post_init__(self) -> None:
        self.roster = Roster(MESH.root, self.revocations)
        for node, name in ((ALPHA, "alpha"), (BETA, "beta"), (GAMMA, "gamma")):
            assert self.roster.add(MESH.record(node, name), NOW)

    @property
    def admission(self) -> MeshSecrets:
        raise AssertionError("routes need none")

    def entry(self, node: Identity) -> Entry:
        found = self.roster.get(node.node_id)
        assert found is not None
        return found


class Desk:
    """A desk with its book on a disk."""

    def __init__(self) -> None:
        self.node = Holdings()
        self.granting = Granting(self.node, Revoking(self.node))
        self.disk: tuple[Approval, ...] = ()
        self.writes = 0
        self.now = 0.0

    def do(self, work: Generator[Any, Any, Any]) -> Any:
        """Carry out the steps. Raises the work's errors."""
        result: object = None
        while True:
            try:
                step = work.send(result)
            except StopIteration as end:
                return end.value
            result = self._step(step)

    def _step(self, step: object) -> object:
        match step:
            case steps.Compute(job):
                return job()
            case steps.Alone(_, work):
                return self.do(work(self.at))
            case steps.WriteApprovals(approvals):
                self.disk = decode_approvals(encode_approvals(approvals))
                self.writes += 1
            case steps.Hold(made):
                return self.node.revocations.hold(made)
            case _:
                assert isinstance(step, steps.Told | steps.Save | steps.MakeKey)
        return None

    @property
    def at(self) -> Moment:
        return Moment(self.now, NOW + self.now)

    def ask(self, node: Identity, *prefixes: Network, key: Identity | None = None) -> messages.Answer:
        request = messages.Route(make_csr(key or node, "any"), tuple(map(str, prefixes)))
        answer: messages.Answer = self.do(self.granting.ask(self.node.entry(node), request, self.at))
        return answer

    def adopt(self, node: Identity, answer: messages.Answer) -> None:
        """The member takes the certificate, and tells all."""
        if isinstance(answer, messages.Renewed):
            seq = self.node.entry(node).record.seq + 1
            signed = sign_record(node, plain_record(node, seq), answer.node_cert, answer.authority_cert)
            assert self.node.roster.add(signed, NOW + self.now)

    def approve(self, name: str, *prefixes: Network) -> None:
        self.do(self.granting.approve(name, prefixes, self.at))

    def withdraw(self, name: str, *prefixes: Network) -> None:
        self.do(self.granting.withdraw(name, prefixes, self.at))


def test_the_next_certificate_keeps_a_route_whose_record_is_still_on_its_way() -> None:
    desk = Desk()
    desk.ask(BETA, SITE, LAB)
    desk.approve("beta", SITE)
    assert isinstance(desk.ask(BETA, SITE, LAB), messages.Renewed)  # its record is on its way
    stale = desk.node.entry(BETA)
    assert desk.granting.granted(stale) == ()
    assert [grant.prefix for grant in desk.granting.carried(stale)] == [SITE]
    assert desk.granting.carried(desk.node.entry(GAMMA)) == ()

    desk.ask(BETA, LAB)  # asks for another route only: none is forced on the member
    assert desk.granting.carried(stale) == ()
    desk.ask(BETA, SITE)
    desk.withdraw("beta", SITE)
    assert desk.granting.carried(stale) == ()


def test_a_request_is_shown_and_writes_nothing_and_is_forgotten() -> None:
    desk = Desk()
    assert desk.ask(BETA, SITE, LAB) == messages.Done()
    (asked,) = desk.granting.open_requests(desk.now)
    assert (asked.node_id, asked.prefixes) == (BETA.node_id, (SITE, LAB))
    assert desk.writes == 0
    assert desk.granting.open_requests(desk.now + ASKED_LASTS + 1) == []


def test_requests_are_remembered_of_so_many_members_only() -> None:
    granting = Desk().granting
    for number in range(MAX_ASKING + 10):
        granting._note(Asked(NodeId(number.to_bytes(16)), (SITE,), 0.0))
    assert len(granting._asked) == MAX_ASKING


@pytest.mark.parametrize("text", ["100.64.0.0/24", "127.0.0.0/8", "10.1.0.1/16", "x", "0.0.0.0/1"])
def test_a_request_for_what_nobody_may_route_is_refused(text: str) -> None:
    desk = Desk()
    request = messages.Route(make_csr(BETA, "beta"), (text,))
    with pytest.raises(RouteError):
        desk.do(desk.granting.ask(desk.node.entry(BETA), request, desk.at))
    assert desk.granting.open_requests(desk.now) == []


def test_an_approval_is_for_one_member_one_prefix_and_its_own_key() -> None:
    desk = Desk()
    desk.approve("beta", SITE)
    assert desk.disk == (Approval(BETA.node_id, Grant(SITE)),)
    assert desk.ask(GAMMA, SITE) == messages.Done()
    assert desk.ask(BETA, LAB) == messages.Done()
    with pytest.raises(TrustError, match="own key only"):
        desk.ask(BETA, SITE, key=GAMMA)
    desk.adopt(BETA, desk.ask(BETA, SITE, LAB))
    assert desk.node.entry(BETA).member.routes == (SITE,)
    assert desk.ask(BETA, SITE, LAB) == messages.Done()  # it has all that is approved


def test_a_member_that_loses_its_answers_gets_so_many_certificates() -> None:
    desk = Desk()
    desk.approve("beta", SITE)
    for _ in range(GRANTS):
        assert isinstance(desk.ask(BETA, SITE), messages.Renewed)
    with pytest.raises(TrustError, match="too often") as caught:
        desk.ask(BETA, SITE)
    assert caught.value.fix.startswith("try again in")


def test_who_is_no_authority_or_was_revoked_decides_nothing() -> None:
    desk = Desk()
    desk.node.authority = None
    for work in (
        lambda: desk.approve("beta", SITE),
        lambda: desk.withdraw("beta", SITE),
        lambda: desk.ask(BETA, SITE),
    ):
        with pytest.raises(TrustError, match="not an authority"):
            work()


def test_a_grant_in_a_certificate_of_another_authority_can_be_withdrawn() -> None:
    desk = Desk()
    ip4 = choose_ip4(MESH.mesh, BETA.node_id, ())
    cert = MESH.authority.issue(BETA.spki, "beta", Role.NODE, ip4, NOW, grants=(Grant(SITE, 4),))
    desk.adopt(BETA, messages.Renewed(cert, MESH.authority.der))
    assert desk.granting.granted(desk.node.entry(BETA)) == (Grant(SITE, 4),)
    desk.withdraw("beta", SITE)
    assert desk.granting.granted(desk.node.entry(BETA)) == ()
    with pytest.raises(TrustError, match="has no route to"):
        desk.withdraw("beta", SITE)


class Decisions(RuleBasedStateMachine):
    """An operator approves and withdraws while two members ask, in any order; a model says what stands."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.approved: set[tuple[NodeId, Network]] = set()
        self.withdrawn: dict[tuple[NodeId, Network], int] = {}

    nodes = st.sampled_from([(BETA, "beta"), (GAMMA, "gamma")])
    prefixes = st.sampled_from([SITE, LAB, SIX])

    @rule(node=nodes, prefix=prefixes)
    def approve(self, node: tuple[Identity, str], prefix: Network) -> None:
        self.desk.approve(node[1], prefix)
        self.approved.add((node[0].node_id, prefix))

    @rule(node=nodes, prefix=prefixes)
    def withdraw(self, node: tuple[Identity, str], prefix: Network) -> None:
        one = node[0].node_id, prefix
        if one not in self.approved:
            with pytest.raises(TrustError, match="has no route to"):
                self.desk.withdraw(node[1], prefix)
            return
        self.desk.withdraw(node[1], prefix)
        self.approved.discard(one)
        self.withdrawn[one] = self.withdrawn.get(one, 0) + 1

    @rule(node=nodes, wanted=st.sets(prefixes, min_size=1))
    def ask(self, node: tuple[Identity, str], wanted: set[Network]) -> None:
        self.desk.now += 3600.0
        answer = self.desk.ask(node[0], *wanted)
        self.desk.adopt(node[0], answer)
        got = {grant.prefix for grant in self.desk.granting.granted(self.desk.node.entry(node[0]))}
        assert {p for p in wanted if (node[0].node_id, p) in self.approved} <= got

    @invariant()
    def only_what_is_approved_stands(self) -> None:
        revocations = self.desk.node.revocations
        for node in (BETA, GAMMA):
            entry = self.desk.node.entry(node)
            for grant in standing(entry.member.grants, node.node_id, revocations):
                assert (node.node_id, grant.prefix) in self.approved
                assert grant.number == self.withdrawn.get((node.node_id, grant.prefix), 0)
        on_disk = {(one.node_id, one.grant.prefix) for one in self.desk.disk}
        assert on_disk <= self.approved
        assert len(revocations) == sum(self.withdrawn.values())


TestDecisions = Decisions.TestCase
TestDecisions.settings = settings(
    max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
