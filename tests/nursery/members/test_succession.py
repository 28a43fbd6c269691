# SPDX-License-Identifier: GPL-3.0-or-later
"""A new identity under the old name: whatever dies on the way, the old one works or the new one does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import time

import pytest
import trio

from phantommesh.control import messages
from phantommesh.errors import PhantomMeshError
from phantommesh.link.psk import PskPhase
from phantommesh.node import desk, revoking
from phantommesh.nursery import process
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members import enrolment, succession
from phantommesh.nursery.node import Node
from phantommesh.records.runs import NOBODY, Run
from phantommesh.state import directory
from phantommesh.state.files import StateError
from phantommesh.state.start import install_successor, load_node
from phantommesh.trust.certificates import Role, TrustError
from phantommesh.trust.identity import NodeId
from tests.support.dying import Killed, die_after
from tests.support.loopback import join, make_authority, make_invite, serving, until


class PowerCutError(PhantomMeshError):
    """In place of a crash where nodes share a process: the step fails, and nothing after it is done."""


def cut_power(*_: object, **__: object) -> None:
    raise PowerCutError("the power was cut")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession, "AGAIN", 0.2)


def id_of(at: Path) -> NodeId:
    return load_node(at / "state", time()).identity.node_id


def linked(node: Node, other: NodeId) -> bool:
    known = {entry.member.node_id for entry in node.parts.peers.entries}
    return other in known and node.parts.links.state(other, trio.current_time()).phase is PskPhase.FRESH


def callable_(node: Node) -> bool:
    return bool(node.parts.caller.callable())


async def test_the_name_and_the_address_stay_and_all_keys_are_new(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        before = await join(tmp_path / "b", make_invite(state), "beta")
        old = load_node(tmp_path / "b" / "state", time())
        async with serving(tmp_path / "b") as beta:
            await until(partial(callable_, beta))
            made = await beta.parts.succession.begin()
            await until(lambda: not (tmp_path / "b" / "api.sock").exists())  # it stops by itself
        assert (made.name, made.ip4) == (before.name, before.ip4)
        assert made.node_id != before.node_id and made.ip6 != before.ip6
        assert before.node_id in alpha.parts.state.revocations
        assert [e.member.name for e in alpha.parts.keeper.roster if e.member.name == "beta"] == ["beta"]
        async with serving(tmp_path / "b") as anew:
            await until(
                lambda: linked(anew, alpha.parts.state.identity.node_id) and linked(alpha, made.node_id)
            )
            new = anew.parts.state
            assert new.identity.node_id == made.node_id
            assert not set(new.wg_keys.public) & set(old.wg_keys.public)
            assert not (tmp_path / "b" / "state" / directory.SUCCESSOR).exists()
            assert not anew.parts.succession.pending
            with pytest.raises(TrustError, match="revoked"):  # nobody gets in as the old one again
                alpha.parts.keeper.add(old.roster.get(before.node_id).signed)  # type: ignore[union-attr]


STEPS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the authority does not answer": lambda patch: patch.setattr(desk.Desk, "replace", cut_power),
    "the invite is on disk": lambda patch: patch.setattr(enrolment, "join", cut_power),
    "the new keys are on disk": lambda patch: patch.setattr(enrolment, "_shake_hands", cut_power),
    "the invite is spent": lambda patch: patch.setattr(revoking.Revoking, "revoke", cut_power),
    "the old identity is revoked": lambda patch: patch.setattr(desk, "SignedRecord", Refusing),
    "the answer is lost": lambda patch: patch.setattr(enrolment, "finish_join", cut_power),
}


class Refusing:
    """Stands for `SignedRecord` in the authority: the last step, when all else is done, fails."""

    def __init__(self, *fields: bytes) -> None:
        from phantommesh.records.record import SignedRecord

        self._signed = SignedRecord(*fields)
        self.body, self.signature = self._signed.body, self._signed.signature
        self.node_cert, self.authority_cert = self._signed.node_cert, self._signed.authority_cert

    @staticmethod
    def decode_untrusted(_: bytes) -> None:
        cut_power()

    def encode(self) -> bytes:
        return self._signed.encode()


def dies(node: Node) -> None:
    """Nothing goes on after the step that failed, until the node is started again."""
    node.parts.succession.run = trio.sleep_forever  # type: ignore[method-assign]


@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_at_any_step_leaves_one_identity_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        before = await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b", dies) as beta:
            await until(partial(callable_, beta))
            with monkeypatch.context() as patch:
                STEPS[step](patch)
                with pytest.raises(PhantomMeshError):
                    await beta.parts.succession.begin()
        assert id_of(tmp_path / "b") == before.node_id  # what is on disk is whole, and still the old one
        begun = (tmp_path / "b" / "state" / directory.SUCCESSION).exists()
        assert begun == (step != "the authority does not answer")
        async with serving(tmp_path / "b") as again:  # it goes on by itself
            if begun:
                await until(again.parts.succession.done.is_set)
            else:
                await until(lambda: linked(again, alpha.parts.state.identity.node_id))
        async with serving(tmp_path / "b") as last:
            me = last.parts.state.identity.node_id
            assert (me != before.node_id) == begun
            assert (before.node_id in alpha.parts.state.revocations) == begun
            await until(lambda: linked(last, alpha.parts.state.identity.node_id) and linked(alpha, me))
            assert last.parts.own.member.ip4 == before.ip4 and last.parts.own.member.name == "beta"
            assert [e.member.node_id for e in alpha.parts.keeper.roster if e.member.name == "beta"] == [me]


async def test_a_crash_while_the_new_state_is_put_in_place_is_made_good_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a"):
        await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as beta:
            await until(partial(callable_, beta))
            made = await beta.parts.succession.begin()
    writes = 0
    while True:
        copy = tmp_path / f"copy{writes}"
        shutil.copytree(tmp_path / "b" / "state", copy)
        with monkeypatch.context() as patch:
            die_after(patch, writes)
            try:
                install_successor(copy)
            except Killed:
                died = True
            else:
                died = False
        assert install_successor(copy) is died
        assert load_node(copy, time()).identity.node_id == made.node_id
        assert not install_successor(copy)
        writes += 1
        if not died:
            break
    assert writes > len(directory.REQUIRED)


async def test_an_authority_is_told_what_to_do_instead(tmp_path: Path) -> None:
    make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        with pytest.raises(TrustError, match="authority") as raised:
            await alpha.parts.succession.begin()
        assert "invite --role authority" in raised.value.fix
        me = alpha.parts.keeper.roster.get(alpha.parts.state.identity.node_id)
        assert me is not None
        with pytest.raises(TrustError, match="authority"):
            await alpha.parts.desk.replace(me)


async def test_without_an_authority_nothing_changes(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a"):
        before = await join(tmp_path / "b", make_invite(state), "beta")
    async with serving(tmp_path / "b") as beta:
        with pytest.raises(TrustError, match="no link to any"):
            await beta.parts.succession.begin()
        assert not beta.parts.succession.pending
    assert id_of(tmp_path / "b") == before.node_id


async def test_who_asks_again_and_again_gets_one_invite_and_who_is_revoked_none(tmp_path: Path) -> None:
    """An invite in a member's place is worth its identity, so it is no second vote and no way back."""
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", make_invite(state), "beta")
        entry = next(e for e in alpha.parts.keeper.roster if e.member.name == "beta")
        granted = [await alpha.parts.desk.replace(entry) for _ in range(5)]
        book = tmp_path / "a" / "state" / directory.INVITES
        unspent = [path for path in book.glob("*.json") if b'"replaces":""' not in path.read_bytes()]
        assert len(unspent) == 1 and "***" in repr(granted[-1])
        await alpha.parts.desk.revoke(
            alpha.parts.desk.find("beta"), force=False
        )  # meanwhile the operator puts it out
        with pytest.raises(enrolment.JoinError, match="revoked meanwhile"):
            await enrolment.join(
                tmp_path / "t" / "state",
                tmp_path / "t.toml",
                granted[-1].invite,
                name="beta",
                endpoints=("127.0.0.1:9",),
            )
        assert "beta" not in {e.member.name for e in alpha.parts.keeper.roster}
        # Nor is one given to somebody who was let in as an authority.
        raised = replace(entry, member=replace(entry.member, role=Role.AUTHORITY))
        with pytest.raises(TrustError, match="an authority's identity"):
            await alpha.parts.desk.replace(raised)


