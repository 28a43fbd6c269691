# SPDX-License-Identifier: GPL-3.0-or-later
"""The authority's book of approvals: which member may route which prefix, once the member asks for it.

A grant that is in a certificate stands there, and each authority carries it on. So a book that is lost costs
the approvals that no certificate has yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from phantommesh.routable import parse_prefix
from phantommesh.state.directory import APPROVALS, StateDir
from phantommesh.state.files import StateError
from phantommesh.trust.identity import IdentityError, NodeId, format_node_id, parse_node_id
from phantommesh.trust.routes import MAX_NUMBER, Grant

MAX_APPROVALS: Final = 4_096
_FIX: Final = "delete the file: routes that certificates have stay, and others are to be approved again"


@dataclass(frozen=True, slots=True)
class Approval:
    """An authority's word that a member may have a grant."""

    node_id: NodeId
    grant: Grant


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node_id: str
    prefix: str
    number: Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    approvals: Annotated[list[_Row], msgspec.Meta(max_length=MAX_APPROVALS)]


def encode_approvals(approvals: Iterable[Approval]) -> bytes:
    """Return the book as JSON."""
    rows = [_Row(format_node_id(a.node_id), str(a.grant.prefix), a.grant.number) for a in approvals]
    return msgspec.json.format(msgspec.json.encode(_File(rows)), indent=1)


def decode_approvals(data: bytes) -> tuple[Approval, ...]:
    """Read what `encode_approvals` wrote. Raises StateError."""
    try:
        rows = msgspec.json.decode(data, type=_File).approvals
        return tuple(
            Approval(parse_node_id(row.node_id), Grant(parse_prefix(row.prefix), row.number)) for row in rows
        )
    except (msgspec.MsgspecError, ValueError, RecursionError, IdentityError) as error:
        raise StateError("it is no book of routes", fix=_FIX) from error


def read_approvals(state: StateDir) -> tuple[Approval, ...]:
    """Read the book; there is none before the first approval. Raises StateError."""
    return decode_approvals(state.read(APPROVALS)) if state.has(APPROVALS) else ()
