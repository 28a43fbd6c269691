# SPDX-License-Identifier: GPL-3.0-or-later
"""Secret bytes that do not show in a repr, a log line or an error."""

import hmac
import re
from typing import Final, NoReturn

HIDDEN: Final = "***"

# Invites (pm1_), what another mesh is invited with (pmf1_), and API tokens (pmt_). With fewer characters
# behind it there is a prefix that somebody speaks of.
_LINE: Final = re.compile(r"(pm(?:t|f?[0-9])_)[A-Za-z0-9_=-]{4,}")
# RFC 7468, also where it ends too soon; in a URL spaces are `+`, and in JSON the ends of lines `\n`.
_PEM_END: Final = r"[ +](?:[A-Z0-9]{1,16}[ +]){0,3}PRIVATE[ +]KEY-----"
_PEM: Final = re.compile(
    rf"(-----BEGIN{_PEM_END})(?:(?!-----END)(?:[A-Za-z0-9+/=:,\s-]|\\[nrt]))+(?:-----END{_PEM_END})?"
)
# 32 bytes as base64, as WireGuard's tools write private keys and PSKs; public keys look the same.
_KEY: Final = re.compile(r"(?<![A-Za-z0-9+])[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
# And as hexadecimal, as its userspace interface does, where the name is with it: hashes look the same.
_NAMED: Final = re.compile(r"(?i)((?:private|preshared)[_-]?key\W{1,4})[0-9a-f]{64}")


def starred(text: str) -> str:
    """A text with what looks like a secret of ours starred out, wherever it stands: lines that carry secrets,
    tokens, private keys. The time it takes grows with the length of the text alone."""
    text = _LINE.sub(r"\1" + HIDDEN, text)
    text = _PEM.sub(r"\1" + HIDDEN, text)
    return _NAMED.sub(r"\1" + HIDDEN, _KEY.sub(HIDDEN, text))


class Secret:
    """Wraps secret bytes: redacted ``repr``/``str``, constant-time ``==``, no hash, no pickling."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes. Every caller of this is a place where the secret leaves its wrapper."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a hash would leak equality through a table

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")
