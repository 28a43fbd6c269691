# SPDX-License-Identifier: GPL-3.0-or-later
"""How an authority makes a pact with another mesh: what it offers, and the lines that it has given out.
Sans-I/O.

An operator of one mesh gives out a line with `federation invite`, an operator of the other takes it with
`federation accept`. The authority that takes the line signs first: its half names the line's root key. The
other one signs when that half comes, since it learns only then which mesh it is with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Network
from typing import Final

import msgspec

from phantommesh.control.pactmessages import MakePact
from phantommesh.node.steps import Holdings
from phantommesh.records.record import callable_at
from phantommesh.records.roster import Entry
from phantommesh.secret import Secret
from phantommesh.trust.certificates import TrustError, describe_mesh, load_root
from phantommesh.trust.federation import (
    MAX_ENDPOINTS,
    MAX_GATEWAYS,
    Gateway,
    Half,
    Ports,
    Service,
    Terms,
    Who,
    by_id,
    lock_of,
    verify,
)
from phantommesh.trust.identity import IdentityError, NodeId, parse_node_id
from phantommesh.trust.pacts import Bundle

MAX_DRAFTS: Final = 16  # lines given out that nobody has answered yet


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """What one mesh puts into a pact, as its operator says it; ``life`` is in seconds."""

    members: tuple[Who, ...]
    gateways: tuple[Gateway, ...]
    services: tuple[Service, ...]
    life: int


class Draft(msgspec.Struct, frozen=True, array_like=True):
    """A line that was given out. ``answered`` is the root hash of the mesh that has answered, empty while
    none has: no other may."""

    pact: bytes
    secret: bytes
    offer: Offer
    expires: int
    answered: bytes = b""

    def __repr__(self) -> str:
        return f"Draft({self.pact.hex()})"


def who(text: str) -> Who:
    """A member as an operator names it: a node id, or else a name."""
    try:
        return by_id(parse_node_id(text))
    except IdentityError:
        return text


def ports_of(text: str) -> Ports:
    """Read ``tcp/443`` or ``udp/5000-5010``. Raises TrustError."""
    protocol, _, span = text.partition("/")
    first, _, last = span.partition("-")
    try:
        return msgspec.convert((protocol, int(first), int(last or first)), Ports)
    except (ValueError, msgspec.ValidationError):
        raise TrustError(
            f"{text[:32]!r} is not usable as ports", fix="write tcp/443 or udp/5000-5010"
        ) from None


def service_of(text: str) -> Service:
    """Read ``MEMBER:tcp/443,udp/53:USER,USER``. Raises TrustError."""
    match text.split(":"):
        case [member, ports, users] if member and ports and users:
            return Service(
                who(member), tuple(map(ports_of, ports.split(","))), tuple(map(who, users.split(",")))
            )
        case _:
            raise TrustError(
                f"{text[:64]!r} is not usable as a service",
                fix="write MEMBER:PORTS:USERS, as in db:tcp/5432:web,app",
            )


def make_offer(
    members: Iterable[str], services: Iterable[str], gateways: Sequence[Entry], life: float
) -> Offer:
    """Make an offer of an operator's words: members of services and gateways take part, too. Raises
    TrustError."""
    exposed = tuple(map(service_of, services))
    ways = tuple(
        Gateway(entry.member.node_id, callable_at(entry.record)[:MAX_ENDPOINTS])
        for entry in gateways[:MAX_GATEWAYS]
    )
    for entry in gateways:
        if not callable_at(entry.record):
            raise TrustError(
                f"{entry.member.name} has no endpoint at which the other mesh could ask it",
                fix="set node.endpoints in its configuration, or name another gateway",
            )
    named = (*map(who, members), *(one.member for one in exposed))
    part = dict.fromkeys((*named, *(by_id(NodeId(way.node_id)) for way in ways)))
    return Offer(tuple(part), ways, exposed, int(life))


def make_terms(
    node: Holdings, offer: Offer, pact: bytes, other: bytes, secret: Secret, now: float, last: int = 0
) -> Terms:
    """The terms of this mesh for a pact with the mesh whose root key has this hash. Raises TrustError."""
    return Terms.make(
        pact, node.mesh.root_hash, other, members=offer.members, gateways=offer.gateways,
        services=offer.services, lock=lock_of(secret), now=now, life=offer.life, last=last,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """The other mesh's answer to a line, verified."""

    root_hash: bytes
    half: Half
    secret: Secret


class Drafts:
    """The lines that this authority has given out."""

    def __init__(self, held: Iterable[Draft] = ()) -> None:
        self._held = {draft.pact: draft for draft in held}

    def __iter__(self) -> Iterator[Draft]:
        return iter(self._held.values())

    def add(self, draft: Draft, now: float) -> None:
        """Remember a line. Raises TrustError where there are too many."""
        self.forget(now)
        if len(self._held) >= MAX_DRAFTS:
            raise TrustError(
                f"{MAX_DRAFTS} lines are given out that have not expired", fix="let one expire first"
            )
        self._held[draft.pact] = draft

    def forget(self, now: float) -> None:
        """Forget lines that have expired."""
        self._held = {pact: draft for pact, draft in self._held.items() if now < draft.expires}

    def get(self, pact: bytes, now: float) -> Draft | None:
        """The line of that pact, while it is good."""
        draft = self._held.get(pact)
        return draft if draft is not None and now < draft.expires else None

    def note(self, pact: bytes, root_hash: bytes) -> None:
        """A mesh has answered: no other may."""
        self._held[pact] = msgspec.structs.replace(self._held[pact], answered=root_hash)

    def check(self, draft: Draft, asked: MakePact, mine: bytes, now: float) -> Answer:
        """Verify the answer to a line of this mesh, whose root key's hash is ``mine``. Raises TrustError."""
        root, secret = load_root(asked.root), Secret(asked.secret)
        half = Half.decode_untrusted(asked.half)
        terms = verify(half, root, now, revoked=frozenset())
        if terms.pact != draft.pact or terms.other != mine or terms.ended:
            raise TrustError("the half is of another pact", fix="take the whole line that was printed")
        if terms.lock != lock_of(secret):
            raise TrustError("the half locks another secret", fix="run one version in both meshes")
        if draft.answered not in (b"", terms.mesh):
            raise TrustError("another mesh has answered this line", fix="ask the other mesh for a new one")
        return Answer(terms.mesh, half, secret)


def encode_kept(bundles: Sequence[bytes], drafts: Sequence[Draft]) -> bytes:
    """The pacts and the lines given out, for the state directory. They hold secrets."""
    return msgspec.msgpack.encode((tuple(bundles), tuple(drafts)))


def decode_kept(data: bytes) -> tuple[tuple[bytes, ...], tuple[Draft, ...]]:
    """Read what `encode_kept` wrote. Raises TrustError."""
    try:
        return msgspec.msgpack.decode(data, type=tuple[tuple[bytes, ...], tuple[Draft, ...]])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TrustError("it cannot be read") from error


def networks_of(data: bytes) -> tuple[IPv6Network, ...]:
    """The networks of the other meshes that `encode_kept` wrote of, whatever has become of the pacts. Raises
    TrustError."""
    roots = {Bundle.decode_untrusted(one).root for one in decode_kept(data)[0]}
    return tuple(sorted(describe_mesh(load_root(root)).network6 for root in roots if root))
