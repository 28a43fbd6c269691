# SPDX-License-Identifier: GPL-3.0-or-later
"""Invites: the one line an operator carries to a joining machine, and the authority's book of them."""

import base64
import binascii
import fcntl
import hashlib
import os
import re
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

from phantommesh.endpoint import MAX_ENDPOINT_BYTES, parse_endpoint
from phantommesh.moments import span
from phantommesh.secret import Secret
from phantommesh.state.directory import INVITES, StateDir, StateError, atomic_write
from phantommesh.trust.certificates import Role, TrustError, check_label
from phantommesh.trust.identity import IdentityError, NodeId, format_node_id, parse_node_id

PREFIX: Final = "pm1_"
MAX_INVITE_CHARS: Final = 1_400
MAX_ENDPOINTS: Final = 3
MAX_NAMES: Final = 2  # under which one node may join by one invite
INVITE_ID_BYTES: Final = 16
SECRET_BYTES: Final = 32

# root hash, invite id, secret, authority's node id, expiry, role; then mesh and endpoints with a length each
_HEAD: Final = struct.Struct(">32s16s32s16sQB")
_CHECKSUM_BYTES: Final = 4
_ROLES: Final = (Role.NODE, Role.RELAY, Role.AUTHORITY)
_ENTRY_NAME: Final = re.compile(r"[0-9a-f]{32}\.json")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")
_MAX_EXPIRY: Final = 253_402_300_799  # the last second of the year 9999


@dataclass(frozen=True, slots=True)
class Invite:
    """The content of one invite. `expires` is unix seconds; an endpoint is ``host:port``, at most three."""

    root_hash: bytes
    invite_id: bytes
    secret: Secret
    authority: NodeId
    mesh: str
    expires: int
    role: Role
    endpoints: tuple[str, ...]

    def encode(self) -> str:
        """Return the line: ``pm1_`` and base64url of the fields and a checksum. It holds the secret."""
        parts = [
            _HEAD.pack(
                self.root_hash,
                self.invite_id,
                self.secret.reveal(),
                self.authority,
                self.expires,
                _ROLES.index(self.role),
            )
        ]
        parts.extend(bytes([len(text)]) + text.encode("ascii") for text in (self.mesh, *self.endpoints))
        body = b"".join(parts)
        return PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode("ascii").rstrip("=")

    @classmethod
    def parse_untrusted(cls, text: str) -> Self:
        """Read an invite line. Raises TrustError, and only that, naming what is wrong but not the line."""
        text = text.strip()
        if not text.startswith(PREFIX):
            raise TrustError("this is not an invite: it does not start with pm1_", fix=_PASTE)
        if len(text) > MAX_INVITE_CHARS:
            raise TrustError("the invite is too long", fix=_PASTE)
        encoded = text[len(PREFIX) :]
        if not _BASE64URL.fullmatch(encoded):
            raise TrustError("the invite has characters that no invite has", fix=_PASTE)
        try:
            raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        except binascii.Error:  # a length that no bytes have
            raw = b""
        body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        canonical = base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=") == encoded
        if len(body) < _HEAD.size or checksum != _checksum(body) or not canonical:
            raise TrustError("the invite is incomplete or mistyped: its checksum is wrong", fix=_PASTE)
        root_hash, invite_id, secret, authority, expires, role = _HEAD.unpack_from(body)
        texts = _texts(body[_HEAD.size :])
        if role >= len(_ROLES) or expires > _MAX_EXPIRY or not 2 <= len(texts) <= 1 + MAX_ENDPOINTS:
            raise TrustError(
                "the invite was not made by this version", fix="upgrade, or ask for a new invite"
            )
        mesh, *endpoints = texts
        check_label("mesh name", mesh)
        for endpoint in endpoints:
            try:
                parse_endpoint(endpoint)
            except ValueError as error:
                raise TrustError(
                    f"the invite's endpoint {endpoint!r} is not usable: {error}", fix="ask for a new invite"
                ) from None
        return cls(
            root_hash,
            invite_id,
            Secret(secret),
            NodeId(authority),
            mesh,
            expires,
            _ROLES[role],
            tuple(endpoints),
        )

    def check_expiry(self, now: float) -> None:
        """Raise TrustError if the invite has run out at `now`, by this machine's clock."""
        if now >= self.expires:
            raise TrustError(
                f"the invite expired {span(now - self.expires)} ago, by this machine's clock",
                fix="check the clock, or ask for a new invite",
            )


