# SPDX-License-Identifier: GPL-3.0-or-later
"""Scatter proofs: honest links verify, whatever else there is does not."""

import functools
from typing import Any

import msgspec
import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from phantommesh.moments import rfc3339
from phantommesh.proofs import fit, merkle
from phantommesh.proofs.archive import MAGIC, Archive, Certificates
from phantommesh.proofs.ledger import Chain, Seen
from phantommesh.proofs.statement import (
    CONTEXT,
    Head,
    Plan,
    Proof,
    ProofError,
    Receipt,
    Scheduler,
    Seven,
    Signed,
    Statement,
    decode_leaf_untrusted,
)
from phantommesh.proofs.verdict import Demands
from phantommesh.proofs.verify import Report, verify
from tests.support.makemesh import make_mesh
from tests.support.makeproofs import EQUAL, MESH, NAMES, UNEQUAL, World, certificate, node, plus, seven

ROOT = MESH.mesh.root_hash
SCHEDULERS: list[tuple[Scheduler, int]] = [
    ("packet", 1), ("deck", 1), ("batch", 2), ("batch", 8), ("batch", 32), ("flow", 1), ("flowlet", 1),
]  # fmt: skip


@functools.cache
def honest(scheduler: Scheduler = "packet", run: int = 1, nodes: int = 2) -> World:
    world = World(7, NAMES[:nodes])
    world.run(4, scheduler, run=run, packets=40_000)
    return world


def check(world: World, proofs: list[Proof] | None = None) -> Report:
    return verify(Archive.decode_untrusted(world.archive(proofs).encode()), root_hash=ROOT)


def link(world: World, a: str, b: str) -> list[Proof]:
    """The proofs of one direction, in order."""
    ids = node(a).node_id, node(b).node_id
    found = [proof for proof in world.proofs(a) if node_ids(statement_of(proof)) == ids]
    return sorted(found, key=lambda proof: statement_of(proof).number)


def node_ids(statement: Statement) -> tuple[bytes, bytes]:
    return statement.plan.sender, statement.plan.receiver


def statement_of(proof: Proof) -> Statement:
    leaf = decode_leaf_untrusted(proof.statement.leaf)
    assert isinstance(leaf, Statement)
    return leaf


def receipt_of(proof: Proof) -> Receipt:
    assert proof.receipt is not None
    leaf = decode_leaf_untrusted(proof.receipt.leaf)
    assert isinstance(leaf, Receipt)
    return leaf


def sign(name: str, leaf: Statement | Receipt, like: Signed, **changed: Any) -> Signed:
    """Sign a leaf as its node could, alone in a tree, with a head like another."""
    encoded = msgspec.msgpack.encode(leaf)
    root, (path,) = merkle.tree([encoded])
    head = replace(like.open_head(), node=node(name).node_id, size=1, root=root, **changed)
    body = msgspec.msgpack.encode(head)
    return Signed(encoded, 0, path, body, node(name).sign(body, CONTEXT))


def restate(proof: Proof, *, received: Seven | None = None, **changed: Any) -> Proof:
    """The proof as a sender would have made it that lies, and is consistent about it; the receiver signs a
    receipt of it, of what it really received unless ``received``."""
    statement = replace(statement_of(proof), **changed)
    if "packets" in changed:
        bits = fit.entropy_bits(statement.packets), fit.min_entropy_bits(statement.packets)
        statement = replace(statement, shannon=fit.millionths(bits[0]), minimum=fit.millionths(bits[1]))
    assert proof.receipt is not None
    signed = sign("pm-1", statement, proof.statement)
    receipt = replace(receipt_of(proof), statement=merkle.leaf_hash(signed.leaf))
    if received is not None:
        receipt = replace(receipt, received=received, total=plus(receipt.before, received))
    return Proof(signed, sign("pm-2", receipt, proof.receipt))


