# SPDX-License-Identifier: GPL-3.0-or-later
"""A file sealed with a passphrase.

    magic, 22 bytes | log2 N, r, p of scrypt, a byte each | salt, 16 bytes | chunks

The key is scrypt's of the passphrase and the salt (RFC 7914). Each chunk is 64 KiB of the content, sealed
with ChaCha20-Poly1305 (RFC 8439), and its nonce is its number, 11 bytes, and a byte that is 1 for the last
one alone: STREAM of Hoang, Reyhanitabar, Rogaway and Vizár (2015), as age v1 has it. So a file that was cut
off, and chunks in another order, do not open. The salt is fresh, and so is the key; the header is
authenticated with each chunk.
"""

import secrets
from collections.abc import Iterator
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from phantommesh.errors import PhantomMeshError
from phantommesh.secret import Secret

MAGIC: Final = b"phantommesh backup 1\n\x00"
ANY_VERSION: Final = b"phantommesh backup "
CHUNK: Final = 65_536
TAG: Final = 16
SALT: Final = 16
HEADER: Final = len(MAGIC) + 3 + SALT

# Tuning. OWASP's first choice for scrypt, which takes 128 MiB and about half a second.
LOG_N, R, P = 17, 8, 1
MOST_LOG_N, MOST_R, MOST_P = 20, 8, 4  # of a file that somebody else may have made: 1 GiB


class SealError(PhantomMeshError):
    """A file that is no backup, or does not open."""


def seal(content: Iterator[bytes], passphrase: Secret, out: BinaryIO, *, log_n: int = LOG_N) -> None:
    """Write the content, sealed, to ``out``. Raises OSError."""
    header = MAGIC + bytes((log_n, R, P)) + secrets.token_bytes(SALT)
    cipher = ChaCha20Poly1305(_key(header, passphrase))
    out.write(header)
    number, held = 0, bytearray()
    for part in content:
        held += part
        while len(held) > CHUNK:  # the last chunk is not empty, but of an empty file
            out.write(cipher.encrypt(_nonce(number, last=False), bytes(held[:CHUNK]), header))
            del held[:CHUNK]
            number += 1
    out.write(cipher.encrypt(_nonce(number, last=True), bytes(held), header))


def unseal(source: BinaryIO, passphrase: Secret) -> Iterator[bytes]:
    """Yield what was sealed, each chunk authenticated. Only where this ends by itself, all of it was there.
    Raises SealError and OSError."""
    header = source.read(HEADER)
    check(header)
    cipher = ChaCha20Poly1305(_key(header, passphrase))
    number, chunk = 0, source.read(CHUNK + TAG)
    while True:
        following = source.read(CHUNK + TAG)
        try:
            yield cipher.decrypt(_nonce(number, last=not following), chunk, header)
        except InvalidTag:
            raise _refusal(number) from None
        if not following:
            return
        number, chunk = number + 1, following


def check(header: bytes) -> None:
    """Raise SealError unless a file that begins so is a backup that this program opens at a bounded cost."""
    if not header.startswith(MAGIC):
        if header.startswith(ANY_VERSION):
            raise SealError(
                "the backup is of a later version", fix="restore it with the version that made it"
            )
        raise SealError("the file is no backup of PhantomMesh", fix="give what `phantommesh backup` wrote")
    log_n, r, p = header[len(MAGIC) : len(MAGIC) + 3].ljust(3, b"\0")
    if len(header) < HEADER or not (1 <= log_n <= MOST_LOG_N and 1 <= r <= MOST_R and 1 <= p <= MOST_P):
        raise SealError("the backup is damaged: its header is not usable", fix="restore another copy of it")


def _refusal(number: int) -> SealError:
    if number == 0:
        return SealError(
            "the backup does not open: the passphrase is another one, or the file is damaged",
            fix="give the passphrase with which it was made",
        )
    return SealError("the backup is damaged, or was cut off", fix="restore another copy of it")


def _key(header: bytes, passphrase: Secret) -> bytes:
    log_n, r, p = header[len(MAGIC) : len(MAGIC) + 3]
    return Scrypt(salt=header[-SALT:], length=32, n=1 << log_n, r=r, p=p).derive(passphrase.reveal())


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes((last,))