_PASTE: Final = "paste the whole line that `phantommesh invite` printed"


class InviteEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of an invite that the authority keeps. `name` restricts who may use it; None leaves the
    choice.

    `replaces` is the node id of the member whose place the invite is for: that identity is revoked when the
    invite is used. `ip4` is the member's address, which its new identity keeps. Both are empty otherwise.

    `names` has the names under which each node of `enrolled` joined, with a space between two; an older
    version kept none.
    """

    role: Role
    name: str | None
    expires: int
    uses_left: int
    secret: Secret
    enrolled: tuple[str, ...] = ()
    replaces: str = ""
    ip4: str = ""
    names: tuple[str, ...] = ()

    def admits(self, node_id: NodeId) -> bool:
        """Say whether this node used the invite before; it may do so again, e.g. after a crash."""
        return format_node_id(node_id) in self.enrolled

    def check(self, node_id: NodeId | None, now: float) -> None:
        """Raise TrustError where this node may not use the invite at `now`, saying why."""
        if now >= self.expires:
            raise TrustError(f"the invite expired {span(now - self.expires)} ago", fix="ask for a new invite")
        if self.uses_left == 0 and not (node_id is not None and self.admits(node_id)):
            raise TrustError("the invite is used up", fix="ask for a new invite")

    def names_of(self, node_id: NodeId) -> list[str]:
        """The names under which this node joined by this invite."""
        return dict(zip(self.enrolled, self.names, strict=False)).get(format_node_id(node_id), "").split()

    def renames(self, node_id: NodeId, name: str) -> bool:
        """Say whether the node asks for one name too many. After a crash it may choose another one, once."""
        used = self.names_of(node_id)
        return name not in used and len(used) >= MAX_NAMES

    def spent_on(self, node_id: NodeId, name: str) -> Self:
        """The entry after this node has joined under this name."""
        text = format_node_id(node_id)
        names = dict.fromkeys(self.enrolled, "") | dict(zip(self.enrolled, self.names, strict=False))
        names[text] = " ".join(dict.fromkeys([*self.names_of(node_id), *name.split()]))
        left = self.uses_left - (text not in self.enrolled)
        return msgspec.structs.replace(
            self, uses_left=left, enrolled=tuple(names), names=tuple(names.values())
        )


class InviteBook:
    """The authority's invites, one file each, so that a crash loses at most the write in hand.

    Nothing is cached: a command may add an invite while the node runs.
    """

    def __init__(self, state: StateDir) -> None:
        self._directory = state.path / INVITES

    def create(
        self,
        *,
        root_hash: bytes,
        authority: NodeId,
        mesh: str,
        endpoints: tuple[str, ...],
        expires: int,
        role: Role = Role.NODE,
        name: str | None = None,
        uses: int = 1,
        replaces: NodeId | None = None,
        ip4: str = "",
    ) -> Invite:
        """Make an invite and keep it. Raises TrustError for arguments no joiner could use.

        One that `replaces` a member takes the place of those made before for the same member and never used.
        """
        if name is not None:
            check_label("node name", name)
        if name is not None and uses != 1:
            raise TrustError("an invite for one name has one use", fix="leave out --uses or --name")
        if not 1 <= uses <= 10_000:
            raise TrustError(f"an invite has 1 to 10000 uses, not {uses}", fix="give another --uses")
        if not 1 <= len(endpoints) <= MAX_ENDPOINTS:
            raise TrustError(
                "an invite needs 1 to 3 endpoints where a joiner can reach this node",
                fix='set node.endpoints in the config, e.g. ["vpn.example.net:51800"]',
            )
        for endpoint in endpoints:
            try:
                parse_endpoint(endpoint)
            except ValueError as error:
                raise TrustError(f"endpoint {endpoint[:MAX_ENDPOINT_BYTES]!r}: {error}") from None
        invite = Invite(
            root_hash,
            secrets.token_bytes(INVITE_ID_BYTES),
            Secret(secrets.token_bytes(SECRET_BYTES)),
            authority,
            mesh,
            expires,
            role,
            endpoints,
        )
        replaced = ""
        if replaces is not None:
            replaced = format_node_id(replaces)
            for path in self._entries():
                older = self._read(bytes.fromhex(path.stem))
                if older.replaces == replaced and not older.enrolled:
                    path.unlink(missing_ok=True)
        entry = InviteEntry(role, name, expires, uses, invite.secret, replaces=replaced, ip4=ip4)
        self._write(invite.invite_id, entry)
        return invite

    def find(self, invite_id: bytes, now: float, node_id: NodeId | None = None) -> InviteEntry:
        """Return an invite that `node_id` may use at `now`. Raises TrustError saying why there is none.

        A used-up invite is still found for a node that it enrolled.
        """
        entry = self._read(invite_id)
        entry.check(node_id, now)
        return entry

    def consume(self, invite_id: bytes, node_id: NodeId, now: float, name: str = "") -> InviteEntry:
        """Spend one use on `node_id`, which joins as `name`, on disk before this returns; the same node again
        costs nothing.

        Raises TrustError as `find` does, and StateError if it cannot be written (then nothing is spent).
        """
        with self._exclusively():  # threads and processes: two joiners must not spend the last use together
            entry = self.find(invite_id, now, node_id)
            spent = entry.spent_on(node_id, name)
            if spent != entry:
                self._write(invite_id, spent)
            return spent

    def expire(self, now: float) -> int:
        """Delete the invites that have run out; return how many."""
        gone = 0
        for path in self._entries():
            if now >= self._read(bytes.fromhex(path.stem)).expires:
                path.unlink(missing_ok=True)
                gone += 1
        return gone

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self._directory / ".lock", flags, 0o600)
        except OSError as error:
            raise StateError(f"cannot lock {self._directory}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _entries(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return sorted(path for path in self._directory.iterdir() if _ENTRY_NAME.fullmatch(path.name))

    def _path(self, invite_id: bytes) -> Path:
        return self._directory / f"{invite_id.hex()}.json"

    def _read(self, invite_id: bytes) -> InviteEntry:
        if len(invite_id) != INVITE_ID_BYTES:
            raise TrustError("the invite is not one of this authority's", fix="ask for a new invite")
        path = self._path(invite_id)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise TrustError(
                "the invite is not one of this authority's, or is long gone", fix="ask for a new invite"
            ) from None
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror}") from error
        try:
            entry = msgspec.json.decode(data, type=InviteEntry, dec_hook=_secret_in)
            for text in entry.enrolled:
                parse_node_id(text)
        except (msgspec.MsgspecError, ValueError, IdentityError) as error:
            raise StateError(f"{path} cannot be read", fix=f"delete {path} and make a new invite") from error
        return entry

    def _write(self, invite_id: bytes, entry: InviteEntry) -> None:
        path = self._path(invite_id)
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            atomic_write(path, msgspec.json.encode(entry, enc_hook=_secret_out))
        except OSError as error:
            raise StateError(f"cannot write {path}: {error.strerror}") from error


def _secret_out(value: object) -> str:
    if isinstance(value, Secret):
        return value.reveal().hex()
    raise NotImplementedError(type(value).__name__)


def _secret_in(kind: type, value: object) -> Secret:
    if kind is Secret and isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return Secret(bytes.fromhex(value))
    raise ValueError("not a secret")


def _checksum(body: bytes) -> bytes:
    """Four bytes against typing slips; forgery is what the secret and the root hash are against."""
    return hashlib.sha3_256(b"phantommesh invite v1" + body).digest()[:_CHECKSUM_BYTES]


def _texts(rest: bytes) -> list[str]:
    """Split length-prefixed ASCII strings. Raises TrustError."""
    texts: list[str] = []
    while rest:
        length = rest[0]
        chunk, rest = rest[1 : 1 + length], rest[1 + length :]
        if len(chunk) != length or not chunk.isascii():
            raise TrustError("the invite's texts cannot be read", fix="ask for a new invite")
        texts.append(chunk.decode("ascii"))
    return texts
