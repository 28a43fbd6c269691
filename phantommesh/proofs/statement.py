# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a scatter proof, as bytes: plan, statement, receipt, and the signed head over them.

A node commits to each epoch's `Plan` when the epoch begins, and the peer notes when it heard of it. When the
epoch is over, the node's `Statement` opens the commitment and says what was sent; the peer's `Receipt` says
what came in. Both are leaves of their node's next Merkle tree, whose `Head` carries the node's one signature
(ML-DSA-65) of that round. Statements of one link are chained by hash, and so are a node's heads.
"""

import hashlib
from typing import Annotated, Final, Literal, Self, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from msgspec import Meta

from phantommesh.errors import PhantomMeshError
from phantommesh.proofs import merkle
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId

VERSION: Final = 2
CONTEXT: Final = b"phantommesh proof v1"  # FIPS 204 section 5.2
COMMITMENT_LABEL: Final = b"phantommesh proof commitment v1"
SALT_BYTES: Final = 32
HASH_BYTES: Final = merkle.HASH_BYTES
FIRST: Final = bytes(HASH_BYTES)  # what stands for the one before the first
SIGNATURE_BYTES: Final = 3_309  # FIPS 204, ML-DSA-65
MAX_LEAF_BYTES: Final = 1_024
MAX_HEAD_BYTES: Final = 256
MAX_SIGNED_BYTES: Final = MAX_LEAF_BYTES + MAX_HEAD_BYTES + SIGNATURE_BYTES + 1_024

Scheduler = Literal["packet", "batch", "deck", "flow", "flowlet"]

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Moment = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]  # Unix ms; RFC 3339 has no date after 9999
Seven = tuple[Count, Count, Count, Count, Count, Count, Count]
NodeBytes = Annotated[bytes, Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)]
Hash = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
ZEROS: Final[Seven] = (0, 0, 0, 0, 0, 0, 0)

Part = TypeVar("Part", bound=msgspec.Struct)


class ProofError(PhantomMeshError):
    """A proof, or a file of proofs, that cannot be read or does not hold; says what of it."""


def decode_part(kind: type[Part], data: bytes, limit: int, what: str) -> Part:
    """Read one part of a proof. Raises ProofError only."""
    if len(data) > limit:
        raise ProofError(f"the {what} is too long")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProofError(f"the {what} cannot be read") from error


class Plan(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a node scatters what it sends to a peer in one epoch: of every ``sum(cards)`` decisions dimension i
    gets ``cards[i]``. A decision is for one packet, of `batch` for ``run`` packets in a row. ``link`` is the
    epoch of the link whose keys the map comes from, ``epoch`` the map's number under those."""

    sender: NodeBytes
    receiver: NodeBytes
    link: Count
    epoch: Count
    scheduler: Scheduler
    run: Annotated[int, Meta(ge=1, le=2**16)]
    cards: Seven

    @property
    def name(self) -> str:
        """The epoch, for people."""
        return f"epoch {self.link}.{self.epoch}"

    def commitment(self, salt: bytes) -> bytes:
        """SHA3-256 over the plan and 32 random bytes, which hide it until the epoch is over."""
        return hashlib.sha3_256(COMMITMENT_LABEL + salt + msgspec.msgpack.encode(self)).digest()


