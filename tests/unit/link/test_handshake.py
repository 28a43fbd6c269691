# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from phantommesh.errors import DecodeError
from phantommesh.kem import CryptographyKem
from phantommesh.link import keys, wire
from phantommesh.link.handshake import HandshakeError, Initiator, Responder, pick_chain, prove, proven
from phantommesh.link.wire import Mode
from phantommesh.secret import Secret
from phantommesh.trust.identity import Identity

ALICE, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)
HASH = b"h" * 32


def verify_with(identity: Identity) -> Any:
    def verifier(node_id: bytes, _: bytes) -> MLDSA65PublicKey:
        if node_id != identity.node_id:
            raise HandshakeError("identity")
        return identity.public_key

    return verifier


@dataclass
class Run:
    """One handshake, whose messages a test may change on their way."""

    seed: int = 1
    chain_i: bytes = keys.FIRST_CHAIN
    chain_r: bytes = keys.FIRST_CHAIN
    epoch: int = 3
    initiator: Initiator = None  # type: ignore[assignment]
    responder: Responder = None  # type: ignore[assignment]

    def init(self) -> wire.Init:
        rng = random.Random(self.seed)
        self.rng = rng
        self.initiator = Initiator(
            kem=CryptographyKem(), random=rng.randbytes, mode=Mode.MEMBER, node_id=ALICE.node_id, epoch=2,
            credential=bytes(32), interface_hash=HASH,
        )  # fmt: skip
        return self.initiator.init

    def resp(self, init: wire.Init, signer: Identity = BOB) -> wire.Resp:
        self.responder = Responder(
            init, kem=CryptographyKem(), random=self.rng.randbytes, node_id=BOB.node_id, epoch=self.epoch,
            chain_id=wire.NO_CHAIN, chain_key=self.chain_r, interface_hash=HASH,
        )  # fmt: skip
        request = self.responder.signing_request()
        return self.responder.resp(signer.sign(request.data, request.context))

    def auth(self, resp: wire.Resp, signer: Identity = ALICE, context: bytes | None = None) -> wire.Auth:
        _, request = self.initiator.on_resp(resp, self.chain_i, verify_with(BOB))
        return self.initiator.auth(signer.sign(request.data, context or request.context))

    def finish(self, auth: wire.Auth) -> None:
        self.responder.on_auth(auth, verify_with(ALICE))


def test_both_ends_come_to_the_same_keys() -> None:
    run = Run()
    run.finish(run.auth(run.resp(run.init())))
    assert run.initiator.session == run.responder.session
    assert run.initiator.session is not None
    ack = run.responder.ack(0x7F, b"c" * 16)
    assert run.initiator.on_ack(ack) == wire.Ack(3, 0x7F, b"c" * 16)


def flips(body: bytes, step: int) -> list[bytes]:
    """The body with one bit flipped, at every ``step``-th byte and at the first and last 70."""
    places = sorted({*range(0, len(body), step), *range(70), *range(len(body) - 70, len(body))})
    return [body[:i] + bytes([body[i] ^ 1 << (i % 8)]) + body[i + 1 :] for i in places]


def test_a_flipped_bit_anywhere_in_init_ends_the_handshake() -> None:
    """But in what follows the part that the keys are bound to: a responder judges that before it computes."""
    run = Run()
    body, claim = run.init().encode_public(), run.init().encode()[wire.INIT_FIXED_SIZE :]
    for changed in [flipped + claim for flipped in flips(body, 97)]:
        run.init()
        try:
            init = wire.decode_init_untrusted(changed, Mode.MEMBER)
            resp = run.resp(init)
        except (DecodeError, HandshakeError):
            continue
        with pytest.raises(HandshakeError):
            run.auth(resp)


def test_a_flipped_bit_anywhere_in_resp_ends_the_handshake_and_the_true_one_still_works() -> None:
    run = Run()
    true = run.resp(run.init())
    body = true.encode()
    for changed in flips(body, 61):
        try:
            resp = wire.decode_resp_untrusted(changed)
        except DecodeError:
            continue
        with pytest.raises(HandshakeError):
            run.initiator.on_resp(resp, run.chain_i, verify_with(BOB))
        assert run.initiator.session is None
    run.finish(run.auth(true))
    assert run.initiator.session == run.responder.session


def test_a_flipped_bit_anywhere_in_auth_ends_the_handshake_and_the_true_one_still_works() -> None:
    run = Run()
    true = run.auth(run.resp(run.init()))
    for changed in flips(true.sealed, 61):
        with pytest.raises(HandshakeError, match="aead"):
            run.responder.on_auth(replace(true, sealed=changed), verify_with(ALICE))
    run.finish(true)


def test_a_flipped_bit_anywhere_in_ack_is_refused() -> None:
    run = Run()
    run.finish(run.auth(run.resp(run.init())))
    body = run.responder.ack(0x7F, b"c" * 16)
    for i in range(len(body)):
        with pytest.raises(HandshakeError, match="ack"):
            run.initiator.on_ack(body[:i] + bytes([body[i] ^ 0x10]) + body[i + 1 :])
    with pytest.raises(HandshakeError, match="ack"):
        run.initiator.on_ack(b"")