@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL, (7, 0, 0, 1, 1, 1, 1)])
@pytest.mark.parametrize(("scheduler", "run"), SCHEDULERS)
def test_honest_links_verify(scheduler: Scheduler, run: int, weights: Seven) -> None:
    world = World(1)
    world.run(5, scheduler, run=run, weights=weights, loss=0.01)
    report = check(world)
    assert (report.mesh, report.pinned, report.proofs, report.countersigned) == ("pm", True, 10, 10)
    for found in report.links:
        assert found.tested == (0 if scheduler.startswith("flow") else 5)
        assert found.packets > 0
    assert {(found.sender, found.receiver) for found in report.links} == {("pm-1", "pm-2"), ("pm-2", "pm-1")}


def test_one_links_proofs_verify_without_the_others() -> None:
    world = honest(nodes=3)
    report = check(world, link(world, "pm-1", "pm-3"))
    assert [(found.sender, found.receiver, found.countersigned) for found in report.links] == [
        ("pm-1", "pm-3", 4)
    ]
    shown = world.archive(link(world, "pm-1", "pm-3")).encode()
    hidden = statement_of(link(world, "pm-1", "pm-2")[1])
    assert bytes(node("pm-3").node_id) in shown and hidden.salt not in shown


# ---- bytes that somebody changed ----


def mutate(value: Any, path: tuple[Any, ...], change: int) -> Any:
    """A copy of nested lists and dicts with the value at ``path`` changed."""
    if path:
        where, *rest = path
        copy = value.copy()
        copy[where] = mutate(value[where], tuple(rest), change)
        return copy
    match value:
        case bool() | None:
            return [] if value is None else not value
        case int():
            return value + change if value + change >= 0 else value - change
        case bytes() if value:
            at = change % len(value)
            return value[:at] + bytes([value[at] ^ (1 + change % 255)]) + value[at + 1 :]
        case str():
            return "deck" if value == "packet" else "packet"
        case _:
            return b"x"


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, list):
        return [path for i, inner in enumerate(value) for path in paths(inner, (*at, i))]
    if isinstance(value, dict):
        return [path for key, inner in value.items() for path in paths(inner, (*at, key))]
    return [at]


@functools.cache
def raw() -> Any:
    return msgspec.msgpack.decode(honest().archive().encode()[len(MAGIC) :], strict=False)


@functools.cache
def raw_paths() -> list[tuple[Any, ...]]:
    return paths(raw())


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@settings(max_examples=400, deadline=None)
@given(st.data(), st.integers(1, 10_000))
def test_no_value_of_a_file_can_be_changed(data: st.DataObject, change: int) -> None:
    path = data.draw(st.sampled_from(raw_paths()))
    changed = MAGIC + msgspec.msgpack.encode(mutate(raw(), path, change))
    check_refused(changed)


def check_refused(data: bytes) -> None:
    """A changed file is refused. One change says nothing else: DER has a byte for how many bits of a
    signature are not used, and one that says 1 for 0 can be read where that bit is 0."""
    try:
        archive = Archive.decode_untrusted(data)
        verify(archive, root_hash=ROOT)
    except ProofError:
        return
    known = honest().archive()
    assert archive.proofs == known.proofs
    assert [content(c) for c in certificates(archive)] == [content(c) for c in certificates(known)]


def certificates(archive: Archive) -> list[bytes]:
    return [
        archive.root,
        *(der for pair in archive.certificates.values() for der in (pair.node, pair.authority)),
    ]


def content(der: bytes) -> tuple[bytes, bytes]:
    certificate = x509.load_der_x509_certificate(der)
    return certificate.tbs_certificate_bytes, certificate.signature


