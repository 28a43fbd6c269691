# SPDX-License-Identifier: GPL-3.0-or-later
import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phantommesh.secret import Secret
from phantommesh.state.directory import StateDir
from phantommesh.state.files import StateError
from phantommesh.state.invitebook import InviteBook
from phantommesh.trust.certificates import (
    CLOCK_SKEW,
    DAY,
    EARLY,
    NODE_LIFE,
    Role,
    TrustError,
    authority_node,
    describe_mesh,
    load_root,
    validity,
    verify_authority,
    verify_chain,
)
from phantommesh.trust.identity import Identity, NodeId, format_node_id, overlay_ip6
from phantommesh.trust.invites import Invite
from phantommesh.trust.issuing import choose_ip4, issue_authority, make_csr, make_root, parse_csr_untrusted
from phantommesh.trust.revocation import revoke
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import NOW, TestMesh, identity, make_mesh

MESH = make_mesh()
NODE = identity("node")
CERT = MESH.certify(NODE, "alpha")


def names(**changed: x509.GeneralName) -> list[x509.GeneralName]:
    """A member's SANs, in order, with some replaced."""
    right = {
        "dns": x509.DNSName("alpha.pm.internal"),
        "ip4": x509.IPAddress(IPv4Address("100.64.0.9")),
        "ip6": x509.IPAddress(overlay_ip6(MESH.root_key.spki, NODE.node_id)),
        "uri": x509.UniformResourceIdentifier(f"phantommesh:node:{format_node_id(NODE.node_id)}?role=node"),
    }
    return list({**right, **changed}.values())


def forge(
    sans: list[x509.GeneralName],
    *,
    key: object = None,
    issuer: str | None = None,
    ca: bool = False,
    signer: Identity | None = None,
) -> bytes:
    """A node certificate with any SANs, properly signed by the authority."""
    common = MESH.authority.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    usage = x509.KeyUsage(True, False, False, False, False, ca, False, False, False)
    signer = signer or MESH.authority.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alpha")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer or str(common))]))
        .public_key(NODE.public_key if key is None else key)  # type: ignore[arg-type]
        .serial_number(5)
        .not_valid_before(datetime.fromtimestamp(NOW, UTC) - timedelta(hours=1))
        .not_valid_after(datetime.fromtimestamp(NOW, UTC) + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca, 0 if ca else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key), critical=False)
    )
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    return builder.sign(signer.private_key, None).public_bytes(Encoding.DER)


def test_a_good_chain_gives_the_member() -> None:
    member = verify_chain(MESH.root, MESH.authority.der, CERT, NOW)
    assert (member.node_id, member.name, member.role) == (NODE.node_id, "alpha", Role.NODE)
    assert member.ip4 in IPv4Network("100.64.0.0/10")
    assert member.ip6 == overlay_ip6(MESH.root_key.spki, NODE.node_id)
    assert member.not_after - NOW == NODE_LIFE
    signature = NODE.sign(b"data", b"context")
    member.public_key.verify(signature, b"data", b"context")


def test_every_certificate_has_a_serial_number_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x509, "random_serial_number", lambda: 1)
    assert make_root(MESH.root_key, "pm", NOW).serial_number.bit_length() == 159


def test_the_forger_makes_good_certificates_too() -> None:
    """Else every refusal below could be for another reason than the one it tests."""
    assert verify_chain(MESH.root, MESH.authority.der, forge(names()), NOW).name == "alpha"


