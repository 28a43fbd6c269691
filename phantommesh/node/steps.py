# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that a node's decisions want done before they go on, and the holdings that they read.

A piece of work is a generator. It yields a step, and is sent the step's result; an error that the step ended
with is thrown into it. The driver has the disk, the threads, the clock and the sockets. `Moment` tells the
time: the work is given the present one, and a step that may take long is answered with a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from cryptography import x509

from phantommesh.acl.signedpolicy import Policies
from phantommesh.records.record import SignedRecord
from phantommesh.records.roster import Roster
from phantommesh.state.routebook import Approval
from phantommesh.trust.certificates import Mesh, Role
from phantommesh.trust.identity import Identity, NodeId
from phantommesh.trust.issuing import Authority
from phantommesh.trust.meshsecret import MeshSecrets
from phantommesh.trust.revocations import Revocations
from phantommesh.trust.rootword import RootWord
from phantommesh.trust.statements import Held

T = TypeVar("T")


class Moment(NamedTuple):
    """The time: ``now`` in seconds on a clock that does not go back, ``wall`` in Unix seconds."""

    now: float
    wall: float


class Holdings(Protocol):
    """The things that a node has. Roster, revocations, policies and admission secrets change while the node
    runs."""

    @property
    def identity(self) -> Identity:
        """The node's key."""

    @property
    def root(self) -> x509.Certificate:
        """The mesh's root certificate."""

    @property
    def mesh(self) -> Mesh:
        """The mesh, as the root certificate describes it."""

    @property
    def authority(self) -> Authority | None:
        """The key and the certificate that an authority signs with; None on any other node."""

    @property
    def admission(self) -> MeshSecrets:
        """The admission secrets."""

    @property
    def roster(self) -> Roster:
        """The newest record of each member."""

    @property
    def revocations(self) -> Revocations:
        """Every revocation that the node holds."""

    @property
    def policies(self) -> Policies:
        """The mesh's policies of access that the node holds."""


class Party(Protocol):
    """The other end of a channel. ``invite`` is the id of a newcomer's invite, ``spki`` the newcomer's key
    as the handshake has proved it; both are empty for a member."""

    @property
    def peer(self) -> bytes:
        """The node id."""

    @property
    def invite(self) -> bytes:
        """The id of the invite."""

    @property
    def spki(self) -> bytes:
        """The SubjectPublicKeyInfo, DER."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Run this in a thread: it takes milliseconds. The result is the job's."""

    job: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Alone:
    """Do this work while no other work of that kind is under way. The work is given the moment at which its
    turn has come. The result is the work's."""

    kind: Literal["enrolling", "revoking"]
    work: Callable[[Moment], Work[Any]]


@dataclass(frozen=True, slots=True)
class FindInvite:
    """Read an invite that this node may use. The result is its `InviteEntry`, or TrustError or StateError is
    thrown: see `InviteBook.find`."""

    invite: bytes
    node: NodeId


@dataclass(frozen=True, slots=True)
class SpendInvite:
    """Spend one use of an invite on a node, on disk before the work goes on: see `InviteBook.consume`."""

    invite: bytes
    node: NodeId
    name: str


@dataclass(frozen=True, slots=True)
class MakeInvite:
    """Write down an invite by which a member can join anew in place of itself. The result is the `Invite`.
    ``endpoints`` are where this node is reached, ``expires`` is in Unix seconds."""

    endpoints: tuple[str, ...]
    expires: int
    role: Role
    name: str
    replaces: NodeId
    ip4: IPv4Address
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WriteApprovals:
    """Write the authority's book of routes: it is on disk when the work goes on."""

    approvals: tuple[Approval, ...]


@dataclass(frozen=True, slots=True)
class ReadRootKey:
    """Read the mesh's root key, to do ``what``. The result is the `Identity`; TrustError is thrown where this
    machine does not hold it."""

    what: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Verify a record, and keep it if it is newer. ``of`` is the member that brought it, if one did. The
    result says whether the roster changed."""

    record: SignedRecord
    of: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold statements that this node has just made, and tell the others."""

    made: Sequence[RootWord | Held]


@dataclass(frozen=True, slots=True)
class Hear:
    """Verify a word of the root's, hold it, and tell the others."""

    word: RootWord


@dataclass(frozen=True, slots=True)
class Save:
    """Write the roster and the revocations: they are on disk when the work goes on."""


@dataclass(frozen=True, slots=True)
class MakeKey:
    """Make the group key that is due, if one is."""


@dataclass(frozen=True, slots=True)
class Told:
    """Something happened that an operator may want to read of. ``part`` names the logger."""

    part: Literal["authority", "own", "roster"]
    event: str
    fields: Mapping[str, object] = field(default_factory=dict)
    level: Literal["debug", "info", "warning", "error"] = "info"


Step = (
    Compute | Alone | FindInvite | SpendInvite | MakeInvite | WriteApprovals | ReadRootKey | Keep | Hold
    | Hear | Save | MakeKey | Told
)  # fmt: skip
Work = Generator[Step, Any, T]
