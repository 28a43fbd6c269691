# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.endpoint import MAX_DATAGRAM
from phantommesh.gossip.envelope import MAX_PAYLOAD, OVERHEAD, Envelope, EnvelopeError, Opened
from phantommesh.trust.groupkey import Keyring, make_group_key
from phantommesh.trust.identity import NodeId
from phantommesh.trust.revocation import revoke
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import NOW, identity, make_mesh

MESH = make_mesh()
ALPHA, BETA, GAMMA = (identity(name).node_id for name in ("alpha", "beta", "gamma"))
KEY = make_group_key(MESH.authority, 1, Revocations(MESH.root), NOW)
NEXT = make_group_key(MESH.authority, 2, Revocations(MESH.root), NOW)


def envelope(
    node_id: NodeId = BETA, *, start: int = 1, keys: Keyring | None = None, revoked: Revocations | None = None
) -> Envelope:
    if keys is None:
        keys = Keyring()
        keys.install(KEY, 0.0)
    known = Revocations(MESH.root) if revoked is None else revoked
    return Envelope(
        node_id,
        keys,
        start=start,
        revoked=known,
        digest=lambda: known.digest()[:8],
    )


def refused(receiver: Envelope, datagram: bytes) -> str:
    before = receiver.drops.total()
    with pytest.raises(EnvelopeError) as caught:
        receiver.open(datagram)
    assert receiver.drops.total() == before + 1
    assert receiver.drops[caught.value.reason]
    return caught.value.reason


def test_a_datagram_round_trips_and_fits() -> None:
    assert OVERHEAD <= 64
    payload = bytes(MAX_PAYLOAD)
    sealed = envelope(ALPHA).seal(7, payload)
    assert len(sealed) == MAX_DATAGRAM
    digest = Revocations(MESH.root).digest()[:8]
    assert envelope().open(sealed) == Opened(7, ALPHA, digest, KEY.id, payload)


def test_what_cannot_be_sealed() -> None:
    with pytest.raises(ValueError, match="too long"):
        envelope().seal(1, bytes(MAX_PAYLOAD + 1))
    keyless = envelope(keys=Keyring())
    assert not keyless.ready
    with pytest.raises(ValueError, match="no group key"):
        keyless.seal(1, b"")
    with pytest.raises(ValueError, match="32 bits"):
        envelope(start=2**32)


def test_every_bit_counts() -> None:
    sealed = envelope(ALPHA).seal(1, b"payload")
    receiver = envelope()
    for i in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[i // 8] ^= 1 << i % 8
        assert refused(receiver, bytes(changed)) in {"gossip-malformed", "gossip-key", "gossip-seal"}
    for i in range(len(sealed)):
        assert refused(receiver, sealed[:i]) in {"gossip-malformed", "gossip-seal"}
    assert receiver.open(sealed).payload == b"payload"  # none of that used its number up


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=MAX_DATAGRAM + 20), st.booleans())
def test_junk_raises_one_error(junk: bytes, prefixed: bool) -> None:
    datagram = envelope(ALPHA).seal(1, b"")[:46] + junk if prefixed else junk
    refused(envelope(), datagram)


def test_an_outsider_costs_one_check_and_an_unknown_key_none(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = 0

    class Counting:
        def __init__(self, key: bytes) -> None:
            self._real = ChaCha20Poly1305(key)

        def decrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            nonlocal checks
            checks += 1
            return self._real.decrypt(nonce, data, associated)

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            return self._real.encrypt(nonce, data, associated)

    monkeypatch.setattr("phantommesh.gossip.envelope.ChaCha20Poly1305", Counting)
    sealed = envelope(ALPHA).seal(1, b"payload")
    receiver = envelope()
    assert refused(receiver, sealed[:-1] + b"x") == "gossip-seal"
    assert checks == 1
    foreign = Keyring()
    foreign.install(NEXT, 0.0)
    assert refused(receiver, envelope(ALPHA, keys=foreign).seal(1, b"")) == "gossip-key"
    assert checks == 1
    receiver.open(sealed)
    assert refused(receiver, sealed) == "gossip-replay"
    assert checks == 2  # a replay costs none
    assert len(receiver._ciphers) == 1


def test_a_strangers_junk_leaves_no_state() -> None:
    receiver = envelope()
    sealed = bytearray(envelope(ALPHA).seal(1, b""))
    for i in range(50):
        sealed[10] = i
        refused(receiver, bytes(sealed))
    assert len(receiver._ciphers) == 0


def test_ones_own_datagram_is_refused() -> None:
    assert refused(envelope(ALPHA), envelope(ALPHA).seal(1, b"")) == "gossip-own"


def test_a_revoked_sender_is_refused_under_the_old_key() -> None:
    revoked = Revocations(MESH.root)
    receiver = envelope(revoked=revoked)
    sender = envelope(ALPHA)
    receiver.open(sender.seal(1, b""))
    revoked.add(revoke(MESH.authority, ALPHA, NOW), NOW)
    assert refused(receiver, sender.seal(1, b"")) == "gossip-revoked"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=120))
