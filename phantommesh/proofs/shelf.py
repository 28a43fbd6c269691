# SPDX-License-Identifier: GPL-3.0-or-later
"""The proofs on disk: one file each, the newest of each link and direction, written whole or not at all.

``proofs/PEER/sent-NUMBER`` and ``received-NUMBER`` in the state directory, and ``proofs/heads``: where this
node's chain of heads has got to. A file that is no proof is thrown away: a proof is evidence, not state that
a node needs to run.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, get_args

import msgspec

from phantommesh.proofs.ledger import Chain, Direction, Kept
from phantommesh.proofs.merkle import leaf_hash
from phantommesh.proofs.statement import (
    FIRST,
    MAX_SIGNED_BYTES,
    Hash,
    Proof,
    ProofError,
    Receipt,
    Statement,
    decode_leaf_untrusted,
    decode_part,
    head_hash,
)
from phantommesh.state.files import atomic_write, cannot
from phantommesh.trust.identity import IdentityError, NodeId, format_node_id, parse_node_id

DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)
HEADS: Final = "heads"
_DIGITS: Final = 19  # of the largest count

# Tuning.
MAX_PEERS: Final = 1024  # links that are kept, also of peers that have left


class _Heads(msgspec.Struct, frozen=True, array_like=True):
    next: int
    last: Hash


class Shelf:
    """The proofs of one node; ``keep`` of each link and direction. All methods block on the disk."""

    def __init__(self, path: Path, keep: int) -> None:
        self._path, self._keep = path, keep

    def load(self) -> tuple[dict[NodeId, Chain], Chain]:
        """Return where the chain of each link and that of the heads has got to. Raises StateError."""
        try:
            self._path.mkdir(mode=0o700, exist_ok=True)
            peers = sorted(self._peers(), key=lambda peer: self._directory(peer).stat().st_mtime)
            for peer in peers[:-MAX_PEERS]:
                shutil.rmtree(self._directory(peer), ignore_errors=True)
        except OSError as error:
            raise cannot(f"use {self._path}", error) from error
        chains = {}
        for peer in peers[-MAX_PEERS:]:
            for number, proof in self.newest_first(peer, "sent"):
                statement = decode_leaf_untrusted(proof.statement.leaf)
                chains[peer] = Chain(number + 1, leaf_hash(proof.statement.leaf), _ended(statement))
                break
        return chains, self._heads()

    def _heads(self) -> Chain:
        """Return the place that the chain of heads has got to. If its file is older than the proofs here,
        damaged or gone, this is the place behind the last head that signed one of them: no number is signed
        twice. Raises StateError."""
        found = Chain(0, FIRST)
        try:
            heads = decode_part(_Heads, (self._path / HEADS).read_bytes(), 64, "chain of heads")
            found = Chain(heads.next, heads.last)
        except (FileNotFoundError, ProofError):
            pass
        except OSError as error:
            raise cannot(f"read {self._path / HEADS}", error) from error
        for peer, direction in self.links():
            for _, proof in self.newest_first(peer, direction):
                ours = proof.statement if direction == "sent" else proof.receipt
                if ours is not None and (head := ours.open_head()).sequence >= found.next:
                    found = Chain(head.sequence + 1, head_hash(ours.head))
                break
        return found

    def put(self, kept: Kept) -> None:
        """Store a proof, and throw away the oldest beyond ``keep``. Raises StateError.

        If a peer sent the proof, those with higher numbers go too: the peer has begun again from an older
        state, or from none, and they are of a chain that it has left. They would be the newest until it gets
        there again.
        """
        directory = self._directory(kept.peer)
        path = directory / f"{kept.direction}-{kept.number:0{_DIGITS}}"
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            atomic_write(path, msgspec.msgpack.encode(kept.proof))
            files = self._files(kept.peer, kept.direction)
            newer = files.index(path) if kept.direction == "received" else 0
            for other in files[:newer] + files[newer + self._keep :]:
                other.unlink(missing_ok=True)
        except OSError as error:
            raise cannot(f"write {path}", error) from error

    def put_heads(self, heads: Chain) -> None:
        """Store where the chain of heads has got to. Raises StateError."""
        try:
            atomic_write(self._path / HEADS, msgspec.msgpack.encode(_Heads(heads.next, heads.last)))
        except OSError as error:
            raise cannot(f"write {self._path / HEADS}", error) from error

    def newest_first(self, peer: NodeId, direction: Direction) -> Iterator[tuple[int, Proof]]:
        """The proofs of one direction of one link with the sender's numbers, those that can be read."""
        for path in self._files(peer, direction):
            try:
                proof, statement, _ = _read(path)
            except (OSError, ProofError):
                continue
            yield statement.number, proof

    def kept(self) -> tuple[list[Kept], list[tuple[Path, ProofError]]]:
        """Return every proof that can be read, each link's and direction's oldest first; and the files that
        are no proofs, which are thrown away."""
        found, damaged = list[Kept](), list[tuple[Path, ProofError]]()
        for peer, direction in self.links():
            for path in reversed(self._files(peer, direction)):
                try:
                    proof, statement, receipt = _read(path)
                except OSError:
                    continue
                except ProofError as error:
                    damaged.append((path, error))
                    with suppress(OSError):  # then it is found again at the next start
                        path.unlink()
                    continue
                found.append(Kept(peer, direction, statement.number, proof, statement, receipt))
        return found, damaged

    def unbroken(self, peer: NodeId, direction: Direction) -> list[Proof]:
        """The newest proofs of one direction without a gap between them, in order. A peer may have been away,
        or have restarted from an older state."""
        run: list[Proof] = []
        before: int | None = None
        for number, proof in self.newest_first(peer, direction):
            if before is not None and number != before - 1:
                break
            run.append(proof)
            before = number
        return run[::-1]

    def links(self) -> Iterator[tuple[NodeId, Direction]]:
        """The links and directions that there are proofs of."""
        for peer in self._peers():
            for direction in DIRECTIONS:
                if self._files(peer, direction):
                    yield peer, direction

    def _peers(self) -> list[NodeId]:
        found = []
        for path in self._path.iterdir():
            try:
                found.append(parse_node_id(path.name))
            except IdentityError:
                continue
        return found

    def _directory(self, peer: NodeId) -> Path:
        return self._path / format_node_id(peer)

    def _files(self, peer: NodeId, direction: Direction) -> list[Path]:
        return sorted(self._directory(peer).glob(f"{direction}-*"), reverse=True)


def _ended(leaf: Statement | Receipt) -> int:
    return leaf.end_ms if isinstance(leaf, Statement) else 0


def _read(path: Path) -> tuple[Proof, Statement, Receipt | None]:
    """Raises OSError, and ProofError for what is no proof."""
    proof = decode_part(Proof, path.read_bytes(), 2 * MAX_SIGNED_BYTES, "proof")
    proof.statement.open_head()  # of this version: an older one says less
    statement, receipt = decode_leaf_untrusted(proof.statement.leaf), None
    if proof.receipt is not None:
        receipt = decode_leaf_untrusted(proof.receipt.leaf)
    if not isinstance(statement, Statement) or isinstance(receipt, Statement):
        raise ProofError("the proof is not a statement and its receipt")
    return proof, statement, receipt