@functools.cache
def leaf_paths(kind: type[Statement | Receipt]) -> list[tuple[Any, ...]]:
    proof = link(honest(), "pm-1", "pm-2")[1]
    leaf = proof.statement.leaf if kind is Statement else proof.receipt.leaf if proof.receipt else b""
    return paths(msgspec.msgpack.decode(leaf))


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([Statement, Receipt]), st.integers(1, 10_000))
def test_no_field_of_a_statement_or_receipt_can_be_changed(
    data: st.DataObject, kind: type[Statement | Receipt], change: int
) -> None:
    proofs = link(honest(), "pm-1", "pm-2")
    path = data.draw(st.sampled_from(leaf_paths(kind)))

    def changed(signed: Signed) -> Signed:
        return replace(
            signed, leaf=msgspec.msgpack.encode(mutate(msgspec.msgpack.decode(signed.leaf), path, change))
        )

    proof = proofs[1]
    assert proof.receipt is not None
    if kind is Statement:
        proofs[1] = Proof(changed(proof.statement), proof.receipt)
    else:
        proofs[1] = Proof(proof.statement, changed(proof.receipt))
    with pytest.raises(ProofError):
        check(honest(), proofs)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_byte_of_a_file_can_be_changed(data: st.DataObject) -> None:
    encoded = honest().archive().encode()
    at = data.draw(st.integers(0, len(encoded) - 1))
    flip = data.draw(st.integers(1, 255))
    check_refused(encoded[:at] + bytes([encoded[at] ^ flip]) + encoded[at + 1 :])


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_rubbish_is_refused(data: bytes) -> None:
    for rubbish in (data, MAGIC + data):
        with pytest.raises(ProofError):
            Archive.decode_untrusted(rubbish)
    with pytest.raises(ProofError):
        Signed.decode_untrusted(data)
    with pytest.raises(ProofError):
        decode_leaf_untrusted(data)


# ---- ends that sign what is not so ----


def starved(counts: Seven, dimension: int) -> Seven:
    """The traffic of one dimension goes over the others."""
    each, left = divmod(counts[dimension], 6)
    rest = [count + each for count in counts]
    rest[dimension] = 0
    rest[(dimension + 1) % 7] += left
    return seven(rest)


def doubled(counts: Seven, dimension: int) -> Seven:
    """One dimension has twice its share, the others give it."""
    given = [0 if i == dimension else min(c, counts[dimension] // 6) for i, c in enumerate(counts)]
    rest = [count - less for count, less in zip(counts, given, strict=True)]
    rest[dimension] += sum(given)
    return seven(rest)


SKEWS = {"starved": starved, "doubled": doubled}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["packet", "deck", "batch"]),
    st.sampled_from(sorted(SKEWS)),
    st.integers(0, 6),
    st.booleans(),
)
def test_a_skewed_distribution_is_rejected(
    scheduler: Scheduler, skew: str, dimension: int, everything: bool
) -> None:
    """Whether the skew is in the scheduler's counts alone, or packets really went that way and both ends say
    so."""
    proof = link(honest(scheduler, 8 if scheduler == "batch" else 1), "pm-1", "pm-2")[-1]
    statement = statement_of(proof)
    packets = SKEWS[skew](statement.packets, dimension)
    octets = seven([count * 1420 for count in packets])
    wire = seven([count * 1467 for count in packets])
    if everything:
        lie = restate(proof, received=wire, packets=packets, octets=octets, wire=wire)
    else:
        lie = restate(proof, packets=packets, octets=octets)
    with pytest.raises(ProofError, match=r"dimension|cards"):
        check(honest(), [lie])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["packet", "deck", "flow"]), st.sampled_from(sorted(SKEWS)), st.integers(0, 6))
def test_a_distribution_that_only_the_sender_saw_is_rejected(
    scheduler: Scheduler, skew: str, dimension: int
) -> None:
    """The sender's counts are as planned, but that is not how it sent."""
    proof = link(honest(scheduler), "pm-1", "pm-2")[-1]
    received = SKEWS[skew](receipt_of(proof).received, dimension)
    if max(abs(a - b) for a, b in zip(received, receipt_of(proof).received, strict=True)) < 2_500_000:
        return  # a flow may have had nothing for this dimension
    with pytest.raises(ProofError, match="received"):
        check(honest(), [restate(proof, received=received)])
    with pytest.raises(ProofError, match="WireGuard sent"):
        check(honest(), [restate(proof, received=received, wire=received)])


def unscattered(world: World, plan: Plan, packets: int) -> list[Proof]:
    """The proofs of two epochs in which the sender sent everything one way and says so, to a receiver that is
    honest."""
    counts = None
    for number in range(3):
        world.turn("pm-1", "pm-2", plan if number < 2 else None, counts)
        counts = world.carry("pm-1", "pm-2", seven([packets, 0, 0, 0, 0, 0, 0]))
        world.round()
        world.now += 60
    world.round()
    return link(world, "pm-1", "pm-2")