class Statement(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """The sender's statement of one link and epoch. Seven counts each, one a dimension; the start is included
    and times are Unix milliseconds by the sender's clock.

    ``packets`` and ``octets`` are what the scheduler gave to each dimension (a GSO burst counts as one
    packet, of its whole length); ``wire`` is the bytes that WireGuard sent the peer, with its own overhead
    and messages. ``late_open`` and ``late_close`` are the bytes it sent after the sender read its counters,
    until the peer had said that it has read its own. ``shannon`` and ``minimum`` are the entropy and the
    min-entropy of ``packets``, in millionths of a bit.
    """

    plan: Plan
    salt: Hash
    number: Count
    previous: Hash
    start_ms: Moment
    end_ms: Moment
    packets: Seven
    octets: Seven
    wire: Seven
    late_open: Seven
    late_close: Seven
    shannon: Count
    minimum: Count

    @property
    def seconds(self) -> float:
        """How long the epoch was."""
        return (self.end_ms - self.start_ms) / 1000


class Receipt(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """The receiver's answer to one statement: the commitment that it held before, for how many milliseconds
    by its own clock until the epoch was over, and the bytes that its WireGuard received from the sender in
    that time, a dimension.

    ``until_ms`` is when the epoch was over, Unix milliseconds by the receiver's clock. ``total`` is what it
    had received of the sender by then, of all epochs and what lay between them: running totals since the
    receiver began to count, so two receipts show what came between their epochs. ``cuts`` is how often
    something may be missing from the totals, because a counter began anew.
    """

    witness: NodeBytes
    sender: NodeBytes
    statement: Hash
    commitment: Hash
    held_ms: Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
    received: Seven
    until_ms: Moment
    total: Seven
    cuts: Count

    @property
    def since_ms(self) -> int:
        """When the receiver heard of the commitment, if its clock was not set since."""
        return self.until_ms - self.held_ms

    @property
    def before(self) -> tuple[int, ...]:
        """The running totals when it heard of the commitment."""
        return tuple(total - came for total, came in zip(self.total, self.received, strict=True))


Leaf = Statement | Receipt
_leaves: msgspec.msgpack.Decoder[Leaf] = msgspec.msgpack.Decoder(Leaf)


def decode_leaf_untrusted(data: bytes) -> Leaf:
    """Read a statement or a receipt. Raises ProofError only."""
    if len(data) > MAX_LEAF_BYTES:
        raise ProofError("the statement is too long")
    try:
        return _leaves.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProofError("the statement cannot be read") from error


class Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The value that a node signs once a round: the root over this round's leaves, and the hash of the head
    before."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    node: NodeBytes
    sequence: Count
    previous: Hash
    size: Annotated[int, Meta(ge=1, le=2**merkle.MAX_DEPTH)]
    root: Hash
    at_ms: Moment


def head_hash(head: bytes) -> bytes:
    """The hash that the next head names, 32 bytes."""
    return hashlib.sha3_256(b"phantommesh proof head v1" + head).digest()


class Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One leaf with its way up to a signed head: it shows nothing of the node's other links."""

    leaf: bytes
    index: Count
    path: tuple[Hash, ...]
    head: bytes
    signature: bytes

    def encode(self) -> bytes:
        """Return the msgpack form, about 4 kB."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Self:
        """Read what `encode` wrote; nothing is verified yet. Raises ProofError only."""
        return decode_part(cls, data, MAX_SIGNED_BYTES, "signed statement")

    def open_head(self) -> Head:
        """Return the head, unverified. Raises ProofError."""
        return decode_part(Head, self.head, MAX_HEAD_BYTES, "signed head")

    def open(self) -> tuple[Head, Leaf]:
        """Return head and leaf if the path leads from one to the other; the signature is not looked at.

        Raises ProofError.
        """
        head = self.open_head()
        if merkle.root_of(self.leaf, self.index, head.size, self.path) != head.root:
            raise ProofError("the statement is not under the signed root")
        return head, decode_leaf_untrusted(self.leaf)

    def check_signature(self, key: MLDSA65PublicKey) -> None:
        """Raises ProofError unless the head is signed with this key."""
        try:
            key.verify(self.signature, self.head, CONTEXT)
        except (InvalidSignature, ValueError) as error:
            raise ProofError("the signature is wrong") from error


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A signed statement and the peer's signed receipt. Without one it is half a proof: the sender's word."""

    statement: Signed
    receipt: Signed | None = None


def node_ids(plan: Plan) -> tuple[NodeId, NodeId]:
    """The sender and the receiver."""
    return NodeId(plan.sender), NodeId(plan.receiver)
