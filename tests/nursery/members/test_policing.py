# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's policy goes from an authority to every member, and stays with each."""

from __future__ import annotations

from pathlib import Path
from time import time

import msgspec
import pytest

from phantommesh.acl.policy import PolicyError, PolicySection, parse
from phantommesh.acl.signedpolicy import decode, sign
from phantommesh.nursery.keeping import saver
from phantommesh.nursery.members import policing
from phantommesh.nursery.members.policing import Policing
from phantommesh.nursery.node import Node
from phantommesh.records.roster import name_of
from phantommesh.state import directory
from phantommesh.state.directory import StateDir
from phantommesh.state.files import StateError
from phantommesh.state.start import NodeState, load_node
from phantommesh.trust.certificates import EARLY, TrustError
from phantommesh.trust.identity import NodeId
from phantommesh.trust.revocation import revoke
from tests.support.loopback import join, make_authority, make_invite, serving, until

SSH = parse(
    'default = "deny"\n[[rule]]\nname = "ssh"\nfrom = ["tag:ops"]\nports = [22]\n'
    '[[test]]\nfrom = ["tag:ops"]\nto = ["db"]\nport = "22"\n'
    '[[test]]\nfrom = ["laptop"]\nto = ["db"]\nport = "22"\nexpect = "deny"\n'
)
MEMBER = NodeId(bytes(range(16)))


def rules_of(node: Node) -> list[str]:
    """The rules that the node compiles: the mesh's, then its own."""
    compiled = node.parts.access._look().compile()
    return [placed.rule.name for placed in compiled.rules if placed.whose == "mesh"]


async def test_a_policy_that_an_authority_signs_holds_on_every_member(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "alpha")
    invite = make_invite(state, uses=2)
    async with serving(tmp_path / "alpha") as alpha:
        for name in ("beta", "gamma"):
            await join(tmp_path / name, invite, name)
        async with serving(tmp_path / "beta") as beta:
            assert rules_of(beta) == []
            with pytest.raises(TrustError, match="only an authority"):
                await beta.parts.policing.set(SSH, dry_run=False)
            await alpha.parts.policing.set(SSH, dry_run=True)
            assert rules_of(alpha) == []
            await alpha.parts.policing.set(SSH, dry_run=False)
            await until(lambda: rules_of(beta) == ["ssh", "(icmp)", "(default)"] == rules_of(alpha))
            # Who was away hears of it, and not of the authority alone.
            async with serving(tmp_path / "gamma") as gamma:
                await until(lambda: bool(rules_of(gamma)))
            # A later one takes its place everywhere, and so does one that allows everything.
            await alpha.parts.policing.set(PolicySection(), dry_run=False)
            await until(lambda: rules_of(beta) == ["(default)"])
            await alpha.parts.policing.set(SSH, dry_run=False)
            await until(lambda: len(rules_of(beta)) == 3)
            # It is told once, and not asked for again.
            assert alpha.parts.keys.digest() == beta.parts.keys.digest()
            assert alpha.parts.state.policies.digest(time()) == beta.parts.state.policies.digest(time())
    kept = load_node(tmp_path / "beta" / "state", time())  # with nobody there to tell it
    found = kept.policies.current(kept.revocations, time())
    assert found is not None and found.policy == SSH.policy()
    kept.state.write(directory.POLICIES, b"damaged")
    with pytest.raises(StateError, match=r"policies\.bin is damaged"):
        load_node(tmp_path / "beta" / "state", time())


async def test_a_joiner_has_the_policy_before_it_starts(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "alpha")
    invite = make_invite(state)
    async with serving(tmp_path / "alpha") as alpha:
        await alpha.parts.policing.set(SSH, dry_run=False)
        await join(tmp_path / "beta", invite, "beta")
        joined = load_node(tmp_path / "beta" / "state", time())
        found = joined.policies.current(joined.revocations, time())
        assert found is not None and found.policy == SSH.policy()
        assert joined.policies.digest(time()) == alpha.parts.state.policies.digest(time())


def made(at: Path) -> tuple[NodeState, Policing, list[str]]:
    state, said = make_authority(at), list[str]()
    return state, Policing(state, changed=lambda: said.append("changed")), said


