# SPDX-License-Identifier: GPL-3.0-or-later
"""Find a member by its name or node id, by one rule everywhere.

A node id always means one member. A name should, but two members can hold one name for a while: an authority
that did not know of the first let in the second. Then only the operator knows which of the two is meant.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from phantommesh.errors import PhantomMeshError

T = TypeVar("T")

MAX_SHOWN = 64  # characters of a name that an error repeats


class UnknownMemberError(PhantomMeshError):
    """Nobody has this name or node id. The API answers with 404."""


class AmbiguousNameError(PhantomMeshError):
    """Several members have this name; ``candidates`` are their node ids, sorted. The API answers with 409."""

    def __init__(self, wanted: str, candidates: Iterable[str]) -> None:
        self.candidates = tuple(sorted(candidates))
        super().__init__(
            f"several members are named {wanted[:MAX_SHOWN]}", fix=f"give one of {', '.join(self.candidates)}"
        )


def look(items: Iterable[T], wanted: str, key: Callable[[T], tuple[str, str]]) -> T | None:
    """Return the item of the member that ``wanted`` means, None if there is none.

    ``key`` gives an item's name and node id, both as text. A node id wins over a name that is spelled like
    it. Several items may have one node id: the first is returned. Raises AmbiguousNameError.
    """
    named: dict[str, T] = {}
    for item in items:
        name, node_id = key(item)
        if node_id == wanted:
            return item
        if name == wanted:
            named.setdefault(node_id, item)
    if len(named) > 1:
        raise AmbiguousNameError(wanted, named)
    return next(iter(named.values()), None)


def find(
    items: Iterable[T],
    wanted: str,
    key: Callable[[T], tuple[str, str]],
    *,
    unknown: str = "",
    fix: str = "see `phantommesh peers` or GET /v1/peers",
) -> T:
    """Return the item of the member that ``wanted`` means, as `look` does. Raises AmbiguousNameError, and
    UnknownMemberError with the words ``unknown`` where there is none."""
    found = look(items, wanted, key)
    if found is None:
        raise UnknownMemberError(unknown or f"no such peer in the mesh: {wanted[:MAX_SHOWN]!r}", fix=fix)
    return found
