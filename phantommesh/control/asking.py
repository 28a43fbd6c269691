# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to other members over channels: to whom, in which order, how much at a time. Pure.

A conversation is a generator. It yields what to ask, and is sent the answer; or it yields records that came,
and is sent how many of them changed the roster. Its owner has the channel and the roster's keeper; it raises
`AskingError` for an answer that is not one to the question.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from math import inf
from random import Random
from typing import Any, Final, NamedTuple, TypeVar

from phantommesh import idtree
from phantommesh.control import messages, pactmessages, policymessages
from phantommesh.endpoint import Address
from phantommesh.membership.effects import FetchRecord
from phantommesh.records import antientropy
from phantommesh.records.record import encoded_hash
from phantommesh.records.roster import Entry, Roster
from phantommesh.trust.certificates import Role, TrustError
from phantommesh.trust.identity import NodeId
from phantommesh.trust.revocation import Revocation
from phantommesh.trust.revocations import Revocations

# Tuning.
FETCH_QUEUE: Final = 512
FETCHES_PER_SOURCE: Final = 32  # that wait at one time: what one member can make us look for
FETCH_BATCH: Final = 64  # records asked for over one channel
QUICK: Final = 0.5  # s for a first question at an address that no record names: there may be a NAT
PAUSES: Final = (0.0, 0.2, 0.4, 0.8)  # s before each round of questions for a record
MAX_UNLINKED: Final = 16  # records asked for at once where there is no channel
MAX_COMPARED: Final = 64  # questions in which parts two sets of revocations differ, in one conversation
MAX_WORDS: Final = 256  # of the root's that are asked for since a statement names them
MAX_STATEMENTS: Final = 1_024  # revocations fetched in one conversation, 3.5 MB; there is another soon


class AskingError(Exception):
    """The other end answered something else than what was asked."""


class Keep(NamedTuple):
    """Verify these encoded records and keep those that are newer. ``unasked`` more came and are left out."""

    records: Sequence[bytes]
    unasked: int = 0


T = TypeVar("T")
Talk = Generator[messages.Request | Keep, messages.Answer | int, T]


def fetch(hashes: Iterable[bytes]) -> Talk[int]:
    """Fetch records by their hashes; return how many changed the roster."""
    wanted = tuple(hashes)
    answer = yield messages.Fetch(wanted)
    if not isinstance(answer, messages.Records):
        raise AskingError("not an answer to a request for records")
    came = yield asked_for(answer.records, wanted)
    assert isinstance(came, int)
    return came


def asked_for(records: Sequence[bytes], hashes: Iterable[bytes]) -> Keep:
    """Return those records of an answer that were asked for, each once. To tell costs a hash; to verify what
    nobody wants would cost a hundred times as much."""
    wanted, kept = set(hashes), list[bytes]()
    for encoded in records:
        name = encoded_hash(encoded)
        if name in wanted:
            wanted.remove(name)
            kept.append(encoded)
    return Keep(tuple(kept), len(records) - len(kept))


def reconcile(
    roster: Roster, wall: Callable[[], float], clock: Callable[[float], None] = lambda theirs: None
) -> Talk[int]:
    """Exchange with one member the records that either lacks; return how many came. ``wall`` is unix time;
    ``clock`` is called with the member's.

    Statements that are not acceptable here or there are left out: nothing that a member sends ends this.
    """
    answer = yield messages.Compare(antientropy.buckets(roster, wall()))
    if not isinstance(answer, messages.Differs):
        raise AskingError("not an answer to a comparison")
    if answer.at:
        clock(float(answer.at))
    try:
        difference = antientropy.parse_difference_untrusted(answer.difference)
    except antientropy.AntiEntropyError as error:
        raise AskingError(str(error)) from error
    came, wanted = 0, antientropy.wanted(roster, difference)
    for start in range(0, len(wanted), antientropy.MAX_WANTED):
        came += yield from fetch(wanted[start : start + antientropy.MAX_WANTED])
    for signed in antientropy.surplus(roster, difference, wall()):
        yield messages.Announce(signed.encode())
    return came


def compare(
    sync_open: Callable[[], bytes],
    sync_close: Callable[[bytes], bytes],
    roster: Roster,
    wall: Callable[[], float],
    clock: Callable[[float], None] = lambda theirs: None,
) -> Talk[int]:
    """Compare tables, then records. The first two are `Membership`'s; they may raise `GossipError`."""
    answer = yield messages.SyncOpen(sync_open())
    if not isinstance(answer, messages.SyncAnswer):
        raise AskingError("not an answer to a sync")
    yield messages.SyncClose(sync_close(answer.difference))
    return (yield from reconcile(roster, wall, clock))


