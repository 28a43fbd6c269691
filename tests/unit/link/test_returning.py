# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be used up by those who say that they are members whose certificates ran out. Anybody who knows
the mesh can say so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from phantommesh.endpoint import Address
from phantommesh.kem import CryptographyKem
from phantommesh.link import keys, wire
from phantommesh.link.admission import SHARES, Standing
from phantommesh.link.effects import Enrolment, Send
from phantommesh.link.handshake import Initiator, prove
from phantommesh.link.machine import Links
from phantommesh.link.wire import Kind, Mode
from phantommesh.secret import Secret
from tests.simulation.pair import ADMISSION, identities

ME, AWAY = identities(2)
ROOT_HASH = b"r" * 32
HERE = Address("192.0.2.7", 51800)
OTHERS = [i.to_bytes(16) for i in range(200)]
SHARE = SHARES[Standing.RETURNING]


class Counting(CryptographyKem):
    """Counts what a budget is kept for."""

    def __init__(self) -> None:
        self.encapsulated = 0

    def encapsulate(self, ek: bytes) -> tuple[bytes, bytes]:
        self.encapsulated += 1
        return super().encapsulate(ek)


class Authority:
    """An authority whose roster names these members, one of them with an address."""

    def __init__(self, at: Address | None = None) -> None:
        self.kem, self.at = Counting(), at
        self.links = Links(
            node_id=ME.node_id, wg_keys=[bytes([i]) * 32 for i in range(7)], admission=ADMISSION,
            kem=self.kem, now=0.0, random=os.urandom,
            enrolment=Enrolment(ROOT_HASH, ME.spki, self.find, self.where),
        )  # fmt: skip
        self.template = Initiator(
            kem=CryptographyKem(), random=os.urandom, mode=Mode.ENROL, node_id=AWAY.node_id, epoch=1,
            interface_hash=bytes(32), credential=keys.RETURNING + bytes(16), bitmap=0,
        ).init  # fmt: skip

    def find(self, invite: bytes, node_id: bytes) -> Secret | None:
        known = invite == keys.RETURNING and node_id in {AWAY.node_id, *OTHERS}
        return keys.returning_secret(ROOT_HASH, ME.node_id, node_id) if known else None

    def where(self, node_id: bytes) -> Sequence[Address]:
        return () if self.at is None or node_id != AWAY.node_id else (self.at,)

    def come(self, node_id: bytes, source: Address, now: float) -> Standing | None:
        """Return the standing of an INIT in this name; None where it is dropped."""
        mac = keys.enrol_mac_key(ROOT_HASH, ME.node_id)
        (reply,) = self.links.receive(
            wire.CookieRequest(Mode.ENROL, os.urandom(8), node_id).encode(mac), source, now
        )
        assert isinstance(reply, Send)
        got = wire.decode_untrusted(reply.datagram)
        assert isinstance(got, wire.CookieReply)
        secret = keys.returning_secret(ROOT_HASH, ME.node_id, node_id)
        init = replace(self.template, node_id=node_id, session=os.urandom(8), nonce=os.urandom(32))
        init = prove(init, keys.invite_proof_key(secret), 0, got.cookie)
        for fragment in wire.fragments(Kind.INIT, Mode.ENROL, init.session, init.encode()):
            self.links.receive(fragment.encode(mac, got.cookie), source, now)
        response = self.links._answerer.responses.by_initiator(source, init.session)
        return None if response is None else response.standing

    def flood(self, names: Sequence[bytes], seconds: float, rate: int) -> None:
        """Many addresses claim these names."""
        for i in range(int(seconds * rate)):
            source = Address(f"2001:db8:0:{i % 250:x}::1", 4000)
            self.come(names[i % len(names)], source, i / rate)


def test_who_claims_one_member_keeps_no_other_out() -> None:
    authority = Authority()
    authority.flood([OTHERS[0]], 10.0, 50)
    assert authority.kem.encapsulated <= SHARE.burst + 10 * SHARE.rate + 1
    assert authority.come(OTHERS[0], HERE, 10.0) is None
    assert authority.come(AWAY.node_id, HERE, 10.0) is Standing.RETURNING


def test_who_claims_all_members_keeps_out_none_that_comes_from_home() -> None:
    authority = Authority(HERE._replace(port=9))
    authority.flood([AWAY.node_id, *OTHERS[:100]], 10.0, 100)
    assert SHARE.in_all is not None
    assert 10 * SHARE.in_all <= authority.kem.encapsulated <= 12 * SHARE.in_all + 1
    assert authority.links.held[1] <= SHARE.places
    assert authority.come(AWAY.node_id, HERE._replace(host="192.0.2.8"), 9.99) is None
    assert authority.come(AWAY.node_id, HERE, 9.99) is Standing.RETURNING_HOME


def test_what_members_have_each_grows_with_the_roster_alone() -> None:
    authority = Authority()
    authority.flood(OTHERS, 10.0, 100)
    authority.flood([b"no member" + i.to_bytes(7) for i in range(50)], 1.0, 50)
    assert authority.links.drops["invite"] == 50
    assert len(authority.links._answerer._budgets[Standing.RETURNING]) == len(OTHERS)
