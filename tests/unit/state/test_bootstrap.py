# SPDX-License-Identifier: GPL-3.0-or-later
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh.acl.policy import PolicySection
from phantommesh.acl.signedpolicy import sign
from phantommesh.config.reading import load
from phantommesh.config.sections import Config, ConfigError, NodeSection, OverlaySection
from phantommesh.errors import PhantomMeshError
from phantommesh.secret import Secret
from phantommesh.state.directory import REQUIRED
from phantommesh.state.files import StateError
from phantommesh.state.making import JoinDraft, Summary, begin_join, finish_join, init_mesh, join_config
from phantommesh.state.start import NodeState, keep_generation, load_node, next_generation
from phantommesh.trust.certificates import DAY, Role, TrustError
from phantommesh.trust.identity import Identity, NodeId
from phantommesh.trust.invites import Invite
from phantommesh.trust.issuing import choose_ip4, issue_authority
from phantommesh.wireguard.device import public_key_of
from phantommesh.wireguard.keys import WgKeys
from tests.support.makemesh import NOW, identity, make_mesh


def init(at: Path, config: Config | None = None) -> Summary:
    return init_mesh(
        at / "state",
        at / "pm.toml",
        mesh="pm",
        name="alpha",
        endpoints=("192.0.2.1",),
        now=NOW,
        config=config,
    )


class Joiner:
    """A joining machine and the authority it talks to, without the network between."""

    def __init__(self, at: Path, authority: NodeState) -> None:
        self.at, self.authority = at, authority
        self.invite: Invite = authority.invites.create(
            root_hash=authority.mesh.root_hash,
            authority=authority.identity.node_id,
            mesh="pm",
            endpoints=("192.0.2.1:51800",),
            expires=int(NOW) + 60,
        )
        at.mkdir(exist_ok=True)

    def certify(self, spki: bytes, name: str = "beta") -> bytes:
        assert self.authority.authority is not None
        node_id = Identity.from_seed(bytes(32)).node_id
        ip4 = choose_ip4(self.authority.mesh, node_id, ())
        return self.authority.authority.issue(spki, name, Role.NODE, ip4, NOW)

    def join(self, **changed: Any) -> Summary:
        config = join_config(self.invite, name="beta", endpoints=())
        draft = begin_join(self.at / "state", self.at / "pm.toml", self.invite, config)
        self.authority.invites.consume(self.invite.invite_id, draft.identity.node_id, NOW)
        arguments: dict[str, Any] = {
            "draft": draft,
            "config": config,
            "invite": self.invite,
            "root_cert": self.authority.root.public_bytes(Encoding.DER),
            "authority_cert": self.authority.authority_cert,
            "node_cert": self.certify(draft.identity.spki),
            "admission_key": self.authority.admission.newest,
            "roster": self.authority.roster.encode(),
            "revocations": self.authority.revocations.encode(),
            "now": NOW,
        }
        return finish_join(self.at / "state", self.at / "pm.toml", **{**arguments, **changed})


@pytest.fixture
def authority(tmp_path: Path) -> NodeState:
    (tmp_path / "authority").mkdir()
    init(tmp_path / "authority")
    return load_node(tmp_path / "authority" / "state", NOW)


@pytest.fixture
def joiner(tmp_path: Path, authority: NodeState) -> Joiner:
    return Joiner(tmp_path / "joiner", authority)


def test_init_makes_a_whole_node(tmp_path: Path) -> None:
    summary = init(tmp_path)
    node = load_node(tmp_path / "state", NOW)
    member = node.member(NOW)
    assert (member.name, member.role, member.ip4) == ("alpha", Role.AUTHORITY, summary.ip4)
    assert node.identity.node_id == summary.node_id
    assert node.authority is not None
    assert len({node.identity.spki, node.authority.key.spki, node.mesh.root_spki}) == 3
    entry = node.roster.get(summary.node_id)
    assert entry is not None
    assert entry.record.control == ("192.0.2.1:51800",)
    assert entry.record.wg_keys == tuple(public_key_of(key) for key in node.wg_keys.private)
    assert load(tmp_path / "pm.toml").node == NodeSection("alpha", "pm", ("192.0.2.1",))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pm.toml", "state"]


