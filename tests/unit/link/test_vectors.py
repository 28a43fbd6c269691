# SPDX-License-Identifier: GPL-3.0-or-later
"""The published vectors of the handshake, replayed from their secrets through the public functions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha3_256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from phantommesh.kem import CryptographyKem
from phantommesh.link import keys, wire
from phantommesh.link.handshake import Initiator, prove, proven
from phantommesh.link.wire import Kind, Mode
from phantommesh.secret import Secret
from phantommesh.trust.identity import Identity, node_id_of
from tests.vectors.make_link import cases, x25519

FILE = Path(__file__).parents[2] / "vectors" / "link.json"


def from_hex(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return bytes.fromhex(value)
        except ValueError:
            return value
    if isinstance(value, dict):
        return {key: from_hex(item) for key, item in value.items()}
    return [from_hex(item) for item in value] if isinstance(value, list) else value


def published() -> list[dict[str, Any]]:
    return [from_hex(case) for case in json.loads(FILE.read_text())["cases"]]


def replay(case: dict[str, Any]) -> None:
    mode = Mode[case["mode"]]
    one, two = case["initiator"], case["responder"]
    end_i, end_r = Identity.from_seed(one["identity_seed"]), Identity.from_seed(two["identity_seed"])
    assert (end_i.node_id, end_r.node_id) == (one["node_id"], two["node_id"])
    assert node_id_of(end_r.spki) == two["node_id"]
    if mode is Mode.MEMBER:
        assert case["interface_hash"] == keys.interface_hash(two["wg_keys"], one["wg_keys"])

    # INIT, byte for byte, from the recorded randomness.
    given: Iterator[bytes] = iter(one["random"])
    secret = Secret(case["invite_secret"]) if case["invite_secret"] else None
    initiator = Initiator(
        kem=CryptographyKem(), random=lambda size: next(given), mode=mode, node_id=end_i.node_id,
        epoch=case["epoch"], credential=case["credential"], interface_hash=case["interface_hash"],
        bitmap=0 if secret else 0x7F,
    )  # fmt: skip
    key = (
        keys.pair_proof_key(case["pair_x25519"], end_i.node_id, end_r.node_id)
        if secret is None
        else keys.invite_proof_key(secret)
    )
    assert key == case["proof_key"]
    init = prove(initiator.init, key, case["dimension"], case["cookie"])
    assert init.encode() == case["messages"]["INIT"] and init.proof == case["proof"]
    assert wire.decode_init_untrusted(case["messages"]["INIT"], mode) == init
    assert proven(init, key, [bytes(16), case["cookie"]])
    if secret is not None:
        assert case["chain_key"] == keys.invite_chain(secret)

    # The shared secrets and the schedule.
    resp = wire.decode_resp_untrusted(case["messages"]["RESP"])
    ek, decapsulator = CryptographyKem().keypair(one["random"][0])
    assert ek == init.ek and decapsulator.decapsulate(resp.ct) == case["ss_pq"]
    assert x25519(one["random"][1], resp.share) == case["ss_x"]
    assert x25519(two["random"][0], init.share) == case["ss_x"]
    combined = keys.combine(case["ss_pq"], case["ss_x"], resp.ct, resp.share, init.ek, init.share)
    assert combined == case["combined"]
    transcript = keys.init_transcript(init)
    assert transcript.add(resp.encode_public()) == case["transcript_public"]
    inner = keys.handshake_keys(case["chain_key"], combined, case["transcript_public"])
    for name in ("root", "seal_r", "seal_i", "confirm_r", "confirm_i"):
        assert getattr(inner, name) == case[name], name
    assert transcript.add(resp.sealed) == case["transcript"]
    session = keys.session_keys(inner.root, case["transcript"])
    for name in ("wg_root", "channel_i", "channel_r"):
        assert getattr(session, name).reveal() == case[name], name
    assert (session.chain_key.reveal(), session.chain_id) == (case["next_chain_key"], case["next_chain_id"])
    assert session.ack.reveal() == case["ack_key"]
    if mode is Mode.MEMBER:
        psks = keys.preshared_keys(session.wg_root, two["wg_keys"], one["wg_keys"], case["epoch"])
        assert [psk.reveal() for psk in psks] == case["psks"]

    # Both proofs, the way the other end checks them.
    def verifier(end: Identity) -> Any:
        def verify(node_id: bytes, credential: bytes) -> MLDSA65PublicKey:
            assert node_id == end.node_id and credential == (end.spki if secret else b"")
            return end.public_key

        return verify

    initiator.on_resp(resp, case["chain_key"], verifier(end_r))
    assert initiator.session == session
    auth = wire.decode_auth_untrusted(case["messages"]["AUTH"])
    assert auth.session == resp.own
    plain = ChaCha20Poly1305(case["seal_i"]).decrypt(bytes(12), auth.sealed, case["transcript"])
    proof = wire.decode_proof_untrusted(plain)
    assert proof.confirm == keys.confirmation(
        case["confirm_i"], case["transcript"], end_i.node_id, proof.signature
    )
    verifier(end_i)(proof.node_id, proof.credential).verify(
        proof.signature, case["transcript"] + end_i.node_id, keys.INITIATOR_CONTEXT
    )
    ack = initiator.on_ack(case["messages"]["ACK"])
    assert (ack.epoch, ack.cookie) == (case["epoch"], case["cookie"])

    # The datagrams, with both MACs.
    if mode is Mode.ENROL:
        to_r, to_i = (keys.enrol_mac_key(case["root_hash"], e.node_id) for e in (end_r, end_i))
    else:
        to_r, to_i = (keys.member_mac_key(Secret(case["admission"]), e.node_id) for e in (end_r, end_i))
    back = wire.return_cookie(init.nonce)
    ways = {
        "INIT": (to_r, case["cookie"]),
        "RESP": (to_i, back),
        "AUTH": (to_r, case["cookie"]),
        "ACK": (to_i, back),
    }
    for name, way in ways.items():
        session_id = resp.own if name == "AUTH" else init.session
        cut = wire.fragments(Kind[name], mode, session_id, case["messages"][name])
        assert [sha3_256(f.encode(*way)).digest() for f in cut] == case["datagrams_sha3_256"][name], name


@pytest.mark.parametrize("case", published(), ids=lambda case: str(case["name"]))
def test_published_vectors(case: dict[str, Any]) -> None:
    replay(case)


def test_the_second_vector_builds_on_the_first() -> None:
    first, rekey, _ = published()
    assert rekey["chain_id"] == first["next_chain_id"] and rekey["chain_key"] == first["next_chain_key"]


def test_vectors_made_now_pass_the_same_test() -> None:
    """So that the script which wrote the file does not rot."""
    for case in cases():
        replay(case)
