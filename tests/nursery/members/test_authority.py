# SPDX-License-Identifier: GPL-3.0-or-later
"""Several authorities, revocation and the group keys, with whole nodes on the loopback device."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import time

import pytest
import trio
from structlog.testing import capture_logs

from phantommesh.config.reading import load
from phantommesh.dimensions import ALL
from phantommesh.errors import PhantomMeshError
from phantommesh.management.finding import AmbiguousNameError, UnknownMemberError
from phantommesh.node import steps
from phantommesh.node.own import Certified
from phantommesh.nursery.members.enrolment import JoinError
from phantommesh.nursery.node import Node
from phantommesh.records.record import sign_record
from phantommesh.state import directory as statedir
from phantommesh.state.making import Summary
from phantommesh.state.start import NodeState, load_node, make_record, renewal_files
from phantommesh.trust.certificates import NODE_LIFE, Role, TrustError
from phantommesh.trust.groupkey import PROMOTE_AFTER
from phantommesh.trust.identity import Identity, NodeId, format_node_id
from phantommesh.trust.invites import Invite
from phantommesh.trust.issuing import Authority, choose_ip4
from tests.support.loopback import join, make_authority, make_invite, serving, until
from tests.support.makemesh import identity, plain_record


def invite_authority(state: NodeState) -> Invite:
    me = state.roster.get(state.identity.node_id)
    assert me is not None
    return state.invites.create(
        root_hash=state.mesh.root_hash, authority=state.identity.node_id, mesh="pm",
        endpoints=me.record.control, expires=int(time() + 60), role=Role.AUTHORITY,
    )  # fmt: skip


def names(node: Node) -> list[str]:
    return sorted(entry.member.name for entry in node.parts.keeper.roster)


def peers(node: Node) -> set[NodeId]:
    """The members that the interfaces are to have."""
    keys = {key for device in node.parts.reconciler.desired.values() for key in device.peers}
    return {e.member.node_id for e in node.parts.keeper.roster if not keys.isdisjoint(e.record.wg_keys)}


def held(node: Node) -> list[int]:
    return [key.epoch for key in node.parts.keys.ring.keys]


class Three:
    """alpha, an authority, and the members beta and gamma, linked."""

    def __init__(self, at: Path, alpha: Node, beta: Node, gamma: Node) -> None:
        self.at, self.alpha, self.beta, self.gamma = at, alpha, beta, gamma

    @property
    def all(self) -> list[Node]:
        return [self.alpha, self.beta, self.gamma]


@asynccontextmanager
async def three(at: Path) -> AsyncIterator[Three]:
    state = make_authority(at / "a")
    async with AsyncExitStack() as stack:
        alpha = await stack.enter_async_context(serving(at / "a"))
        await join(at / "b", make_invite(state), "beta")
        beta = await stack.enter_async_context(serving(at / "b"))
        await join(at / "c", make_invite(state), "gamma")
        gamma = await stack.enter_async_context(serving(at / "c"))
        mesh = Three(at, alpha, beta, gamma)
        await until(lambda: all(names(node) == ["alpha", "beta", "gamma"] for node in mesh.all))
        await until(
            lambda: all(node.parts.sessions.newest(node_id) for node in mesh.all for node_id in peers(node))
        )
        yield mesh


# --- revocation


async def test_a_revoked_node_is_gone_everywhere_and_knows_it(tmp_path: Path) -> None:
    async with three(tmp_path) as mesh:
        gone = mesh.gamma.parts.state.identity.node_id
        assert all(gone in peers(node) for node in (mesh.alpha, mesh.beta))
        before = mesh.alpha.parts.keys.ring.newest
        with capture_logs():
            result = await mesh.alpha.reporter.revoke("gamma", force=False, dry_run=False)
            assert (result.name, result.node_id, result.already) == ("gamma", format_node_id(gone), False)
            # on the authority at once, and on its disk
            assert gone not in peers(mesh.alpha)
            assert mesh.alpha.parts.sessions.newest(gone) is None
            assert gone in load_node(tmp_path / "a" / "state", time()).revocations
            # on the others as soon as they hear of it
            await until(lambda: gone in mesh.beta.parts.state.revocations)
            assert gone not in peers(mesh.beta)
            assert mesh.beta.parts.sessions.newest(gone) is None
            # the node itself hears of it, though nobody has a link with it any more
            await until(lambda: mesh.gamma.parts.keeper.revoked is not None)
            assert peers(mesh.gamma) == set()
            assert any("revoked" in reason for reason in mesh.gamma.reporter.status().degraded)
            assert not mesh.gamma.reporter.ready().ready
            # the others have another group key, and it has not
            newest = mesh.alpha.parts.keys.ring.newest
            assert newest is not None and newest != before
            await until(lambda: mesh.beta.parts.keys.ring.newest == newest)
            assert mesh.gamma.parts.keys.ring.get(newest.id) is None
        again = await mesh.alpha.reporter.revoke(format_node_id(gone), force=False, dry_run=False)
        assert again.already and again.revoked_at == result.revoked_at
    for directory in "abc":  # every one of them remembers
        assert gone in load_node(tmp_path / directory / "state", time()).revocations
    async with serving(tmp_path / "c") as node:  # and starts, to say so
        assert any("revoked" in reason for reason in node.reporter.status().degraded)


async def test_a_node_that_was_away_hears_of_its_revocation_at_its_return(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        joined = await join(tmp_path / "b", make_invite(state), "beta")
        with capture_logs():
            await alpha.reporter.revoke("beta", force=False, dry_run=False)
    assert len(load_node(tmp_path / "b" / "state", time()).revocations) == 0
    async with serving(tmp_path / "a"), serving(tmp_path / "b") as beta:
        await until(lambda: beta.parts.keeper.revoked is not None)
    assert joined.node_id in load_node(tmp_path / "b" / "state", time()).revocations


async def test_what_may_not_be_revoked(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    me = state.identity.node_id
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", make_invite(state), "beta")
        revoke = alpha.reporter.revoke
        for wanted in ("alpha", format_node_id(me)):
            with pytest.raises(TrustError, match="the authority that it is run on") as caught:
                await revoke(wanted, force=False, dry_run=False)
            assert "--force" in caught.value.fix
        with pytest.raises(UnknownMemberError, match="no member is named 'nobody'"):
            await revoke("nobody", force=False, dry_run=False)
        with pytest.raises(UnknownMemberError):
            await alpha.reporter.rotate("nobody")
        planned = await revoke("beta", force=False, dry_run=True)
        assert planned.dry_run and planned.revoked_at is None
        assert len(alpha.parts.state.revocations) == 0
        with capture_logs():
            unknown = await revoke(format_node_id(identity("far away").node_id), force=False, dry_run=False)
        assert unknown.name is None and not unknown.already
        async with serving(tmp_path / "b") as beta:
            with pytest.raises(TrustError, match="not an authority") as caught:
                await beta.reporter.revoke("alpha", force=True, dry_run=False)
            assert "alpha" in caught.value.fix
            await until(lambda: beta.parts.sessions.newest(me) is not None)
            await until(lambda: len(beta.parts.state.revocations) == 1)
            with capture_logs():
                await revoke("alpha", force=True, dry_run=False)
                await until(lambda: me in beta.parts.state.revocations)  # its last word
            assert peers(beta) == set()
            with pytest.raises(TrustError, match="was revoked"):
                await revoke("beta", force=False, dry_run=False)


async def test_the_root_takes_back_a_node_and_whom_a_rogue_revoked(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    me = state.identity.node_id
    with capture_logs():
        async with serving(tmp_path / "a") as alpha:
            await join(tmp_path / "b", invite_authority(state), "beta")
            second = load_node(tmp_path / "b" / "state", time())
            rogue = second.identity.node_id
            joined = await join(tmp_path / "c", make_invite(state), "gamma")
            async with serving(tmp_path / "b") as beta, serving(tmp_path / "c") as gamma:
                await until(lambda: all(len(peers(node)) == 2 for node in (alpha, beta, gamma)))
                # a node, revoked and taken back
                with pytest.raises(TrustError, match="root key") as caught:
                    await beta.reporter.revoke("gamma", force=False, dry_run=False, undo=True)
                assert "phantommesh init" in caught.value.fix
                await alpha.reporter.revoke("gamma", force=False, dry_run=False)
                await until(lambda: gamma.parts.keeper.revoked is not None)
                await until(lambda: joined.node_id in beta.parts.state.revocations)
                planned = await alpha.reporter.revoke("gamma", force=False, dry_run=True, undo=True)
                assert planned.taken_back == 1 and joined.node_id in alpha.parts.state.revocations
                back = await alpha.reporter.revoke("gamma", force=False, dry_run=False, undo=True)
                assert (back.name, back.taken_back, back.revoked_at) == ("gamma", 1, None)
                again = await alpha.reporter.revoke("gamma", force=False, dry_run=False, undo=True)
                assert again.already and again.taken_back == 0
                await until(lambda: gamma.parts.keeper.revoked is None)
                await until(lambda: joined.node_id in peers(alpha) & peers(beta) and me in peers(gamma))
                # a rogue, that revokes everybody else
                await beta.reporter.revoke("gamma", force=False, dry_run=False)
                await until(lambda: joined.node_id in alpha.parts.state.revocations)
                await beta.reporter.revoke("alpha", force=False, dry_run=False)
                await until(
                    lambda: alpha.parts.keeper.revoked is not None and gamma.parts.keeper.revoked is not None
                )
                with pytest.raises(TrustError, match="run on"):
                    await alpha.reporter.revoke("alpha", force=False, dry_run=False, undo_all=True)
                cast = await alpha.reporter.revoke("beta", force=False, dry_run=False, undo_all=True)
                assert cast.taken_back == 2
                await until(
                    lambda: gamma.parts.keeper.revoked is None and beta.parts.keeper.revoked is not None
                )
                await until(lambda: peers(alpha) == {joined.node_id} and peers(gamma) == {me})
                await until(lambda: gamma.parts.keys.ring.newest == alpha.parts.keys.ring.newest)
                newest = alpha.parts.keys.ring.newest
                assert newest is not None and newest.authority_cert == alpha.parts.state.authority_cert
    for directory in "ac":
        assert load_node(tmp_path / directory / "state", time()).revocations.nodes == {rogue}


# --- group keys


async def test_joiners_get_the_group_key_and_all_change_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phantommesh.trust.groupkey.MAX_AGE", 10 * 86_400.0)
    async with three(tmp_path) as mesh:
        await until(lambda: [held(node) for node in mesh.all] == [[1]] * 3)
        with capture_logs():
            await mesh.alpha.reporter.revoke("gamma", force=False, dry_run=False)
        assert held(mesh.alpha) == [1, 2]
        active = mesh.alpha.parts.keys.ring.active
        assert active is not None and active.epoch == 1  # nobody sends with it before all can receive
        await until(lambda: held(mesh.beta) == [1, 2])
        later = trio.current_time() + PROMOTE_AFTER
        for node in (mesh.alpha, mesh.beta):
            assert node.parts.keys.ring.deadline <= later
            node.parts.keys.ring.tick(later)
            assert node.parts.keys.ring.active is not None and node.parts.keys.ring.active.epoch == 2
    file = tmp_path / "b" / "state" / statedir.KEYRING
    assert file.stat().st_mode & 0o777 == 0o600
    async with serving(tmp_path / "b") as beta:
        assert 2 in held(beta)


# --- several authorities


async def test_a_second_authority_works_while_the_first_is_away(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", invite_authority(state), "beta")
        second = load_node(tmp_path / "b" / "state", time())
        assert second.authority is not None
        assert second.member(time()).role is Role.AUTHORITY
        assert not second.state.has(statedir.ROOT_KEY)
        with pytest.raises(TrustError, match="root key"):
            second.root_key()
        async with serving(tmp_path / "b") as beta:
            await until(lambda: beta.parts.keeper.roster.digest() == alpha.parts.keeper.roster.digest())
    with capture_logs():
        async with serving(tmp_path / "b") as beta:
            joined = await join(tmp_path / "c", make_invite(second), "gamma")
            async with serving(tmp_path / "c") as gamma:
                await until(lambda: gamma.parts.links.keyed(second.identity.node_id))
                await until(lambda: gamma.parts.sessions.newest(second.identity.node_id) is not None)
                first = gamma.parts.own.member.not_before
                word = gamma.parts.own.word
                aged = replace(word.member, not_before=0.0, not_after=1.0)
                word.certified = replace(word.certified, member=aged)
                await gamma.parts.own.renew_if_due(gamma.parts.caller)  # by beta: alpha is away
                assert gamma.parts.own.renewal_error is None
                assert gamma.parts.own.member.not_before >= first
                async with serving(tmp_path / "a") as alpha:  # alpha comes back and is told
                    await until(
                        lambda: names(alpha) == names(beta) == names(gamma) == ["alpha", "beta", "gamma"]
                    )
                    await until(lambda: alpha.parts.links.keyed(joined.node_id))
                    # and either may put it out
                    await beta.reporter.revoke("gamma", force=False, dry_run=False)
                    await until(lambda: joined.node_id in alpha.parts.state.revocations)
                    await until(lambda: alpha.parts.keys.ring.newest == beta.parts.keys.ring.newest)


async def test_an_authority_is_made_only_where_the_root_key_is(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    (state.state.path / statedir.ROOT_KEY).unlink()
    async with serving(tmp_path / "a") as alpha:
        with capture_logs(), pytest.raises(JoinError, match="root key") as caught:
            await join(tmp_path / "b", invite_authority(state), "beta")
        assert "phantommesh init" in caught.value.fix
        assert names(alpha) == ["alpha"]


async def test_a_revoked_authority_can_do_nothing_and_its_nodes_stay(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", invite_authority(state), "beta")
        second = load_node(tmp_path / "b" / "state", time())
        async with serving(tmp_path / "b") as beta:
            await until(lambda: alpha.parts.sessions.newest(second.identity.node_id) is not None)
            joined = await join(tmp_path / "c", make_invite(second), "gamma")
            async with serving(tmp_path / "c") as gamma:
                await until(lambda: names(alpha) == ["alpha", "beta", "gamma"])
                await until(lambda: gamma.parts.sessions.newest(state.identity.node_id) is not None)
                issuer = gamma.parts.own.word.certified.authority_cert
                with capture_logs():
                    await alpha.reporter.revoke("beta", force=False, dry_run=False)
                    await until(lambda: beta.parts.keeper.revoked is not None)
                    # gamma, whom beta certified, gets another certificate from alpha at once
                    await until(lambda: gamma.parts.own.word.certified.authority_cert != issuer)
                assert gamma.parts.own.word.certified.authority_cert == alpha.parts.state.authority_cert
                assert peers(alpha) == {joined.node_id}
                # what beta signs from now on is worth nothing
                forged = second.authority
                assert forged is not None
                intruder = identity("intruder")
                cert = forged.issue(intruder.spki, "intruder", Role.NODE, joined.ip4, time() + 400)
                with pytest.raises(PhantomMeshError):
                    alpha.parts.keeper.add(sign_record(intruder, plain_record(intruder), cert, forged.der))


# --- two authorities gave one address and one name


def certify_twice(state: NodeState, one: Summary, other: Node) -> None:
    """As if another authority had given ``other`` the name and the address of ``one``."""
    authority = state.authority
    assert isinstance(authority, Authority)
    node = other.parts.state.identity
    cert = authority.issue(node.spki, one.name, Role.NODE, one.ip4, time())
    member = replace(other.parts.own.member, name=one.name, ip4=one.ip4)
    other.parts.own.word.certified = Certified(cert, authority.der, member)
    other.parts.own.publish()


@pytest.mark.parametrize("first_out", [0, 1])
async def test_a_dispute_that_ends_as_a_certificate_runs_out_ends_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_out: int
) -> None:
    """Until then both are in the list of peers, and one address can be one peer's only."""
    state = make_authority(tmp_path / "a")
    authority = state.authority
    assert authority is not None
    claimants = sorted((identity("beta"), identity("gamma")), key=lambda node: node.node_id)
    ip4 = choose_ip4(state.mesh, claimants[0].node_id, ())
    async with serving(tmp_path / "a") as alpha:
        for i, node in enumerate(claimants):
            issued = time() - (NODE_LIFE / 2 if i == first_out else 0.0)
            cert = authority.issue(node.spki, f"member-{i}", Role.NODE, ip4, issued)
            alpha.parts.keeper.add(sign_record(node, plain_record(node), cert, authority.der))
        assert peers(alpha) == {claimants[0].node_id}
        later = steps.Moment(trio.current_time(), time() + NODE_LIFE * 3 / 4)
        monkeypatch.setattr("phantommesh.nursery.weaving.moment", lambda: later)
        alpha._weaving._arrange()
        assert peers(alpha) == {claimants[0].node_id}
        alpha._weaving.peers_changed()
        assert peers(alpha) == {claimants[1 - first_out].node_id}