def test_init_takes_settings_and_the_overlay_from_a_config(tmp_path: Path) -> None:
    given = Config(NodeSection("x", "y"), overlay=OverlaySection("10.9.0.0/16"))
    assert str(init(tmp_path, given).ip4).startswith("10.9.")
    assert load(tmp_path / "pm.toml").overlay.cidr4 == "10.9.0.0/16"
    assert str(load_node(tmp_path / "state", NOW).mesh.network4) == "10.9.0.0/16"


def test_generations_only_grow(tmp_path: Path) -> None:
    init(tmp_path)
    state = load_node(tmp_path / "state", NOW).state
    assert [next_generation(state, NOW), next_generation(state, NOW)] == [int(NOW), int(NOW) + 1]
    assert next_generation(state, 5.0) == int(NOW) + 2  # the clock stepped back
    assert next_generation(state, NOW + 100) == int(NOW) + 100
    keep_generation(state, int(NOW) + 500)
    keep_generation(state, int(NOW) + 400)
    assert next_generation(state, NOW + 101) == int(NOW) + 501  # the number that a run took above another
    for damaged in (b"junk", b"", b"4294967295"):
        (tmp_path / "state" / "generation").write_bytes(damaged)
        with pytest.raises(StateError, match="generation"):
            next_generation(state, NOW)


def test_a_new_authority_checks_its_own_certificate(tmp_path: Path, authority: NodeState) -> None:
    joiner = Joiner(tmp_path / "joiner", authority)
    joiner.invite = replace(joiner.invite, role=Role.AUTHORITY)
    config = join_config(joiner.invite, name="beta", endpoints=())
    draft = begin_join(joiner.at / "state", joiner.at / "pm.toml", joiner.invite, config)
    again = begin_join(joiner.at / "state", joiner.at / "pm.toml", joiner.invite, config)
    assert draft.authority_key is not None and again.authority_key is not None
    assert draft.authority_key.spki == again.authority_key.spki
    member_id, key = draft.identity.node_id, draft.authority_key
    root_key = authority.root_key()

    def signed(signer: Identity, spki: bytes, node_id: NodeId) -> bytes:
        made = issue_authority(authority.root, signer, spki, node_id, NOW)
        return made.public_bytes(Encoding.DER)

    for bad in (
        b"",
        authority.authority_cert,
        signed(root_key, key.spki, authority.identity.node_id),
        signed(root_key, identity("another").spki, member_id),
        signed(identity("no root"), key.spki, member_id),
    ):
        with pytest.raises(TrustError):
            joiner.join(own_authority_cert=bad)
    joiner.join(own_authority_cert=signed(root_key, key.spki, member_id))
    node = load_node(joiner.at / "state", NOW)
    assert node.authority is not None and node.authority.key.spki == key.spki
    assert node.member(NOW).role is Role.AUTHORITY


def test_init_refuses_to_overwrite(tmp_path: Path) -> None:
    init(tmp_path)
    kept = load_node(tmp_path / "state", NOW).identity.node_id
    with pytest.raises(StateError, match="already holds"):
        init(tmp_path)
    assert load_node(tmp_path / "state", NOW).identity.node_id == kept
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "pm.toml").write_text("# an operator's\n")
    with pytest.raises(ConfigError, match=r"pm\.toml exists") as caught:
        init(tmp_path)
    assert "move" in caught.value.fix
    assert (tmp_path / "pm.toml").read_text() == "# an operator's\n"
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("mesh", "name"), [("Bad Mesh", "a"), ("pm", "Bad"), ("", "a"), ("pm", "a.b")])
def test_init_with_bad_names_makes_nothing(tmp_path: Path, mesh: str, name: str) -> None:
    with pytest.raises(TrustError, match="not usable"):
        init_mesh(tmp_path / "s", tmp_path / "c", mesh=mesh, name=name, endpoints=(), now=NOW)
    with pytest.raises(ConfigError, match="endpoint"):
        init_mesh(tmp_path / "s", tmp_path / "c", mesh="pm", name="a", endpoints=("a:b:c",), now=NOW)
    assert not list(tmp_path.iterdir())


def test_join_makes_a_member(joiner: Joiner) -> None:
    summary = joiner.join()
    node = load_node(joiner.at / "state", NOW)
    assert (summary.name, summary.mesh, node.name) == ("beta", "pm", "beta")
    assert node.authority is None
    assert not node.state.has("root.key")
    assert not node.state.has("authority.key")
    assert node.admission.newest == joiner.authority.admission.newest
    assert {entry.member.name for entry in node.roster} == {"alpha", "beta"}
    assert sorted(entry.name for entry in joiner.at.iterdir()) == ["pm.toml", "state"]


