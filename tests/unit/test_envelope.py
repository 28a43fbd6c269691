# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.envelope import (
    MAX_ADDRESSES,
    MAX_PAYLOAD,
    OVERHEAD,
    WINDOW,
    Envelope,
    EnvelopeError,
    Opened,
)
from phantommesh.groupkey import Keyring, make_group_key
from phantommesh.identity import NodeId
from phantommesh.revocation import Revocations, revoke
from phantommesh.wire import MAX_DATAGRAM, Address
from tests.unit.makemesh import NOW, identity, make_mesh

MESH = make_mesh()
ALPHA, BETA, GAMMA = (identity(name).node_id for name in ("alpha", "beta", "gamma"))
HERE, THERE, ELSEWHERE = (Address(f"192.0.2.{i}", 51800, "udp") for i in (1, 2, 3))
KEY = make_group_key(MESH.authority, 1, Revocations(MESH.root), NOW)
NEXT = make_group_key(MESH.authority, 2, Revocations(MESH.root), NOW)


def at_home(sender: NodeId, source: Address) -> bool:
    return sender == ALPHA and source == HERE


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
        at_home=at_home,
    )


def refused(receiver: Envelope, datagram: bytes, source: Address = HERE) -> str:
    before = receiver.drops.total()
    with pytest.raises(EnvelopeError) as caught:
        receiver.open(datagram, source)
    assert receiver.drops.total() == before + 1
    assert receiver.drops[caught.value.reason]
    return caught.value.reason


def test_a_datagram_round_trips_and_fits() -> None:
    assert OVERHEAD <= 64
    payload = bytes(MAX_PAYLOAD)
    sealed = envelope(ALPHA).seal(7, payload)
    assert len(sealed) == MAX_DATAGRAM
    digest = Revocations(MESH.root).digest()[:8]
    assert envelope().open(sealed, HERE) == Opened(7, ALPHA, digest, KEY.id, payload)


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
    assert receiver.open(sealed, HERE).payload == b"payload"  # none of that used its number up


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

    monkeypatch.setattr("phantommesh.envelope.ChaCha20Poly1305", Counting)
    sealed = envelope(ALPHA).seal(1, b"payload")
    receiver = envelope()
    assert refused(receiver, sealed[:-1] + b"x") == "gossip-seal"
    assert checks == 1
    foreign = Keyring()
    foreign.install(NEXT, 0.0)
    assert refused(receiver, envelope(ALPHA, keys=foreign).seal(1, b"")) == "gossip-key"
    assert checks == 1
    receiver.open(sealed, HERE)
    assert refused(receiver, sealed) == "gossip-replay"
    assert checks == 2  # a replay costs none
    assert len(receiver._senders) == 1


def test_a_strangers_junk_leaves_no_state() -> None:
    receiver = envelope()
    sealed = bytearray(envelope(ALPHA).seal(1, b""))
    for i in range(50):
        sealed[10] = i
        refused(receiver, bytes(sealed))
    assert len(receiver._senders) == 0


def test_ones_own_datagram_is_refused() -> None:
    assert refused(envelope(ALPHA), envelope(ALPHA).seal(1, b"")) == "gossip-own"


def test_a_revoked_sender_is_refused_under_the_old_key() -> None:
    revoked = Revocations(MESH.root)
    receiver = envelope(revoked=revoked)
    sender = envelope(ALPHA)
    receiver.open(sender.seal(1, b""), HERE)
    revoked.add(revoke(MESH.authority, ALPHA, NOW), NOW)
    assert refused(receiver, sender.seal(1, b"")) == "gossip-revoked"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=120))
def test_each_number_is_taken_once_in_any_order(order: list[int]) -> None:
    sender, receiver = envelope(ALPHA), envelope()
    datagrams = [sender.seal(1, bytes([i])) for i in range(41)]
    seen: set[int] = set()
    for i in order:
        if i in seen:
            assert refused(receiver, datagrams[i]) == "gossip-replay"
        else:
            assert receiver.open(datagrams[i], HERE).payload == bytes([i])
            seen.add(i)


def test_what_fell_out_of_the_window_is_refused() -> None:
    sender, receiver = envelope(ALPHA), envelope()
    datagrams = [sender.seal(1, b"") for _ in range(WINDOW + 2)]
    receiver.open(datagrams[-1], HERE)
    assert refused(receiver, datagrams[0]) == "gossip-replay"
    assert refused(receiver, datagrams[1]) == "gossip-replay"
    receiver.open(datagrams[2], HERE)