async def test_the_higher_node_id_gives_the_address_and_the_name_up(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        beta = await join(tmp_path / "b", make_invite(state), "beta")
        gamma = await join(tmp_path / "c", make_invite(state), "gamma")
        low, high = sorted((beta, gamma), key=lambda summary: summary.node_id)
        places = {beta.node_id: tmp_path / "b", gamma.node_id: tmp_path / "c"}
        async with serving(places[low.node_id]) as keeps, serving(places[high.node_id]) as loses:
            await until(lambda: loses.parts.sessions.newest(state.identity.node_id) is not None)
            await until(lambda: len(names(keeps)) == len(names(loses)) == 3)
            with capture_logs():
                certify_twice(state, low, loses)
                assert loses.parts.own.dispute() is not None
                assert low.node_id not in peers(loses)  # it keeps out who it has to give way to
                assert any("waiting for an authority" in r for r in loses.reporter.status().degraded)
                await until(lambda: loses.parts.own.dispute() is None)
            assert loses.parts.own.member.ip4 not in (low.ip4, alpha.parts.own.member.ip4)
            assert loses.parts.own.member.name.startswith(f"{low.name}-")
            everyone = {alpha.parts.own.member.node_id, low.node_id, high.node_id}

            def settled(node: Node) -> bool:
                return peers(node) == everyone - {node.parts.own.member.node_id}

            await until(lambda: all(settled(node) for node in (alpha, keeps, loses)))
            assert keeps.parts.own.member.ip4 == low.ip4
            addresses = {str(a.ip) for d in loses.parts.reconciler.desired.values() for a in d.addresses}
            assert str(loses.parts.own.member.ip4) in addresses and str(low.ip4) not in addresses
    again = load_node(places[high.node_id] / "state", time())
    assert again.member(time()).ip4 == loses.parts.own.member.ip4  # also after a restart


@pytest.mark.parametrize("keeps", [True, False], ids=["authority-keeps", "authority-gives-up"])
async def test_two_that_dispute_an_address_link_though_one_is_the_only_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    """They are not in each other's interfaces, and have no session of before. The one that has to give way is
    issued another certificate over the link with the one that it has to give way to."""
    state = make_authority(tmp_path / "a")
    authority = state.authority
    assert authority is not None
    chosen = next(
        one for one in map(identity, map(str, range(99)))
        if (state.identity.node_id < one.node_id) == keeps
    )  # fmt: skip
    monkeypatch.setattr(Identity, "generate", lambda: chosen)
    place = tmp_path / "b"
    async with serving(tmp_path / "a"):
        await join(place, make_invite(state), "beta")
    node = load_node(place / "state", time())
    me = state.member(time())
    cert = authority.issue(node.identity.spki, "beta", Role.NODE, me.ip4, time())
    for name, data in renewal_files(authority.der, cert).items():
        node.state.write(name, data)
    record = make_record(node.identity, node.wg_keys, load(place / "pm.toml"), int(time() * 1000))
    signed = sign_record(node.identity, record, cert, authority.der)

    def know(at: Node) -> None:
        at.parts.keeper.roster.add(signed, time())

    with capture_logs():
        async with serving(tmp_path / "a", know) as alpha, serving(place, know) as beta:
            loser = beta if keeps else alpha
            if keeps:  # an authority that gives up helps itself at once
                assert not peers(alpha) and not peers(beta)
                assert loser.parts.own.dispute() is not None
                assert any("both have the address" in r for r in alpha.reporter.status().degraded)
            await until(lambda: loser.parts.own.dispute() is None)
            assert loser.parts.own.member.ip4 != me.ip4
            await until(lambda: peers(alpha) == {node.identity.node_id})
            await until(lambda: peers(beta) == {state.identity.node_id})
            await until(lambda: alpha.parts.links.bound(node.identity.node_id) == ALL)
            await until(lambda: beta.parts.links.bound(state.identity.node_id) == ALL)


async def test_a_name_of_two_members_is_neither_rotated_nor_revoked(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    authority = state.authority
    assert authority is not None
    me, ids = state.member(time()), []
    twins = [identity("one"), identity("other")]
    signed = []
    for twin in twins:
        ip4 = choose_ip4(state.mesh, twin.node_id, [me.ip4])
        cert = authority.issue(twin.spki, "twin", Role.NODE, ip4, time())
        record = plain_record(twin)
        signed.append(sign_record(twin, record, cert, authority.der))
        ids.append(format_node_id(twin.node_id))

    def know(at: Node) -> None:
        for each in signed:
            at.parts.keeper.roster.add(each, time())

    with capture_logs():
        async with serving(tmp_path / "a", know) as alpha:
            for ask in (
                alpha.reporter.rotate("twin"),
                alpha.reporter.revoke("twin", force=False, dry_run=False),
                alpha.reporter.revoke("twin", force=False, dry_run=True),
            ):
                with pytest.raises(AmbiguousNameError) as caught:
                    await ask
                assert caught.value.candidates == tuple(sorted(ids))
            planned = await alpha.reporter.revoke(ids[0], force=False, dry_run=True)
            assert planned.node_id == ids[0]