def wrong_names() -> dict[str, list[x509.GeneralName]]:
    uri = x509.UniformResourceIdentifier
    other = identity("other")
    return {
        "none": [],
        "ip4 outside the overlay": names(ip4=x509.IPAddress(IPv4Address("10.0.0.1"))),
        "ip4 of the network": names(ip4=x509.IPAddress(IPv4Address("100.64.0.0"))),
        "ip4 of broadcast": names(ip4=x509.IPAddress(IPv4Address("100.127.255.255"))),
        "ip6 outside the overlay": names(ip6=x509.IPAddress(IPv6Address("fd00::1"))),
        "ip6 of another node": names(ip6=x509.IPAddress(overlay_ip6(MESH.root_key.spki, other.node_id))),
        "another mesh": names(dns=x509.DNSName("alpha.other.internal")),
        "no node": names(dns=x509.DNSName("pm.internal")),
        "two labels": names(dns=x509.DNSName("a.b.pm.internal")),
        "wildcard": names(dns=x509.DNSName("*.pm.internal")),
        "upper case": names(dns=x509.DNSName("Alpha.pm.internal")),
        "another node id": names(uri=uri(f"phantommesh:node:{format_node_id(other.node_id)}?role=node")),
        "unknown role": names(uri=uri(f"phantommesh:node:{format_node_id(NODE.node_id)}?role=king")),
        "no role": names(uri=uri(f"phantommesh:node:{format_node_id(NODE.node_id)}")),
        "one more address": [*names(), x509.IPAddress(IPv4Address("100.64.0.10"))],
        "one less": names()[:3],
        "another order": names()[::-1],
        "an e-mail address": [*names(), x509.RFC822Name("a@pm.internal")],
    }


@pytest.mark.parametrize("case", wrong_names())
def test_wrong_names_are_refused_though_an_authority_signed(case: str) -> None:
    with pytest.raises(TrustError):
        verify_chain(MESH.root, MESH.authority.der, forge(wrong_names()[case]), NOW)


def test_other_key_types_are_refused() -> None:
    for key in (
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        mldsa.MLDSA44PrivateKey.generate().public_key(),
        mldsa.MLDSA87PrivateKey.generate().public_key(),
    ):
        with pytest.raises(TrustError, match="ML-DSA-65"):
            verify_chain(MESH.root, MESH.authority.der, forge(names(), key=key), NOW)


def test_a_ca_is_no_node_and_a_node_is_no_authority() -> None:
    with pytest.raises(TrustError):
        verify_chain(MESH.root, MESH.authority.der, forge(names(), ca=True), NOW)
    with pytest.raises(TrustError):
        verify_chain(MESH.root, MESH.authority.der, MESH.authority.der, NOW)
    # a member signs for another with its node key
    impostor = identity("impostor")
    rogue = make_mesh("rogue")
    object.__setattr__(rogue.authority, "root", MESH.root)
    cert = rogue.authority.issue(impostor.spki, "rogue", Role.NODE, IPv4Address("100.64.0.7"), NOW)
    with pytest.raises(TrustError):
        verify_chain(MESH.root, CERT, cert, NOW)
    with pytest.raises(TrustError):
        verify_chain(MESH.root, MESH.authority.der, cert, NOW)


def test_a_node_signed_by_the_root_itself_is_refused() -> None:
    """Else a root key in use as a signing key would go unnoticed."""
    direct = forge(names(), issuer="pm root", signer=MESH.root_key)
    with pytest.raises(TrustError, match="not root, authority, node"):
        verify_chain(MESH.root, MESH.authority.der, direct, NOW)


def test_another_root_of_the_same_name_is_refused() -> None:
    other = make_mesh("other")
    with pytest.raises(TrustError):
        verify_chain(other.root, MESH.authority.der, CERT, NOW)
    with pytest.raises(TrustError, match="another mesh's"):
        load_root(other.root_der, MESH.mesh.root_hash)


@pytest.mark.parametrize(
    ("now", "good"),
    [
        (NOW - CLOCK_SKEW - EARLY, True),
        (NOW - CLOCK_SKEW - EARLY - 1, False),
        (NOW + NODE_LIFE, True),
        (NOW + NODE_LIFE + 1, False),
        (NOW + 4000 * DAY, False),
        (0.0, False),
        (-1e30, False),
        (1e30, False),
        (float("nan"), False),
        (float("inf"), False),
    ],
)
def test_the_clock_decides(now: float, good: bool) -> None:
    if good:
        verify_chain(MESH.root, MESH.authority.der, CERT, now)
    else:
        with pytest.raises(TrustError):
            verify_chain(MESH.root, MESH.authority.der, CERT, now)


def test_a_node_never_outlives_its_root() -> None:
    late = MESH.mesh.not_after - 100
    cert = MESH.certify(NODE, "alpha", now=late)
    assert verify_chain(MESH.root, MESH.authority.der, cert, late).not_after == MESH.mesh.not_after
    with pytest.raises(TrustError):
        verify_chain(MESH.root, MESH.authority.der, cert, late + 101)


