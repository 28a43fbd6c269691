# SPDX-License-Identifier: GPL-3.0-or-later
"""The root's words on revocations: which are void, and which authority's all are. It has the last word.

A revocation names the newest root's word that its signer knew. So a word voids what was signed without
knowledge of it, whenever that arrives, and a revocation that an authority signs in knowledge of it stands: a
node that the root took back may be revoked again. That does not depend on clocks, nor on the order in which
anything came.
"""

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from phantommesh.trust.certificates import X509_ERRORS, TrustError, certified_key
from phantommesh.trust.identity import NODE_ID_BYTES, Identity, NodeId

CONTEXT: Final = b"phantommesh root word v1"
WORD_ID_BYTES: Final = 16
MAX_NAMED: Final = 1_024  # nodes in one word, 16 KiB
SIGNATURE_BYTES: Final = 3_309  # FIPS 204, ML-DSA-65


class Order(NamedTuple):
    """The place of a word: if there are two, the greater is the later one."""

    number: int
    id: bytes


FIRST: Final = Order(0, b"")  # before all words


class RootWord(msgspec.Struct, frozen=True, array_like=True):
    """One word of the root. ``number`` is greater than of any that the root knew, and about its unix seconds.

    ``pardoned``: authorities' revocations of these nodes are void. ``cast_out``: these nodes are out, and
    what they signed as authorities, or another took over from them, is void. All by node id.
    """

    number: int
    pardoned: tuple[bytes, ...]
    cast_out: tuple[bytes, ...]
    signature: bytes

    @property
    def id(self) -> bytes:
        """The name that a revocation has for it. Nobody knows it before the root has signed."""
        said = _signed(self.number, self.pardoned, self.cast_out) + self.signature
        return hashlib.sha3_256(b"phantommesh root word id" + said).digest()[:WORD_ID_BYTES]

    @property
    def order(self) -> Order:
        """Its place among the root's words."""
        return Order(self.number, self.id)


def say(
    root_key: Identity, *, pardoned: Iterable[NodeId], cast_out: Iterable[NodeId], last: int, now: float
) -> RootWord:
    """Sign a word. ``last`` is the greatest number known; ``now`` unix seconds. Raises TrustError for too
    many."""
    named, out = tuple(sorted(set(pardoned))), tuple(sorted(set(cast_out)))
    if len(named) + len(out) > MAX_NAMED:
        raise TrustError(f"the root can name {MAX_NAMED} nodes in one word", fix="name fewer at a time")
    number = max(last + 1, int(now))
    return RootWord(number, named, out, root_key.sign(_signed(number, named, out), CONTEXT))


def check_word(word: RootWord) -> None:
    """Raise TrustError for fields that no word has. Nothing else may be done with a word before."""
    named = (*word.pardoned, *word.cast_out)
    if (
        not 0 < word.number < 2**63
        or len(named) > MAX_NAMED
        or any(len(one) != NODE_ID_BYTES for one in named)
        or len(word.signature) != SIGNATURE_BYTES
    ):
        raise TrustError("the root's word has fields out of range")


def verify_word(word: RootWord, root: x509.Certificate) -> None:
    """Raise TrustError unless the root signed it."""
    check_word(word)
    try:
        certified_key(root).verify(
            word.signature, _signed(word.number, word.pardoned, word.cast_out), CONTEXT
        )
    except (InvalidSignature, *X509_ERRORS) as error:
        raise TrustError("the root's word is not signed by the root") from error


def _signed(number: int, pardoned: tuple[bytes, ...], cast_out: tuple[bytes, ...]) -> bytes:
    return b"".join((number.to_bytes(8), len(pardoned).to_bytes(4), *pardoned, *cast_out))