def test_join_takes_the_meshs_overlay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    init(tmp_path / "a", Config(NodeSection("x", "y"), overlay=OverlaySection("10.9.0.0/16")))
    joiner = Joiner(tmp_path / "b", load_node(tmp_path / "a" / "state", NOW))
    joiner.join()
    assert load(tmp_path / "b" / "pm.toml").overlay.cidr4 == "10.9.0.0/16"


def test_a_join_that_goes_wrong_leaves_nothing(joiner: Joiner) -> None:
    other = make_mesh("other")
    stranger = identity("stranger")
    for changed in (
        {"root_cert": other.root_der},
        {"root_cert": b"junk"},
        {"authority_cert": other.authority.der},
        {"node_cert": joiner.certify(stranger.spki)},
        {"node_cert": b""},
        {"admission_key": Secret(b"short")},
        {"roster": b"junk"},
        {"roster": msgspec.msgpack.encode([other.record(stranger, "x")])},
        {"revocations": b"junk"},
        {"now": NOW + 30 * DAY},
        {"config": join_config(joiner.invite, name="gamma", endpoints=())},
        {"invite": replace(joiner.invite, mesh="else")},
    ):
        with pytest.raises(PhantomMeshError):
            joiner.join(**changed)
        assert [entry.name for entry in joiner.at.iterdir()] == [".state.joining"], changed
    joiner.join()


def test_a_repeated_join_is_the_same_node_by_the_same_invite_only(joiner: Joiner) -> None:
    def begin(invite: Invite) -> JoinDraft:
        config = join_config(invite, name="beta", endpoints=())
        return begin_join(joiner.at / "state", joiner.at / "pm.toml", invite, config)

    first = begin(joiner.invite)
    again = begin(joiner.invite)
    assert again.identity.node_id == first.identity.node_id
    assert again.wg_keys == first.wg_keys
    draft = joiner.at / ".state.joining"
    assert draft.stat().st_mode & 0o777 == 0o600
    assert begin(replace(joiner.invite, invite_id=bytes(16))).identity.node_id != first.identity.node_id
    draft.write_bytes(b"{}")
    with pytest.raises(StateError, match="not the draft"):
        begin(joiner.invite)
    draft.chmod(0o644)
    with pytest.raises(StateError, match="others can read"):
        begin(joiner.invite)


# --- a failure at every file operation

OPERATIONS = ("open", "fchmod", "fsync", "rename", "replace", "link", "mkdir", "unlink", "rmdir")


class Killed(BaseException):
    """The process died here: nothing after it ran, no clean-up either."""