def test_the_root_says_what_the_mesh_is() -> None:
    mesh = describe_mesh(load_root(MESH.root_der, MESH.mesh.root_hash))
    assert (mesh.name, mesh.network4) == ("pm", IPv4Network("100.64.0.0/10"))
    for der in (b"", b"junk", CERT, MESH.authority.der, MESH.root_der[:-1], MESH.root_der + b"\0"):
        with pytest.raises(TrustError):
            load_root(der)
    tampered = bytearray(MESH.root_der)
    tampered[-1] ^= 1
    with pytest.raises(TrustError, match="signature"):
        load_root(bytes(tampered))


def test_an_authority_signs_only_hosts_of_the_overlay() -> None:
    for address in ("10.0.0.1", "100.64.0.0", "100.127.255.255"):
        with pytest.raises(TrustError, match="no host"):
            MESH.authority.issue(NODE.spki, "alpha", Role.NODE, IPv4Address(address), NOW)
    for name in ("", "A", "a.b", "-a", "a" * 64, "ä"):
        with pytest.raises(TrustError, match="node name"):
            MESH.authority.issue(NODE.spki, name, Role.NODE, IPv4Address("100.64.0.1"), NOW)
    with pytest.raises(TrustError):
        MESH.authority.issue(b"junk", "alpha", Role.NODE, IPv4Address("100.64.0.1"), NOW)
    with pytest.raises(TrustError, match="not the key"):
        replace(MESH.authority, key=NODE)


def test_verify_authority() -> None:
    assert verify_authority(MESH.root, MESH.authority.der, NOW) == MESH.authority.key.public_key
    other = make_mesh("other")
    for der in (b"", CERT, MESH.root_der, other.authority.der):
        with pytest.raises(TrustError):
            verify_authority(MESH.root, der, NOW)
    with pytest.raises(TrustError, match="ran out on"):
        verify_authority(MESH.root, MESH.authority.der, NOW + 4000 * DAY)


def test_choose_ip4_avoids_the_taken_and_ends() -> None:
    root = make_root(identity("r"), "tiny", NOW, IPv4Network("10.0.0.0/30"))
    mesh = describe_mesh(root)
    hosts = {IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")}
    first = choose_ip4(mesh, NODE.node_id, ())
    assert first in hosts
    assert {first, choose_ip4(mesh, NODE.node_id, [first])} == hosts
    with pytest.raises(TrustError, match="full"):
        choose_ip4(mesh, NODE.node_id, hosts)


def test_csr_round_trip_and_tampering() -> None:
    der = make_csr(NODE, "alpha")
    assert parse_csr_untrusted(der) == (NODE.spki, "alpha")
    tampered = bytearray(der)
    tampered[-1] ^= 1
    for bad in (bytes(tampered), b"", der[:100], der + b"\0", CERT, bytes(9000)):
        with pytest.raises(TrustError):
            parse_csr_untrusted(bad)


def test_csr_of_another_key_type_or_name() -> None:
    def csr(key: object, *common: str) -> bytes:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text) for text in common])
        builder = x509.CertificateSigningRequestBuilder().subject_name(name)
        return builder.sign(key, None).public_bytes(Encoding.DER)  # type: ignore[arg-type]

    for bad in (
        csr(mldsa.MLDSA44PrivateKey.generate(), "alpha"),
        csr(NODE.private_key),
        csr(NODE.private_key, "a", "b"),
        csr(NODE.private_key, "Not A Label"),
    ):
        with pytest.raises(TrustError):
            parse_csr_untrusted(bad)


# --- invites


INVITE = Invite(
    MESH.mesh.root_hash,
    bytes(range(16)),
    Secret(b"\xa5" * 32),
    NODE.node_id,
    "pm",
    int(NOW) + 3600,
    Role.RELAY,
    ("192.0.2.1:51800", "[2001:db8::1]:51800", "vpn.example.net:1"),
)


def test_invite_round_trip_is_one_line() -> None:
    line = INVITE.encode()
    assert line.startswith("pm1_")
    assert line.split() == [line]
    assert Invite.parse_untrusted(f"  {line}\n") == INVITE


