# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys from a key: HKDF-Expand (RFC 5869 section 2.3) with a label for each purpose."""

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand


def expand(key: bytes, label: bytes, length: int, *parts: bytes) -> bytes:
    """HKDF-Expand with SHA-512; the label and each part go in with their lengths."""
    info = b"".join([len(part).to_bytes(2) + part for part in (label, *parts)])
    return HKDFExpand(SHA512(), length, info).derive(key)
