# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages of a list: ``limit`` and an opaque ``cursor`` that stays right while members come and go."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from phantommesh.management.views import Page
from phantommesh.nursery.api.problems import ProblemError

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
MAX_DIGITS = 18  # of a number in a cursor
CURSOR_FIX = "pass next_cursor of the page before"


class HasNodeId(Protocol):
    """An item of a list in pages."""

    @property
    def node_id(self) -> str: ...


class HasNumber(Protocol):
    """An item of a list by number."""

    @property
    def seq(self) -> int: ...


Item = TypeVar("Item")
Numbered = TypeVar("Numbered", bound=HasNumber)


def paginate_by(items: Sequence[Item], args: Mapping[str, str], key: Callable[[Item], str]) -> Page[Item]:
    """Return the page that ``args`` ask for, in order of a key, which no two items have. Raises ProblemError
    (400)."""
    limit = limit_of(args.get("limit"))
    after = decode_cursor(args.get("cursor")) or ""
    rest = sorted((item for item in items if key(item) > after), key=key)
    page = rest[:limit]
    more = len(rest) > limit
    return Page(items=page, next_cursor=encode_cursor(key(page[-1])) if more else None)


def page_after(
    read: Callable[[int, int], list[Numbered]], run: str, args: Mapping[str, str]
) -> Page[Numbered]:
    """The same of a list by number, which ``read`` has: at most so many items above a number. Where the
    cursor is of another run of the node, it begins anew. Raises ProblemError (400)."""
    limit, after = limit_of(args.get("limit")), 0
    if (cursor := decode_cursor(args.get("cursor"))) is not None:
        of, _, seq = cursor.rpartition(".")
        if not (seq.isascii() and seq.isdigit() and len(seq) <= MAX_DIGITS):
            raise ProblemError(400, "cursor is not usable", fix=CURSOR_FIX)
        after = int(seq) if of == run else 0
    found = read(after, limit + 1)
    more = len(found) > limit
    return Page(
        items=found[:limit], next_cursor=encode_cursor(f"{run}.{found[limit - 1].seq}") if more else None
    )


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
