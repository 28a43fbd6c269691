# SPDX-License-Identifier: GPL-3.0-or-later
"""What an authority says of its open invites, and how one is taken back."""

from pathlib import Path

import pytest

from phantommesh.errors import PhantomMeshError
from phantommesh.management.finding import UnknownMemberError
from phantommesh.node.invitations import listed, withdrawn
from phantommesh.state.making import init_mesh
from phantommesh.state.start import NodeState, load_node
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.invites import Invite

NOW = 1_800_000_000.0


@pytest.fixture
def node(tmp_path: Path) -> NodeState:
    init_mesh(tmp_path / "s", tmp_path / "pm.toml", mesh="lab", name="a", endpoints=("192.0.2.1",), now=NOW)
    return load_node(tmp_path / "s", NOW)


def made(node: NodeState, *, life: int = 60, name: str | None = None, uses: int = 1) -> Invite:
    return node.invites.create(
        root_hash=node.mesh.root_hash,
        authority=node.identity.node_id,
        mesh="lab",
        endpoints=("192.0.2.1:1",),
        expires=int(NOW) + life,
        name=name,
        uses=uses,
    )


def test_invites_are_listed_until_they_run_out_without_their_secrets(node: NodeState) -> None:
    late, soon = made(node, life=90, uses=2), made(node, name="nas")
    made(node, life=5)
    used = made(node, life=70)
    node.invites.consume(used.invite_id, node.identity.node_id, NOW, "b")
    node.invites.consume(late.invite_id, node.identity.node_id, NOW, "c")
    found = listed(node, NOW + 10)
    assert [one.id for one in found.invites] == [one.invite_id.hex() for one in (soon, used, late)]
    assert [(one.name, one.uses_left, one.joined) for one in found.invites] == [
        ("nas", 1, []),
        ("", 0, ["b"]),
        ("", 1, ["c"]),
    ]
    for one in (late, soon, used):
        assert one.secret.reveal().hex() not in repr(found)


def test_a_damaged_file_is_named(node: NodeState) -> None:
    invite = made(node)
    (node.state.path / "invites" / f"{invite.invite_id.hex()}.json").write_text("{")
    assert listed(node, NOW).damaged == [f"{invite.invite_id.hex()}.json"]


def test_a_withdrawn_invite_admits_nobody(node: NodeState) -> None:
    invite, other = made(node), made(node)
    assert withdrawn(node, invite.invite_id.hex()[:12].upper()).id == invite.invite_id.hex()
    with pytest.raises(TrustError):
        node.invites.consume(invite.invite_id, node.identity.node_id, NOW)
    assert [one.id for one in listed(node, NOW).invites] == [other.invite_id.hex()]


def test_what_means_no_invite_or_several_withdraws_none(
    node: NodeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter([b"\x12\x34" + bytes(14), b"\x12\x34" + bytes([1] * 14)])
    monkeypatch.setattr(
        "phantommesh.state.invitebook.secrets.token_bytes", lambda n: next(ids) if n == 16 else bytes(n)
    )
    made(node), made(node)
    for wanted in ("", "123", "99999", "../../node", "x" * 999):
        with pytest.raises(UnknownMemberError):
            withdrawn(node, wanted)
    with pytest.raises(PhantomMeshError, match="2 invites begin"):
        withdrawn(node, "1234")
    assert len(listed(node, NOW).invites) == 2


def test_a_node_that_is_no_authority_has_no_invites(node: NodeState) -> None:
    class Plain:
        authority = None
        invites = node.invites

    with pytest.raises(TrustError, match="no authority"):
        listed(Plain(), NOW)
    with pytest.raises(TrustError, match="no authority"):
        withdrawn(Plain(), "1234")