class Shut(NamedTuple):
    """A member's revocations and group keys, as far as it gave them: packed statements that are new here, the
    keys; and what it knows of pacts, and of the mesh's policies, where we do not know the same."""

    statements: Sequence[bytes]
    keys: messages.KeysAre
    pacts: Sequence[bytes] = ()
    policies: Sequence[bytes] = ()


def keys(held: Revocations, pacts: bytes = b"", policies: bytes = b"") -> Talk[Shut]:
    """Ask for revocations and group keys, and for pacts and the mesh's policies where the other end's differ
    from ours, of which ``pacts`` and ``policies`` are the digests."""
    answer = yield messages.AskKeys()
    if not isinstance(answer, messages.KeysAre):
        raise AskingError("not an answer to a request for keys")
    came = [] if answer.revoked == held.digest() else (yield from revocations(held))
    bundles = () if answer.pacts in (b"", pacts) else (yield from _bundles())
    signed = () if answer.policies in (b"", policies) else (yield from _policies())
    return Shut(came, answer, bundles, signed)


def _bundles() -> Talk[Sequence[bytes]]:
    told = yield pactmessages.AskPacts()
    if not isinstance(told, pactmessages.PactsAre):
        raise AskingError("not an answer to a request for pacts")
    return told.bundles


def _policies() -> Talk[Sequence[bytes]]:
    told = yield policymessages.AskPolicies()
    if not isinstance(told, policymessages.PoliciesAre):
        raise AskingError("not an answer to a request for policies")
    return told.policies


def revocations(held: Revocations) -> Talk[list[bytes]]:
    """Fetch what a member holds and we lack, at most `MAX_STATEMENTS` of it; packed, and not verified yet.

    The member's answers decide how often it is asked, but not beyond `MAX_COMPARED` and one question for
    every statement that is wanted.
    """
    look, wanted, came = [b""], list[bytes](), list[bytes]()
    for _ in range(MAX_COMPARED):
        if not look or len(wanted) >= MAX_STATEMENTS:
            break
        prefix = look.pop()
        answer = yield messages.CompareRevocations(prefix, held.tree.parts(prefix))
        if not isinstance(answer, messages.RevocationsDiffer):
            raise AskingError("not an answer to a comparison of revocations")
        try:
            apart = idtree.parse_differing_untrusted(prefix, answer.difference)
        except idtree.IdTreeError as error:
            raise AskingError(str(error)) from error
        look += apart.closer
        wanted += held.tree.lacking(apart.ids)
    certs, asked = held.known_certs(messages.MAX_STATEMENTS), set[bytes]()
    wanted = list(dict.fromkeys(wanted))[:MAX_STATEMENTS]
    while wanted:
        some = yield messages.FetchRevocations(tuple(wanted[: messages.MAX_STATEMENTS]), certs)
        if not isinstance(some, messages.SomeRevocations):
            raise AskingError("not an answer to a request for revocations")
        try:
            statements = held.unpack(some.packed)
            told = {one.id for one in statements}
        except TrustError as error:
            raise AskingError(str(error)) from error
        if not told.intersection(wanted[: messages.MAX_STATEMENTS]):
            break  # it does not hold what it listed
        came.append(some.packed)
        # A statement is not held without the word of the root's that it names, so that one comes next.
        named = {one.after for one in statements if isinstance(one, Revocation) and one.after}
        words = held.tree.lacking(sorted(named - told - asked))[: MAX_WORDS - len(asked)]
        asked |= {*words}
        wanted = [*words, *(one for one in wanted if one not in told and one not in words)]
    return came


def whom(entries: Iterable[Entry], mine: NodeId, first: Sequence[bytes], rng: Random) -> list[NodeId]:
    """The members that have an endpoint: those of ``first``, then authorities, then the others at random."""
    places = {node_id: place for place, node_id in reversed(list(enumerate(first)))}
    others = [e for e in entries if e.member.node_id != mine and e.record.control]

    def order(entry: Entry) -> tuple[int, bool, float]:
        member = entry.member  # at random it spreads the load, and keys nothing
        return places.get(member.node_id, len(first)), member.role is not Role.AUTHORITY, rng.random()

    return [entry.member.node_id for entry in sorted(others, key=order)]


class Call(NamedTuple):
    """Hold this conversation with a member, over a channel."""

    member: NodeId
    talk: Talk[Any]


class CallUnlinked(NamedTuple):
    """Ask whoever is at this address for these records, without a channel."""

    address: Address
    hashes: Sequence[bytes]
    patience: float = inf  # s that it may take


class Pause(NamedTuple):
    """Wait so long."""

    seconds: float


