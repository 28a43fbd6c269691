# SPDX-License-Identifier: GPL-3.0-or-later
"""The roster on disk: nothing that was written is lost whenever the power goes, and little is written."""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phantommesh.diskframes import OVERHEAD
from phantommesh.records import record as record_module
from phantommesh.records import roster
from phantommesh.records.record import MAX_BODY_BYTES, MAX_MEMBERS, RecordError, SignedRecord, sign_record
from phantommesh.records.roster import Roster
from phantommesh.state import directory, rosterlog
from phantommesh.state.directory import StateDir
from phantommesh.state.files import MAX_FILE_BYTES, Place, PlaceError, StateError, atomic_write
from phantommesh.state.rosterlog import HEADER, Content
from phantommesh.trust.certificates import DAY, MAX_CERTIFICATE_BYTES
from phantommesh.trust.identity import Identity
from phantommesh.trust.revocation import revoke
from phantommesh.trust.revocations import Revocations
from tests.support.dying import watch
from tests.support.makemesh import NOW, identity, make_mesh, plain_record, wg_keys
from tests.support.powerloss import PowerCuts

MESH = make_mesh()
ME, A, B, C = (identity(label) for label in ("me", "a", "b", "c"))
NODES = {"me": ME, "a": A, "b": B, "c": C}
NAMES = {ME: "me", A: "alpha", B: "beta", C: "gamma"}


@lru_cache(None)
def record(label: str, seq: int, days: int = 0) -> SignedRecord:
    node = NODES[label]
    return sign_record(node, plain_record(node, seq), certificate(node, days), MESH.authority.der)


@lru_cache(None)
def certificate(node: Identity, days: int) -> bytes:
    return MESH.certify(node, NAMES[node], now=NOW + days * DAY / 2)


@pytest.fixture(autouse=True, scope="module")
def verified_once() -> Iterator[None]:
    """A record is verified again and again here, with the same result."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("open_record", "validity", "authority_node", "record_hash"):
            original = getattr(roster if hasattr(roster, name) else record_module, name)
            once = lru_cache(None)(original)
            for module in (record_module, roster):
                if hasattr(module, name):
                    patch.setattr(module, name, once)
        yield


def decode(data: bytes) -> Content:
    return rosterlog.decode(data, MESH.root, Revocations(MESH.root), NOW, (MESH.authority.der,))


def seqs(roster: Roster) -> dict[bytes, int]:
    return {entry.member.node_id: entry.record.seq for entry in roster.everyone()}


class Node:
    """The roster of a node and its file, without a keeper. ``states`` is all that the roster ever was, and
    ``promised`` how many of those are on disk for sure."""

    def __init__(self, at: Path, *first: SignedRecord) -> None:
        at.mkdir(exist_ok=True)
        self.state = StateDir(at)
        if first:
            made = Roster(MESH.root, Revocations(MESH.root))
            for signed in first:
                made.add(signed, NOW)
            self.state.write(directory.ROSTER, rosterlog.encode(made.in_order()))
        self.roster, self.log = rosterlog.load(
            self.state, MESH.root, Revocations(MESH.root), ME.node_id, NOW, (MESH.authority.der,)
        )
        self.states, self.promised = [seqs(self.roster)], 1

    @property
    def path(self) -> Path:
        return self.state.path / directory.ROSTER

    def take(self, *signed: SignedRecord) -> None:
        for one in signed:
            entry = self.roster.verify(one, NOW)
            assert self.roster.keep(entry, NOW)
            self.log.note(entry)
            self.states.append(seqs(self.roster))

    def save(self) -> int:
        job, count = self.log.take(self.roster), len(self.states)
        try:
            written = self.log.write(job)
        except BaseException:
            self.log.give_back(job)
            raise
        self.promised = count
        return written

    def add(self, *signed: SignedRecord) -> int:
        self.take(*signed)
        return self.save()

    def check(self, content: bytes) -> None:
        """A crash leaves all that was promised, and perhaps some of the write under way."""
        read, least, most = decode(content), self.states[self.promised - 1], self.states[-1]
        assert not read.damage, read.damage  # for what a crash leaves nobody needs to be asked
        found = seqs(read.roster)
        assert least.keys() <= found.keys() <= most.keys(), len(content)
        assert all(least.get(node_id, 0) <= seq <= most[node_id] for node_id, seq in found.items()), len(
            content
        )

    def again(self) -> "Node":
        return Node(self.state.path)


def small(patch: pytest.MonkeyPatch, slack: int) -> None:
    patch.setattr(rosterlog, "SLACK", slack)
    patch.setattr(rosterlog, "GROWTH", 1)


def life(node: Node, add: Callable[[Node, Sequence[SignedRecord]], None]) -> None:
    """Some days of a roster: a newcomer, changes one by one and together, new certificates, compactions."""
    add(node, [record("b", 1)])
    add(node, [record("a", 2)])
    add(node, [record("a", 3, 1), record("b", 2), record("me", 2)])
    add(node, [record("c", 1)])
    for seq in range(2, 7):
        add(node, [record("c", seq)])


def test_a_crash_at_every_step_loses_nothing_that_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, 14_000)
    node = Node(tmp_path, record("me", 1), record("a", 1))
    checked = set[int]()

    def check(content: bytes) -> None:
        if hash(content) not in checked:
            checked.add(hash(content))
            node.check(content)

    def add(node: Node, signed: Sequence[SignedRecord]) -> None:
        node.add(*signed)
        checked.clear()  # what is promised has changed
        cuts.look()

    cuts = PowerCuts(node.path, check, every=211)
    with monkeypatch.context() as patch:
        cuts.install(patch)
        life(node, add)
    assert cuts.calls.count("replace") >= 2 and cuts.calls.count("pwrite") >= 9
    assert seqs(node.again().roster) == seqs(node.roster)


def test_a_lone_node_starts_whichever_pages_of_a_change_a_power_cut_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on: what it writes then is there after the next power cut, too."""
    node = Node(tmp_path, record("me", 1))
    left = list[bytes]()
    with monkeypatch.context() as patch:
        PowerCuts(node.path, left.append, every=4001).install(patch)
        node.add(record("me", 2, 1), record("me", 3), record("me", 4))
    assert len(set(left)) > 20
    for number, content in enumerate(sorted(set(left))):
        node.path.write_bytes(content)
        second = node.again()  # it does not refuse to start
        assert 1 <= seqs(second.roster)[ME.node_id] <= 4
        if number % 9 == 0:
            with monkeypatch.context() as patch:
                PowerCuts(second.path, second.check, every=4001).install(patch)
                second.add(record("me", 5))
                second.add(record("me", 6, 2))
            third = second.again()
            assert seqs(third.roster) == {ME.node_id: 6} and not third.log.torn and not third.log.damage


