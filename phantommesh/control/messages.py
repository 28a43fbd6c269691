# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages of the control channel: what nodes ask of each other, requests and answers as msgpack values.

The channel has already authenticated the other end; these decoders only have to survive what a member or a
newcomer may send, and raise `ControlError` for what is not one of these messages.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from phantommesh.control.channel import MAX_FRAME
from phantommesh.control.hinting import TellHints
from phantommesh.control.pactmessages import MAX_TOLD, AskPact, AskPacts, MakePact, PactIs, PactMade, PactsAre
from phantommesh.control.policymessages import AskPolicies, PoliciesAre, Told
from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.endpoint import MAX_DATAGRAM
from phantommesh.idtree import MAX_DEPTH
from phantommesh.membership.messages import MAX_SYNC
from phantommesh.records.antientropy import MAX_DIFFERENCE, MAX_WANTED
from phantommesh.records.record import MAX_RECORD_BYTES
from phantommesh.routable import MAX_ROUTES
from phantommesh.trust.tags import MAX_TAGS

MAX_STATEMENTS = 64  # in a question; an answer holds some 17, see `revocation.MAX_PART`
MAX_PARTS = 12  # of about 4 kB each: a request has `channel.MAX_REQUEST` bytes at most
SMALL = 128 * 1024  # bytes of an answer that holds no list, or a short one
MAX_CARRIED = 32  # datagrams in one request
MAX_PASSED = 56 * 1024  # bytes of a frame that is passed on; less than `channel.MAX_REQUEST`
LINE_SIZE = 8  # bytes of the name of a line
MAX_MOMENT = 253_402_300_799  # Unix seconds: the last one of the year 9999
MAX_AGE_MS = 600_000  # a sighting that is older is none
MAX_ABOUT = 64  # members that one question names
MAX_NEIGHBOURS = 128  # links of one answer, at most 70 bytes each
_MAX_PLACE = 64  # characters of an address with its port
_MAX_PREFIX = 43  # characters of the longest
_AROUND = 256  # bytes around what an answer holds


class ControlError(Exception):
    """The bytes are not a control message."""


class Enrol(msgspec.Struct, frozen=True, tag="enrol"):
    """A newcomer's request: its PKCS#10 request (DER), and its first record's body with its signature.

    A newcomer that the invite makes an authority adds its authority key (SubjectPublicKeyInfo) and that key's
    signature of its node id, see `issuing.prove_authority`. ``chosen``: an operator gave the record's
    endpoints; else the newcomer found the address by itself. ``tags``: those that it asks for; none: all that
    the invite grants.
    """

    csr: bytes
    record: bytes
    signature: bytes
    authority_spki: bytes = b""
    authority_proof: bytes = b""
    chosen: bool = False
    tags: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=63)], ...], msgspec.Meta(max_length=MAX_TAGS)
    ] = ()


class Enrolled(msgspec.Struct, frozen=True, tag="enrolled"):
    """The authority's answer: certificates (DER), the admission secret, everybody's records, revocations, the
    group keys and the id of the one that is sent with; a new authority's own certificate; the mesh's policies
    of access."""

    node_cert: bytes
    authority_cert: bytes
    root_cert: bytes
    admission: bytes
    roster: bytes
    revocations: bytes
    keys: bytes = b""
    active_key: bytes = b""
    own_authority_cert: bytes = b""
    policies: Told = ()

    def __repr__(self) -> str:
        return "Enrolled(***)"


class Renew(msgspec.Struct, frozen=True, tag="renew"):
    """A member's request for a new certificate on its present key.

    ``evidence`` is the record of a member that has its name or address, for an authority that may not have
    heard of it: then the new certificate says something else.
    """

    csr: bytes
    evidence: bytes = b""


class Renewed(msgspec.Struct, frozen=True, tag="renewed"):
    """The new certificate and the authority's, in DER."""

    node_cert: bytes
    authority_cert: bytes