def look_for(
    batch: Sequence[FetchRecord],
    roster: Roster,
    *,
    member_at: Callable[[bytes | Address], NodeId | None],
    callable: Callable[[Sequence[bytes]], Sequence[NodeId]],  # noqa: A002
    where: Callable[[NodeId], Sequence[Address]],
    silent: Callable[[NodeId], bool] = lambda member: False,
) -> Iterator[Call | CallUnlinked | Pause]:
    """Look for records: ask those first who said that they exist, then others, until the roster has them.
    Members that are ``silent`` are asked last.

    News of a record arrives before the record. The member that passed it on may still be fetching it, so that
    member is asked again a little later. The record's owner surely has it but is asked last, or a large mesh
    would all ask that one node. An owner that has moved is not where we know it to be, and the question takes
    seconds: before that, ask at the address from which the news came.
    """
    first = [member for one in batch if (member := member_at(one.source)) is not None]
    owners = {NodeId(one.node) for one in batch} - set(first)
    sources = list(dict.fromkeys(one.source for one in batch))
    unknown = [source for source in sources if isinstance(source, Address)]
    if not first and (wanted := missing(batch, roster)):
        for address in unknown[:1]:  # the others may have moved too, and let questions wait
            yield CallUnlinked(address, wanted[:MAX_UNLINKED], QUICK)
    for pause in PAUSES[:-1]:
        if pause:
            yield Pause(pause)
        others = [member for member in callable(first) if member not in owners]
        for member in sorted(others[: max(2, len(set(first)) + 1)], key=silent):
            if not (wanted := missing(batch, roster)):
                return
            yield Call(member, fetch(wanted))
    for address in unknown:
        if not (wanted := missing(batch, roster)):
            return
        yield CallUnlinked(address, wanted[:MAX_UNLINKED])
    if not missing(batch, roster):
        return
    yield Pause(PAUSES[-1])
    lacking = set(missing(batch, roster))
    first += [NodeId(one.node) for one in batch if one.record_hash in lacking]
    for member in sorted(callable(first)[: max(2, len(set(first)) + 1)], key=silent):
        if not (wanted := missing(batch, roster)):
            return
        yield Call(member, fetch(wanted))
    for source in (source for source in sources if not isinstance(source, Address)):
        for address in where(NodeId(source)):
            if not (wanted := missing(batch, roster)):
                return
            yield CallUnlinked(address, wanted[:MAX_UNLINKED])


def missing(batch: Iterable[FetchRecord], roster: Roster) -> list[bytes]:
    """The hashes of those of these records that the roster neither holds nor has waiting, nor a later one."""

    def lacks(one: FetchRecord) -> bool:
        held = roster.seen(NodeId(one.node))
        if held is None or held.record.seq < one.record_seq:
            return True
        return held.record.seq == one.record_seq and held.hash != one.record_hash

    return [one.record_hash for one in batch if lacks(one)]


class Fetching:
    """The records that are being looked for. There is a bound on what one source can have us look for."""

    def __init__(self) -> None:
        self._queue: deque[FetchRecord] = deque()
        self._of_source: Counter[bytes | Address] = Counter()
        self._heard: dict[bytes, float] = {}  # by record hash, when it was first heard of

    def __len__(self) -> int:
        return len(self._heard)

    def want(self, wanted: FetchRecord, now: float) -> bool:
        """Queue a record, unless it is being looked for; say whether it was. Membership asks again for what
        there was no room for."""
        if wanted.record_hash in self._heard or self._of_source[wanted.source] >= FETCHES_PER_SOURCE:
            return False
        if self.full:
            return False
        self._queue.append(wanted)
        self._of_source[wanted.source] += 1
        self._heard[wanted.record_hash] = now
        return True

    @property
    def full(self) -> bool:
        """Whether there is no room."""
        return len(self._queue) >= FETCH_QUEUE

    def batch(
        self, silent: Callable[[bytes | Address], bool] = lambda source: False, *, too: bool = True
    ) -> list[FetchRecord]:
        """Take what is to be asked for over one channel. Hand it to `over` in the end. No batch has records
        of a ``silent`` source beside records of others. ``too`` says whether a silent source has its turn."""
        mute = {source: silent(source) for source in self._of_source}
        first = next((mute[one.source] for one in self._queue if too or not mute[one.source]), None)
        taken, left = list[FetchRecord](), deque[FetchRecord]()
        for one in self._queue:
            (taken if mute[one.source] is first and len(taken) < FETCH_BATCH else left).append(one)
        self._queue = left
        return taken

    def came(self, record_hash: bytes) -> float | None:
        """A record is here now: return when it was first heard of, if it was looked for."""
        return self._heard.pop(record_hash, None)

    def over(self, batch: Iterable[FetchRecord]) -> None:
        """These were looked for. One that nobody had is asked for again by membership."""
        for wanted in batch:
            self._heard.pop(wanted.record_hash, None)
            self._of_source[wanted.source] -= 1
            if not self._of_source[wanted.source]:
                del self._of_source[wanted.source]
