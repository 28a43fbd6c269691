# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's answers to its members over a control channel, and how fast it gives them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from phantommesh.acl.signedpolicy import Policies
from phantommesh.control import hinting, messages, pactmessages, policymessages
from phantommesh.errors import PhantomMeshError
from phantommesh.idtree import IdTreeError
from phantommesh.membership.messages import GossipError
from phantommesh.moments import rfc3339, span
from phantommesh.node.desk import Desk
from phantommesh.node.relaying import Relay
from phantommesh.node.steps import Holdings, Keep, Moment, Party, Step, Told
from phantommesh.rates import Rates
from phantommesh.records import antientropy
from phantommesh.records.record import SignedRecord
from phantommesh.records.roster import Entry, name_of
from phantommesh.trust.certificates import Role, TrustError
from phantommesh.trust.groupkey import NO_KEY, Keyring, encode_keys
from phantommesh.trust.identity import NodeId

# Tuning.
# Requests of one member, by kind: how many a second, and at once. More wait, and their channels with them.
# Announcements are not here: `Serving` is given their rate.
REQUESTS: Final[Mapping[type[messages.Request], tuple[float, float]]] = {
    messages.AskKeys: (2.0, 40),
    messages.CompareRevocations: (20.0, 300),  # 64 a conversation
    messages.FetchRevocations: (60.0, 600),  # 17 statements each, 61 a conversation
    messages.Compare: (2.0, 40),
    messages.Fetch: (10.0, 200),  # 256 records each at most
    messages.SyncOpen: (2.0, 40),
    messages.SyncClose: (2.0, 40),
    messages.Turn: (2.0, 40),  # each has counters read
    messages.Prove: (4.0, 100),
    messages.AskRelay: (4.0, 200),  # seven leases each at most: see `routing.leases`
    messages.LeaveRelay: (4.0, 200),
    messages.OfferRelay: (4.0, 200),
    pactmessages.AskPacts: (1.0, 20),
    pactmessages.AskPact: (2.0, 20),
    pactmessages.MakePact: (0.2, 10),  # each has a half signed
    messages.Renew: (0.2, 20),  # fewer are granted: see `node.desk`
    messages.Rename: (0.2, 20),  # likewise
    messages.Route: (0.5, 20),  # likewise: see `node.granting`
    messages.Approved: (0.2, 5),  # each may have an authority asked
    messages.Replace: (0.2, 20),  # an invite on disk each, in place of the one before
    messages.Enrol: (0.2, 20),
    messages.Return: (0.2, 20),
    messages.Look: (1.0, 20),
    messages.AskNeighbours: (0.2, 20),  # each looks at all peers
    messages.CheckTcp: (1 / 60, 2),  # each has a connection made
    hinting.TellHints: (4.0, 100),  # fewer are looked at: see `mnemonic.hints`
    # What is carried has limits of its own, in `node.carrying`: beyond these it is dropped, and nobody waits.
    messages.Carry: (200.0, 4000),
    messages.Carried: (400.0, 8000),
    messages.Bridged: (1.0, 20),  # each has a connection made
    messages.Meet: (0.5, 20),  # fewer are granted: see `routing.punching`
    messages.Echo: (0.2, 10),  # fewer are granted: see `routing.echoes`
    messages.Pass: (20.0, 200),
    messages.Passed: (100.0, 1000),
}
OF_OTHERS: Final = (
    pactmessages.MakePact,
    pactmessages.AskPact,
    messages.CompareRevocations,
    messages.FetchRevocations,
)
"""What nodes may ask that are no members: those that come by the door of a pact (`node.federation`)."""
OTHERS: Final = 10.0, 200  # of a kind that is not named above
REFUSALS: Final = 4.0, 100  # of all kinds: more is an attack, or an error that asking again does not mend
PATIENCE: Final = 20.0  # s that a request waits at most; then it is refused

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """Go on in so many seconds. The result is the `Moment` then."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AnswerSync:
    """The result is `Membership.sync_answer` of a member's opening, or GossipError is thrown."""

    opening: bytes
    peer: NodeId


@dataclass(frozen=True, slots=True)
class FinishSync:
    """Take in the last message of a member's sync: `Membership.sync_finish`. GossipError may be thrown."""

    rest: bytes
    peer: NodeId


@dataclass(frozen=True, slots=True)
class Account:
    """Give what a member says of its scattering to this node's scatter proofs. The result is the answer."""

    entry: Entry
    request: messages.Turn | messages.Prove


@dataclass(frozen=True, slots=True)
class Sight:
    """Say where a member is seen from here. The result is the `messages.Sighting`."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class CheckTcp:
    """Connect to a member's control port by TCP, where it was seen itself. The result is the
    `messages.TcpChecked`."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Carrying:
    """Carry for a member, or take what it carries. The result is the answer."""

    entry: Entry
    request: messages.Carry | messages.Carried | messages.Pass | messages.Passed