def test_invite_slips_are_named() -> None:
    line = INVITE.encode()
    for bad, why in (
        ("", "pm1_"),
        ("pmt_abc", "pm1_"),
        (line[:-1], "checksum"),
        (line[:50], "checksum"),
        (line[:60] + ("A" if line[60] != "A" else "B") + line[61:], "checksum"),
        (line + "AAAA", "checksum"),
        (line[:30] + "!" + line[31:], "characters"),
        (line + "A" * 2000, "too long"),
        ("pm1_é", "characters"),
    ):
        with pytest.raises(TrustError, match=why) as caught:
            Invite.parse_untrusted(bad)
        assert caught.value.fix
        assert line[60:100] not in str(caught.value)


def test_invite_with_bad_contents_but_good_checksum() -> None:
    for bad in (
        replace(INVITE, mesh="Not a label"),
        replace(INVITE, endpoints=()),
        replace(INVITE, endpoints=("192.0.2.1:1",) * 4),
        replace(INVITE, endpoints=("no-port",)),
        replace(INVITE, expires=2**63),
    ):
        with pytest.raises(TrustError):
            Invite.parse_untrusted(bad.encode())


def test_invite_hides_its_secret() -> None:
    shown = repr(INVITE) + str(INVITE)
    assert "a5a5" not in shown
    assert "\\xa5" not in shown


def test_invite_expiry_by_the_joiners_clock() -> None:
    INVITE.check_expiry(INVITE.expires - 1)
    with pytest.raises(TrustError, match="expired 2 h ago"):
        INVITE.check_expiry(INVITE.expires + 7300)


@pytest.fixture
def book(tmp_path: Path) -> InviteBook:
    return InviteBook(StateDir(tmp_path))


def make_invite(
    book: InviteBook,
    *,
    uses: int = 1,
    endpoints: tuple[str, ...] = ("192.0.2.1:51800",),
    role: Role = Role.NODE,
    name: str | None = None,
) -> Invite:
    return book.create(
        root_hash=MESH.mesh.root_hash,
        authority=NODE.node_id,
        mesh="pm",
        endpoints=endpoints,
        expires=int(NOW) + 60,
        role=role,
        name=name,
        uses=uses,
    )


def test_an_invite_is_spent_once_but_a_crashed_joiner_may_retry(book: InviteBook, tmp_path: Path) -> None:
    invite = make_invite(book, name="beta")
    entry = book.find(invite.invite_id, NOW)
    assert (entry.secret, entry.name, entry.uses_left) == (invite.secret, "beta", 1)
    assert book.consume(invite.invite_id, NODE.node_id, NOW).uses_left == 0
    again = InviteBook(StateDir(tmp_path))  # another process
    assert again.consume(invite.invite_id, NODE.node_id, NOW).uses_left == 0
    other = identity("other").node_id
    attempts: tuple[Callable[[], object], ...] = (
        lambda: again.consume(invite.invite_id, other, NOW),
        lambda: again.find(invite.invite_id, NOW),
        lambda: again.find(invite.invite_id, NOW, other),
    )
    for attempt in attempts:
        with pytest.raises(TrustError, match="used up"):
            attempt()
    with pytest.raises(TrustError, match="expired"):
        again.consume(invite.invite_id, NODE.node_id, NOW + 60)


def test_two_uses_are_two_nodes(book: InviteBook) -> None:
    invite = make_invite(book, uses=2)
    for label in ("one", "one", "two"):
        book.consume(invite.invite_id, identity(label).node_id, NOW)
    with pytest.raises(TrustError, match="used up"):
        book.consume(invite.invite_id, identity("three").node_id, NOW)


def test_unknown_and_damaged_invites(book: InviteBook, tmp_path: Path) -> None:
    for unknown in (bytes(16), b"", b"../../../../etc/p"):
        with pytest.raises(TrustError, match="not one of this authority's"):
            book.find(unknown, NOW)
    invite = make_invite(book)
    path = tmp_path / "invites" / f"{invite.invite_id.hex()}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    whole = path.read_bytes()
    for damaged in (b"", b"{}", whole[:-5], whole.replace(b"secret", b"sesame"), b"[" * 100_000, b"\xff"):
        path.write_bytes(damaged)
        with pytest.raises(StateError, match=invite.invite_id.hex()) as caught:
            book.find(invite.invite_id, NOW)
        assert invite.secret.reveal().hex() not in str(caught.value)


