# SPDX-License-Identifier: GPL-3.0-or-later
"""Idempotency-Key: a write that a client repeats is done once and answered the same.

Follows the IETF draft "The Idempotency-Key HTTP Header Field": the same key with another request is 422, a
key whose first request is still under way is 409. Failures are not kept, so that a retry may succeed.

A key is its caller's own: nobody else is answered by it, finds out whether it was used, or has it forgotten
by using others.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from phantommesh.nursery.api.problems import ProblemError

MAX_KEYS = 1024  # of all callers
MAX_OF_CALLER = 256
LIFE_S = 24 * 3600.0
MAX_KEY_LENGTH = 255


@dataclass(slots=True)
class _Entry:
    fingerprint: bytes
    born: float
    answer: bytes | None = None


class IdempotencyCache:
    """Answers by caller and key, at most ``MAX_KEYS``, and ``MAX_OF_CALLER`` of one caller, and ``LIFE_S``
    seconds old. The oldest finished one goes first: the caller's own where it has that many."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()

    async def once(
        self,
        key: str | None,
        request: bytes,
        act: Callable[[], Awaitable[bytes]],
        *,
        by: str = "",
        shown_once: bool = False,
    ) -> tuple[bytes, bool]:
        """Return the answer and whether it is a replay. ``by``: whose key it is. ``shown_once``: the answer
        is a secret, which is not kept; a replay is refused. Raises ProblemError, also for an unusable
        key."""
        if key is None:
            return await act(), False
        if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
            raise ProblemError(
                400,
                "Idempotency-Key is not usable",
                fix=f"give 1 to {MAX_KEY_LENGTH} printable ASCII characters, such as a UUID",
            )
        self._expire(trio.current_time())
        fingerprint = hashlib.sha256(request).digest()
        place = (by, key)
        entry = self._entries.get(place)
        if entry is not None:
            if entry.fingerprint != fingerprint:
                raise ProblemError(
                    422, "this Idempotency-Key was used for another request", fix="make a new key"
                )
            if entry.answer is None:
                raise ProblemError(
                    409, "the first request with this Idempotency-Key is still under way", fix="try again"
                )
            if shown_once:
                raise ProblemError(
                    409,
                    "this was done, and its answer is shown once only",
                    fix="make a new key to do it anew",
                )
            return entry.answer, True
        if not (self._has_room(by) and len(self._entries) < MAX_KEYS):
            raise ProblemError(503, "too many writes are under way", fix="try again")
        entry = self._entries[place] = _Entry(fingerprint, trio.current_time())
        try:
            answer = await act()
            entry.answer = b"" if shown_once else answer
        finally:
            if entry.answer is None:
                del self._entries[place]
        return answer, False

    def _expire(self, now: float) -> None:
        finished = [place for place, entry in self._entries.items() if entry.answer is not None]
        surplus = len(self._entries) - MAX_KEYS + 1
        for index, place in enumerate(finished):
            if index >= surplus and self._entries[place].born + LIFE_S > now:
                break  # in order of birth, so every later one is younger
            del self._entries[place]

    def _has_room(self, by: str) -> bool:
        """Whether a caller may have one more; its oldest finished one makes way."""
        own = [place for place in self._entries if place[0] == by]
        if len(own) < MAX_OF_CALLER:
            return True
        oldest = next((place for place in own if self._entries[place].answer is not None), None)
        if oldest is not None:
            del self._entries[oldest]
        return oldest is not None
