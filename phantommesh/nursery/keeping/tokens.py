# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's tokens while they change, and on disk: `tokens.json` in the state directory."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from time import time

import structlog
import trio

from phantommesh.management.tokens import (
    ID_BYTES,
    RANDOM_BYTES,
    Made,
    Token,
    TokenBook,
    TokenFileError,
    TokenRequest,
    decode,
    encode,
)
from phantommesh.state.directory import TOKENS, StateDir
from phantommesh.state.files import StateError

log = structlog.get_logger("phantommesh.tokens")


class TokenKeeper:
    """The node's `TokenDesk`. A token counts once it is on disk, and no more once its end is."""

    def __init__(self, state: StateDir, wall: Callable[[], float] = time) -> None:
        self.book = TokenBook()
        self.used: dict[str, float] = {}
        """When each token was used last in this run, in Unix seconds, by id."""
        self.problem: StateError | None = None
        """Why the tokens cannot be read: then nobody has one, and none can be made."""
        self._state, self._wall = state, wall
        self._lock = trio.Lock()

    async def begin(self) -> None:
        """Read the tokens. A file that cannot be read shuts tokens out and stops nothing else."""
        try:
            self.book = await trio.to_thread.run_sync(read, self._state)
        except StateError as error:
            self.problem = error
            log.error("tokens cannot be read: nobody has one", error=str(error), fix=error.fix)

    async def make(self, request: TokenRequest, *, by: str) -> Made:
        """Make a token; it is on disk then. Raises TokenError or StateError."""
        async with self._lock:
            random = secrets.token_bytes(ID_BYTES + RANDOM_BYTES)
            book, made = self.book.make(request, random, by=by, now=self._wall())
            await self._save(book)
        return made

    async def revoke(self, token_id: str) -> Token:
        """Revoke a token; that is on disk then. Raises UnknownMemberError or StateError."""
        async with self._lock:
            book, token = self.book.revoke(token_id, self._wall())
            await self._save(book)
        return token

    async def _save(self, book: TokenBook) -> None:
        if self.problem is not None:
            raise self.problem
        # Not to be interrupted: else the file might have what the node does not go by.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._state.write, TOKENS, encode(book))
        self.book = book
        known = {token.id for token in book.tokens}
        self.used = {token_id: at for token_id, at in self.used.items() if token_id in known}


def read(state: StateDir) -> TokenBook:
    """Read the tokens of a state directory; there are none before the first is made. Raises StateError."""
    if not state.has(TOKENS):
        return TokenBook()
    try:
        return decode(state.read_secret(TOKENS).reveal())
    except TokenFileError as error:
        path = state.path / TOKENS
        raise StateError(
            f"{path} cannot be read: {error}",
            fix="restore it from a backup; or delete it, start the node again and make new tokens",
        ) from error