@pytest.mark.parametrize("whole", [False, True])
def test_what_a_crash_left_is_gone_on_with_after_every_byte_of_a_torn_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """A second life after the first was cut off at each byte of its last write; and a third, after a crash in
    what the second one did."""
    first = Node(tmp_path, record("me", 1), record("a", 1))
    start = first.path.read_bytes()
    first.add(record("b", 1), record("a", 2))
    end = first.path.read_bytes()
    for length in range(len(start), len(end) + 1, 1 if not whole else 307):
        torn = end[:length] if not whole else end[:length] + bytes(len(end) - length)
        if length % 307 and length < len(end) - 3:
            found = seqs(decode(torn).roster)
            assert found in first.states
            continue
        first.path.write_bytes(torn)
        second = first.again()
        assert bool(second.log.torn) == (len(torn) > decode(torn).end) and not second.log.damage
        cuts = PowerCuts(second.path, second.check, every=997)
        with monkeypatch.context() as patch:
            cuts.install(patch)
            second.add(record("c", 1))
        third = second.again()
        assert seqs(third.roster) == seqs(second.roster) and not third.log.torn and not third.log.damage


@pytest.mark.parametrize(("at", "number"), [(at, (errno.ENOSPC, errno.EIO)[at % 2]) for at in range(14)])
def test_a_call_that_fails_loses_nothing_and_the_next_attempt_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, number: int
) -> None:
    small(monkeypatch, 6_000)
    node = Node(tmp_path, record("me", 1), record("a", 1))
    with node.path.open("ab") as file:
        file.write(b"\xc1PMr torn by a crash")
    node = node.again()
    cuts = PowerCuts(node.path, node.check, every=1999)
    failed, said = list[int](), list[str]()

    def refuse(name: str) -> None:
        if len(cuts.calls) == at + 1 and not failed:
            failed.append(at)
            raise OSError(number, "it failed")

    def add(node: Node, signed: Sequence[SignedRecord]) -> None:
        node.take(*signed)
        for _ in range(3):
            try:
                node.save()
                break
            except StateError as error:
                said.append(str(error))
                cuts.look()
        assert node.promised == len(node.states)
        cuts.look()

    cuts.refuse = refuse
    with monkeypatch.context() as patch:
        cuts.install(patch)
        life(node, add)
    assert failed == [at] and all("roster.bin" in error for error in said)
    assert seqs(node.again().roster) == seqs(node.roster)
    assert [entry.name for entry in tmp_path.iterdir()] == [directory.ROSTER]


