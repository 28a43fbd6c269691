# SPDX-License-Identifier: GPL-3.0-or-later
"""A file of proofs, with all that checking them needs: `phantommesh proofs --export` and `--verify`.

The file is MAGIC, then msgpack. It holds no secret: an epoch's salt is of no use once the epoch is over.
"""

from collections import Counter
from typing import Annotated, Final, Self

import msgspec
from msgspec import Meta

from phantommesh.proofs.statement import VERSION, NodeBytes, Proof, ProofError, Statement, node_ids
from phantommesh.trust.certificates import MAX_CERTIFICATE_BYTES
from phantommesh.trust.identity import NodeId

MAGIC: Final = b"phantommesh proofs\n"
MAX_ARCHIVE_BYTES: Final = 256 * 1024 * 1024
MAX_PROOFS: Final = 100_000
MAX_NODES: Final = 16_384

Certificate = Annotated[bytes, Meta(max_length=MAX_CERTIFICATE_BYTES)]


class Certificates(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node's certificate and its authority's, DER."""

    node: Certificate
    authority: Certificate


class Archive(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Proofs, each link's in order, the mesh's root certificate and the certificates of the nodes in them."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    root: Certificate
    certificates: Annotated[dict[NodeBytes, Certificates], Meta(max_length=MAX_NODES)]
    proofs: Annotated[tuple[Proof, ...], Meta(max_length=MAX_PROOFS)]

    def encode(self) -> bytes:
        """Return the file's bytes, about 8 kB a proof."""
        return MAGIC + msgspec.msgpack.encode(self)

    def counts(self) -> Counter[tuple[NodeId, NodeId]]:
        """How many proofs there are of each sender and receiver. Raises ProofError for one that is none."""
        found = Counter[tuple[NodeId, NodeId]]()
        for proof in self.proofs:
            _, leaf = proof.statement.open()
            if not isinstance(leaf, Statement):
                raise ProofError("a proof in the file is of no statement")
            found[node_ids(leaf.plan)] += 1
        return found

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Self:
        """Read what `encode` wrote; nothing is verified yet. Raises ProofError only."""
        if not data.startswith(MAGIC):
            raise ProofError("this is not a file of proofs", fix="give one that `proofs --export` wrote")
        if len(data) > MAX_ARCHIVE_BYTES:
            raise ProofError("the file of proofs is too long")
        body = memoryview(data)[len(MAGIC) :]
        try:
            return msgspec.msgpack.decode(body, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _unreadable(body) from error


class _Of(msgspec.Struct, frozen=True, array_like=True):
    """The beginning of a file of whatever version."""

    version: int


def _unreadable(body: memoryview) -> ProofError:
    """Say why a file cannot be read: it may be of a version that says other things."""
    try:
        version = msgspec.msgpack.decode(body, type=_Of).version
    except (msgspec.MsgspecError, ValueError, RecursionError):
        version = VERSION
    if version == VERSION:
        return ProofError("the file of proofs is damaged", fix="export it again, and copy it whole")
    return ProofError(
        f"the file of proofs is of version {version}, and this is a program for version {VERSION}",
        fix="export the proofs again, with the program that checks them",
    )