def test_a_restarted_sender_is_heard_and_its_former_self_is_not() -> None:
    old, new, receiver = envelope(ALPHA, start=5), envelope(ALPHA, start=6), envelope()
    before = [old.seal(1, b"") for _ in range(3)]
    receiver.open(before[0], HERE)
    receiver.open(new.seal(1, b""), HERE)
    assert refused(receiver, before[1]) == "gossip-replay"
    assert refused(receiver, before[2], THERE) == "gossip-replay"
    receiver.open(new.seal(1, b""), HERE)


def test_a_replay_from_another_address_is_refused_and_a_move_is_not() -> None:
    sender, receiver = envelope(GAMMA), envelope()
    first, second, third = (sender.seal(1, b"") for _ in range(3))
    receiver.open(second, HERE)
    for source in (HERE, THERE):
        assert refused(receiver, second, source) == "gossip-replay"
    assert refused(receiver, first, THERE) == "gossip-replay"  # never seen, but older than where it was
    receiver.open(third, THERE)


def test_a_member_cannot_shut_another_out_by_using_up_its_numbers() -> None:
    """BETA holds the group key and sends in ALPHA's name, with the greatest number there is."""
    forger, receiver, alpha = envelope(ALPHA, start=2**32 - 1), envelope(GAMMA), envelope(ALPHA)
    forger._count = 2**64 - 1
    receiver.open(forger.seal(1, b"forged"), ELSEWHERE)  # before ALPHA was ever heard
    receiver.open(alpha.seal(1, b"true"), HERE)
    receiver.open(alpha.seal(1, b"true"), HERE)
    # nor by sending from ever more addresses
    for i in range(3 * MAX_ADDRESSES):
        forger = envelope(ALPHA, start=2**32 - 1)
        forger._count = 2**64 - 1 - i
        with pytest.raises(EnvelopeError):
            receiver.open(forger.seal(1, b""), Address("198.51.100.1", i + 1, "udp"))
    receiver.open(alpha.seal(1, b"true"), HERE)


def test_addresses_are_bounded_and_the_home_address_is_kept() -> None:
    sender, receiver = envelope(ALPHA), envelope()
    stale = sender.seal(1, b"")
    receiver.open(sender.seal(1, b""), HERE)
    for i in range(3 * MAX_ADDRESSES):
        receiver.open(sender.seal(1, b""), Address("198.51.100.1", i + 1, "udp"))
    windows = receiver._senders[ALPHA].windows
    assert len(windows) == MAX_ADDRESSES
    assert HERE in windows
    assert refused(receiver, stale, ELSEWHERE) == "gossip-replay"


def test_senders_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.envelope.MAX_SENDERS", 3)
    receiver = envelope()
    for i in range(10):
        receiver.open(envelope(NodeId(bytes(15) + bytes([i]))).seal(1, b""), HERE)
    assert len(receiver._senders) == 3


def test_a_revoked_node_cannot_read_what_is_sent_after_the_rotation() -> None:
    """It keeps its ring and gets no more keys; it may record everything."""
    rings = [Keyring() for _ in range(3)]
    for ring in rings:
        ring.install(KEY, 0.0)
    alpha, beta, gone = (envelope(n, keys=k) for n, k in zip((ALPHA, BETA, GAMMA), rings, strict=True))
    gone.open(alpha.seal(1, b"before"), HERE)
    for ring in rings[:2]:
        ring.install(NEXT, 0.0)
    gone.open(alpha.seal(1, b"not yet promoted"), HERE)
    for ring in rings[:2]:
        ring.tick(ring.deadline)
    after = alpha.seal(1, b"after")
    assert beta.open(after, HERE).payload == b"after"
    assert refused(gone, after) == "gossip-key"
    # with the header's key id put back to the one it holds
    assert refused(gone, after[:2] + KEY.id + after[10:]) == "gossip-seal"
    beta.open(gone.seal(1, b""), ELSEWHERE)
    rings[1].tick(rings[1].deadline)
    assert refused(beta, gone.seal(1, b""), ELSEWHERE) == "gossip-key"
