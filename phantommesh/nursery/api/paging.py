# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages of a list: ``limit`` and an opaque ``cursor`` that stays right while members come and go."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from phantommesh.management.views import Page
from phantommesh.nursery.api.problems import ProblemError

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
CURSOR_FIX = "pass next_cursor of the page before"


class HasNodeId(Protocol):
    """An item of a list in pages."""

    @property
    def node_id(self) -> str: ...


Item = TypeVar("Item", bound=HasNodeId)


def paginate(items: Sequence[Item], args: Mapping[str, str]) -> Page[Item]:
    """Return the page that ``args`` ask for, in order of node id. Raises ProblemError (400)."""
    limit = limit_of(args.get("limit"))
    after = decode_cursor(args.get("cursor")) or ""
    rest = sorted((item for item in items if item.node_id > after), key=lambda item: item.node_id)
    page = rest[:limit]
    more = len(rest) > limit
    return Page(items=page, next_cursor=encode_cursor(page[-1].node_id) if more else None)


def limit_of(text: str | None) -> int:
    """Read ``limit``. Raises ProblemError (400)."""
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MAX_LIMIT):
        raise ProblemError(400, "limit is not usable", fix=f"give a number from 1 to {MAX_LIMIT}")
    return int(text)


def encode_cursor(place: str) -> str:
    """Make a place in a list something that clients do not look into."""
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> str | None:
    """Return the place, None where there is no cursor. Raises ProblemError (400)."""
    if not cursor:
        return None
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise ProblemError(400, "cursor is not usable", fix=CURSOR_FIX) from None