async def test_a_full_disk_at_the_authority_costs_the_member_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_authority(tmp_path / "a")

    async def full(_: RosterKeeper) -> None:
        await trio.lowlevel.checkpoint()
        raise StateError("no space left")

    async with serving(tmp_path / "a") as alpha:
        before = await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as beta:
            await until(partial(callable_, beta))
            with monkeypatch.context() as patch:
                patch.setattr(RosterKeeper, "save", full)
                with pytest.raises(PhantomMeshError, match="no space left"):
                    await beta.parts.succession.begin()
            await until(beta.parts.succession.done.is_set)  # the service has gone on with it
        assert before.node_id in alpha.parts.state.revocations


def test_the_request_and_its_answer_have_a_form() -> None:
    assert messages.decode_request_untrusted(messages.encode(messages.Replace())) == messages.Replace()
    answer = messages.Replacement("pm1_x")
    assert messages.decode_answer_untrusted(messages.encode(answer)) == answer


async def test_the_process_starts_again_with_the_new_identity_until_it_is_asked_to_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0

    async def once(*_: object) -> Run | None:
        nonlocal runs
        await trio.lowlevel.checkpoint()
        runs += 1
        return NOBODY if runs < 3 else None

    monkeypatch.setattr(process._Process, "run", once)
    await process.run(tmp_path, tmp_path)
    assert runs == 3
