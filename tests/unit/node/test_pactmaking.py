# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator says of a pact, and the lines that an authority has given out."""

from __future__ import annotations

import msgspec
import pytest

from phantommesh.control.pactmessages import MakePact
from phantommesh.node.pactmaking import (
    MAX_DRAFTS,
    Draft,
    Drafts,
    Offer,
    decode_kept,
    encode_kept,
    networks_of,
    ports_of,
    service_of,
    who,
)
from phantommesh.secret import Secret
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.federation import Gateway, Ports, Service, Terms, by_id, lock_of, sign
from phantommesh.trust.identity import format_node_id
from phantommesh.trust.pacts import Bundle
from tests.support.makemesh import NOW, identity, make_mesh

HERE, THERE, THIRD = make_mesh("here"), make_mesh("there"), make_mesh("third")
ID = identity("one").node_id
OFFER = Offer(("db",), (Gateway(ID, ("192.0.2.1:51800",)),), (), 86_400)
DRAFT = Draft(bytes(range(16)), bytes(32), OFFER, int(NOW) + 60)
SECRET = Secret(bytes(range(32)))


def answer(mesh: object = THERE, **change: object) -> MakePact:
    assert isinstance(mesh, type(THERE))
    terms = Terms.make(
        DRAFT.pact, mesh.mesh.root_hash, HERE.mesh.root_hash, members=("web",), gateways=OFFER.gateways,
        lock=lock_of(SECRET), now=NOW,
    )  # fmt: skip
    half = sign(mesh.authority, msgspec.structs.replace(terms, **change))
    return MakePact(mesh.root_der, half.encode(), SECRET.reveal())


def test_an_operator_names_services_and_members() -> None:
    assert service_of("db:tcp/5432,udp/50-60:web,app") == Service(
        "db", (Ports("tcp", 5432, 5432), Ports("udp", 50, 60)), ("web", "app")
    )
    assert who(format_node_id(ID)) == by_id(ID) and who("db") == "db"
    for wrong in ("db", "db:tcp/1", ":tcp/1:web", "db::web", "db:tcp/1:", "db:sctp/1:web", "db:tcp/0:web"):
        with pytest.raises(TrustError, match="is not usable"):
            service_of(wrong)
    for wrong in ("tcp", "tcp/", "tcp/65536", "tcp/1-", "tcp/a"):
        if wrong != "tcp/1-":
            with pytest.raises(TrustError, match="is not usable"):
                ports_of(wrong)


def test_a_line_is_answered_by_one_mesh() -> None:
    drafts = Drafts()
    drafts.add(DRAFT, NOW)
    came = drafts.check(DRAFT, answer(), HERE.mesh.root_hash, NOW)
    assert came.root_hash == THERE.mesh.root_hash and came.secret == SECRET
    drafts.note(DRAFT.pact, came.root_hash)
    (noted,) = drafts
    drafts.check(noted, answer(), HERE.mesh.root_hash, NOW)  # our answer to it was lost
    with pytest.raises(TrustError, match="another mesh has answered"):
        drafts.check(noted, answer(THIRD), HERE.mesh.root_hash, NOW)
    for wrong in (
        answer(pact=bytes(16)), answer(other=THIRD.mesh.root_hash), answer(lock=bytes(32)),
        msgspec.structs.replace(answer(), root=THIRD.root_der),
        msgspec.structs.replace(answer(), half=b"junk"),
        msgspec.structs.replace(answer(), secret=bytes(32)),
    ):  # fmt: skip
        with pytest.raises(TrustError):
            drafts.check(noted, wrong, HERE.mesh.root_hash, NOW)


def test_lines_expire_and_are_bounded() -> None:
    drafts = Drafts()
    for number in range(MAX_DRAFTS):
        drafts.add(msgspec.structs.replace(DRAFT, pact=bytes([number]) * 16), NOW)
    with pytest.raises(TrustError, match="are given out"):
        drafts.add(DRAFT, NOW)
    assert drafts.get(bytes(16), NOW) is not None and drafts.get(bytes(16), NOW + 60) is None
    drafts.add(DRAFT, NOW + 60)
    assert len(list(drafts)) == 1


def test_the_networks_of_other_meshes_are_read_of_what_is_kept() -> None:
    bundles = [Bundle(b"", root, b"", b"").encode() for root in (THERE.root_der, b"", THERE.root_der)]
    assert networks_of(encode_kept(bundles, [])) == (THERE.mesh.network6,)
    for junk in ([b"junk"], [Bundle(b"", b"junk", b"", b"").encode()]):
        with pytest.raises(TrustError):
            networks_of(encode_kept(junk, []))


def test_what_is_kept_is_read_again_and_damage_is_one_error() -> None:
    assert decode_kept(encode_kept([b"bundle"], [DRAFT])) == ((b"bundle",), (DRAFT,))
    for junk in (b"", b"\x92\x90", b"\xff" * 9):
        with pytest.raises(TrustError):
            decode_kept(junk)