def test_a_disk_that_stays_full_is_said_each_time_and_costs_a_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rosterlog, "MOST_NOTED", 3)
    node = Node(tmp_path, record("me", 1), record("a", 1))

    def full(name: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cuts = PowerCuts(node.path, node.check, every=999)
    cuts.refuse = full
    with monkeypatch.context() as patch:
        cuts.install(patch)
        for seq in range(1, 10):
            with pytest.raises(StateError, match="No space left"):
                node.add(record("c", seq))
            assert node.log.unsaved and len(node.log._noted) <= 2 * 3 + 1
    assert seqs(node.again().roster) == node.states[0]
    node.save()
    assert not node.log.unsaved
    assert seqs(node.again().roster) == seqs(node.roster)


def test_where_there_is_no_room_to_compact_the_file_grows_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, 1_000)
    node = Node(tmp_path, record("me", 1), record("a", 1))

    def full(self: StateDir, name: str, data: bytes) -> None:
        raise StateError("cannot write roster.bin: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(StateDir, "write", full)
        for seq in range(1, 5):
            node.add(record("c", seq))
    assert node.log.refused is not None
    assert seqs(node.again().roster) == seqs(node.roster)
    for seq in range(5, 9):
        node.add(record("c", seq))
    assert node.log.refused is None


def test_what_comes_while_a_write_is_under_way_is_written_next(tmp_path: Path) -> None:
    """Also where that one writes everything, and where it fails."""
    node = Node(tmp_path, record("me", 1), record("a", 1))
    for whole, fails in ((False, False), (True, False), (False, True), (True, True)):
        number = len(node.states)
        node.log._whole = whole
        node.take(record("b", number))
        job = node.log.take(node.roster)
        node.take(record("c", number))
        if fails:
            node.log.give_back(job)
        else:
            node.log.write(job)
        assert node.log.unsaved
        node.save()
        assert seqs(node.again().roster) == seqs(node.roster)


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    node = Node(tmp_path, record("me", 1), record("a", 1))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:1000], at))
    node.add(record("b", 1))
    assert seqs(node.again().roster) == seqs(node.roster)


def test_a_file_that_is_not_the_one_we_wrote_is_replaced_and_that_is_said(tmp_path: Path) -> None:
    node = Node(tmp_path, record("me", 1), record("a", 1))
    backup = node.path.read_bytes()
    node.add(record("b", 1))
    longer = node.path.read_bytes()
    other = Node(tmp_path / "other", record("me", 1), record("a", 1), record("c", 9)).path.read_bytes()
    for change in (
        lambda: atomic_write(node.path, node.path.read_bytes()),
        lambda: node.path.write_bytes(node.path.read_bytes()[:100]),
        lambda: node.path.write_bytes(backup),  # in place, as cp does
        lambda: node.path.write_bytes(backup + other),
        lambda: node.path.write_bytes(node.path.read_bytes() + longer[len(backup) :]),  # another process
        lambda: node.path.write_bytes(bytes(node.path.stat().st_size)),
        lambda: node.path.write_bytes(other.ljust(node.path.stat().st_size, b"x")),
        node.path.unlink,
    ):
        node.add(record("b", len(node.states)))
        assert node.log.replaced is None
        change()
        node.add(record("b", len(node.states)))
        assert "is not as this node wrote it last" in str(node.log.replaced)
        assert seqs(node.again().roster) == seqs(node.roster)
        assert stat.S_IMODE(node.path.stat().st_mode) == 0o600