class Return(msgspec.Struct, frozen=True, tag="return"):
    """The request of a member whose certificate ran out, on its present key: its PKCS#10 request (DER), its
    record's body with its signature. ``until`` is when its certificate ended, and ``at`` what its clock
    shows, both in Unix seconds: so the authority can tell a wrong clock, and gives no certificate that the
    member would take for one that does not hold.

    An authority certifies itself: it brings its new certificate and its authority's (DER), for its record.
    """

    csr: bytes
    record: bytes
    signature: bytes
    until: Annotated[int, msgspec.Meta(ge=0, le=MAX_MOMENT)]
    at: Annotated[int, msgspec.Meta(ge=0, le=MAX_MOMENT)]
    node_cert: bytes = b""
    authority_cert: bytes = b""


class Returned(msgspec.Struct, frozen=True, tag="returned"):
    """The new certificate and the authority's, in DER, empty for an authority; the answerer's own record,
    encoded; the group keys, and the id of the one that is sent with. The member can link with the answerer
    then, and hears all else over that link."""

    node_cert: bytes
    authority_cert: bytes
    record: bytes
    keys: bytes
    active_key: bytes

    def __repr__(self) -> str:
        return "Returned(***)"


class Rename(msgspec.Struct, frozen=True, tag="rename"):
    """A member's request for a certificate under another name, on its present key: ``csr`` has the name. The
    answer is `Renewed`."""

    csr: bytes


class Route(msgspec.Struct, frozen=True, tag="route"):
    """A member's request to route these prefixes, each in its only form. The answer is `Renewed`, with a
    certificate for the member's present name, if some of them are approved that the present one has not;
    else `Done`: an operator of the authority may approve them."""

    csr: bytes
    prefixes: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=_MAX_PREFIX)], ...],
        msgspec.Meta(min_length=1, max_length=MAX_ROUTES),
    ]


class Approved(msgspec.Struct, frozen=True, tag="approved"):
    """An authority's word that it has approved routes of the other end, which may ask for them now. The
    answer is `Done`."""


class Replace(msgspec.Struct, frozen=True, tag="replace"):
    """A member's request for an invite by which it can join anew, under its name, in place of itself."""


class Replacement(msgspec.Struct, frozen=True, tag="replacement"):
    """The invite, as one line. Using it revokes the member that asked for it."""

    invite: str

    def __repr__(self) -> str:
        return "Replacement(***)"


class Announce(msgspec.Struct, frozen=True, tag="announce"):
    """A signed record to keep, if it is newer than the one known."""

    record: bytes


class Done(msgspec.Struct, frozen=True, tag="done", omit_defaults=True):
    """Nothing to add. ``waiting``: the answerer has something to ask of the asker and cannot call it; so the
    asker may `Attend`."""

    waiting: bool = False


class AskKeys(msgspec.Struct, frozen=True, tag="ask-keys"):
    """Ask any member for the group keys, and whether it holds other revocations."""


class KeysAre(msgspec.Struct, frozen=True, tag="keys"):
    """The digest of the revocations, the group keys, the id of the key that is sent with, and the
    digests of what is known of pacts with other meshes and of the mesh's policies, empty where there are
    none."""

    revoked: bytes
    keys: bytes
    active_key: bytes
    pacts: bytes = b""
    policies: bytes = b""

    def __repr__(self) -> str:
        return "KeysAre(***)"


class CompareRevocations(msgspec.Struct, frozen=True, tag="compare-revocations"):
    """`IdTree.parts` of what the asker holds under a prefix."""

    prefix: Annotated[bytes, msgspec.Meta(max_length=MAX_DEPTH)]
    parts: bytes


class RevocationsDiffer(msgspec.Struct, frozen=True, tag="revocations-differ"):
    """`IdTree.differing` of the answerer's."""

    difference: bytes


class FetchRevocations(msgspec.Struct, frozen=True, tag="fetch-revocations"):
    """Ask for the statements of these ids. ``certs`` are the SHA3-256 of authorities' certificates that the
    asker has, so that they need not be sent."""

    ids: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_STATEMENTS)]
    certs: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_STATEMENTS)] = ()


