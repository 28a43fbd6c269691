# SPDX-License-Identifier: GPL-3.0-or-later
"""Which records and revocations of others a node takes in, and how fast. Sans-I/O.

The bounds: a few newer records of one member come into force a minute; of those that came meanwhile, only the
newest does. Each member, or block of addresses, may have this node verify so many records. A stranger may
have it verify a few words of the root's, and a revoked authority a few more of its statements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from typing import Final

from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.node.steps import Moment, Told
from phantommesh.rates import Rates, source_block
from phantommesh.records.record import PossessionError, RecordError, SignedRecord
from phantommesh.records.roster import Entry, Roster, name_of
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId, format_node_id
from phantommesh.trust.revocation import Revocation
from phantommesh.trust.revocations import MAX_PLEA, Revocations, Revoked
from phantommesh.trust.rootword import RootWord
from phantommesh.trust.statements import MAX_OF_AUTHORITY, Held

# Tuning.
# Questions of strangers with words of the root's that are new: of one source, a second and in a row.
PLEA_RATE, PLEA_BURST, WORDS_A_PLEA = 0.5, 8.0, 2
# Newer records of one member that come into force at once, and a second. A node has reason for a few at its
# start, and one for each key that it replaces. Each costs every member a write, links and interfaces.
NEWER_BURST, NEWER_RATE = 6, 1 / 15
RECORDS_AT_ONCE: Final = 2000.0  # records that a member may bring in a row, as after a cut
# A second after that: each takes about two milliseconds to verify, and one that is new more.
RECORDS_RATE: Final = 20.0
# New statements of an authority that is revoked: as many at once as may be held of it, which is what a node
# that was away has to fetch; and so many a second after that.
LATE_RATE, LATE_BURST = 1 / 60, 2 * MAX_OF_AUTHORITY
VERIFIED: Final = 16  # statements between two turns of the loop, 5 ms

BROKEN = "a record was left out after an unexpected error"


class Intake:
    """The roster and the revocations of one node while others bring news of them.

    ``dropped`` counts what was refused, by reason. ``verifications`` is what each member, or block of
    addresses, may have this node verify: the member pays for what it announces and for what it answers.

    Its owner inherits from it, and is told: `_kept` of an entry that came into force, `_changed` of a change
    of roster or revocations, `_waits` of a record that has to wait (then the owner calls `let_in` now and
    then), `_tell` of what an operator may read, `_unexpected` of a fault in our own code.

    A method that returns a generator is work that may take long. It yields where the owner may do other
    things, and its result is the generator's. Whatever it took in until then stays when it is closed.
    """

    def __init__(
        self, me: NodeId, roster: Roster, revocations: Revocations, clock: Callable[[], Moment]
    ) -> None:
        self.roster = roster
        self.dropped: Counter[str] = Counter()
        self.verifications = Rates[bytes](RECORDS_RATE, RECORDS_AT_ONCE)
        self._me, self._revocations, self._clock = me, revocations, clock
        self._reported: set[NodeId] = set()
        self._pleas = Rates[str](PLEA_RATE, PLEA_BURST)
        self._late = Rates[NodeId](LATE_RATE, LATE_BURST)
        self._newer = Rates[NodeId](NEWER_RATE, NEWER_BURST)

    # For the owner.

    def _kept(self, entry: Entry) -> None:
        raise NotImplementedError

    def _changed(self, *, revoked: bool) -> None:
        raise NotImplementedError

    def _waits(self) -> None:
        raise NotImplementedError

    def _tell(self, told: Told) -> None:
        raise NotImplementedError

    def _unexpected(self, error: Exception, about: dict[str, str]) -> None:
        raise NotImplementedError

    # Records.

    def add(self, signed: SignedRecord, of: NodeId | None = None) -> bool:
        """Keep a record if it is newer; say whether the roster changed. It may have to wait: then it does
        later. ``of`` is the member that brought it. Raises TrustError or RecordError."""
        if self.roster.holds(signed, self._clock().wall):
            return False
        if not self._offer(signed, {} if of is None else self._who(of)):
            self._report_equivocations()
            return False
        self._note_change()
        return True

    def taking(
        self, records: Iterable[bytes], of: NodeId | Address, *, unasked: int = 0
    ) -> Generator[None, None, int]:
        """Add encoded records that ``of`` answered with; those that do not hold are left out, and told of
        once. Return how many changed the roster; the owner is told of the change once.

        Each that is new here is charged to ``of``, and left out where it has had too many verified.
        ``unasked`` is how many more came that nobody had asked for: `asking.asked_for`.
        """
        came, refused, about = 0, list[str](), self._who(of)
        payer = source_block(of.host).encode() if isinstance(of, Address) else bytes(of)
        if unasked:
            self.dropped["record-unasked"] += unasked
        try:
            for data in records:
                yield  # each takes about two milliseconds to verify
                try:
                    signed = SignedRecord.decode_untrusted(data)
                    now, wall = self._clock()
                    if self.roster.holds(signed, wall):
                        self.dropped["record-held"] += 1
                    elif not self.verifications.allow(payer, now):
                        self.dropped["record-paced"] += 1
                    else:
                        came += self._offer(signed, about)
                except PhantomMeshError as error:
                    refused.append(str(error))
        finally:
            if refused:
                fields = {**about, "count": len(refused), "error": refused[0]}
                self._tell(Told("roster", "records refused", fields, "warning"))
            self._report_equivocations()
            if came:
                self._note_change()
        return came

    def let_in(self) -> None:
        """Bring those records into force that have waited long enough."""
        came = False
        for node_id, entry in list(self.roster.waiting.items()):
            if self._too_soon(node_id):
                continue
            del self.roster.waiting[node_id]
            wall = self._clock().wall
            try:
                came |= self._keep(self.roster.verify(entry.signed, wall), wall)
            except PhantomMeshError:
                continue  # revoked meanwhile, or expired
            except Exception as error:  # the second line: see `nursery.unexpected`
                self.dropped["record-broken"] += 1
                self._unexpected(error, self._who(node_id))
        if came:
            self._note_change()

    def _who(self, of: NodeId | Address) -> dict[str, str]:
        """Return what a line of the log says of those who sent something."""
        if isinstance(of, Address):
            return {"source": str(of)}
        return {"peer": name_of(self.roster.get(of), of)}

    def _offer(self, signed: SignedRecord, about: dict[str, str]) -> bool:
        """Verify a record, and keep it or have it wait. Raises TrustError or RecordError."""
        try:
            return self._take(signed)
        except PossessionError:
            self.dropped["record-possession"] += 1
            raise
        except PhantomMeshError:
            self.dropped["record"] += 1
            raise
        except Exception as error:  # the second line: see `nursery.unexpected`
            self.dropped["record-broken"] += 1
            self._unexpected(error, about)
            raise RecordError("the record cannot be judged") from error

    def _take(self, signed: SignedRecord) -> bool:
        wall = self._clock().wall
        entry = self.roster.verify(signed, wall)
        node_id = entry.member.node_id
        held, ahead = self.roster.get(node_id), self.roster.waiting.get(node_id)
        newer = held is not None and entry.rank > held.rank
        if newer and node_id != self._me and (ahead is not None or self._too_soon(node_id)):
            if ahead is None or entry.rank > ahead.rank:
                self.roster.waiting[node_id] = entry
                self._waits()
            return False
        return self._keep(entry, wall)

    def _keep(self, entry: Entry, wall: float) -> bool:
        """Keep a verified record: nothing else here changes the roster."""
        if changed := self.roster.keep(entry, wall):
            self._kept(entry)
        return changed

    def _too_soon(self, node_id: NodeId) -> bool:
        return not self._newer.allow(node_id, self._clock().now)

    def _note_change(self, *, revoked: bool = False) -> None:
        self._report_equivocations()
        self._changed(revoked=revoked)

    def _report_equivocations(self) -> None:
        for node_id in self.roster.equivocations.keys() - self._reported:
            self._reported.add(node_id)
            fields = {
                "node_id": format_node_id(node_id),
                "fix": "find out which, and revoke it if in doubt",
            }
            event = "a node signed two different records with one number: it was copied, or it lies"
            self._tell(Told("roster", event, fields, "error"))

    # Revocations.

    @property
    def revoked(self) -> Revoked | None:
        """Why this node itself is out, if it is."""
        return self._revocations.get(self._me)

    def is_revoked(self) -> bool:
        """Whether this node was revoked."""
        return self.revoked is not None

    def revoke(self, *statements: Revocation | RootWord) -> bool:
        """Verify and keep statements that came together; say whether any is new here. Raises TrustError."""
        held = self._revocations
        if not held.hold(held.verify(statements, self._clock().wall, self._may_be_late)):
            return False
        self._note_change(revoked=True)
        return True

    def _may_be_late(self, signer: NodeId) -> bool:
        """Whether one more statement is looked at of an authority that is revoked."""
        if self._late.allow(signer, self._clock().now):
            return True
        self.dropped["revocation-late"] += 1
        return False

    def holding(self, verified: Iterable[RootWord | Held]) -> Generator[None, None, bool]:
        """Keep statements that were made here, or verified; say whether any is new. Raises TrustError where
        there is no room."""
        held = self._revocations
        before = held.digest()
        try:
            yield from held.holding(verified)
        finally:
            if new := held.digest() != before:
                self._note_change(revoked=True)
        return new

    def take_revocations(self, *packed: bytes) -> bool:
        """Add what another member holds, all as come at one time; say whether any is new here. Raises
        TrustError where they do not hold."""
        return self.revoke(*(one for data in packed for one in self._revocations.unpack(data)))

    def take_standing(self, answer: bytes, of: NodeId | None = None) -> bool:
        """Take what somebody answered to the question how this node, or that one, stands: no more than that.
        Raises TrustError."""
        return self.revoke(*self._revocations.about(self._me if of is None else of, answer))

    def taking_parts(self, parts: Iterable[bytes]) -> Generator[None, None, bool]:
        """`take_revocations` of much that came from one member. Words of the root's are first, since the
        others name them."""
        held, verified = self._revocations, list[Held]()
        words, others = list[RootWord](), list[Revocation]()
        for data in parts:
            yield
            for one in held.unpack(data):
                if isinstance(one, RootWord):
                    words.append(one)
                else:
                    others.append(one)
        new = self.revoke(*words)
        for start in range(0, len(others), VERIFIED):
            yield
            some = held.verify(others[start : start + VERIFIED], self._clock().wall, self._may_be_late)
            verified += [one for one in some if isinstance(one, Held)]
        return (yield from self.holding(verified)) or new

    def hearing(self, member: NodeId, parts: Iterable[bytes]) -> Generator[None, None, bool]:
        """`taking_parts` of a member that gives its group keys too: neither revocations that do not hold nor
        a full list keep the keys from this node."""
        try:
            return (yield from self.taking_parts(parts))
        except PhantomMeshError as error:
            fields = {**self._who(member), "error": str(error), "fix": error.fix}
            self._tell(Told("roster", "revocations refused", fields, "warning"))
            return False

    def answer_standing(self, question: bytes, source: Address) -> bytes:
        """Answer anybody how a node stands: `Revocations.standing`. The question is its id, and
        `Revocations.plea`: nobody links with a node that is out, so this is how the root's word gets about.
        Strangers may have us verify little, and one has no part in another's share; a word that is known
        already costs nothing."""
        held = self._revocations
        node_id, plea = NodeId(question[:NODE_ID_BYTES]), question[NODE_ID_BYTES:]
        if plea and len(plea) <= MAX_PLEA:
            try:
                told = [one for one in held.unpack(plea) if isinstance(one, RootWord)]
                new = [word for word in told if word.id not in held.tree][:WORDS_A_PLEA]
                if new and self._pleas.allow(source_block(source.host), self._clock().now):
                    self.revoke(*new)
            except TrustError as error:
                fields = {"source": str(source), "error": str(error)}
                self._tell(Told("roster", "a stranger's word is not the root's", fields, "debug"))
        return held.standing(node_id)
