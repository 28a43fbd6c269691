# SPDX-License-Identifier: GPL-3.0-or-later
"""How a node comes to be: a new mesh, an enrolment, and reading back what either left on disk.

Both write the configuration first and then rename the state directory into place, which is the one step that
counts. A crash before it leaves at most a configuration that names no state; running the same command again
takes that configuration as its own. One that differs is an operator's, and is never overwritten.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh.acl.signedpolicy import Policies, SignedPolicy
from phantommesh.acl.signedpolicy import encode as encode_policies
from phantommesh.acl.signedpolicy import verify as verify_policy
from phantommesh.config.reading import load, parse, refuse_overlay
from phantommesh.config.sections import Config, ConfigError, NodeSection, OverlaySection
from phantommesh.config.writing import render
from phantommesh.overlay.prefixes import Address
from phantommesh.records.record import sign_record
from phantommesh.records.roster import Roster
from phantommesh.secret import Secret
from phantommesh.state import directory, rosterlog
from phantommesh.state.directory import StateDir, check_vacant
from phantommesh.state.files import StateError, atomic_write, cannot, check_private
from phantommesh.state.start import make_record
from phantommesh.trust.certificates import (
    GRACE,
    Member,
    Role,
    TrustError,
    authority_node,
    check_label,
    describe_mesh,
    load_certificate,
    load_root,
    verify_authority,
    verify_chain,
)
from phantommesh.trust.groupkey import Keyring, decode_keys_untrusted, verify_group_key
from phantommesh.trust.identity import Identity, IdentityError, NodeId
from phantommesh.trust.invites import Invite
from phantommesh.trust.issuing import Authority, choose_ip4, issue_authority, make_root
from phantommesh.trust.meshsecret import SECRET_BYTES
from phantommesh.trust.revocations import Revocations
from phantommesh.wireguard.device import Network
from phantommesh.wireguard.keys import WgKeys

_NEW_INVITE: Final = "ask for a new invite"

Check = Callable[[Sequence[Network], Mapping[Address, str]], None]
"""Called with a mesh's networks and its members' names by overlay address. Raises PhantomMeshError where this
machine cannot be in such a mesh."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The summary that `init` and `join` give the operator."""

    mesh: str
    name: str
    node_id: NodeId
    role: Role
    ip4: IPv4Address
    ip6: IPv6Address
    state_dir: Path
    config: Path
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JoinDraft:
    """A joiner's keys, kept from the first attempt, so that a repeated join is the same node.

    `authority_key` is there where the invite makes an authority.
    """

    identity: Identity
    wg_keys: WgKeys
    authority_key: Identity | None = None


def init_mesh(
    state_dir: Path,
    config_path: Path,
    *,
    mesh: str,
    name: str,
    endpoints: tuple[str, ...],
    now: float,
    config: Config | None = None,
    cidr4: str | None = None,
    grace: float = GRACE,
    tags: tuple[str, ...] = (),
    check: Check = lambda networks, members: None,
) -> Summary:
    """Make a mesh: root, authority, and this machine as its first node. All of it, or nothing.

    `config` gives the other settings (a lab's ports and names); its node section is replaced. `cidr4` is the
    IPv4 overlay, by default the settings'; `grace` is `Mesh.grace`, seconds; `tags` are this node's. `check`
    is called before anything is written. Raises PhantomMeshError: StateError, ConfigError or TrustError.
    """
    check_label("mesh name", mesh)
    check_label("node name", name)
    check_vacant(state_dir)
    config = _config(config, mesh, name, endpoints, cidr4)
    _check_config_vacant(config_path, config)
    network4 = IPv4Network(config.overlay.cidr4)

    root_key, authority_key, identity = Identity.generate(), Identity.generate(), Identity.generate()
    root = make_root(root_key, mesh, now, network4, grace)
    described = describe_mesh(root)
    refuse_overlay(config, (described.network4, described.network6))
    authority_cert = issue_authority(root, root_key, authority_key.spki, identity.node_id, now)
    authority = Authority(root, authority_cert, authority_key)
    ip4 = choose_ip4(described, identity.node_id, ())
    node_cert = authority.issue(identity.spki, name, Role.AUTHORITY, ip4, now, tags=tags)
    member = verify_chain(root, authority.der, node_cert, now)
    check((described.network4, described.network6), {member.ip4: name, member.ip6: name})
    wg_keys = WgKeys.generate()
    roster = Roster(root, Revocations(root))
    record = make_record(identity, wg_keys, config, seq=1)
    roster.add(sign_record(identity, record, node_cert, authority.der), now)

    files = _node_files(
        identity=identity,
        root=root,
        authority_cert=authority.der,
        node_cert=node_cert,
        wg_keys=wg_keys,
        admission_key=Secret(secrets.token_bytes(SECRET_BYTES)),
        roster=roster,
        revocations=Revocations(root),
    )
    files[directory.ROOT_KEY] = root_key.to_pem().reveal()
    files[directory.AUTHORITY_KEY] = authority_key.to_pem().reveal()
    _commit(state_dir, files, config_path, config)
    return _summary(member, mesh, state_dir, config_path)