@pytest.mark.parametrize(
    ("scheduler", "run", "cards", "packets", "what"),
    [
        ("batch", 65_536, None, 20_000, "65536 packets in a row"),
        ("batch", 33, None, 20_000, "33 packets in a row"),
        ("batch", 1, None, 20_000, "1 packets in a row"),
        ("batch", 32, None, 20_000, "dimension 0"),
        ("batch", 32, (2**40,) * 7, 20_000, "cards"),
        ("packet", 65_536, None, 600, "65536 packets in a row"),
        ("packet", 1, None, 600, "do not fit"),
        ("deck", 65_536, None, 600, "65536 packets in a row"),
        ("deck", 1, (1,) * 7, 600, "cards"),
        ("flow", 2, None, 600, "2 packets in a row"),
        ("flowlet", 1, (255, 0, 0, 0, 0, 0, 0), 600, "cards"),
    ],
)
def test_a_sender_does_not_choose_what_it_is_judged_by(
    scheduler: Scheduler, run: int, cards: Seven | None, packets: int, what: str
) -> None:
    world = World(4)
    plan = world.plan("pm-1", "pm-2", scheduler, run, cards)
    with pytest.raises(ProofError, match=what):
        check(world, unscattered(world, plan, packets))


def test_replayed_counts_are_rejected() -> None:
    before, proof = link(honest(), "pm-1", "pm-2")[-2:]
    earlier = statement_of(before)
    with pytest.raises(ProofError, match="received"):
        check(
            honest(),
            [restate(proof, packets=earlier.packets, octets=earlier.octets, wire=earlier.wire)],
        )


