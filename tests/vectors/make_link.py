# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.vectors.make_link``: write link.json, the test vectors of the link handshake.

Everything comes from one seed but ML-KEM's encapsulation and ML-DSA's signing, whose randomness the library
draws itself: a new file differs in those, and in all that follows from them.
"""

from __future__ import annotations

import json
import random
from hashlib import sha3_256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from phantommesh.dimensions import DIMENSIONS
from phantommesh.kem import CryptographyKem
from phantommesh.link import keys, wire
from phantommesh.link.handshake import Initiator, Responder, prove
from phantommesh.link.wire import Kind, Mode
from phantommesh.secret import Secret
from phantommesh.trust.identity import Identity

FILE = Path(__file__).with_name("link.json")


class Recorder:
    """A source of bytes from a seed, which remembers what it gave."""

    def __init__(self, seed: int) -> None:
        self._rng, self.given = random.Random(seed), list[bytes]()

    def __call__(self, size: int) -> bytes:
        self.given.append(self._rng.randbytes(size))
        return self.given[-1]


def handshake(
    mode: Mode, seed: int, epoch: int, chain: tuple[bytes, bytes], offered: bytes, invite: Secret | None
) -> tuple[dict[str, Any], keys.SessionKeys]:
    """Run one handshake; return all that went into it and came out."""
    rng = random.Random(seed)
    seed_i, seed_r, admission, root_hash = (rng.randbytes(32) for _ in range(4))
    cookie, shared = rng.randbytes(16), rng.randbytes(32)
    end_i, end_r = Identity.from_seed(seed_i), Identity.from_seed(seed_r)
    wg_i, wg_r = ([rng.randbytes(32) for _ in range(DIMENSIONS)] for _ in "ir")
    enrol = mode is Mode.ENROL
    interface_hash = bytes(32) if enrol else keys.interface_hash(wg_i, wg_r)
    if enrol:
        mac_r, mac_i = (keys.enrol_mac_key(root_hash, e.node_id) for e in (end_r, end_i))
    else:
        mac_r, mac_i = (keys.member_mac_key(Secret(admission), e.node_id) for e in (end_r, end_i))
    random_i, random_r = Recorder(seed + 1), Recorder(seed + 2)
    if invite is None:
        proof_key = keys.pair_proof_key(shared, end_i.node_id, end_r.node_id)
    else:
        proof_key = keys.invite_proof_key(invite)
    initiator = Initiator(
        kem=CryptographyKem(),
        random=random_i,
        mode=mode,
        node_id=end_i.node_id,
        epoch=epoch,
        credential=offered,
        interface_hash=interface_hash,
        bitmap=0 if enrol else 0x7F,
    )
    chain_id, chain_key = chain
    init = prove(initiator.init, proof_key, 0 if enrol else seed % DIMENSIONS, cookie)
    responder = Responder(
        init,
        kem=CryptographyKem(),
        random=random_r,
        node_id=end_r.node_id,
        epoch=epoch,
        chain_id=chain_id,
        chain_key=chain_key,
        interface_hash=interface_hash,
    )
    request = responder.signing_request()
    resp = responder.resp(end_r.sign(request.data, request.context), end_r.spki if enrol else b"")
    _, request = initiator.on_resp(resp, chain_key, lambda *_: end_r.public_key)
    auth = initiator.auth(end_i.sign(request.data, request.context), end_i.spki if enrol else b"")
    responder.on_auth(auth, lambda *_: end_i.public_key)
    session = responder.session
    assert session is not None and session == initiator.session
    ack = responder.ack(0x7F, cookie)

    ss_pq = CryptographyKem().keypair(random_i.given[0])[1].decapsulate(resp.ct)
    public = keys.init_transcript(initiator.init)
    digest_public = public.add(resp.encode_public())
    digest = public.add(resp.sealed)
    ss_x = x25519(random_r.given[0], initiator.init.share)
    combined = keys.combine(ss_pq, ss_x, resp.ct, resp.share, initiator.init.ek, initiator.init.share)
    inner = keys.handshake_keys(chain_key, combined, digest_public)
    back = wire.return_cookie(initiator.init.nonce)
    messages = [
        (Kind.INIT, init.session, init.encode(), mac_r, cookie),
        (Kind.RESP, initiator.init.session, resp.encode(), mac_i, back),
        (Kind.AUTH, resp.own, auth.encode(), mac_r, cookie),
        (Kind.ACK, initiator.init.session, ack, mac_i, back),
    ]
    psks = [] if enrol else [p.reveal() for p in keys.preshared_keys(session.wg_root, wg_i, wg_r, epoch)]
    case = {
        "mode": mode.name,
        "epoch": epoch,
        "admission": admission,
        "root_hash": root_hash,
        "cookie": cookie,
        "invite_secret": invite.reveal() if invite else b"",
        "chain_id": chain_id,
        "chain_key": chain_key,
        "initiator": {
            "identity_seed": seed_i,
            "node_id": end_i.node_id,
            "wg_keys": wg_i,
            "random": random_i.given,
        },
        "responder": {
            "identity_seed": seed_r,
            "node_id": end_r.node_id,
            "wg_keys": wg_r,
            "random": random_r.given,
        },
        "interface_hash": interface_hash,
        "pair_x25519": b"" if enrol else shared,
        "dimension": init.dimension,
        "proof_key": proof_key,
        "proof": init.proof,
        "credential": initiator.init.credential,
        "messages": {kind.name: body for kind, _, body, _, _ in messages},
        "datagrams_sha3_256": {
            kind.name: [
                sha3_256(f.encode(key, with_cookie)).digest() for f in wire.fragments(kind, mode, name, body)
            ]
            for kind, name, body, key, with_cookie in messages
        },
        "ss_pq": ss_pq,
        "ss_x": ss_x,
        "combined": combined,
        "transcript_public": digest_public,
        "transcript": digest,
        "root": inner.root,
        "seal_r": inner.seal_r,
        "seal_i": inner.seal_i,
        "confirm_r": inner.confirm_r,
        "confirm_i": inner.confirm_i,
        "next_chain_key": session.chain_key.reveal(),
        "next_chain_id": session.chain_id,
        "wg_root": session.wg_root.reveal(),
        "ack_key": session.ack.reveal(),
        "channel_i": session.channel_i.reveal(),
        "channel_r": session.channel_r.reveal(),
        "psks": psks,
    }
    return case, session


def x25519(private: bytes, share: bytes) -> bytes:
    """X25519 (RFC 7748)."""
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(share))


def cases() -> list[dict[str, Any]]:
    """A first handshake, a rekey that builds on it, and an enrolment."""
    none = (wire.NO_CHAIN, keys.FIRST_CHAIN)
    first, session = handshake(Mode.MEMBER, 100, 1, none, bytes(32), None)
    chain = (session.chain_id, session.chain_key.reveal())
    rekey, _ = handshake(Mode.MEMBER, 200, 2, chain, session.chain_id + wire.NO_CHAIN, None)
    secret = Secret(random.Random(300).randbytes(32))
    invite = random.Random(301).randbytes(16) + bytes(16)
    enrol, _ = handshake(Mode.ENROL, 302, 1, (wire.NO_CHAIN, keys.invite_chain(secret)), invite, secret)
    return [{"name": n, **c} for n, c in (("first", first), ("rekey", rekey), ("enrolment", enrol))]


def as_hex(value: Any) -> Any:
    """Bytes -> hexadecimal text, all the way down."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: as_hex(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_hex(item) for item in value]
    return value


def main() -> None:
    """Write the file."""
    document = {"protocol": "PhantomMesh link 1, suite 1", "cases": [as_hex(case) for case in cases()]}
    FILE.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