class SomeRevocations(msgspec.Struct, frozen=True, tag="some-revocations"):
    """`Revocations.pack`: those that the answerer holds, or as many as fit."""

    packed: bytes


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """`antientropy.buckets` of the asker's roster."""

    buckets: bytes


class Differs(msgspec.Struct, frozen=True, tag="differs"):
    """`antientropy.differing` of the answerer's, and the answerer's clock in Unix seconds; an earlier version
    does not say that."""

    difference: bytes
    at: Annotated[int, msgspec.Meta(ge=0, le=MAX_MOMENT)] = 0


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """Ask for the records of these hashes."""

    hashes: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_WANTED)]


class Records(msgspec.Struct, frozen=True, tag="records"):
    """Signed records, encoded: those of the hashes that the answerer knows, or as many as fit."""

    records: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_WANTED)]


class SyncOpen(msgspec.Struct, frozen=True, tag="sync-open"):
    """`Membership.sync_open`: the first of the three messages of a full sync."""

    opening: bytes


class SyncAnswer(msgspec.Struct, frozen=True, tag="sync-answer"):
    """`Membership.sync_answer`."""

    difference: bytes


class SyncClose(msgspec.Struct, frozen=True, tag="sync-close"):
    """`Membership.sync_close`; the answer is `Done`."""

    rest: bytes


class Turn(msgspec.Struct, frozen=True, tag="turn"):
    """An epoch of the asker's scatter to this peer is over. The commitments to the plan that it followed and
    to the next epoch's: each a hash, or empty for none. The answer, once the peer has read its counters, is
    `Done`."""

    closes: Annotated[bytes, msgspec.Meta(max_length=32)]
    opens: Annotated[bytes, msgspec.Meta(max_length=32)]


class Prove(msgspec.Struct, frozen=True, tag="prove"):
    """Statements and receipts that the asker has signed, encoded as `proofs.statement.Signed`. The answer is
    `Done`, whatever becomes of them."""

    parts: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_PARTS)]


Peer = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Dimensions = Annotated[int, msgspec.Meta(ge=0, le=ALL)]  # as a bitmap
Microseconds = Annotated[int, msgspec.Meta(ge=0, le=60_000_000)]


class AskRelay(msgspec.Struct, frozen=True, tag="ask-relay"):
    """Ask a relay to forward between the asker and ``peer`` in these dimensions, or, where there are none,
    what it would cost. ``tagging``: the asker can write and clear tags (`routing.leases`). The answer is
    `Relayed`."""

    peer: Peer
    dimensions: Dimensions
    tagging: bool = False


class Leg(msgspec.Struct, frozen=True):
    """The asker's leg of one lease, see `routing.leases.Grant`. ``waiting``: the peer has not asked yet."""

    dimension: Annotated[int, msgspec.Meta(ge=0, lt=DIMENSIONS)]
    tag: Annotated[int, msgspec.Meta(ge=0, le=255)]
    ticket: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    waiting: bool

    def __repr__(self) -> str:
        return f"Leg({self.dimension}, ***)"


class Relayed(msgspec.Struct, frozen=True, tag="relayed"):
    """A relay's answer: its UDP port; its round trip to the peer in microseconds; a leg for each dimension
    that was granted; and why the others were not, as `routing.leases.Refusal` puts it."""

    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    far: Microseconds
    legs: Annotated[tuple[Leg, ...], msgspec.Meta(max_length=DIMENSIONS)] = ()
    refused: Annotated[str, msgspec.Meta(max_length=200)] = ""


class LeaveRelay(msgspec.Struct, frozen=True, tag="leave-relay"):
    """Tell a relay that the asker has no more use for its leases with ``peer`` in these dimensions. The
    answer is `Done`."""

    peer: Peer
    dimensions: Dimensions


class OfferRelay(msgspec.Struct, frozen=True, tag="offer-relay"):
    """A relay's word that ``peer`` has asked it for leases with the other end in these dimensions. The answer
    is `Done`, whatever the other end does about it."""

    peer: Peer
    dimensions: Dimensions