async def test_what_nobody_may_say_is_counted_and_dropped(tmp_path: Path) -> None:
    state, desk, said = made(tmp_path / "alpha")
    other = make_authority(tmp_path / "other").authority
    assert other is not None and state.authority is not None
    stranger = sign(other, SSH, last=0, now=time())
    good = sign(state.authority, SSH, last=0, now=time())
    bent = msgspec.structs.replace(good, policy=PolicySection().encode(), number=good.number + 1)
    for data in (b"", b"\xff" * 100, stranger.encode(), bent.encode()):
        assert not await desk.take([data], MEMBER)
    assert desk.dropped["policy"] == 4 and not said and desk.current() is None
    assert await desk.take([b"", good.encode()], MEMBER)  # what is bad does not hold up what is good
    assert said == ["changed"] and desk.current() == SSH.policy()
    assert not await desk.take([good.encode()], MEMBER)
    assert [one.signed for one in decode(state.state.read(directory.POLICIES), state.root, time())] == [good]


async def test_a_member_has_only_so_many_policies_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, desk, _ = made(tmp_path / "alpha")
    assert state.authority is not None
    good = sign(state.authority, SSH, last=0, now=time())
    verified = list[int]()

    def refuse(signed: object, *rest: object) -> None:
        verified.append(1)
        raise TrustError("no")

    monkeypatch.setattr(policing, "verify", refuse)
    for number in range(100):
        bent = msgspec.structs.replace(good, number=good.number + number)
        await desk.take([bent.encode()], MEMBER)
    assert len(verified) == policing.VERIFY_BURST
    await desk.take([good.encode()], NodeId(bytes(16)))
    assert len(verified) == policing.VERIFY_BURST + 1


async def test_a_policy_that_fails_its_tests_is_not_signed(tmp_path: Path) -> None:
    _, desk, said = made(tmp_path / "alpha")
    wrong = msgspec.structs.replace(SSH, default="allow")
    with pytest.raises(PolicyError, match="fails its test laptop"):
        await desk.set(wrong, dry_run=False)
    assert not said and desk.current() is None


async def test_a_policy_of_a_clock_that_was_ahead_is_a_fault_until_another_is_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, desk, _ = made(tmp_path / "alpha")
    with monkeypatch.context() as patch:
        patch.setattr(policing, "time", lambda: time() + 2 * EARLY)
        await desk.set(SSH, dry_run=False)
        assert desk.current() is not None and not list(desk.faults())
    assert desk.current() is None
    (fault,) = desk.faults()
    assert (fault.code, fault.subject) == (
        "policy-ahead",
        name_of(state.roster.get(state.identity.node_id), state.identity.node_id),
    ) and "set-policy" in fault.fix
    (kept,) = decode(state.state.read(directory.POLICIES), state.root, time()).ahead(time())
    again = Policing(load_node(tmp_path / "alpha" / "state", time()), changed=lambda: None)
    assert kept.signer == state.identity.node_id and len(list(again.faults())) == 1
    await again.set(SSH, dry_run=False)
    assert again.current() == SSH.policy() and not list(again.faults())


async def test_a_revoked_authoritys_policy_does_not_count(tmp_path: Path) -> None:
    state, desk, _ = made(tmp_path / "alpha")
    await desk.set(SSH, dry_run=False)
    assert desk.current() is not None
    assert state.authority is not None
    state.revocations.add(revoke(state.authority, state.identity.node_id, time()), time())
    assert desk.current() is None
    with pytest.raises(TrustError, match="is revoked"):
        await desk.set(SSH, dry_run=False)


async def test_what_the_disk_refuses_holds_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the node says so for as long."""
    make_authority(tmp_path / "alpha")
    monkeypatch.setattr(saver, "SAVE_AGAIN", 0.1)
    full, write = True, StateDir.write

    def refusing(self: StateDir, name: str, data: bytes) -> None:
        if full and name == directory.POLICIES:
            raise StateError("no space left")
        write(self, name, data)

    monkeypatch.setattr(StateDir, "write", refusing)

    def codes(node: Node) -> set[str]:
        return {fault.code for fault in node.reporter.faults()}

    async with serving(tmp_path / "alpha") as alpha:
        await alpha.parts.policing.set(SSH, dry_run=False)
        assert rules_of(alpha)
        await until(lambda: "state-not-written" in codes(alpha))
        full = False
        await until(lambda: "state-not-written" not in codes(alpha))
    kept = load_node(tmp_path / "alpha" / "state", time())
    found = kept.policies.current(kept.revocations, time())
    assert found is not None and found.policy == SSH.policy()