def test_expired_invites_go(book: InviteBook, tmp_path: Path) -> None:
    make_invite(book)
    assert book.expire(NOW) == 0
    assert book.expire(NOW + 60) == 1
    assert not list((tmp_path / "invites").glob("*.json"))


def test_invites_nobody_could_use_are_not_made(book: InviteBook) -> None:
    makers: tuple[Callable[[], object], ...] = (
        lambda: make_invite(book, uses=0),
        lambda: make_invite(book, endpoints=()),
        lambda: make_invite(book, endpoints=("no port",)),
        lambda: make_invite(book, name="Not A Label"),
        lambda: make_invite(book, name="beta", uses=2),
    )
    for make in makers:
        with pytest.raises(TrustError):
            make()


# --- revocations


def test_revocations_only_grow_and_survive_a_restart() -> None:
    revoked = Revocations(MESH.root)
    entry = revoke(MESH.authority, NODE.node_id, NOW)
    assert revoked.add(entry, NOW) is True
    assert revoked.add(revoke(MESH.authority, NODE.node_id, NOW + 9), NOW) is False
    assert NODE.node_id in revoked
    assert identity("other").node_id not in revoked
    again = Revocations.decode(revoked.encode(), MESH.root, NOW)
    assert NODE.node_id in again
    assert again.digest() == revoked.digest() != Revocations(MESH.root).digest()


def test_what_is_known_of_anothers_revocations_is_not_verified_again() -> None:
    mine, theirs = Revocations(MESH.root), Revocations(MESH.root)
    for number in range(3):
        theirs.add(revoke(MESH.authority, NodeId(bytes([number]) * 16), NOW), NOW)
    assert mine.take(theirs, NOW) and mine.digest() == theirs.digest()
    spoilt = [msgspec.structs.replace(one, signature=bytes(3309)) for one in theirs]
    later = [msgspec.structs.replace(one, at=one.at + 1) for one in spoilt]
    assert not mine.take(later, NOW)
    new = msgspec.structs.replace(spoilt[0], node_id=b"n" * 16)
    fourth = revoke(MESH.authority, NodeId(b"4" * 16), NOW)
    with pytest.raises(TrustError):
        mine.take([fourth, new], NOW)
    with pytest.raises(TrustError):
        mine.unpack(b"junk")
    assert mine.digest() == theirs.digest()
    earlier = revoke(MESH.authority, NodeId(bytes(16)), NOW - 9)
    assert mine.take([earlier], NOW)  # of two, all hold the earlier
    held = mine.get(NodeId(bytes(16)))
    assert held is not None and held.statement == earlier and len(mine) == 3


def test_a_revocation_needs_an_authority_of_this_mesh() -> None:
    entry = revoke(MESH.authority, NODE.node_id, NOW)
    other: TestMesh = make_mesh("other")
    node_signed = Identity.sign(
        NODE, NODE.node_id + entry.at.to_bytes(8, "big"), b"phantommesh revocation v1"
    )
    change = {"node_id": bytes(16), "at": entry.at + 1, "signature": bytes(3309), "authority_cert": CERT}
    for bad in (
        revoke(other.authority, NODE.node_id, NOW),
        *(
            type(entry)(**{**{f: getattr(entry, f) for f in change}, key: value})
            for key, value in change.items()
        ),
        type(entry)(entry.node_id, entry.at, node_signed, CERT),
        type(entry)(NodeId(b"short"), entry.at, entry.signature, entry.authority_cert),
        type(entry)(entry.node_id, -1, entry.signature, entry.authority_cert),
    ):
        revoked = Revocations(MESH.root)
        with pytest.raises(TrustError):
            revoked.add(bad, NOW)
        assert len(revoked) == 0
    for junk in (b"", b"junk", b"\x91\x91"):
        with pytest.raises(TrustError):
            Revocations.decode(junk, MESH.root, NOW)


def test_an_issued_authority_cannot_make_authorities() -> None:
    """The path length: an authority's signature under another authority's certificate is worth nothing."""
    second = identity("second authority")
    forged = issue_authority(MESH.root, MESH.authority.key, second.spki, NODE.node_id, NOW)
    with pytest.raises(TrustError):
        verify_authority(MESH.root, forged.public_bytes(Encoding.DER), NOW)


