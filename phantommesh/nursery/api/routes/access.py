# SPDX-License-Identifier: GPL-3.0-or-later
"""The endpoints of tokens and of the audit trail."""

from time import time

import msgspec
from quart import Response, request

from phantommesh.management import tokens
from phantommesh.management.audit import AuditEntry
from phantommesh.management.endpoints import JSON, TOKENS
from phantommesh.management.tokens import TokenMade, TokenRequest, TokensView
from phantommesh.management.views import NodePort
from phantommesh.moments import rfc3339
from phantommesh.nursery.api.auth import caller
from phantommesh.nursery.api.idempotency import IdempotencyCache
from phantommesh.nursery.api.paging import page_after
from phantommesh.nursery.api.routes import Handlers
from phantommesh.nursery.api.routes.writes import write

# The audit trail goes on over all runs of a node: so do cursors in it.
_RUN = "audit"


def access(node: NodePort) -> Handlers:
    """Return the handlers."""
    answers = IdempotencyCache()

    async def make(wanted: TokenRequest, dry_run: bool) -> TokenMade:
        if dry_run:
            expires = rfc3339(time() + wanted.seconds)
            return TokenMade(
                id="", name=wanted.name, scope=wanted.scope, expires=expires, token=None, dry_run=True
            )
        made = await node.tokens.make(wanted, by=caller().called)
        token = made.token
        return TokenMade(
            id=token.id, name=token.name, scope=token.scope, expires=rfc3339(token.expires),
            token=made.text.reveal().decode(),
        )  # fmt: skip

    async def make_token() -> Response:
        return await write(TOKENS, answers, make)

    async def shown() -> Response:
        book, now = node.tokens.book, time()
        ordered = sorted(book.tokens, key=lambda token: token.made, reverse=True)
        return _json(
            TokensView(tokens=[tokens.view(token, now, node.tokens.used.get(token.id)) for token in ordered])
        )

    async def revoke_token(id: str) -> Response:  # noqa: A002
        """Revoking twice revokes once: this needs no key."""
        token = await node.tokens.revoke(id)
        return _json(tokens.view(token, time(), node.tokens.used.get(id)))

    async def audit() -> Response:
        def read(after: int, limit: int) -> list[AuditEntry]:
            return node.audit.read(after, limit)

        return _json(page_after(read, _RUN, request.args))

    return {TOKENS.name: make_token, "tokens": shown, "revoke_token": revoke_token, "audit": audit}


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), content_type=JSON)