class Attend(msgspec.Struct, frozen=True, tag="attend"):
    """A member's request to be asked over this connection from now on, because the other end cannot call it.
    After the answer, `Done`, the two ends have changed roles for good."""


class Frames(msgspec.Struct, frozen=True, tag="frames"):
    """Ask that this connection carries datagrams in frames from now on (`routing.frames`). After the answer,
    `Done`, each message of the channel, either way, is a batch of frames."""


class Look(msgspec.Struct, frozen=True, tag="look"):
    """Ask from where the asker's datagrams come."""


class Sighting(msgspec.Struct, frozen=True, tag="sighting"):
    """The answer to `Look`: the address and UDP port of the asker's control port, how many milliseconds ago
    it was seen there, and the same of its seven WireGuard ports. Each is an endpoint's text, empty where it
    was not seen."""

    control: Annotated[str, msgspec.Meta(max_length=_MAX_PLACE)] = ""
    age_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_AGE_MS)] = 0
    wireguard: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=_MAX_PLACE)], ...], msgspec.Meta(max_length=DIMENSIONS)
    ] = ()


class CheckTcp(msgspec.Struct, frozen=True, tag="check-tcp"):
    """Ask whether the asker's control port is reached by TCP, where the answerer has seen the asker itself
    (`nursery/members/checking.py`). The asker names no address."""


class TcpChecked(msgspec.Struct, frozen=True, tag="tcp-checked"):
    """The answer to `CheckTcp`: whether a channel to the asker could be opened, at which endpoint; or why
    not."""

    reached: bool
    endpoint: Annotated[str, msgspec.Meta(max_length=_MAX_PLACE)] = ""
    why: Annotated[str, msgspec.Meta(max_length=200)] = ""


Datagrams = Annotated[
    tuple[Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_DATAGRAM)], ...],
    msgspec.Meta(min_length=1, max_length=MAX_CARRIED),
]
Line = Annotated[bytes, msgspec.Meta(min_length=LINE_SIZE, max_length=LINE_SIZE)]
Passing = Annotated[bytes, msgspec.Meta(max_length=MAX_PASSED)]


class Carry(msgspec.Struct, frozen=True, tag="carry"):
    """Ask a common member to carry these datagrams of a handshake to ``to``, which attends it. The answer is
    `Done`, whatever becomes of them."""

    to: Peer
    datagrams: Datagrams


class Carried(msgspec.Struct, frozen=True, tag="carried"):
    """The common member's word that these datagrams are of ``origin``. The answer is `Done`."""

    origin: Peer
    datagrams: Datagrams


class Pass(msgspec.Struct, frozen=True, tag="pass"):
    """Ask a common member to pass a frame of a channel to ``to``, which attends it, and to answer with the
    frame that comes back: `Frame`. ``line`` names the channel among those of the asker."""

    to: Peer
    line: Line
    frame: Passing


class Passed(msgspec.Struct, frozen=True, tag="passed"):
    """The common member's word that this frame is of ``origin``. The answer is `Frame`."""

    origin: Peer
    line: Line
    frame: Passing


class Frame(msgspec.Struct, frozen=True, tag="frame"):
    """The frame that came back; empty where there is none, and the line is over."""

    frame: Passing


class Meet(msgspec.Struct, frozen=True, tag="meet"):
    """Ask to knock at each other's WireGuard ports in these dimensions (`routing.punching`), and to begin
    when so many milliseconds are over. ``turn`` says who is first where (`routing.search.Ask`). The answer
    is `Done`."""

    dimensions: Dimensions
    in_ms: Annotated[int, msgspec.Meta(ge=0, le=2000)]
    turn: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0


class Echo(msgspec.Struct, frozen=True, tag="echo"):
    """Ask to answer the datagrams that this token marks (`routing.echoes`), at once and again after so many
    milliseconds, by the number of the asker's socket; 0: at once only. ``unasked``: send some to the asker's
    WireGuard ports by this version of IP, where it was seen itself; 0: send none. The answer is `Done`."""

    token: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    after_ms: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=200_000)], ...], msgspec.Meta(max_length=8)
    ]
    unasked: Literal[0, 4, 6] = 0