class Faults:
    """Fails file operation number `at`: with EIO, once; or for good, as a killed process would."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, *, kill: bool) -> None:
        self.count, self.at, self.kill = 0, at, kill
        for name in OPERATIONS:
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.kill and self.count >= self.at:
                if self.count == self.at and name == "fsync":
                    try:  # what was never synced may be half there
                        os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                    except OSError:
                        pass  # a directory
                raise Killed
            if self.count == self.at:
                raise OSError(5, "Input/output error")
            return real(*args, **kwargs)

        return faulty


def every_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kill: bool, run: Callable[[Path], object]
) -> int:
    """Run with a fault at each file operation in turn; after each, nothing or all, and the same again works.

    Returns how many of the runs failed.
    """
    failures = 0
    for step in range(1, 300):
        at = tmp_path / f"step-{step}"
        at.mkdir()
        failed = False
        with monkeypatch.context() as patch:
            faults = Faults(patch, step, kill=kill)
            try:
                run(at)
            except (Killed, PhantomMeshError):
                failed = True
        state = at / "state"
        if state.exists():
            load_node(state, NOW)
            with pytest.raises(StateError, match="already holds"):
                run(at)
        else:
            assert failed
            if not kill:
                assert not (at / "pm.toml").exists(), "a failed run takes its configuration back"
            run(at)
            load_node(state, NOW)
        assert load(at / "pm.toml").node.mesh == "pm"
        left = {entry.name for entry in at.iterdir()} - {"state", "pm.toml"}
        # a fault at the very tidying up may leave its file; nothing else does
        assert left <= {".pm.toml.writing", ".state.joining"}, left
        shutil.rmtree(at)
        if faults.count < step:
            return failures  # this step was never reached: the last one was the step before
        failures += failed
    pytest.fail("the run has no end")


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "EIO"])
def test_init_is_nothing_or_all_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    assert every_step(monkeypatch, tmp_path, kill, init) > 30


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "EIO"])
def test_join_is_nothing_or_all_at_every_step_with_one_invite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: bool, authority: NodeState
) -> None:
    """The authority spends the one-use invite before the crash, yet the same line works again."""

    def run(at: Path) -> None:
        if at not in joiners:
            joiners[at] = Joiner(at, authority)
        joiners[at].join()

    joiners: dict[Path, Joiner] = {}
    assert every_step(monkeypatch, tmp_path, kill, run) > 30


# --- reading back


@pytest.mark.parametrize("name", REQUIRED)
def test_a_damaged_file_is_named(joiner: Joiner, name: str) -> None:
    joiner.join()
    path = joiner.at / "state" / name
    whole = path.read_bytes()
    blamed = "node.crt" if name == "authority.crt" else name  # it shows as a chain that does not hold
    for damaged in (b"", whole[: len(whole) // 2], b"junk" * 20):
        path.write_bytes(damaged)
        with pytest.raises(StateError, match=str(path.with_name(blamed))) as caught:
            load_node(joiner.at / "state", NOW)
        assert "backup" in caught.value.fix
    path.write_bytes(whole)
    load_node(joiner.at / "state", NOW)


@pytest.mark.parametrize("name", ["node.key", "wireguard.json", "admission.key"])
def test_open_secrets_are_refused(joiner: Joiner, name: str) -> None:
    joiner.join()
    (joiner.at / "state" / name).chmod(0o644)
    with pytest.raises(StateError, match="others can read") as caught:
        load_node(joiner.at / "state", NOW)
    assert caught.value.fix.startswith("chmod 600 ")


def test_files_of_two_nodes_mixed(joiner: Joiner) -> None:
    joiner.join()
    source = joiner.authority.state.path
    shutil.copy(source / "node.key", joiner.at / "state" / "node.key")
    with pytest.raises(StateError, match=r"node\.crt.*not the certificate of node\.key"):
        load_node(joiner.at / "state", NOW)


def test_a_node_that_slept_or_has_no_clock(joiner: Joiner) -> None:
    joiner.join()
    late = load_node(joiner.at / "state", NOW + 60 * DAY)
    assert late.name == "beta"
    assert len(late.roster) == 2
    assert late.roster.members(NOW + 60 * DAY) == []
    with pytest.raises(TrustError, match=r"ran out on .* by this machine's clock"):
        late.member(NOW + 60 * DAY)
    with pytest.raises(StateError, match="clock is wrong"):
        load_node(joiner.at / "state", 0.0)


def test_no_secret_shows(joiner: Joiner) -> None:
    joiner.join()
    node = load_node(joiner.at / "state", NOW)
    config = join_config(joiner.invite, name="beta", endpoints=())
    draft = begin_join(joiner.at / "other", joiner.at / "pm.toml", joiner.invite, config)
    shown = repr(node) + repr(draft) + repr(joiner.authority) + repr(joiner.invite)
    for secret in (
        node.admission.newest,
        *node.wg_keys.private,
        *draft.wg_keys.private,
        joiner.invite.secret,
    ):
        assert repr(secret.reveal())[2:-1] not in shown
        assert secret.reveal().hex() not in shown


def test_wireguard_keys_are_clamped_and_derive() -> None:
    keys = WgKeys.generate().private
    assert len(set(map(public_key_of, keys))) == 7
    for key in keys:
        raw = key.reveal()
        assert raw[0] & 7 == 0
        assert raw[31] >> 6 == 1


def test_a_policy_that_cannot_be_read_makes_no_node(tmp_path: Path) -> None:
    """It may be what denies."""
    init(tmp_path / "alpha")
    authority = load_node(tmp_path / "alpha" / "state", NOW)
    assert authority.authority is not None
    joiner = Joiner(tmp_path / "beta", authority)
    good = sign(authority.authority, PolicySection("deny"), last=0, now=NOW)
    for bad in (b"", msgspec.structs.replace(good, number=good.number + 1).encode()):
        with pytest.raises(TrustError):
            joiner.join(policies=(good.encode(), bad))
        assert not (joiner.at / "state").exists()
    joiner.join(policies=(good.encode(),))
    found = load_node(joiner.at / "state", NOW).policies.current((), NOW)
    assert found is not None and found.signed == good