def test_a_plan_that_was_fitted_afterwards_is_rejected() -> None:
    proof = link(honest("flow"), "pm-1", "pm-2")[-1]
    statement = statement_of(proof)
    fitted = replace(statement.plan, cards=seven([1 + count // 100 for count in statement.packets]))
    with pytest.raises(ProofError, match="committed"):
        check(honest(), [restate(proof, plan=fitted)])
    with pytest.raises(ProofError, match="committed"):
        check(honest(), [restate(proof, salt=bytes(32))])


def test_a_commitment_that_came_late_is_rejected() -> None:
    proof = link(honest(), "pm-1", "pm-2")[-1]
    assert proof.receipt is not None
    late = replace(receipt_of(proof), held_ms=20_000)
    with pytest.raises(ProofError, match=r"held the commitment for 20\.0 s"):
        check(honest(), [Proof(proof.statement, sign("pm-2", late, proof.receipt))])


@pytest.mark.parametrize("field", ["shannon", "minimum"])
def test_an_entropy_that_is_not_that_of_the_counts_is_rejected(field: str) -> None:
    proof = link(honest(), "pm-1", "pm-2")[-1]
    lie: dict[str, Any] = {field: 2_807_354}
    with pytest.raises(ProofError, match="bits, not"):
        check(honest(), [restate(proof, **lie)])


@pytest.mark.parametrize("loss", [0.06, 0.5, -0.05])
def test_counters_beyond_the_loss_bound_are_rejected(loss: float) -> None:
    world = World(3)
    world.steady(3, seven([100_000] * 7), loss=loss, scheduler="deck")
    with pytest.raises(ProofError, match="received"):
        check(world)
    if loss == 0.06:
        assert verify(world.archive(), demands=Demands(max_loss=0.1)).countersigned == 3


@pytest.mark.parametrize(("loss", "unsent"), [(0.4, 0.0), (0.0, 0.4)], ids=["on the way", "by the sender"])
def test_a_little_taken_from_every_epoch_is_rejected(loss: float, unsent: float) -> None:
    """In none of them more than the slack."""
    world = World(3)
    world.steady(40, seven([300] * 7), loss=loss, unsent=unsent)
    proofs = link(world, "pm-1", "pm-2")
    for proof in proofs:
        check(world, [proof])
    with pytest.raises(ProofError, match="together"):
        check(world, proofs)


def test_a_bias_in_every_epoch_is_rejected() -> None:
    """In none of them enough to be seen."""
    world = World(3)
    biased: Seven = (17, 11, 11, 11, 11, 11, 12)
    world.steady(60, seven([200 * card // 84 for card in biased]))
    proofs = link(world, "pm-1", "pm-2")
    assert len(proofs) == 60
    check(world, proofs[:1])
    with pytest.raises(ProofError, match="together"):
        check(world, proofs)


# ---- countersignatures, chains, trees ----


def test_a_forged_countersignature_is_rejected() -> None:
    world = honest(nodes=3)
    *_, proof = link(world, "pm-1", "pm-2")
    assert proof.receipt is not None
    receipt = receipt_of(proof)
    for name in ("pm-1", "pm-3"):
        with pytest.raises(ProofError, match="not the receiver's"):
            check(world, [Proof(proof.statement, sign(name, receipt, proof.receipt))])
        own = replace(receipt, witness=node(name).node_id)
        with pytest.raises(ProofError, match="not the receiver's"):
            check(world, [Proof(proof.statement, sign(name, own, proof.receipt))])
        forged = sign("pm-2", receipt, proof.receipt)
        forged = replace(forged, signature=node(name).sign(forged.head, CONTEXT))
        with pytest.raises(ProofError, match="signature is wrong"):
            check(world, [Proof(proof.statement, forged)])
    with pytest.raises(ProofError, match="no receipt"):
        check(world, [Proof(proof.statement, proof.statement)])
    with pytest.raises(ProofError, match="not a statement"):
        check(world, [Proof(proof.receipt, proof.receipt)])


def test_a_statement_that_another_node_signed_is_rejected() -> None:
    world = honest(nodes=3)
    *_, proof = link(world, "pm-1", "pm-2")
    with pytest.raises(ProofError, match="not the sender"):
        check(world, [Proof(sign("pm-3", statement_of(proof), proof.statement), proof.receipt)])


def test_a_broken_chain_is_rejected() -> None:
    proofs = link(honest(), "pm-1", "pm-2")
    for kept, what in (
        ((0, 2, 3), "missing"),
        ((1, 0, 2, 3), "missing"),
        ((3, 2, 1, 0), "missing"),
    ):
        with pytest.raises(ProofError, match=what):
            check(honest(), [proofs[i] for i in kept])
    assert check(honest(), proofs[2:]).countersigned == 2  # older ones are thrown away in time
    last = statement_of(proofs[3])
    earlier = {"start_ms": last.start_ms - 4_000_000, "end_ms": last.end_ms - 4_000_000}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"previous": bytes(range(32))}, "chain is broken"),
        ({"number": 5}, "missing"),
        ({"start_ms": last.start_ms - 4_000}, "held the commitment"),
        ({"late_open": (9,) * 7}, "at its beginning"),
        (earlier, "before the epoch before it ends"),
        ({"start_ms": last.end_ms, "end_ms": last.start_ms}, "ends before it begins"),
    ]
    for changed, what in changes:
        with pytest.raises(ProofError, match=what):
            check(honest(), [*proofs[:3], restate(proofs[3], **changed)])
    with pytest.raises(ProofError, match="does not begin"):
        check(honest(), [restate(proofs[3], number=0)])


def test_exports_that_overlap_count_each_proof_once() -> None:
    """Also where the peer had not answered yet at the first. Two proofs of one epoch still contradict."""
    proofs = link(honest(), "pm-1", "pm-2")
    alone = check(honest(), proofs).links[0]
    half = Proof(proofs[2].statement)
    for together in (
        [*proofs, *proofs],
        [*proofs[:3], *proofs[1:]],
        [*proofs[:2], half, *proofs],
        [*proofs[:3], half, proofs[3]],
        [*proofs[:2], half, half, *proofs[2:]],
    ):
        assert check(honest(), together).links[0] == alone
    receipt = proofs[2].receipt
    assert receipt is not None
    again = Proof(proofs[2].statement, sign("pm-2", receipt_of(proofs[2]), receipt, sequence=77))
    with pytest.raises(ProofError, match="missing"):
        check(honest(), [*proofs[:3], again, proofs[3]])
    with pytest.raises(ProofError, match="two different heads"):
        check(honest(), [*proofs[:3], restate(proofs[2], start_ms=statement_of(proofs[2]).start_ms + 1)])


def test_swapped_epochs_are_rejected() -> None:
    proofs = link(honest(), "pm-1", "pm-2")
    first, second = proofs[:2]
    with pytest.raises(ProofError, match="of another statement"):
        check(honest(), [Proof(first.statement, second.receipt), Proof(second.statement, first.receipt)])
    swapped = [
        Proof(replace(a.statement, leaf=b.statement.leaf), b.receipt)
        for a, b in ((first, second), (second, first))
    ]
    with pytest.raises(ProofError, match="not under the signed root"):
        check(honest(), swapped)


def test_another_links_place_in_the_tree_is_rejected() -> None:
    world = honest(nodes=3)
    for mine, other in zip(link(world, "pm-1", "pm-2"), link(world, "pm-1", "pm-3"), strict=True):
        a, b = mine.statement, other.statement
        assert a.head == b.head  # one signature of the round for both
        for wrong in (
            replace(a, path=b.path),
            replace(a, index=b.index),
            replace(a, path=b.path, index=b.index),
            replace(a, path=a.path[:-1]),
            replace(a, path=(*a.path, bytes(32))),
        ):
            if wrong != a:
                with pytest.raises(ProofError, match="not under the signed root"):
                    check(world, [Proof(wrong, mine.receipt)])


def test_countersignatures_come_in_order() -> None:
    proofs = link(honest(), "pm-1", "pm-2")[2:]
    assert proofs[1].receipt is not None
    old = sign("pm-2", receipt_of(proofs[1]), proofs[1].receipt, sequence=1)
    with pytest.raises(ProofError, match="order of the epochs"):
        check(honest(), [proofs[0], Proof(proofs[1].statement, old)])


def test_two_heads_of_one_round_are_rejected() -> None:
    proofs = link(honest(), "pm-1", "pm-2")
    other = link(honest(), "pm-2", "pm-1")[-1]
    assert other.receipt is not None
    rival = sign("pm-1", receipt_of(other), proofs[-1].statement)
    with pytest.raises(ProofError, match="two different heads"):
        check(honest(), [*proofs, Proof(other.statement, rival)])


def test_a_head_that_does_not_follow_is_rejected() -> None:
    proofs = link(honest(), "pm-1", "pm-2")
    lie = sign("pm-1", statement_of(proofs[3]), proofs[3].statement, previous=bytes(32))
    with pytest.raises(ProofError, match="does not follow"):
        check(honest(), [*proofs[:3], Proof(lie)])


# ---- certificates ----


def test_certificates_must_lead_to_the_meshs_root() -> None:
    archive = honest().archive()
    with pytest.raises(ProofError, match="of another mesh"):
        verify(archive, root_hash=bytes(32))
    other = make_mesh("other")
    foreign = {
        bytes(node(name).node_id): Certificates(other.certify(node(name), name), other.authority.der)
        for name in NAMES[:2]
    }
    with pytest.raises(ProofError, match="chain does not hold"):
        verify(replace(archive, certificates=foreign), root_hash=ROOT)
    with pytest.raises(ProofError, match="no certificate"):
        verify(replace(archive, certificates={}), root_hash=ROOT)
    swapped = {
        bytes(node(a).node_id): Certificates(certificate(b), MESH.authority.der)
        for a, b in (NAMES[:2], NAMES[1::-1])
    }
    with pytest.raises(ProofError, match="another node's certificate"):
        verify(replace(archive, certificates=swapped), root_hash=ROOT)
    assert not verify(archive).pinned


def test_a_round_signed_after_the_certificate_ran_out_is_rejected() -> None:
    proof = link(honest(), "pm-1", "pm-2")[-1]
    at = int((MESH.root.not_valid_after_utc.timestamp() - 10) * 1000)
    with pytest.raises(ProofError, match="had no certificate"):
        check(honest(), [Proof(sign("pm-1", statement_of(proof), proof.statement, at_ms=at), proof.receipt)])


# ---- what is taken of peers ----


def numbered(world: World, number: int) -> None:
    """Let an epoch pass, whose statement the first node gives this number."""
    ledger, peer = world.ledgers["pm-1"], node("pm-2").node_id
    ledger._peer(peer).chain = Chain(number, bytes(32))
    counts = world.carry("pm-1", "pm-2", seven([300] * 7))
    world.turn("pm-1", "pm-2", world.plan("pm-1", "pm-2"), counts)
    world.round()
    world.round(deliver=False)
    ledger.sent(peer, ledger.unsent(peer))


def taken(world: World) -> list[int]:
    return sorted(key[3] for key in world.shelf if key[0] == "pm-2")


def test_numbers_go_on_about_where_they_were() -> None:
    """After a restart, and after epochs that this end has missed, there is a gap as long as those took."""
    world = World(5)
    world.turn("pm-1", "pm-2", world.plan("pm-1", "pm-2"), None)
    good = [40_000, 40_001, 40_003, 40_060]  # what it was before this end knew of it, is not known
    for number in good:
        world.now += 60
        numbered(world, number)
    world.now += 3600
    with pytest.raises(ProofError, match="statement 55000"):
        numbered(world, 55_000)
    assert taken(world) == good


@pytest.mark.parametrize("after", [[], [7]])
def test_a_number_that_no_chain_can_have_come_to_is_refused(after: list[int]) -> None:
    world = World(5)
    world.turn("pm-1", "pm-2", world.plan("pm-1", "pm-2"), None)
    for number in after:
        world.now += 60
        numbered(world, number)
    world.now += 60
    with pytest.raises(ProofError, match="statement 9223372036854775807"):
        numbered(world, 2**63 - 1)
    assert taken(world) == after


def test_a_clock_that_was_far_ahead_holds_no_number_up() -> None:
    """The number comes from a statement that was taken before dates had bounds, or from a clock that was set
    back."""
    world = World(5)
    world.ledgers["pm-2"]._peer(node("pm-1").node_id).seen = Seen(7, 2**47)
    world.turn("pm-1", "pm-2", world.plan("pm-1", "pm-2"), None)
    world.now += 60
    numbered(world, 5_000)
    assert taken(world) == [5_000]


def test_numbers_are_remembered_of_nodes_that_leave() -> None:
    world = World(5)
    world.turn("pm-1", "pm-2", world.plan("pm-1", "pm-2"), None)
    world.now += 60
    numbered(world, 7)
    world.ledgers["pm-2"].retain([])
    world.turn("pm-1", "pm-2", world.plan("pm-1", "pm-2"), None)
    world.now += 60
    with pytest.raises(ProofError, match="statement 5000"):
        numbered(world, 5_000)


@pytest.mark.parametrize("field", ["start_ms", "end_ms"])
def test_times_are_dates(field: str) -> None:
    changed: dict[str, Any] = {field: 253_402_300_800_000}  # the year 10000
    proof = restate(link(honest(), "pm-1", "pm-2")[1], **changed)
    with pytest.raises(ProofError, match="cannot be read"):
        check(honest(), [proof])


def test_the_last_date_can_be_written() -> None:
    changed: dict[str, Any] = {"end_ms": 253_402_300_799_999}
    last = statement_of(restate(link(honest(), "pm-1", "pm-2")[1], **changed))
    assert rfc3339(last.end_ms / 1000) == "9999-12-31T23:59:59Z"


# ---- ends that are away ----


def test_half_a_proof_says_so() -> None:
    world = World(3)
    world.steady(3, seven([300] * 7))
    proofs = [Proof(proof.statement) for proof in link(world, "pm-1", "pm-2")]
    assert len(proofs) == 3
    with pytest.raises(ProofError, match="no proof of it is countersigned"):
        check(world, proofs)
    more = World(3)
    more.run(3)
    stripped = [Proof(p.statement) if i == 1 else p for i, p in enumerate(link(more, "pm-1", "pm-2"))]
    (found,) = check(more, stripped).links
    assert (found.proofs, found.countersigned) == (3, 2)


def test_an_empty_file_is_rejected() -> None:
    with pytest.raises(ProofError, match="no proof"):
        check(honest(), [])


def test_heads_are_of_this_version() -> None:
    head = msgspec.to_builtins(honest().proofs("pm-1")[0].statement.open_head())
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert([1, *head[1:]], Head)
