# SPDX-License-Identifier: GPL-3.0-or-later
"""Secret bytes that do not show in a repr, a log line or an error."""

import hmac
from typing import NoReturn


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
