# SPDX-License-Identifier: GPL-3.0-or-later
"""The authority's book of invites: a file each, so that a crash loses at most the write in hand."""

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import msgspec

from phantommesh.endpoint import MAX_ENDPOINT_BYTES, parse_endpoint
from phantommesh.moments import span
from phantommesh.secret import Secret
from phantommesh.state.directory import INVITES, StateDir
from phantommesh.state.files import StateError, atomic_write, cannot
from phantommesh.trust.certificates import Role, TrustError, check_label
from phantommesh.trust.identity import IdentityError, NodeId, format_node_id, parse_node_id
from phantommesh.trust.invites import INVITE_ID_BYTES, MAX_ENDPOINTS, SECRET_BYTES, Invite
from phantommesh.trust.tags import check_tags

MAX_NAMES: Final = 2  # under which one node may join by one invite
_ENTRY_NAME: Final = re.compile(r"[0-9a-f]{32}\.json")


class InviteEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of an invite that the authority keeps. `name` restricts who may use it; None leaves the
    choice.

    `replaces` is the node id of the member whose place the invite is for: that identity is revoked when the
    invite is used. `ip4` is the member's address, which its new identity keeps. Both are empty otherwise.

    `tags` are those that it grants.

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
    tags: tuple[str, ...] = ()

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


def check_invite(endpoints: tuple[str, ...], name: str | None, uses: int, tags: tuple[str, ...]) -> None:
    """Refuse an invite that no joiner could use. Raises TrustError or TagError."""
    if name is not None:
        check_label("node name", name)
    if name is not None and uses != 1:
        raise TrustError("an invite for one name has one use", fix="leave out --uses or --name")
    if not 1 <= uses <= 10_000:
        raise TrustError(f"an invite has 1 to 10000 uses, not {uses}", fix="give another --uses")
    if not 1 <= len(endpoints) <= MAX_ENDPOINTS:
        raise TrustError(
            "an invite needs 1 to 3 endpoints where a joiner can reach this node",
            fix='start the node once, or set node.endpoints in the config, e.g. ["vpn.example.net:51800"]',
        )
    for endpoint in endpoints:
        try:
            parse_endpoint(endpoint)
        except ValueError as error:
            raise TrustError(f"endpoint {endpoint[:MAX_ENDPOINT_BYTES]!r}: {error}") from None
    check_tags(tags)


class InviteBook:
    """The authority's invites, one file each, so that a crash loses at most the write in hand.

    Nothing is cached: a command may add an invite while the node runs. A file that cannot be read costs its
    own invite, and no other: it is left where it is.
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
        tags: tuple[str, ...] = (),
    ) -> Invite:
        """Make an invite and keep it. Raises TrustError or TagError for arguments no joiner could use.

        One that `replaces` a member takes the place of those made before for the same member and never used.
        """
        check_invite(endpoints, name, uses, tags)
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
            for path, older in self._readable():
                if older.replaces == replaced and not older.enrolled:
                    path.unlink(missing_ok=True)
        entry = InviteEntry(
            role, name, expires, uses, invite.secret, replaces=replaced, ip4=ip4, tags=check_tags(tags)
        )
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
        for path, entry in self._readable():
            if now >= entry.expires:
                path.unlink(missing_ok=True)
                gone += 1
        return gone

    def entries(self) -> Iterator[tuple[str, InviteEntry]]:
        """Yield the invites that can be read, each with its id in hex; also those that have run out."""
        return ((path.stem, entry) for path, entry in self._readable())

    def withdraw(self, invite_id: bytes) -> None:
        """Delete an invite: nobody can use it any more. Raises StateError."""
        with self._exclusively():  # a joiner that spends it just now would write it anew
            try:
                self._path(invite_id).unlink(missing_ok=True)
            except OSError as error:
                raise cannot(f"delete {self._path(invite_id)}", error) from error

    def damaged(self) -> list[Path]:
        """The files that cannot be read. Each is an invite that nobody can use, and can be deleted."""
        readable = {path for path, _ in self._readable()}
        return [path for path in self._entries() if path not in readable and path.exists()]

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self._directory / ".lock", flags, 0o600)
        except OSError as error:
            raise cannot(f"lock {self._directory}", error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _entries(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return sorted(path for path in self._directory.iterdir() if _ENTRY_NAME.fullmatch(path.name))

    def _readable(self) -> Iterator[tuple[Path, InviteEntry]]:
        """Yield the invites that can be read, with their files."""
        for path in self._entries():
            with suppress(StateError, TrustError):  # damaged; or deleted meanwhile
                yield path, self._read(bytes.fromhex(path.stem))

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
            raise cannot(f"read {path}", error) from error
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
            raise cannot(f"write {path}", error) from error


def _secret_out(value: object) -> str:
    if isinstance(value, Secret):
        return value.reveal().hex()
    raise NotImplementedError(type(value).__name__)


def _secret_in(kind: type, value: object) -> Secret:
    if kind is Secret and isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return Secret(bytes.fromhex(value))
    raise ValueError("not a secret")