class Bridge(msgspec.Struct, frozen=True, tag="bridge"):
    """Ask a common member to join this connection with one on which ``to`` asks for the asker. After the
    answer, `Done`, each frame that comes by either goes out by the other as it is."""

    to: Peer


class Bridged(msgspec.Struct, frozen=True, tag="bridged"):
    """The common member's word that ``origin`` waits to be joined with the other end. The answer is `Done`,
    whatever the other end does about it."""

    origin: Peer


class AskNeighbours(msgspec.Struct, frozen=True, tag="ask-neighbours"):
    """Ask for the links that the answerer has, as it measures them (`routing.neighbours`): a sample of the
    pairs by ``salt`` and ``share``, and those with the members in ``about``."""

    salt: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    share: Annotated[int, msgspec.Meta(ge=1, le=2**32)]
    about: Annotated[tuple[Peer, ...], msgspec.Meta(max_length=MAX_ABOUT)] = ()


class Neighbour(msgspec.Struct, frozen=True, array_like=True):
    """One link: round trip and jitter in microseconds, loss in parts of 10,000, capacity in kilobytes a
    second or 0, the number of its `routing.ways.Kind`, and the relays that it goes by."""

    peer: Peer
    rtt: Microseconds
    jitter: Microseconds
    loss: Annotated[int, msgspec.Meta(ge=0, le=10_000)]
    capacity: Annotated[int, msgspec.Meta(ge=0, le=2**32)]
    kind: Annotated[int, msgspec.Meta(ge=0, le=2)]
    relays: Annotated[tuple[Peer, ...], msgspec.Meta(max_length=2)] = ()


class NeighboursAre(msgspec.Struct, frozen=True, tag="neighbours"):
    """The answer to `AskNeighbours`."""

    links: Annotated[tuple[Neighbour, ...], msgspec.Meta(max_length=MAX_NEIGHBOURS)]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The request was understood and not granted."""

    message: str
    fix: str = ""


Request = (
    AskPacts | AskPact | MakePact | AskPolicies
    | Enrol | Renew | Return | Rename | Route | Approved | Replace | Announce | AskKeys
    | CompareRevocations | FetchRevocations | Compare | Fetch | SyncOpen | SyncClose | Turn | Prove
    | Attend | Look | AskRelay | LeaveRelay | OfferRelay
    | Carry | Carried | Pass | Passed
    | Meet | Frames | CheckTcp | Echo
    | Bridge | Bridged | AskNeighbours | TellHints
)  # fmt: skip
Answer = (
    PactsAre | PactIs | PactMade | PoliciesAre
    | Enrolled | Renewed | Returned | Replacement | Done | KeysAre | RevocationsDiffer | SomeRevocations
    | Differs | Records | SyncAnswer | Relayed | Sighting | Refused
    | Frame | TcpChecked | NeighboursAre
)  # fmt: skip

_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def answer_limit(request: Request) -> int:
    """The bytes that the answer to a request may have, as a frame: a longer one is not read."""
    match request:
        case Fetch(hashes):
            return SMALL + len(hashes) * (MAX_RECORD_BYTES + _AROUND)
        case Compare():
            return MAX_DIFFERENCE + _AROUND
        case SyncOpen():
            return MAX_SYNC + _AROUND
        case AskKeys() | Enrol() | Return() | AskPacts() | AskPolicies():
            return MAX_FRAME
        case AskPact() | MakePact():
            return SMALL + MAX_TOLD * (MAX_RECORD_BYTES + _AROUND)
        case _:
            return SMALL


def encode(message: Request | Answer) -> bytes:
    """Return the msgpack form."""
    return msgspec.msgpack.encode(message)


def decode_request_untrusted(data: bytes) -> Request:
    """Read a request. Raises `ControlError`."""
    try:
        return _requests.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ControlError("not a request") from None


def decode_answer_untrusted(data: bytes) -> Answer:
    """Read an answer. Raises `ControlError`."""
    try:
        return _answers.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ControlError("not an answer") from None