def dated(der: bytes, not_before: bytes, not_after: bytes) -> bytes:
    """A certificate with these dates, DER elements, in place of its own. No signature covers them."""
    old = der.index(b"\x30\x1e\x17\x0d")  # a Validity of two UTCTimes
    new = b"\x30" + bytes([len(not_before) + len(not_after)]) + not_before + not_after
    grown = len(new) - 32
    data = bytearray(der[:old] + new + der[old + 32 :])
    for at in (2, 6):  # the lengths of Certificate and TBSCertificate, 30 82 xx xx each
        data[at : at + 2] = (int.from_bytes(der[at : at + 2]) + grown).to_bytes(2)
    return bytes(data)


def time_of(text: bytes, tag: int = 0x18) -> bytes:
    """GeneralizedTime, or by its tag UTCTime (X.680, 46 and 47)."""
    return bytes([tag, len(text)]) + text


YEAR_0, GOOD = time_of(b"00000101000000Z"), time_of(b"20500101000000Z")
DATES = [
    (YEAR_0, GOOD),
    (GOOD, YEAR_0),
    (YEAR_0, YEAR_0),
    (time_of(b"0000010100000Z"), GOOD),  # 13 digits
    (time_of(b"2026010100000Z"), GOOD),
    (time_of(b"260101000000Z"), GOOD),  # a UTCTime's in a GeneralizedTime
    (time_of(b"2026010100000Z", 0x17), GOOD),
    (time_of(b"00010101000000Z"), time_of(b"99991231235959Z")),
    (time_of(b"00010101000000Z"), time_of(b"00010102000000Z")),
    (time_of(b"20260230000000Z"), GOOD),
]


def judge(node: bytes, authority: bytes) -> None:
    """All that is done with certificates of others raises TrustError for these, or nothing."""
    with pytest.raises(TrustError):
        verify_chain(MESH.root, authority, node, NOW)
    for der in {node, authority} - {CERT, MESH.authority.der}:
        for read in (validity, authority_node):
            with contextlib.suppress(TrustError):
                read(der)
        with pytest.raises(TrustError):
            verify_authority(MESH.root, der, NOW)
        with pytest.raises(TrustError):
            load_root(der)


@pytest.mark.parametrize("dates", DATES)
def test_dates_that_python_has_not_are_refused_as_all_else(dates: tuple[bytes, bytes]) -> None:
    judge(dated(CERT, *dates), MESH.authority.der)
    authority = MESH.authority.der
    # Its first date is a UTCTime, and its second too: the root's ten years end before 2050.
    judge(CERT, dated(authority, *dates))
    with pytest.raises(TrustError):
        load_root(dated(MESH.root_der, *dates))


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """A certificate with a few bytes changed, most of them where its parts are: not its key."""
    data = bytearray(whole)
    signature = len(data) - 3_309
    near = st.one_of(st.integers(0, 300), st.integers(signature - 400, signature - 1))
    for _ in range(draw(st.integers(1, 3))):
        data[draw(st.one_of(near, near, st.integers(0, len(data) - 1)))] = draw(st.integers(0, 255))
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(mutated(CERT))
@example(dated(CERT, YEAR_0, GOOD))
@example(dated(CERT, GOOD, YEAR_0))
@example(dated(CERT, time_of(b"0000010100000Z"), GOOD))
@example(dated(CERT, time_of(b"2026010100000Z"), GOOD))
def test_a_changed_certificate_raises_nothing_but_trust_error(der: bytes) -> None:
    if der != CERT:
        judge(der, MESH.authority.der)


@settings(max_examples=200, deadline=None)
@given(mutated(MESH.authority.der))
@example(dated(MESH.authority.der, YEAR_0, GOOD))
@example(dated(MESH.authority.der, GOOD, YEAR_0))
@example(dated(MESH.authority.der, time_of(b"0000010100000Z"), GOOD))
def test_a_changed_authority_raises_nothing_but_trust_error(der: bytes) -> None:
    if der != MESH.authority.der:
        judge(CERT, der)