@dataclass(frozen=True, slots=True)
class Meeting:
    """Knock at a member's WireGuard ports when it does so at this node's. The result is the answer."""

    peer: NodeId
    request: messages.Meet


@dataclass(frozen=True, slots=True)
class Echoing:
    """Answer a member's datagrams for a while. The result is the answer."""

    entry: Entry
    request: messages.Echo


@dataclass(frozen=True, slots=True)
class Federal:
    """Answer a question about pacts with other meshes: of a member, or of somebody of another mesh. The
    result is the answer; PhantomMeshError may be thrown."""

    party: Party
    request: messages.Request


ServingStep = (
    Federal
    | Step
    | Wait
    | AnswerSync
    | FinishSync
    | Account
    | Sight
    | CheckTcp
    | Carrying
    | Meeting
    | Echoing
)
ServingWork = Generator[ServingStep, Any, T]


class Serving:
    """Answers the requests of others. ``verifications`` limits how much each member may have this node
    verify: announcements count against it. ``proofs`` says whether this node keeps scatter proofs. ``relay``
    answers for the relay that this node is; None: it is none. ``offered`` takes a relay's word of a lease;
    None: this node uses no relays. ``bridged`` takes a member's word that another waits there.
    ``neighbours`` says what links this node has. ``approved`` is called when an authority says that it has
    approved routes of this node. ``hinted`` takes a member's hints; None: this node takes none.
    ``pacts`` is the digest of what is known of pacts with other meshes, ``policies`` what is held of the
    mesh's policies."""

    def __init__(
        self,
        node: Holdings,
        ring: Keyring,
        desk: Desk,
        verifications: Rates[bytes],
        *,
        proofs: bool,
        relay: Relay | None = None,
        offered: Callable[[NodeId, messages.OfferRelay], None] | None = None,
        bridged: Callable[[NodeId, messages.Bridged], None] | None = None,
        neighbours: Callable[[messages.AskNeighbours], messages.NeighboursAre] | None = None,
        approved: Callable[[], None] | None = None,
        hinted: Callable[[NodeId, hinting.TellHints], messages.Answer] | None = None,
        pacts: Callable[[], bytes] = lambda: b"",
        policies: Policies | None = None,
    ) -> None:
        self._pacts, self._policies = pacts, policies or Policies()
        self._neighbours, self._approved, self._hinted = neighbours, approved, hinted
        self._node, self._ring, self._desk, self._proofs = node, ring, desk, proofs
        self._relay, self._offered, self._bridged = relay, offered, bridged
        self.rates = {kind: Rates[bytes](*pace) for kind, pace in REQUESTS.items()}
        self.rates[messages.Announce] = verifications
        self._others, self._refusals = Rates[bytes](*OTHERS), Rates[bytes](*REFUSALS)

    def serve(self, party: Party, request: messages.Request, at: Moment) -> ServingWork[messages.Answer]:
        """Answer one request. A mistake of an operator or a member is a `Refused` answer; a member that asks
        too much waits."""
        let_in = yield from self._pace(self.rates.get(type(request), self._others), party, at)
        if let_in is None:
            return messages.Refused("too many requests of this kind", f"ask again in {PATIENCE:.0f} s")
        answer = yield from self._serve(party, request, let_in)
        if isinstance(answer, messages.Refused):
            done: Moment = yield Wait(0.0)
            yield from self._pace(self._refusals, party, done)
        return answer

    def _pace(self, rates: Rates[bytes], party: Party, at: Moment) -> ServingWork[Moment | None]:
        """Wait for as long as this peer has asked too fast; None where that would be too long."""
        if rates.wait(party.peer, at.now) > PATIENCE:
            yield Wait(PATIENCE)
            return None
        let_in: Moment = yield Wait(rates.owe(party.peer, at.now))
        return let_in

    def _serve(self, party: Party, request: messages.Request, at: Moment) -> ServingWork[messages.Answer]:
        try:
            if isinstance(request, messages.Enrol):
                return (yield from self._desk.enrol(party, request, at))
            if isinstance(request, messages.Return):
                return (yield from self._desk.returning.take_back(party, request, at))
            if party.invite and isinstance(request, OF_OTHERS):
                answer: messages.Answer = yield Federal(party, request)
                return answer
            return (yield from self._answer(party, self._member(party, at.wall), request, at))
        except (antientropy.AntiEntropyError, IdTreeError) as error:
            return messages.Refused(str(error))
        except GossipError as error:
            return messages.Refused(f"not a message of a sync ({error})")
        except PhantomMeshError as error:
            about = {"peer": self._name(party), "request": type(request).__name__, "error": str(error)}
            yield Told("roster", "request refused", about, "warning")
            return messages.Refused(str(error), error.fix)

    def _answer(
        self, party: Party, entry: Entry, request: messages.Request, at: Moment
    ) -> ServingWork[messages.Answer]:
        """Answer a member."""
        node, peer = self._node, entry.member.node_id
        match request:
            case messages.Renew():
                return (yield from self._desk.renew(entry, request, at))
            case messages.Rename():
                return (yield from self._desk.rename(entry, request, at))
            case messages.Route():
                return (yield from self._desk.granting.ask(entry, request, at))
            case messages.Approved():
                if entry.member.role is not Role.AUTHORITY:
                    return messages.Refused("only an authority approves routes")
                if self._approved is not None:
                    self._approved()
                return messages.Done()
            case messages.Replace():
                return (yield from self._desk.replace(entry, at))
            case messages.Announce(record):
                yield Keep(SignedRecord.decode_untrusted(record), peer)
                return messages.Done()
            case messages.AskKeys():
                active = NO_KEY if self._ring.active is None else self._ring.active.id
                return messages.KeysAre(
                    node.revocations.digest(), encode_keys(self._ring.keys), active, self._pacts(),
                    self._policies.digest(at.wall),
                )  # fmt: skip
            case policymessages.AskPolicies():
                offered = self._policies.offered(at.wall)
                return policymessages.PoliciesAre(tuple(one.signed.encode() for one in offered))
            case pactmessages.AskPacts():
                told: messages.Answer = yield Federal(party, request)
                return told
            case messages.CompareRevocations(prefix, parts):
                return messages.RevocationsDiffer(node.revocations.tree.differing(prefix, parts))
            case messages.FetchRevocations(ids, certs):
                return messages.SomeRevocations(node.revocations.pack(ids, certs))
            case messages.Compare(buckets):
                return messages.Differs(antientropy.differing(node.roster, buckets, at.wall), int(at.wall))
            case messages.Fetch(hashes):
                return messages.Records(tuple(antientropy.records(node.roster, hashes, at.wall)))
            case messages.SyncOpen(opening):
                difference: bytes = yield AnswerSync(opening, peer)
                return messages.SyncAnswer(difference)
            case messages.SyncClose(rest):
                yield FinishSync(rest, peer)
                return messages.Done()
            case messages.Turn() | messages.Prove():
                if not self._proofs:
                    return messages.Refused("this node keeps no scatter proofs")
                answer: messages.Answer = yield Account(entry, request)
                return answer
            case messages.Look():
                sighting: messages.Sighting = yield Sight(peer)
                return sighting
            case messages.CheckTcp():
                checked: messages.TcpChecked = yield CheckTcp(entry)
                return checked
            case messages.AskRelay() | messages.LeaveRelay():
                if self._relay is None:
                    return messages.Refused("this node is no relay", "choose another relay")
                return self._relay.answer(peer, request, at.now)
            case messages.OfferRelay():
                if self._offered is None:
                    return messages.Refused("this node uses no relays")
                self._offered(peer, request)
                return messages.Done()
            case messages.Carry() | messages.Carried() | messages.Pass() | messages.Passed():
                carried: messages.Answer = yield Carrying(entry, request)
                return carried
            case messages.Meet():
                met: messages.Answer = yield Meeting(peer, request)
                return met
            case messages.Echo():
                echoed: messages.Answer = yield Echoing(entry, request)
                return echoed
            case messages.AskNeighbours():
                if self._neighbours is None:
                    return messages.Refused("this node measures no links")
                return self._neighbours(request)
            case hinting.TellHints():
                if self._hinted is None:
                    return messages.Refused("this node shares no hints")
                return self._hinted(peer, request)
            case messages.Attend():  # `TcpPort` has taken it where the connection can be lent
                return messages.Refused("this connection cannot be lent")
            case messages.Frames():  # `TcpPort` has taken it where it can carry frames
                return messages.Refused("this connection cannot carry frames")
            case messages.Bridge():  # `TcpPort` has taken it where it can be joined
                return messages.Refused("this connection cannot be joined with another")
            case messages.Bridged():
                if self._bridged is not None:
                    self._bridged(peer, request)
                return messages.Done()
            case pactmessages.AskPact() | pactmessages.MakePact():
                return messages.Refused("only another mesh may ask this")
            case messages.Enrol() | messages.Return():
                raise TrustError("a member has no need to enrol")

    def _name(self, party: Party) -> str:
        return name_of(self._node.roster.get(NodeId(party.peer)), party.peer)

    def _member(self, party: Party, wall: float) -> Entry:
        """The member at the other end. Raises TrustError where there is none in good standing."""
        entry = self._node.roster.get(NodeId(party.peer))
        if entry is None or party.invite:
            raise TrustError("only a member may ask this", fix="join the mesh first")
        if entry.member.not_after < wall:
            raise TrustError(
                f"the certificate of {entry.member.name} has expired, by this node's clock "
                f"{span(wall - entry.member.not_after)} ago, on {rfc3339(entry.member.not_after)}",
                fix="the node gets another one of an authority by itself; if not, set both machines' clocks",
            )
        return entry
