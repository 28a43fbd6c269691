# SPDX-License-Identifier: GPL-3.0-or-later
"""Invites: the one line an operator carries to a joining machine."""

import base64
import binascii
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Final, Self

from phantommesh.endpoint import parse_endpoint
from phantommesh.moments import span
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Role, TrustError, check_label
from phantommesh.trust.identity import NodeId

PREFIX: Final = "pm1_"
MAX_INVITE_CHARS: Final = 1_400
MAX_ENDPOINTS: Final = 3
INVITE_ID_BYTES: Final = 16
SECRET_BYTES: Final = 32
MAX_LIFE: Final = 30 * 86_400.0
"""Seconds that an invite may be used: it is a password, and lies in a chat or a shell's history meanwhile."""

# root hash, invite id, secret, authority's node id, expiry, role; then mesh and endpoints with a length each
_HEAD: Final = struct.Struct(">32s16s32s16sQB")
_CHECKSUM_BYTES: Final = 4
_ROLES: Final = (Role.NODE, Role.RELAY, Role.AUTHORITY)
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