def test_each_datagram_is_taken_once_in_any_order(order: list[int]) -> None:
    sender, receiver = envelope(ALPHA), envelope()
    datagrams = [sender.seal(1, bytes([i])) for i in range(41)]
    seen: set[int] = set()
    for i in order:
        if i in seen:
            assert refused(receiver, datagrams[i]) == "gossip-replay"
        else:
            assert receiver.open(datagrams[i]).payload == bytes([i])
            seen.add(i)


def test_a_member_cannot_shut_another_out_by_using_up_its_numbers() -> None:
    """BETA holds the group key and sends in ALPHA's name: the greatest number there is, and ALPHA's next."""
    forger, receiver, alpha = envelope(ALPHA), envelope(GAMMA), envelope(ALPHA)
    for _ in range(5):
        receiver.open(forger.seal(1, b"forged"))
    forger._start, forger._count = 2**32 - 1, 2**64 - 1
    receiver.open(forger.seal(1, b"forged"))
    for _ in range(5):
        assert receiver.open(alpha.seal(1, b"true")).payload == b"true"


def test_what_is_known_again_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.gossip.envelope.SEEN", 3)
    sender, receiver = envelope(ALPHA), envelope()
    datagrams = [sender.seal(1, bytes([i])) for i in range(10)]
    for datagram in datagrams:
        receiver.open(datagram)
    assert len(receiver._seen) == 3
    for datagram in datagrams:  # those before the latest, too
        assert refused(receiver, datagram) == "gossip-replay"
    assert len(receiver._older) == 1
    # New ones are new.
    assert [receiver.open(sender.seal(1, bytes([i]))).payload for i in range(100)] == [
        bytes([i]) for i in range(100)
    ]


def test_what_came_under_a_key_that_is_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.gossip.envelope.SEEN", 3)
    keyring = Keyring()
    keyring.install(KEY, 0.0)
    sender, receiver = envelope(ALPHA, keys=keyring), envelope(keys=keyring)
    for _ in range(10):
        receiver.open(sender.seal(1, b""))
    keyring.install(NEXT, 0.0)
    keyring.promote(NEXT.id, 0.0)
    keyring.retire(KEY.id)
    for _ in range(10):
        receiver.open(sender.seal(1, b""))
    assert list(receiver._older) == [NEXT.id]


def test_senders_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.gossip.envelope.MAX_SENDERS", 3)
    receiver = envelope()
    for i in range(10):
        receiver.open(envelope(NodeId(bytes(15) + bytes([i]))).seal(1, b""))
    assert len(receiver._ciphers) == 3


def test_a_revoked_node_cannot_read_what_is_sent_after_the_rotation() -> None:
    """It keeps its ring and gets no more keys; it may record everything."""
    rings = [Keyring() for _ in range(3)]
    for ring in rings:
        ring.install(KEY, 0.0)
    alpha, beta, gone = (envelope(n, keys=k) for n, k in zip((ALPHA, BETA, GAMMA), rings, strict=True))
    gone.open(alpha.seal(1, b"before"))
    for ring in rings[:2]:
        ring.install(NEXT, 0.0)
    gone.open(alpha.seal(1, b"not yet promoted"))
    for ring in rings[:2]:
        ring.tick(ring.deadline)
    after = alpha.seal(1, b"after")
    assert beta.open(after).payload == b"after"
    assert refused(gone, after) == "gossip-key"
    # with the header's key id put back to the one it holds
    assert refused(gone, after[:2] + KEY.id + after[10:]) == "gossip-seal"
    beta.open(gone.seal(1, b""))
    rings[1].tick(rings[1].deadline)
    assert refused(beta, gone.seal(1, b"")) == "gossip-key"
