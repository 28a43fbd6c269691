# SPDX-License-Identifier: GPL-3.0-or-later
"""A newcomer against the links of a real authority, in memory, on a clock of numbers."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.kem import CryptographyKem
from phantommesh.link.attempt import Stage
from phantommesh.link.effects import Effect, Enrolment, Opened, Send, Sign
from phantommesh.link.machine import Links
from phantommesh.link.newcomer import Newcomer
from phantommesh.link.wire import Kind
from phantommesh.secret import Secret
from phantommesh.state.directory import StateDir
from phantommesh.state.invitebook import InviteBook
from phantommesh.trust.identity import Identity, NodeId
from phantommesh.trust.invites import Invite
from tests.support.makemesh import NOW, identity

HERE, THERE = Address("192.0.2.2", 4000, "tcp"), Address("192.0.2.1", 51800, "tcp")
ROOT_HASH = b"r" * 32

Change = Callable[[bytes], bytes]


@dataclass
class Authority:
    identity: Identity
    book: InviteBook
    clock: float = 0.0
    links: Links = field(init=False)
    opened: list[Opened] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.links = Links(
            node_id=self.identity.node_id,
            wg_keys=[bytes([i]) * 32 for i in range(1, 8)],
            admission=Secret(b"m" * 32),
            kem=CryptographyKem(),
            random=os.urandom,
            now=0.0,
            enrolment=Enrolment(ROOT_HASH, self.identity.spki, self.find),
        )

    def find(self, invite: bytes, node_id: bytes) -> Secret | None:
        try:
            return self.book.find(invite, NOW + self.clock, NodeId(node_id)).secret
        except PhantomMeshError:
            return None

    def invite(self, uses: int = 1) -> Invite:
        return self.book.create(
            root_hash=ROOT_HASH, authority=self.identity.node_id, mesh="pm",
            endpoints=("192.0.2.1:51800",), expires=int(NOW) + 60, uses=uses,
        )  # fmt: skip

    def receive(self, datagram: bytes) -> list[bytes]:
        return self.carry_out(self.links.receive(datagram, HERE, self.clock))

    def carry_out(self, effects: list[Effect]) -> list[bytes]:
        out = []
        for effect in effects:
            match effect:
                case Send(datagram, destination):
                    assert destination == HERE
                    out.append(datagram)
                case Sign(token, request):
                    signature = self.identity.sign(request.data, request.context)
                    out += self.carry_out(self.links.signed(token, signature, self.clock))
                case Opened():
                    self.opened.append(effect)
        return out


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(identity("authority"), InviteBook(StateDir(tmp_path)))


def same(datagram: bytes) -> bytes:
    return datagram


def make_newcomer(invite: Invite, me: Identity, now: float = 0.0) -> Newcomer:
    return Newcomer(
        node_id=me.node_id, spki=me.spki, authority=invite.authority, root_hash=invite.root_hash,
        invite=invite.invite_id, secret=invite.secret, destination=THERE, kem=CryptographyKem(),
        random=os.urandom, now=now,
    )  # fmt: skip


def enrol(
    authority: Authority,
    newcomer: Newcomer,
    me: Identity,
    *,
    outward: Change = same,
    inward: Change = same,
    seconds: float = 20.0,
) -> Opened | None:
    """Let the two talk until the newcomer is through or has given up."""
    end = authority.clock + seconds
    while not newcomer.failed and authority.clock < end:
        effects = newcomer.tick(authority.clock)
        while effects:
            answers: list[bytes] = []
            following: list[Effect] = []
            for effect in effects:
                match effect:
                    case Send(datagram, destination):
                        assert destination == THERE
                        answers += authority.receive(outward(datagram))
                    case Sign(_, request):
                        signature = me.sign(request.data, request.context)
                        following += newcomer.signed(signature, authority.clock)
                    case Opened():
                        return effect
            for answer in answers:
                following += newcomer.receive(inward(answer), authority.clock)
            effects = following
        authority.clock = max(authority.clock + 0.01, min(newcomer.deadline, end))
        authority.links.tick(authority.clock)
    return None


def test_a_member_that_a_pact_names_may_also_enrol(authority: Authority) -> None:
    """A gateway of another mesh asks for the other half of a pact as a newcomer, and may be a member that the
    pact is for."""
    me, invite = identity("me"), authority.invite()
    authority.links.set_pacts([(Secret(b"p" * 32), frozenset({me.node_id}))])
    assert enrol(authority, make_newcomer(invite, me), me) is not None


def test_both_ends_open_the_same_session(authority: Authority) -> None:
    me, invite = identity("me"), authority.invite()
    mine = enrol(authority, make_newcomer(invite, me), me)
    (theirs,) = authority.opened
    assert mine is not None
    assert (mine.peer, theirs.peer) == (authority.identity.node_id, me.node_id)
    assert (mine.key_out, mine.key_in) == (theirs.key_in, theirs.key_out)
    assert mine.key_out != mine.key_in
    assert mine.session == theirs.session
    assert (theirs.invite, theirs.spki) == (invite.invite_id, me.spki)
    assert mine.invite == b""
    assert authority.links.drops.total() == 0


def test_lost_datagrams_are_repeated(authority: Authority) -> None:
    me = identity("me")
    newcomer, seen = make_newcomer(authority.invite(), me), 0

    def every_third(datagram: bytes) -> bytes:
        nonlocal seen
        seen += 1
        return b"" if seen % 3 == 0 else datagram

    assert enrol(authority, newcomer, me, outward=every_third) is not None


@pytest.mark.parametrize(
    ("wrong", "reached", "reason"),
    [
        ({"secret": Secret(b"x" * 32)}, Stage.INIT, "invite-proof"),
        ({"invite_id": b"x" * 16}, Stage.INIT, "invite"),
        ({"root_hash": b"x" * 32}, Stage.COOKIE, "mac"),
        ({"authority": identity("other").node_id}, Stage.COOKIE, "mac"),
    ],
    ids=["secret", "invite", "mesh", "authority"],
)
def test_a_wrong_invite_gets_no_further(
    authority: Authority, wrong: dict[str, object], reached: Stage, reason: str
) -> None:
    me = identity("me")
    newcomer = make_newcomer(replace(authority.invite(), **wrong), me)  # type: ignore[arg-type]
    assert enrol(authority, newcomer, me) is None
    assert newcomer.failed
    assert newcomer.reached is reached
    assert set(authority.links.drops) == {reason}
    assert authority.opened == []


def test_a_used_invite_is_only_for_the_node_that_used_it(authority: Authority) -> None:
    me, other, invite = identity("me"), identity("other"), authority.invite()
    authority.book.consume(invite.invite_id, me.node_id, NOW)
    late = make_newcomer(invite, other)
    assert enrol(authority, late, other) is None
    assert late.reached is Stage.INIT
    assert enrol(authority, make_newcomer(invite, me, authority.clock), me) is not None


def test_an_expired_invite_gets_no_further(authority: Authority) -> None:
    me, invite = identity("me"), authority.invite()
    authority.clock = 61.0
    newcomer = make_newcomer(invite, me, 61.0)
    assert enrol(authority, newcomer, me) is None
    assert set(authority.links.drops) == {"invite"}


def test_another_machines_key_is_not_enrolled(authority: Authority) -> None:
    """A machine that knows the invite still has to sign with the key that the node id is made of."""
    me, other = identity("me"), identity("other")
    newcomer = make_newcomer(authority.invite(), me)
    assert enrol(authority, newcomer, other) is None
    assert authority.opened == []
    assert authority.links.drops["signature"] > 0


@pytest.mark.parametrize("claims", [True, False], ids=["claims-the-id", "honest"])
def test_an_impostor_with_the_invite_is_not_taken_for_the_authority(
    authority: Authority, claims: bool
) -> None:
    """It cannot sign for the authority's id, and its own is not the one that the invite names."""
    me, invite = identity("me"), authority.invite()
    impostor = Authority(identity("impostor"), authority.book)
    context = impostor.links._context
    context.node_id = invite.authority
    context.__post_init__()  # so that it can check what was meant for the authority
    context.node_id = invite.authority if claims else impostor.identity.node_id
    newcomer = make_newcomer(invite, me)
    assert enrol(impostor, newcomer, me) is None
    assert newcomer.drops.total() > 0
    assert impostor.opened == []


