# SPDX-License-Identifier: GPL-3.0-or-later
"""The word of one run of a node: that it is there, since which start, and which other run it has seen.

A run is one life of a node's process. It draws 16 random bytes that are on no disk, so a copy of the disk is
another run. Runs of one node are ordered by the number of their start, and by those bytes where two numbers
are the same. A word is signed with the identity key::

    word      node id 16 | start 8 | run 16 | seen start 8 | seen run 16 | count 4 | ML-DSA-65 signature 3309

``seen`` is all zero, or names a run that the signer has seen. A run that has seen a *later* one was there
after that one began: so such a word proves two runs at one time, whoever shows it. A run that starts after
another has ended is the later of the two, and a node takes a later number when it finds that its own is not
(`node.runs`), so no honest restart signs such a word. ``count`` grows with each word of a run: a word that is
shown again by somebody who copied it is no newer sign of the run.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from phantommesh.records.record import SIGNATURE_BYTES
from phantommesh.trust.identity import NODE_ID_BYTES, Identity, NodeId

CONTEXT: Final = b"phantommesh run v1"
RUN_BYTES: Final = 16
MAX_START: Final = 2**32 - 1  # `state.start.next_generation` gives no greater one
_WORD: Final = struct.Struct(f"!16sQ{RUN_BYTES}sQ{RUN_BYTES}sI")
WORD_BYTES: Final = _WORD.size + SIGNATURE_BYTES
MAX_QUESTION: Final = NODE_ID_BYTES + WORD_BYTES  # which runs does this node have, and the word of one
MAX_ANSWER: Final = 1 + 2 * WORD_BYTES  # whether the node is there, and words


class Run(NamedTuple):
    """One run of a node. A later run is the greater one."""

    start: int
    name: bytes


NOBODY: Final = Run(0, bytes(RUN_BYTES))


class RunError(Exception):
    """The bytes are no word of a run, or the signature does not hold."""


@dataclass(frozen=True, slots=True)
class RunWord:
    """A verified word. ``seen`` is `NOBODY` where the run names no other; ``raw`` are the bytes."""

    node: NodeId
    run: Run
    seen: Run
    raw: bytes
    count: int = 0

    @property
    def proves_two(self) -> bool:
        """Whether two runs of this node were there at one time."""
        return self.seen > self.run and self.seen.name != self.run.name


def sign_word(identity: Identity, run: Run, seen: Run = NOBODY, count: int = 0) -> RunWord:
    """Return the word of a run of the node with this identity."""
    body = _WORD.pack(identity.node_id, *run, *seen, count)
    return RunWord(identity.node_id, run, seen, body + identity.sign(body, CONTEXT), count)


def node_of_untrusted(raw: bytes) -> NodeId:
    """Return whose word these bytes say that they are. Raises RunError where they have another length."""
    if len(raw) != WORD_BYTES:
        raise RunError("length")
    return NodeId(raw[:16])


def open_word(raw: bytes, public_key: MLDSA65PublicKey) -> RunWord:
    """Verify a word that came from anybody, under the key of the node that it names. Raises RunError."""
    node = node_of_untrusted(raw)
    body, signature = raw[: _WORD.size], raw[_WORD.size :]
    _, start, name, seen_start, seen_name, count = _WORD.unpack(body)
    if not 0 < start <= MAX_START or seen_start > MAX_START:
        raise RunError("start")
    try:
        public_key.verify(signature, body, CONTEXT)
    except InvalidSignature:
        raise RunError("signature") from None
    return RunWord(node, Run(start, name), Run(seen_start, seen_name), raw, count)