def begin_join(state_dir: Path, config_path: Path, invite: Invite, config: Config) -> JoinDraft:
    """Return the keys to join with: those of an earlier, unfinished join by this invite, else new ones.

    They are on disk when this returns, beside the state directory as ``.NAME.joining``: if the authority
    spends the invite and this machine then dies, a repeated join is known again. `config` is what
    `join_config` gave. Raises StateError or ConfigError when the join could not be finished anyway.
    """
    check_vacant(state_dir)
    _check_config_vacant(config_path, config, overlay_known=False)
    path = _draft_path(state_dir)
    if path.exists():
        invite_id, draft = _read_draft(path)
        if invite_id == invite.invite_id:
            return draft
    authority_key = Identity.generate() if invite.role is Role.AUTHORITY else None
    draft = JoinDraft(Identity.generate(), WgKeys.generate(), authority_key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        atomic_write(path, _encode_draft(invite.invite_id, draft))
    except OSError as error:
        raise cannot(f"write {path}", error) from error
    return draft


def join_config(
    invite: Invite, *, name: str, endpoints: tuple[str, ...], config: Config | None = None
) -> Config:
    """Return the configuration of a node that joins by this invite. Raises TrustError or ConfigError."""
    check_label("node name", name)
    return _config(config, invite.mesh, name, endpoints)


def finish_join(
    state_dir: Path,
    config_path: Path,
    *,
    draft: JoinDraft,
    config: Config,
    invite: Invite,
    root_cert: bytes,
    authority_cert: bytes,
    node_cert: bytes,
    admission_key: Secret,
    roster: bytes,
    revocations: bytes,
    now: float,
    keys: bytes = b"",
    active_key: bytes = b"",
    own_authority_cert: bytes = b"",
    policies: Sequence[bytes] = (),
    check: Check = lambda networks, members: None,
) -> Summary:
    """Check all that the authority sent and make the node of it. All of it, or nothing.

    Certificates are DER; `roster` and `revocations` are encoded, as `Roster.encode` and `Revocations.encode`
    give them, `keys` as `encode_keys` does, each of `policies` as `SignedPolicy.encode` does: with one that
    cannot be read the node does not join, since it may be what denies. `check` is called before anything is
    written. Our own signed record is added to the roster. A new authority certifies itself from the start.
    Raises TrustError, RecordError, PolicyError, StateError or ConfigError.
    """
    root = load_root(root_cert, invite.root_hash)
    mesh = describe_mesh(root)
    if mesh.name != invite.mesh:
        raise TrustError(
            f"the authority is of mesh {mesh.name}, the invite of {invite.mesh}", fix=_NEW_INVITE
        )
    member = verify_chain(root, authority_cert, node_cert, now)
    if member.node_id != draft.identity.node_id:
        raise TrustError("the authority certified another node's key", fix=_NEW_INVITE)
    if member.name != config.node.name:
        raise TrustError(
            f"the authority named this node {member.name}, not {config.node.name}",
            fix=f"join again with --name {member.name}",
        )
    if len(admission_key) != SECRET_BYTES:
        raise TrustError("the authority sent no usable admission key", fix=_NEW_INVITE)
    if draft.authority_key is not None:
        own_key = verify_authority(root, own_authority_cert, now)
        if own_key != draft.authority_key.public_key or authority_node(own_authority_cert) != member.node_id:
            raise TrustError("the authority certified another authority's key", fix=_NEW_INVITE)
        own = Authority(root, load_certificate(own_authority_cert, "authority"), draft.authority_key)
        authority_cert = own_authority_cert
        node_cert = own.issue(
            draft.identity.spki, member.name, Role.AUTHORITY, member.ip4, now, tags=member.tags
        )
    revoked = Revocations.decode(revocations, root, now)
    ring = Keyring()
    for key in decode_keys_untrusted(keys) if keys else ():
        with suppress(TrustError):  # one of an authority that was revoked since; the next is on its way
            verify_group_key(key, root, revoked, now)
            ring.install(key, now)
    ring.promote(active_key, now)
    ruled = Policies()
    for told in policies:
        ruled.hold(verify_policy(SignedPolicy.decode_untrusted(told), root, now), now)
    known = Roster.decode_untrusted(roster, root, revoked, now)
    members = [member, *(entry.member for entry in known if entry.valid(now))]
    check((mesh.network4, mesh.network6), {ip: m.name for m in members for ip in (m.ip4, m.ip6)})
    overlay = OverlaySection(cidr4=str(mesh.network4))
    config = msgspec.structs.replace(config, overlay=overlay)
    held = known.get(member.node_id)
    seq = 1 if held is None else held.record.seq + 1
    known.add(
        sign_record(
            draft.identity, make_record(draft.identity, draft.wg_keys, config, seq), node_cert, authority_cert
        ),
        now,
    )

    files = _node_files(
        identity=draft.identity,
        root=root,
        authority_cert=authority_cert,
        node_cert=node_cert,
        wg_keys=draft.wg_keys,
        admission_key=admission_key,
        roster=known,
        revocations=revoked,
    )
    if ring.active is not None:
        files[directory.KEYRING] = ring.encode()
    if ruled.last(now):
        files[directory.POLICIES] = encode_policies(ruled)
    if draft.authority_key is not None:
        files[directory.AUTHORITY_KEY] = draft.authority_key.to_pem().reveal()
    _commit(state_dir, files, config_path, config)
    try:
        _draft_path(state_dir).unlink(missing_ok=True)
    except OSError:
        pass  # the node is whole; a later join overwrites the draft
    return _summary(member, mesh.name, state_dir, config_path)


def _summary(member: Member, mesh: str, state_dir: Path, config_path: Path) -> Summary:
    return Summary(
        mesh, member.name, member.node_id, member.role, member.ip4, member.ip6, state_dir, config_path,
        member.tags,
    )  # fmt: skip


def _config(
    config: Config | None, mesh: str, name: str, endpoints: tuple[str, ...], cidr4: str | None = None
) -> Config:
    """The given or default settings for this node, checked as a file would be."""
    node = NodeSection(name=name, mesh=mesh, endpoints=endpoints)
    config = Config(node=node) if config is None else msgspec.structs.replace(config, node=node)
    if cidr4 is not None:
        config = msgspec.structs.replace(config, overlay=OverlaySection(cidr4=cidr4))
    return parse(render(config))


def _node_files(
    *,
    identity: Identity,
    root: x509.Certificate,
    authority_cert: bytes,
    node_cert: bytes,
    wg_keys: WgKeys,
    admission_key: Secret,
    roster: Roster,
    revocations: Revocations,
) -> dict[str, bytes]:
    return {
        directory.ROOT_CERT: root.public_bytes(Encoding.DER),
        directory.AUTHORITY_CERT: authority_cert,
        directory.NODE_CERT: node_cert,
        directory.NODE_KEY: identity.to_pem().reveal(),
        directory.WIREGUARD_KEYS: json.dumps(wg_keys.encode()).encode("ascii"),
        directory.ADMISSION_KEY: admission_key.reveal(),
        directory.ROSTER: rosterlog.encode(roster.in_order(revoked=True)),
        directory.REVOCATIONS: revocations.encode(),
    }


def _commit(state_dir: Path, files: dict[str, bytes], config_path: Path, config: Config) -> None:
    """Write the configuration, then the state directory; take the configuration back if the latter fails."""
    ours = write_config(config_path, config)
    try:
        StateDir.create(state_dir, files)
    except BaseException:
        if ours:
            config_path.unlink(missing_ok=True)
        raise


def write_config(path: Path, config: Config) -> bool:
    """Write the configuration unless the same one is there; say whether it was written."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        try:
            atomic_write(temporary, render(config).encode("ascii"), mode=0o644)
            path.hardlink_to(temporary)  # unlike a rename, this never replaces a file
        finally:
            with suppress(OSError):  # a left-over is harmless, and the next attempt writes over it
                temporary.unlink(missing_ok=True)
    except FileExistsError:
        _check_config_vacant(path, config)
        return False
    except OSError as error:
        raise cannot(f"write {path}", error) from error
    return True


def _check_config_vacant(path: Path, config: Config, *, overlay_known: bool = True) -> None:
    """Raise ConfigError if a configuration is there that an earlier attempt at the same did not write."""
    try:
        existing = load(path, {}) if path.exists() or path.is_symlink() else config
    except ConfigError:
        existing = None
    if existing is not None and not overlay_known:
        existing = msgspec.structs.replace(existing, overlay=config.overlay)
    if existing != config:
        raise ConfigError(
            f"{path} exists and is another configuration; it was not touched",
            fix=f"move {path} away, or give another --config",
        )


def _draft_path(state_dir: Path) -> Path:
    path = state_dir.resolve()
    return path.with_name(f".{path.name}.joining")


def _encode_draft(invite_id: bytes, draft: JoinDraft) -> bytes:
    fields = {
        "invite": invite_id.hex(),
        "identity": draft.identity.to_pem().reveal().decode("ascii"),
        "wireguard": draft.wg_keys.encode(),
    }
    if draft.authority_key is not None:
        fields["authority"] = draft.authority_key.to_pem().reveal().decode("ascii")
    return json.dumps(fields).encode("ascii")


def _read_draft(path: Path) -> tuple[bytes, JoinDraft]:
    """Return (invite id, draft). Raises StateError."""
    try:
        check_private(path, path.lstat())
        fields = json.loads(path.read_bytes())
        identity = Identity.from_pem(fields["identity"].encode("ascii"))
        authority = Identity.from_pem(fields["authority"].encode("ascii")) if "authority" in fields else None
        draft = JoinDraft(identity, WgKeys.decode(fields["wireguard"]), authority)
        return bytes.fromhex(fields["invite"]), draft
    except OSError as error:
        raise cannot(f"read {path}", error) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, IdentityError) as error:
        raise StateError(f"{path} is not the draft of a join", fix=f"move {path} away") from error