def test_without_an_authority_there_is_no_answer(authority: Authority) -> None:
    me, invite = identity("me"), authority.invite()
    authority.links = Links(
        node_id=authority.identity.node_id, wg_keys=[bytes(32)] * 7, admission=Secret(b"m" * 32),
        kem=CryptographyKem(), random=os.urandom, now=0.0,
    )  # fmt: skip
    newcomer = make_newcomer(invite, me)
    assert enrol(authority, newcomer, me) is None
    assert newcomer.reached is Stage.COOKIE


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_datagrams_open_nothing_and_raise_nothing(authority: Authority, data: st.DataObject) -> None:
    me = identity("me")
    authority.links = Authority(authority.identity, authority.book).links
    authority.clock, authority.opened = 0.0, []
    newcomer = make_newcomer(authority.invite(), me)
    outward = data.draw(st.booleans())
    place, flip = data.draw(st.floats(0, 1, exclude_max=True)), data.draw(st.integers(1, 255))

    def spoil(datagram: bytes) -> bytes:
        spoilt = bytearray(datagram)
        spoilt[int(place * len(spoilt))] ^= flip
        return bytes(spoilt)

    changes: dict[str, Change] = {"outward" if outward else "inward": spoil}
    assert enrol(authority, newcomer, me, **changes) is None  # type: ignore[arg-type]
    assert authority.opened == []


@pytest.mark.parametrize("kind", [Kind.RESP, Kind.ACK])
@pytest.mark.parametrize("offset", [-1, -17], ids=["cookie-mac", "first-mac"])
def test_a_fragment_with_a_wrong_mac_is_dropped(authority: Authority, kind: Kind, offset: int) -> None:
    me = identity("me")
    newcomer = make_newcomer(authority.invite(), me)

    def spoil(datagram: bytes) -> bytes:
        spoilt = bytearray(datagram)
        spoilt[offset] ^= datagram[1] == kind
        return bytes(spoilt)

    assert enrol(authority, newcomer, me, inward=spoil) is None
    assert newcomer.drops["unexpected"] > 0


@given(st.binary(max_size=1300))
def test_junk_raises_nothing(junk: bytes) -> None:
    invite = Invite(ROOT_HASH, b"i" * 16, Secret(b"s" * 32), identity("authority").node_id, "pm", 0, "x", ())  # type: ignore[arg-type]
    newcomer = make_newcomer(invite, identity("me"))
    newcomer.tick(0.0)
    assert newcomer.receive(junk, 0.1) == []
    assert newcomer.drops.total() == 1
