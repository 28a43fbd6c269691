# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import fields, replace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.link import keys, wire
from phantommesh.link.wire import Mode
from phantommesh.secret import Secret

OURS = [bytes([i]) * 32 for i in range(7)]
THEIRS = [bytes([i + 100]) * 32 for i in range(7)]


def hkdf_expand(key: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 section 2.3, written a second time from the text."""
    out, block = b"", b""
    for counter in range(1, 255):
        block = hmac.digest(key, block + info + bytes([counter]), "sha512")
        out += block
        if len(out) >= length:
            break
    return out[:length]


def prefixed(*parts: bytes) -> bytes:
    return b"".join(struct.pack("!H", len(p)) + p for p in parts)


def test_the_combiner_takes_its_inputs_in_the_documented_order() -> None:
    parts = [b"P" * 32, b"X" * 32, b"C" * 1568, b"R" * 32, b"E" * 1568, b"I" * 32]
    label = b"PhantomMesh 1 ML-KEM-1024 X25519"
    assert keys.combine(*parts) == hashlib.sha3_256(b"".join(parts) + label).digest()


def test_the_schedule_is_hkdf_as_written() -> None:
    digest, combined, chain = b"d" * 64, b"k" * 32, b"c" * 64
    root = hmac.digest(chain, combined, "sha512")
    handshake = keys.handshake_keys(chain, combined, digest)
    assert handshake.root == root
    out = hkdf_expand(root, prefixed(b"handshake", digest), 192)
    assert (handshake.seal_r, handshake.seal_i) == (out[:32], out[32:64])
    assert (handshake.confirm_r, handshake.confirm_i) == (out[64:128], out[128:])
    session = keys.session_keys(root, digest)
    assert session.chain_key.reveal() == hkdf_expand(root, prefixed(b"chain", digest), 64)
    assert session.chain_id == hkdf_expand(session.chain_key.reveal(), prefixed(b"chain id"), 16)
    assert session.ack.reveal() == hkdf_expand(root, prefixed(b"ack", digest), 32)
    assert session.scatter.reveal() == hkdf_expand(root, prefixed(b"scatter", digest), 32)
    wg_root = hkdf_expand(root, prefixed(b"wireguard", digest), 64)
    assert session.wg_root.reveal() == wg_root
    psks = keys.preshared_keys(session.wg_root, OURS, THEIRS, 5)
    for i, psk in enumerate(psks):
        parts = (b"wg-psk", bytes([i]), *sorted((OURS[i], THEIRS[i])), (5).to_bytes(8))
        assert psk.reveal() == hkdf_expand(wg_root, prefixed(*parts), 32)


def test_every_key_of_a_session_is_another() -> None:
    handshake = keys.handshake_keys(keys.FIRST_CHAIN, b"k" * 32, b"d" * 64)
    session = keys.session_keys(handshake.root, b"e" * 64)
    found = [getattr(handshake, f.name) for f in fields(handshake)]
    found += [v.reveal() for f in fields(session) if isinstance(v := getattr(session, f.name), Secret)]
    found += [session.chain_id, *(p.reveal() for p in keys.preshared_keys(session.wg_root, OURS, THEIRS, 1))]
    prefixes = [value[:16] for value in found]
    assert len(set(prefixes)) == len(prefixes) == 5 + 6 + 1 + 7


def test_the_chain_key_changes_everything() -> None:
    one = keys.handshake_keys(keys.FIRST_CHAIN, b"k" * 32, b"d" * 64)
    two = keys.handshake_keys(b"\1" + bytes(63), b"k" * 32, b"d" * 64)
    assert all(getattr(one, f.name) != getattr(two, f.name) for f in fields(one))


def test_both_ends_derive_the_same_psks_and_another_epoch_others() -> None:
    root = Secret(b"w" * 64)
    assert keys.preshared_keys(root, OURS, THEIRS, 1) == keys.preshared_keys(root, THEIRS, OURS, 1)
    assert not set_of(keys.preshared_keys(root, OURS, THEIRS, 1)) & set_of(
        keys.preshared_keys(root, OURS, THEIRS, 2)
    )
    assert keys.interface_hash(OURS, THEIRS) == keys.interface_hash(THEIRS, OURS)


def test_the_interface_hash_tells_which_keys_differ() -> None:
    whole = keys.interface_hash(OURS, THEIRS)
    assert len(whole) == 32 and keys.common_interfaces(whole, whole) == 0x7F
    for i in range(7):
        other = [*THEIRS[:i], b"z" * 32, *THEIRS[i + 1 :]]
        assert keys.common_interfaces(whole, keys.interface_hash(OURS, other)) == 0x7F & ~(1 << i)
    swapped = [THEIRS[1], THEIRS[0], *THEIRS[2:]]
    assert keys.common_interfaces(whole, keys.interface_hash(OURS, swapped)) == 0x7C


def set_of(psks: tuple[Secret, ...]) -> set[bytes]:
    return {psk.reveal() for psk in psks}


@given(st.binary(min_size=64, max_size=64), st.integers(0, 2**63 - 1))
def test_no_psk_is_all_zero_and_all_seven_differ(root: bytes, epoch: int) -> None:
    found = set_of(keys.preshared_keys(Secret(root), OURS, THEIRS, epoch))
    assert len(found) == 7 and bytes(32) not in found


INIT = wire.Init(
    Mode.MEMBER, b"sessioni", 7, b"a" * 16 + b"b" * 16, b"n" * 16, b"o" * 32, 0x7F, b"h" * 32, b"e" * 1568,
    b"x" * 32,
)  # fmt: skip


def test_the_transcript_covers_every_field_of_init_but_the_one_that_guards_the_responders_work() -> None:
    """The proof is made anew with each cookie, so both ends could not agree on it. It decides how soon INIT
    is answered, and no more (docs/decisions/0004-half-open-places.md)."""
    before = keys.init_transcript(INIT).peek(b"")
    proven = replace(INIT, dimension=3, proof=b"p" * 16)
    assert keys.init_transcript(proven).peek(b"") == before
    for f in fields(INIT):
        if f.name in ("dimension", "proof"):
            continue
        value = getattr(INIT, f.name)
        other = (
            value[:-1] + b"!" if isinstance(value, bytes) else Mode.ENROL if f.name == "mode" else value - 1
        )
        assert keys.init_transcript(replace(INIT, **{f.name: cast("Any", other)})).peek(b"") != before, f.name


def test_the_transcript_keeps_parts_apart() -> None:
    one, two = keys.Transcript(), keys.Transcript()
    one.add(b"ab")
    two.add(b"a")
    assert one.add(b"c") != two.add(b"bc")
    assert one.peek(b"x") == one.add(b"x")


def test_mac_keys_are_bound_to_their_receiver_and_purpose() -> None:
    admission = Secret(b"a" * 32)
    found = {
        keys.member_mac_key(admission, b"1" * 16),
        keys.member_mac_key(admission, b"2" * 16),
        keys.enrol_mac_key(b"a" * 32, b"1" * 16),
        keys.enrol_mac_key(b"a" * 32, b"2" * 16),
        keys.invite_chain(admission)[:32],
    }
    assert len(found) == 5


def test_confirmation_depends_on_all_it_is_given() -> None:
    base = (b"k" * 64, b"d" * 64, b"n" * 16, b"s" * 3309)
    found = {keys.confirmation(*base)}
    for i in range(4):
        found.add(keys.confirmation(*[p[:-1] + b"!" if i == j else p for j, p in enumerate(base)]))
    assert len(found) == 5 and all(len(c) == 32 for c in found)


def test_session_keys_do_not_show() -> None:
    session = keys.session_keys(b"r" * 64, b"d" * 64)
    handshake = keys.handshake_keys(keys.FIRST_CHAIN, b"k" * 32, b"d" * 64)
    assert "***" in repr(session) and session.ack.reveal().hex() not in repr(session)
    assert repr(handshake) == "HandshakeKeys()"
