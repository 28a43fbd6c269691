# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prefixes beyond the mesh a member may route, as its certificate says: grants.

The root's name constraints forbid further addresses in a certificate, so a grant is a further URI:
``phantommesh:route:10.1.0.0/16``. A grant that is withdrawn is revoked by its own id, as a node is by its
node id, and for good. The next grant of the same prefix to the same member has the next number, which its
URI says: ``phantommesh:route:10.1.0.0/16?grant=1``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from phantommesh.errors import PhantomMeshError
from phantommesh.routable import MAX_ROUTES, Network, order, parse_prefix, unroutable
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId

MAX_NUMBER: Final = 9_999  # of a grant: how often it may be withdrawn and given again
_URI: Final = re.compile(r"phantommesh:route:([0-9a-f.:/]{1,43})(?:\?grant=([1-9][0-9]{0,3}))?")


class RouteError(PhantomMeshError):
    """A prefix that no member may route, or a list of prefixes that is none."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave for one member to route one prefix. ``number`` says how often such leave was withdrawn before."""

    prefix: Network
    number: int = 0

    @property
    def uri(self) -> str:
        """The grant as it stands in a certificate."""
        return f"phantommesh:route:{self.prefix}" + (f"?grant={self.number}" if self.number else "")

    def id_for(self, router: NodeId) -> NodeId:
        """16 bytes that name this grant to this member: what is revoked where the grant is withdrawn.
        Revocations go by node ids, which are hashes too: neither can be made to be the other."""
        said = b"phantommesh route grant v1" + router + self.uri.encode("ascii")
        return NodeId(hashlib.sha3_256(said).digest()[:NODE_ID_BYTES])


def parse_grants(uris: Sequence[str], overlay: Iterable[Network]) -> tuple[Grant, ...]:
    """Read the grants of a certificate, which stand there once each, sorted by `routable.order`. ``overlay``
    are the mesh's networks. Raises RouteError."""
    if len(uris) > MAX_ROUTES:
        raise RouteError(f"more than {MAX_ROUTES} routes")
    meshes, found = tuple(overlay), list[Grant]()
    for uri in uris:
        matched = _URI.fullmatch(uri)
        if matched is None:
            raise RouteError("a name that is no route")
        grant = Grant(_parse(matched[1]), int(matched[2] or 0))
        if why := unroutable(grant.prefix, meshes):
            raise RouteError(f"the route {grant.prefix}, which {why}")
        if found and order(grant.prefix) <= order(found[-1].prefix):
            raise RouteError("routes that are not sorted, or there twice")
        found.append(grant)
    return tuple(found)


def check_prefixes(prefixes: Iterable[Network], overlay: Iterable[Network]) -> None:
    """Raise RouteError for a prefix that nobody may route, or for too many of them."""
    listed, meshes = list(prefixes), tuple(overlay)
    if len(set(listed)) > MAX_ROUTES:
        raise RouteError(f"a member routes {MAX_ROUTES} prefixes at most", fix="join neighbouring prefixes")
    for prefix in listed:
        if why := unroutable(prefix, meshes):
            raise RouteError(f"{prefix} {why}", fix="leave it out")


def next_grant(router: NodeId, prefix: Network, revoked: Container[NodeId]) -> Grant:
    """The grant of a prefix to a member that is not withdrawn: the same on each node that holds the same
    revocations. Raises RouteError where it was withdrawn too often."""
    for number in range(MAX_NUMBER + 1):
        grant = Grant(prefix, number)
        if grant.id_for(router) not in revoked:
            return grant
    raise RouteError(
        f"{prefix} was withdrawn from this member {MAX_NUMBER + 1} times", fix="let it join anew"
    )


def standing(grants: Iterable[Grant], router: NodeId, revoked: Container[NodeId]) -> tuple[Grant, ...]:
    """Those of a member's grants that were not withdrawn."""
    return tuple(grant for grant in grants if grant.id_for(router) not in revoked)


def merge(held: Iterable[Grant], added: Iterable[Grant]) -> tuple[Grant, ...]:
    """The grants of a member's next certificate, sorted: those that it holds, and as many more as there is
    room for. A prefix that it holds stays under its number."""
    given = {grant.prefix: grant for grant in held}
    for grant in added:
        if len(given) < MAX_ROUTES:
            given.setdefault(grant.prefix, grant)
    return tuple(given[prefix] for prefix in sorted(given, key=order))


def _parse(text: str) -> Network:
    try:
        return parse_prefix(text)
    except ValueError as error:
        raise RouteError(f"the route {text[:64]!r}: {error}") from None
