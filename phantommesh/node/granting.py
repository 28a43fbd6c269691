# SPDX-License-Identifier: GPL-3.0-or-later
"""An authority's grants of routes: which member may route which prefix, asked for, approved and withdrawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from phantommesh.control import messages
from phantommesh.moments import span
from phantommesh.node.revoking import Revoking, Target, authority_of
from phantommesh.node.steps import (
    Alone,
    Compute,
    Hold,
    Holdings,
    MakeKey,
    Moment,
    Save,
    Told,
    Work,
    WriteApprovals,
)
from phantommesh.rates import Rates
from phantommesh.records.roster import Entry, settle
from phantommesh.routable import MAX_ROUTES, Network, in_order, order, parse_prefix
from phantommesh.state.routebook import MAX_APPROVALS, Approval
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.identity import NodeId, format_node_id, node_id_of
from phantommesh.trust.issuing import parse_csr_untrusted
from phantommesh.trust.routes import Grant, RouteError, check_prefixes, merge, next_grant, standing
from phantommesh.trust.statements import Held

# Tuning.
ASKED_LASTS: Final = 600.0  # s that a request is shown after it was last made
MAX_ASKING: Final = 1_024  # members whose requests are remembered
GRANTS, GRANT_AGAIN = 6, 600.0  # certificates with more routes for one member at once; s until one more


@dataclass(frozen=True, slots=True)
class Asked:
    """A member asks to route these prefixes. ``at`` is on the authority's clock, seconds."""

    node_id: NodeId
    prefixes: tuple[Network, ...]
    at: float


