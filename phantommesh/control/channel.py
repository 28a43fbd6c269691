# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypted frames over one TCP connection, keyed by a finished link handshake. Sans-I/O.

Both ends put 16 fresh random bytes into the key derivation, so no two connections share a key and a recorded
connection cannot be played again to either end. Frames are ChaCha20-Poly1305 (RFC 8439) with a counter.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from phantommesh.kdf import expand
from phantommesh.link.wire import SESSION_ID_SIZE
from phantommesh.secret import Secret

RANDOM_SIZE = 16
OVERHEAD = 1 + 16  # bytes that a sealed frame has more than its message
HELLO_SIZE = 1 + SESSION_ID_SIZE + RANDOM_SIZE
ANSWER_SIZE = 1 + RANDOM_SIZE
MAX_FRAME = 16 * 1024 * 1024  # bytes; a member can have several of our channels hold one each
MAX_REQUEST = 64 * 1024  # bytes: what a server reads before it knows that the client holds the keys

# The first byte of a frame on TCP. A handshake datagram begins with `wire.VERSION` instead.
HELLO, ANSWER, DATA = 0x53, 0x54, 0x44


class ChannelError(Exception):
    """The other end does not hold the session's keys, or the stream was tampered with."""


def session_name(one: Secret, other: Secret) -> bytes:
    """The name of a session: of its two keys, the same at both ends.

    Nobody can choose it. The handshake's own session id is the initiator's choice, and goes over the network
    in clear: a node that was first to finish a handshake with another's id would have taken that session's
    place.
    """
    keys = sorted((one.reveal(), other.reveal()))
    return expand(b"".join(keys), b"session name", SESSION_ID_SIZE)


def hello(session: bytes, random: bytes) -> bytes:
    """The client's opening frame."""
    return bytes([HELLO]) + session + random


def answer(random: bytes) -> bytes:
    """The server's opening frame."""
    return bytes([ANSWER]) + random


def parse_hello_untrusted(frame: bytes) -> tuple[bytes, bytes]:
    """Return the session id and the client's random bytes. Raises `ChannelError`."""
    if len(frame) != HELLO_SIZE or frame[0] != HELLO:
        raise ChannelError("hello")
    return frame[1 : 1 + SESSION_ID_SIZE], frame[1 + SESSION_ID_SIZE :]


def parse_answer_untrusted(frame: bytes) -> bytes:
    """Return the server's random bytes. Raises `ChannelError`."""
    if len(frame) != ANSWER_SIZE or frame[0] != ANSWER:
        raise ChannelError("answer")
    return frame[1:]


class Channel:
    """One end of one connection. ``key_out`` and ``key_in`` are those of the link's `Opened` effect."""

    def __init__(self, key_out: Secret, key_in: Secret, client_random: bytes, server_random: bytes) -> None:
        self._out = ChaCha20Poly1305(expand(key_out.reveal(), b"stream", 32, client_random, server_random))
        self._in = ChaCha20Poly1305(expand(key_in.reveal(), b"stream", 32, client_random, server_random))
        self._sent = self._received = 0

    def seal(self, message: bytes) -> bytes:
        """Return the frame that carries ``message``."""
        nonce = self._sent.to_bytes(12)
        self._sent += 1
        return bytes([DATA]) + self._out.encrypt(nonce, message, None)

    def open(self, frame: bytes) -> bytes:
        """Return the message of the next frame. Raises `ChannelError`."""
        if not frame or frame[0] != DATA:
            raise ChannelError("frame")
        nonce = self._received.to_bytes(12)
        try:
            message = self._in.decrypt(nonce, memoryview(frame)[1:], None)  # a large one is not copied for it
        except InvalidTag:
            raise ChannelError("seal") from None
        self._received += 1
        return message