def test_an_ack_of_another_epoch_is_refused() -> None:
    run = Run()
    run.finish(run.auth(run.resp(run.init())))
    run.responder.epoch = 9
    with pytest.raises(HandshakeError, match="ack"):
        run.initiator.on_ack(run.responder.ack(0x7F, b"c" * 16))


def test_another_chain_key_fails_at_the_first_sealed_message() -> None:
    run = Run(chain_i=b"1" * 64, chain_r=b"2" * 64)
    resp = run.resp(run.init())
    with pytest.raises(HandshakeError, match="aead"):
        run.auth(resp)


def test_a_signature_by_another_key_is_refused() -> None:
    run = Run()
    with pytest.raises(HandshakeError, match="signature"):
        run.auth(run.resp(run.init(), signer=ALICE))
    run = Run()
    auth = run.auth(run.resp(run.init()), signer=BOB)
    with pytest.raises(HandshakeError, match="signature"):
        run.finish(auth)


def test_a_signature_for_the_other_role_is_refused() -> None:
    run = Run()
    auth = run.auth(run.resp(run.init()), context=keys.RESPONDER_CONTEXT)
    with pytest.raises(HandshakeError, match="signature"):
        run.finish(auth)


def test_confirmation_is_mandatory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A right signature with a wrong key confirmation is not enough."""
    real = keys.confirmation
    run = Run()
    monkeypatch.setattr(keys, "confirmation", lambda *a: bytes(32))
    forged = run.auth(run.resp(run.init()))
    monkeypatch.setattr(keys, "confirmation", real)
    with pytest.raises(HandshakeError, match="confirmation"):
        run.responder.on_auth(forged, verify_with(ALICE))


def test_what_resp_says_of_interfaces_cannot_be_changed_and_its_epoch_must_fit() -> None:
    run = Run()
    resp = run.resp(run.init())
    with pytest.raises(HandshakeError, match="aead"):
        run.initiator.on_resp(replace(resp, interface_hash=b"i" * 32), run.chain_i, verify_with(BOB))
    with pytest.raises(HandshakeError, match="epoch"):
        run.initiator.on_resp(replace(resp, epoch=1), run.chain_i, verify_with(BOB))


def test_a_share_of_low_order_and_a_bad_encapsulation_key_are_refused() -> None:
    run = Run()
    init = run.init()
    with pytest.raises(HandshakeError, match="x25519"):
        run.resp(replace(init, share=bytes(32)))
    with pytest.raises(HandshakeError, match="encapsulation key"):
        run.resp(replace(init, ek=b"\xff" * 1568))


def test_the_newest_common_chain_is_picked() -> None:
    held = [(b"3" * 16, b"c"), (b"2" * 16, b"b"), (b"1" * 16, b"a")]
    assert pick_chain((b"1" * 16, b"2" * 16), held) == (b"2" * 16, b"b")
    assert pick_chain((wire.NO_CHAIN, b"1" * 16), held) == (b"1" * 16, b"a")
    assert pick_chain((b"8" * 16, b"9" * 16), held) == (wire.NO_CHAIN, keys.FIRST_CHAIN)
    assert pick_chain((wire.NO_CHAIN, wire.NO_CHAIN), []) == (wire.NO_CHAIN, keys.FIRST_CHAIN)


def test_a_proof_covers_the_whole_init_and_the_cookie() -> None:
    rng = random.Random(5)
    key, cookie = keys.invite_proof_key(Secret(b"s" * 32)), b"c" * 16
    init = Initiator(
        kem=CryptographyKem(), random=rng.randbytes, mode=Mode.ENROL, node_id=ALICE.node_id, epoch=1,
        credential=b"v" * 16 + bytes(16), interface_hash=bytes(32), bitmap=0,
    ).init  # fmt: skip
    assert not proven(init, key, [cookie])
    init = prove(init, key, 0, cookie)
    assert proven(init, key, [cookie]) and proven(init, key, [b"d" * 16, cookie])
    assert not proven(init, key, []) and not proven(init, key, [b"d" * 16])
    assert not proven(init, keys.invite_proof_key(Secret(b"t" * 32)), [cookie])
    changes: list[dict[str, Any]] = [{"nonce": b"z" * 32}, {"share": b"z" * 32}, {"epoch": 2}]
    changes += [{"ek": bytes(1568)}, {"dimension": 1}, {"node_id": b"z" * 16}]
    for change in [*changes, {"mode": Mode.MEMBER}, {"session": b"z" * 8}]:
        assert not proven(replace(init, **change), key, [cookie])
    # The keys of the handshake are bound to all of INIT but this, as it changes with the cookie.
    again = prove(init, key, 0, b"e" * 16)
    assert keys.init_transcript(init).add(b"") == keys.init_transcript(again).add(b"")
