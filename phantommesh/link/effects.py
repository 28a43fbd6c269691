# SPDX-License-Identifier: GPL-3.0-or-later
"""Effects of the link protocol, as values, and what it has to be told about peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from phantommesh.endpoint import Address
from phantommesh.link.handshake import SigningRequest
from phantommesh.link.psk import PskPhase
from phantommesh.secret import Secret

Role = Literal["initiator", "responder"]


@dataclass(frozen=True, slots=True)
class PeerAuth:
    """A member that links are kept with. ``valid_until`` is its certificate's end on the protocol's clock."""

    node_id: bytes
    public_key: MLDSA65PublicKey
    valid_until: float
    wg_keys: tuple[bytes, ...]  # all zero: this node has no key to use for the peer in that dimension
    endpoints: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Data that an authority needs to let newcomers in. ``find(invite id, node id)`` gives the secret of an
    invite that this node may use; of `keys.RETURNING`, where the node is a member that may come back.
    ``where(node id)`` gives the addresses that such a member's record names."""

    root_hash: bytes
    spki: bytes
    find: Callable[[bytes, bytes], Secret | None]
    where: Callable[[bytes], Sequence[Address]] = lambda node_id: ()


@dataclass(frozen=True, slots=True)
class Send:
    """Send one datagram."""

    datagram: bytes
    destination: Address


@dataclass(frozen=True, slots=True)
class Sign:
    """Sign with the node's ML-DSA-65 key and hand the result to ``signed(token, ...)``."""

    token: bytes
    request: SigningRequest


@dataclass(frozen=True, slots=True)
class Install:
    """The peer's desired PSKs changed: apply them, read them back, and call ``read_back``."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """A handshake finished. The keys protect control streams named by ``session`` (the initiator's id).
    ``invite`` is the invite's id where the peer is a newcomer, whose bare public key is ``spki``; ``at`` is
    where a member is, as it answered from there; None where another member carried the handshake."""

    peer: bytes
    role: Role
    session: bytes
    key_out: Secret
    key_in: Secret
    epoch: int
    seconds: float
    invite: bytes = b""
    spki: bytes = b""
    at: Address | None = None


class ResetSign(Enum):
    """How a chain was broken although this node still held it; `copies.Copies` draws the conclusions."""

    EMPTY = "the other end offered no earlier key"
    UNANSWERED = "the other end did not know the key that this node offered"
    SUPERSEDED = "the other end offered a key that a later one of its own had replaced"
    UNKNOWN = "the other end offered a key that this node never had with it"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something an operator should know of a link: ``stale``, ``random``, ``failed``, ``chain-reset``,
    ``chain-forked``. ``sign`` says how the last two came about, where that could be told."""

    peer: bytes
    kind: str
    detail: str = ""
    sign: ResetSign | None = None


Effect = Send | Sign | Install | Opened | Alarm


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link as ``status`` reports it. Ages are in seconds; ``confirmed`` is a bitmap of dimensions."""

    phase: PskPhase
    epoch: int
    role: Role | None
    age: float | None
    confirmed: int
    chain_reset: bool
    last_error: str | None