def test_an_addition_goes_to_the_file_that_is_meant_or_nowhere(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.write("file", b"12345")
    place = state.place("file")
    inode = place.inode
    assert place == Place(inode, 5, b"12345")
    place = state.append("file", place, b"67")
    assert place == Place(inode, 7, b"1234567") == state.place("file")
    place = state.append("file", place, b"8" * 100)
    assert place == Place(inode, 107, b"8" * 64) == state.place("file")
    state.write("file", b"123x")
    place = state.place("file")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, wrong in (
        ("file", replace(place, end=5)), ("file", replace(place, end=3)), ("none", place), ("link", place),
        ("file", replace(place, inode=place.inode + 1)), ("file", replace(place, tail=b"123y")),
        ("directory", place), ("pipe", place),
    ):  # fmt: skip
        with pytest.raises(PlaceError, match=name):
            state.append(name, wrong, b"y")
    assert state.read("file") == b"123x"


# --- damage


def test_a_damaged_middle_costs_what_is_in_it_and_is_mended(tmp_path: Path) -> None:
    made = Node(tmp_path, record("me", 1), record("a", 1), record("b", 1))
    made.add(record("a", 2), record("c", 1))
    data = made.path.read_bytes()
    for at in [0, 10, *range(len(HEADER), len(data), 97)]:
        spoilt = bytearray(data)
        spoilt[at : at + 40] = bytes(b ^ 0x55 for b in spoilt[at : at + 40])
        made.path.write_bytes(spoilt)
        node = made.again()
        found, whole = seqs(node.roster), seqs(made.roster)
        assert all(seq <= whole[node_id] for node_id, seq in found.items())
        assert len(found) >= len(whole) - 2  # two frames at most: a record each, or a certificate
        assert node.log.damage or node.log.torn or found == whole
        assert "cannot be read" in str(node.log.damage) or not node.log.damage.bytes
        if node.log.damage:
            assert node.log.unsaved
            node.save()
            mended = node.again()
            assert not mended.log.damage and seqs(mended.roster) == found


def test_an_authoritys_certificate_that_is_damaged_loses_nobody(tmp_path: Path) -> None:
    """It is there twice, and once more in a file of its own."""
    node = Node(tmp_path, record("me", 1), record("a", 1), record("b", 1))
    data = node.path.read_bytes()
    der = MESH.authority.der
    assert data.count(der) == 2
    spoilt = data.replace(der, bytes(len(der)), 1)
    for certificates in ((), (der,)):
        found = rosterlog.decode(spoilt, MESH.root, Revocations(MESH.root), NOW, certificates)
        assert seqs(found.roster) == seqs(node.roster) and found.damage
        assert not found.damage.records
    found = rosterlog.decode(
        data.replace(der, bytes(len(der))), MESH.root, Revocations(MESH.root), NOW, (der,)
    )
    assert seqs(found.roster) == seqs(node.roster) and found.damage


def test_a_node_that_has_nobody_left_to_ask_says_what_is_damaged(tmp_path: Path) -> None:
    node = Node(tmp_path, record("me", 1), record("a", 1))
    data = node.path.read_bytes()
    a_body = record("a", 1).body
    for spoilt in (data.replace(a_body, bytes(len(a_body))), data[:100], HEADER, HEADER + b"junk"):
        node.path.write_bytes(spoilt)
        if spoilt == HEADER:
            assert not len(node.again().roster)
            continue
        with pytest.raises(RecordError, match="cannot be read, and no other member is left in it to ask"):
            node.again()
    for spoilt in (b"", b"junk", b"\x93junk"):
        node.path.write_bytes(spoilt)
        with pytest.raises(RecordError, match="cannot be read"):
            node.again()


def test_a_record_that_does_not_hold_gives_way_to_the_one_before(tmp_path: Path) -> None:
    node = Node(tmp_path, record("me", 1), record("a", 1))
    node.add(record("b", 1))
    bad = msgspec.structs.replace(record("a", 2), signature=bytes(3309))
    entry = node.roster.get(A.node_id)
    assert entry is not None
    node.log.note(replace(entry, signed=bad))
    node.save()
    found = node.again()
    assert seqs(found.roster) == seqs(node.roster)
    assert str(found.log.damage) == "1 records do not hold (the record's signature is wrong)"
    assert found.log.unsaved


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_bytes_raise_anything_else(data: st.DataObject) -> None:
    whole = rosterlog.encode(roster_of(record("me", 1), record("a", 1)).in_order())
    spoilt = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(spoilt)))
        spoilt[at : at + data.draw(st.integers(0, 50))] = data.draw(st.binary(max_size=50))
    try:
        found = decode(bytes(spoilt))
    except RecordError:
        return
    assert set(seqs(found.roster).items()) <= set(seqs(decode(whole).roster).items())


# --- what is kept


def roster_of(*signed: SignedRecord) -> Roster:
    made = Roster(MESH.root, Revocations(MESH.root))
    for one in signed:
        made.add(one, NOW)
    return made