class Granting:
    """Decides on routes. A node that is no authority decides nothing: TrustError. ``approvals`` is its book
    as it is on disk."""

    def __init__(self, node: Holdings, revoking: Revoking, approvals: Iterable[Approval] = ()) -> None:
        self._node, self._revoking = node, revoking
        self._book = tuple(approvals)
        self._asked: dict[NodeId, Asked] = {}
        self._rates = Rates[NodeId](1 / GRANT_AGAIN, GRANTS)

    # What stands.

    def granted(self, entry: Entry) -> tuple[Grant, ...]:
        """The grants in a member's certificate that were not withdrawn."""
        return standing(entry.member.grants, entry.member.node_id, self._node.revocations)

    def carried(self, entry: Entry) -> tuple[Grant, ...]:
        """The grants for a member's next certificate: those in its certificate, and those that it asked for
        and that this authority approved. The latter may be in a newer certificate whose record is still on
        its way to here, and the member would lose them."""
        asked = self._asked.get(entry.member.node_id)
        return merge(self.granted(entry), self._due(entry, () if asked is None else asked.prefixes))

    def approved(self, node_id: NodeId) -> tuple[Grant, ...]:
        """The grants that this authority's book has for a node, as far as they were not withdrawn."""
        written = (one.grant for one in self._book if one.node_id == node_id)
        return standing(written, node_id, self._node.revocations)

    def asked_by(self, node_id: NodeId) -> frozenset[Network]:
        """What a node has asked for last."""
        asked = self._asked.get(node_id)
        return frozenset(() if asked is None else asked.prefixes)

    def open_requests(self, now: float) -> list[Asked]:
        """What members ask for and nobody has approved yet, by node id."""
        found = list[Asked]()
        for node_id, asked in sorted(self._asked.items()):
            entry = self._node.roster.get(node_id)
            if entry is None or now > asked.at + ASKED_LASTS:
                continue
            had = {grant.prefix for grant in (*self.granted(entry), *self.approved(node_id))}
            if left := tuple(prefix for prefix in asked.prefixes if prefix not in had):
                found.append(Asked(node_id, left, asked.at))
        return found

    # What members ask.

    def ask(
        self, entry: Entry, request: messages.Route, at: Moment
    ) -> Work[messages.Renewed | messages.Done]:
        """Note what a member asks to route, and give it a certificate where more of that is approved than its
        present one has. Raises TrustError, or RouteError for prefixes that nobody may route."""
        authority, member = authority_of(self._node), entry.member
        prefixes = _read(request.prefixes)
        check_prefixes(prefixes, (self._node.mesh.network4, self._node.mesh.network6))
        self._note(Asked(member.node_id, prefixes, at.now))
        if not self._due(entry, prefixes):
            return messages.Done()
        spki, _ = yield Compute(partial(parse_csr_untrusted, request.csr))
        if node_id_of(spki) != member.node_id:
            raise TrustError("routes are certified for a node's own key only")
        if not self._rates.allow(member.node_id, at.now):
            again = span(self._rates.wait(member.node_id, at.now) + 60)
            raise TrustError(f"{member.name} got routes too often", fix=f"try again in {again}")

        def issue(at: Moment) -> Work[messages.Renewed | messages.Done]:
            now_in = self._node.roster.get(member.node_id)
            due = () if now_in is None else self._due(now_in, prefixes)
            if now_in is None or not due:
                return messages.Done()
            grants = merge(self.granted(now_in), due)
            name, ip4 = settle(self._node.roster, self._node.mesh, now_in.member, at.wall)
            role, tags = now_in.member.role, now_in.member.tags
            node_cert: bytes = yield Compute(
                partial(authority.issue, spki, name, role, ip4, at.wall, grants=grants, tags=tags)
            )
            said = {"name": name, "routes": [str(grant.prefix) for grant in grants]}
            yield Told("authority", "routes certified", said)
            return messages.Renewed(node_cert, authority.der)

        answer: messages.Renewed | messages.Done = yield Alone("enrolling", issue)
        return answer

    def _due(self, entry: Entry, prefixes: Sequence[Network]) -> tuple[Grant, ...]:
        """The approved grants that a member wants and has room for, and that its certificate lacks."""
        held = self.granted(entry)
        had, wanted = {grant.prefix for grant in held}, set(prefixes)
        more = [g for g in self.approved(entry.member.node_id) if g.prefix in wanted and g.prefix not in had]
        return tuple(more[: max(0, MAX_ROUTES - len(held))])

    def _note(self, asked: Asked) -> None:
        self._asked.pop(asked.node_id, None)
        self._asked[asked.node_id] = asked
        while len(self._asked) > MAX_ASKING:
            del self._asked[next(iter(self._asked))]

    # What the operator decides.

    def approve(self, wanted: str, prefixes: Sequence[Network], at: Moment) -> Work[Target]:
        """Approve that a member, by name or node id, routes these prefixes. The approval is on disk when this
        returns, and the member's next request gets it a certificate. Raises TrustError, RouteError or
        StateError."""
        authority_of(self._node)
        target, meshes = self._revoking.find(wanted), (self._node.mesh.network4, self._node.mesh.network6)
        entry = self._node.roster.get(target.node_id)
        if entry is None:
            raise TrustError(
                f"{wanted} is no member in good standing, so it routes nothing", fix="see `phantommesh peers`"
            )
        check_prefixes(prefixes, meshes)

        def write(at: Moment) -> Work[None]:
            node_id, revocations = target.node_id, self._node.revocations
            had = {grant.prefix for grant in (*self.granted(entry), *self.approved(node_id))}
            new = [prefix for prefix in in_order(prefixes) if prefix not in had]
            check_prefixes([*had, *new], meshes)
            added = [Approval(node_id, next_grant(node_id, prefix, revocations)) for prefix in new]
            if not added:
                return
            yield from self._write((*self._book, *added))
            said = {"name": entry.member.name, "routes": [str(prefix) for prefix in new]}
            yield Told("authority", "routes approved", said, "warning")

        yield Alone("revoking", write)
        return target

    def withdraw(self, wanted: str, prefixes: Sequence[Network], at: Moment) -> Work[Target]:
        """Withdraw these prefixes of a member, for good: the statement is on disk when this returns, and on
        its way to all. A later approval is another grant. Raises TrustError, also where the member has no
        such route, RouteError or StateError."""
        authority, target = authority_of(self._node), self._revoking.find(wanted)
        node_id, revocations = target.node_id, self._node.revocations
        gone = [grant for grant in self._known(target) if grant.prefix in set(prefixes)]
        if missing := in_order(set(prefixes) - {grant.prefix for grant in gone}):
            raise TrustError(
                f"{wanted} has no route to {', '.join(map(str, missing))} that could be withdrawn",
                fix="see `phantommesh route list`",
            )

        def sign(at: Moment) -> Work[None]:
            for grant in gone:
                one = grant.id_for(node_id)
                if one in revocations:
                    continue
                planned = revocations.copy()  # others may bring more meanwhile
                prepared: Callable[[], list[Held]] = yield Compute(
                    partial(planned.prepare, authority, one, at.wall)
                )
                made: Sequence[Held] = yield Compute(prepared)
                yield Hold(made)
                if one not in revocations:
                    raise TrustError(
                        f"the withdrawal of {grant.prefix} does not count",
                        fix="try again; if it goes on, this authority was revoked elsewhere",
                    )
            name = None if target.entry is None else target.entry.member.name
            said = {"name": name, "node_id": format_node_id(node_id), "routes": [str(g.prefix) for g in gone]}
            yield Told("authority", "routes withdrawn", said, "warning")
            yield Save()
            yield from self._write(self._book)

        yield Alone("revoking", sign)
        yield MakeKey()
        return target

    def _known(self, target: Target) -> list[Grant]:
        """All grants of a node that stand: of its newest certificate that is known here, and of the book."""
        certified = () if target.entry is None else target.entry.member.grants
        known = standing((*certified, *self.approved(target.node_id)), target.node_id, self._node.revocations)
        return sorted(set(known), key=lambda grant: (order(grant.prefix), grant.number))

    def _write(self, approvals: Iterable[Approval]) -> Work[None]:
        """Keep these, as far as they stand and their nodes are members."""
        roster, revocations = self._node.roster, self._node.revocations
        kept = tuple(
            one
            for one in approvals
            if one.grant.id_for(one.node_id) not in revocations and roster.get(one.node_id) is not None
        )
        if len(kept) > MAX_APPROVALS:
            raise RouteError(
                f"an authority approves {MAX_APPROVALS} routes at most",
                fix="withdraw some with `phantommesh route revoke`",
            )
        if kept != self._book:
            yield WriteApprovals(kept)
            self._book = kept


def _read(texts: Iterable[str]) -> tuple[Network, ...]:
    """Read the prefixes of a request. Raises RouteError."""
    try:
        return in_order(parse_prefix(text) for text in texts)
    except ValueError as error:
        raise RouteError(f"one of the routes: {error}") from None
