# SPDX-License-Identifier: GPL-3.0-or-later
"""Invites: the one line an operator carries to a joining machine."""

import struct
from dataclasses import dataclass
from typing import Final, Self

from phantommesh.moments import span
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Role, TrustError, check_label
from phantommesh.trust.identity import NodeId
from phantommesh.trust.lines import Kind, join_texts

PREFIX: Final = "pm1_"
MAX_INVITE_CHARS: Final = 1_400
MAX_ENDPOINTS: Final = 3
INVITE_ID_BYTES: Final = 16
SECRET_BYTES: Final = 32
MAX_LIFE: Final = 30 * 86_400.0
"""Seconds that an invite may be used: it is a password, and lies in a chat or a shell's history meanwhile."""

LINE: Final = Kind(
    PREFIX,
    "invite",
    b"phantommesh invite v1",
    paste="paste the whole line that `phantommesh invite` printed",
    again="ask for a new invite",
    most=MAX_INVITE_CHARS,
)

# root hash, invite id, secret, authority's node id, expiry, role; then mesh and endpoints with a length each
_HEAD: Final = struct.Struct(">32s16s32s16sQB")
_ROLES: Final = (Role.NODE, Role.RELAY, Role.AUTHORITY)
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
        head = _HEAD.pack(
            self.root_hash,
            self.invite_id,
            self.secret.reveal(),
            self.authority,
            self.expires,
            _ROLES.index(self.role),
        )
        return LINE.encode(head + join_texts((self.mesh, *self.endpoints)))

    @classmethod
    def parse_untrusted(cls, text: str) -> Self:
        """Read an invite line. Raises TrustError, and only that, naming what is wrong but not the line."""
        body = LINE.decode_untrusted(text)
        if len(body) < _HEAD.size:
            raise LINE.incomplete()
        root_hash, invite_id, secret, authority, expires, role = _HEAD.unpack_from(body)
        texts = LINE.split_texts_untrusted(body[_HEAD.size :])
        if role >= len(_ROLES) or expires > _MAX_EXPIRY or not 2 <= len(texts) <= 1 + MAX_ENDPOINTS:
            raise TrustError(
                "the invite was not made by this version", fix="upgrade, or ask for a new invite"
            )
        mesh, *endpoints = texts
        check_label("mesh name", mesh)
        LINE.check_endpoints(endpoints)
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