def test_a_whole_file_of_an_earlier_version_is_read_and_replaced_at_the_next_change(tmp_path: Path) -> None:
    made = roster_of(record("me", 1), record("a", 1))
    for listed in (
        made.encode(),
        msgspec.msgpack.encode([(*msgspec.structs.astuple(e.signed), True) for e in made.in_order()]),
    ):
        StateDir(tmp_path).write(directory.ROSTER, listed)
        node = Node(tmp_path)
        assert seqs(node.roster) == seqs(made) and not node.log.unsaved and not node.log.damage
        assert node.path.read_bytes() == listed
        node.add(record("b", 1))
        assert node.path.read_bytes().startswith(HEADER)
        assert seqs(node.again().roster) == seqs(node.roster)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=8), st.booleans())
def test_who_claimed_a_key_first_is_known_after_a_restart(
    tmp_path_factory: pytest.TempPathFactory, claims: list[tuple[str, str]], compact: bool
) -> None:
    """Members take one another's keys (all can prove them) in any order."""
    node = Node(tmp_path_factory.mktemp("claims"), record("me", 1))
    for seq, (who, whose) in enumerate(claims, 1):
        node.take(claiming(who, whose, seq))
        if seq % 2:
            node.save()
    node.save()
    again = node.again()
    assert again.roster.disputes(NOW) == node.roster.disputes(NOW)
    assert [e.signed for e in again.roster.in_order()] == [e.signed for e in node.roster.in_order()]


@lru_cache(None)
def claiming(who: str, whose: str, seq: int) -> SignedRecord:
    node, own = NODES[who], wg_keys(NODES[who])
    keys = replace(own, keys=(wg_keys(NODES[whose]).keys[0], *own.keys[1:]))
    return sign_record(node, plain_record(node, seq, keys), certificate(node, 0), MESH.authority.der)


def test_revoked_nodes_stay_in_the_file() -> None:
    made = roster_of(record("me", 1), record("a", 1))
    revoked = Revocations(MESH.root)
    revoked.add(revoke(MESH.authority, A.node_id, NOW), NOW)
    found = rosterlog.decode(rosterlog.encode(made.in_order()), MESH.root, revoked, NOW).roster
    assert seqs(found) == seqs(made) and found.get(A.node_id) is None


# --- how much is written


def test_what_is_written_is_a_small_multiple_of_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 changes of one member of four, and all of the time the file is bounded too."""
    small(monkeypatch, 40_000)
    monkeypatch.setattr(rosterlog, "GROWTH", 2)
    node = Node(tmp_path, record("me", 1), record("a", 1), record("b", 1), record("c", 1))
    start = node.path.stat().st_size
    written = list[int]()
    watch(monkeypatch, lambda _, name, data: written.append(len(data)))
    changes, size = 300, len(record("c", 2).body) + 3_309 + 120
    returned = 0
    for seq in range(2, changes + 2):
        returned += node.add(record("c", seq))
        assert node.path.stat().st_size <= 2 * (start + 40_000)
    assert returned == sum(written)
    assert changes * size * 0.9 <= sum(written) <= 2 * changes * size
    assert sum(written) < changes * start / 4  # what the roster written whole would be
    assert seqs(node.again().roster) == seqs(node.roster)


def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    node = Node(tmp_path, record("me", 1), record("a", 1))
    assert not node.log.unsaved
    assert node.save() == 0


def test_a_file_may_hold_the_largest_roster_twice_named_certificates_and_all() -> None:
    frame = 3 * OVERHEAD + 2 * 16 + 64
    largest = MAX_BODY_BYTES + 3_309 + 2 * (MAX_CERTIFICATE_BYTES + 16) + frame
    assert MAX_MEMBERS * largest < MAX_FILE_BYTES
    assert MAX_CERTIFICATE_BYTES + 16 < rosterlog._MOST_PAYLOAD
    assert MAX_BODY_BYTES + 3_309 + 100 < rosterlog._MOST_PAYLOAD


def test_a_file_never_grows_beyond_what_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path, record("me", 1), record("a", 1))
    limit = node.path.stat().st_size + 20_000
    monkeypatch.setattr(rosterlog, "MAX_FILE_BYTES", limit)
    for seq in range(1, 12):
        node.add(record("c", seq))
        assert node.path.stat().st_size <= limit
    assert seqs(node.again().roster) == seqs(node.roster)
