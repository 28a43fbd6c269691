# SPDX-License-Identifier: GPL-3.0-or-later
"""Merkle trees after RFC 9162 section 2.1 (RFC 6962's), with SHA3-256: leaves and inner nodes are hashed
under different first bytes, so that neither can be taken for the other."""

import hashlib
from collections.abc import Sequence
from typing import Final

HASH_BYTES: Final = 32
MAX_DEPTH: Final = 20  # a million leaves; a node has two a peer and epoch at most


def leaf_hash(leaf: bytes) -> bytes:
    """SHA3-256 of 0x00 and the leaf, 32 bytes."""
    return hashlib.sha3_256(b"\x00" + leaf).digest()


def _parent(left: bytes, right: bytes) -> bytes:
    return hashlib.sha3_256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two below ``size``, for sizes from 2."""
    return 1 << ((size - 1).bit_length() - 1)


def tree(leaves: Sequence[bytes]) -> tuple[bytes, list[tuple[bytes, ...]]]:
    """Return the root over one leaf or more, and each leaf's path: its siblings' hashes, from the leaf up."""
    if not leaves:
        raise ValueError("a tree has at least one leaf")
    if len(leaves) == 1:
        return leaf_hash(leaves[0]), [()]
    middle = _split(len(leaves))
    left, left_paths = tree(leaves[:middle])
    right, right_paths = tree(leaves[middle:])
    paths = [(*path, right) for path in left_paths] + [(*path, left) for path in right_paths]
    return _parent(left, right), paths


def root_of(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """Return the root that a leaf's path leads to in a tree of ``size`` leaves (RFC 9162 section 2.1.3.2);
    None where the path cannot be that leaf's."""
    if not 0 <= index < size or len(path) > MAX_DEPTH:
        return None
    position, last = index, size - 1
    reached = leaf_hash(leaf)
    for sibling in path:
        if last == 0:
            return None
        if position & 1 or position == last:
            reached = _parent(sibling, reached)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            reached = _parent(reached, sibling)
        position, last = position >> 1, last >> 1
    return reached if last == 0 else None
