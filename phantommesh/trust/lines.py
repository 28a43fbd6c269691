# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines that an operator carries to another machine: a prefix, then base64url of bytes and a checksum."""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from phantommesh.endpoint import parse_endpoint
from phantommesh.trust.certificates import TrustError

_CHECKSUM_BYTES: Final = 4
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of line. ``name`` is what errors call it ("invite"), ``paste`` and ``again`` are their fixes
    for a slip and for content that is of no use, ``most`` is in characters."""

    prefix: str
    name: str
    label: bytes
    paste: str
    again: str
    most: int

    def checksum(self, body: bytes) -> bytes:
        """Four bytes against typing slips; forgery is what the secret and the root hash are against."""
        return hashlib.sha3_256(self.label + body).digest()[:_CHECKSUM_BYTES]

    def encode(self, body: bytes) -> str:
        """Return the line."""
        encoded = base64.urlsafe_b64encode(body + self.checksum(body))
        return self.prefix + encoded.decode("ascii").rstrip("=")

    def decode_untrusted(self, text: str) -> bytes:
        """Read a line's bytes. Raises TrustError, and only that, naming what is wrong but not the line."""
        text = text.strip()
        if not text.startswith(self.prefix):
            raise TrustError(
                f"this is not {self._named}: it does not start with {self.prefix}", fix=self.paste
            )
        if len(text) > self.most:
            raise TrustError(f"the {self.name} is too long", fix=self.paste)
        encoded = text[len(self.prefix) :]
        if not _BASE64URL.fullmatch(encoded):
            raise TrustError(f"the {self.name} has characters that no {self.name} has", fix=self.paste)
        try:
            raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        except binascii.Error:  # a length that no bytes have
            raw = b""
        body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        canonical = base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=") == encoded
        if checksum != self.checksum(body) or not canonical:
            raise self.incomplete()
        return body

    def split_texts_untrusted(self, rest: bytes) -> list[str]:
        """Split ASCII strings that have their length before them. Raises TrustError."""
        texts: list[str] = []
        while rest:
            length = rest[0]
            chunk, rest = rest[1 : 1 + length], rest[1 + length :]
            if len(chunk) != length or not chunk.isascii():
                raise TrustError(f"the {self.name}'s texts cannot be read", fix=self.again)
            texts.append(chunk.decode("ascii"))
        return texts

    def check_endpoints(self, endpoints: Iterable[str]) -> None:
        """Raise TrustError, naming the endpoint, where one of a line's is none."""
        for endpoint in endpoints:
            try:
                parse_endpoint(endpoint)
            except ValueError as error:
                raise TrustError(
                    f"the {self.name}'s endpoint {endpoint!r} is not usable: {error}", fix=self.again
                ) from None

    def incomplete(self) -> TrustError:
        """Return the error for a line that lacks something."""
        return TrustError(f"the {self.name} is incomplete or mistyped: its checksum is wrong", fix=self.paste)

    @property
    def _named(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


def join_texts(texts: Iterable[str]) -> bytes:
    """Return ASCII strings of at most 255 characters, each with its length before it."""
    return b"".join(bytes([len(text)]) + text.encode("ascii") for text in texts)
