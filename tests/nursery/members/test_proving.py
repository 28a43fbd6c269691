# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs in the node: told, signed, countersigned, stored; with peers away and damaged disks."""

import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import msgspec
import pytest
import trio
from msgspec.structs import replace
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from phantommesh.control import messages
from phantommesh.nursery.members import proving as module
from phantommesh.nursery.members.proving import Proving
from phantommesh.nursery.reporting.rows import _direction
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.proofs.archive import Archive
from phantommesh.proofs.ledger import Kept
from phantommesh.proofs.shelf import HEADS, Shelf
from phantommesh.proofs.statement import ZEROS, Proof, ProofError, Seven, Statement, decode_leaf_untrusted
from phantommesh.proofs.verdict import Demands
from phantommesh.proofs.verify import Report, verify
from phantommesh.records.record import sign_record
from phantommesh.records.roster import Entry, Roster
from phantommesh.scatter.epochs import ClassCounts, EpochCounts
from phantommesh.scatter.maps import Epoch
from phantommesh.scatter.peermap import Hits
from phantommesh.state.files import StateError
from phantommesh.state.start import NodeState
from phantommesh.trust.identity import NodeId
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import identity, make_mesh, plain_record
from tests.support.makeproofs import cards_of, plus, seven

MESH = make_mesh("proving", now=time.time())
SHARE = seven([300] * 7)
CARDS = cards_of("packet")


class State:
    """What `Proving` uses of a node's state."""

    def __init__(self, name: str) -> None:
        self.identity, self.root = identity(name), MESH.root


class End:
    """One node: a real service over a WireGuard that only counts."""

    def __init__(self, name: str, at: Path, *, keep: int = 60) -> None:
        self.name, self.at, self.keep = name, at, keep
        self.id = NodeId(identity(name).node_id)
        self.roster = Roster(MESH.root, Revocations(MESH.root))
        self.results: Counter[str] = Counter()
        self.sent = self.received = ZEROS
        self.away = self.hangs = False
        self.other: End = self
        self.serving: trio.Nursery
        self.clock = MockClock()
        self.epochs = self.reads = self.asked = self.calls = 0
        self.ahead = self.turned_ago = self.delay = 0.0
        self.current: EpochCounts | None = None
        self.classes: tuple[ClassCounts, ...] = ()  # of the epoch that ends next
        self.began, self.date = 0.0, time.time() - trio.current_time()
        self.restart()

    def restart(self) -> None:
        self.proving = Proving(
            cast("NodeState", State(self.name)), Shelf(self.at, self.keep), self.roster, epoch_seconds=3600.0,
            batch=8, keep=self.keep, call=self.call, read=self.read, scattered=self.scattered,
            delay=lambda peer: self.delay,
            count=lambda result: self.results.update([result]),
        )  # fmt: skip

    @asynccontextmanager
    async def call(self, peer: NodeId) -> AsyncIterator["End"]:
        await trio.lowlevel.checkpoint()
        try:
            if self.other.away:
                raise StreamError("nobody there")
            yield self
        finally:
            self.calls += 1

    async def ask(self, request: messages.Request) -> messages.Answer:
        request = messages.decode_request_untrusted(messages.encode(request))
        other = self.other
        self.asked += 1
        if other.hangs:
            await trio.sleep_forever()
        entry = other.roster.get(self.id)
        assert entry is not None
        answers, answered = list[messages.Answer](), trio.Event()

        async def serve() -> None:
            if isinstance(request, messages.Turn):
                answers.append(await other.proving.turn(entry, request))
            else:
                assert isinstance(request, messages.Prove)
                answers.append(await other.proving.take(entry, request))
            answered.set()

        other.serving.start_soon(serve)  # it goes on when who asked has hung up
        await answered.wait()
        return answers[0]

    async def read(self) -> None:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        counters = [(bytes(32), came, sent) for came, sent in zip(self.received, self.sent, strict=True)]
        self.proving.look({self.other.id: counters})

    async def scattered(self) -> dict[bytes, EpochCounts]:
        await trio.lowlevel.checkpoint()
        return {} if self.current is None else {bytes(self.other.id): self.current}

    def carry(self, packets: tuple[int, ...] = SHARE) -> Hits:
        """Send the other so many packets."""
        sent = seven([count * 1467 for count in packets])
        self.sent, self.other.received = plus(self.sent, sent), plus(self.other.received, sent)
        return Hits(tuple(packets), tuple(count * 1420 for count in packets))

    def turn(self, hits: Hits | None = None, early: Hits | None = None) -> None:
        """The scatterer goes on to the next epoch, of which it has counted so much already. It has been two
        seconds."""
        self.clock.jump(2.0)
        now = trio.current_time() - self.turned_ago
        before = self.began or now - 2
        self.began = now
        ended, self.current = (
            EpochCounts(
                Epoch(1, number), "packet", (1.0,) * 7, CARDS, counted or Hits(),
                self.date + began + self.ahead, began=began,
            )
            for number, counted, began in ((self.epochs, hits, before), (self.epochs + 1, early, now))
        )  # fmt: skip
        self.epochs += 1
        self.proving.epoch(self.other.id, dataclasses.replace(ended, classes=self.classes), self.current)

    async def verified(self) -> Report:
        exported = await self.proving.export()
        # How much of the time is proved depends on the machine here, where epochs are milliseconds.
        demands = Demands(min_coverage=0.0)
        return verify(Archive.decode_untrusted(exported), root_hash=MESH.mesh.root_hash, demands=demands)


Pair = tuple[End, End]


@pytest.fixture
async def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> AsyncIterator[Pair]:
    for name in ("OFTEN", "SETTLE"):
        monkeypatch.setattr(module, name, 0.0)
    a, b = End("pm-1", tmp_path / "a"), End("pm-2", tmp_path / "b")
    a.other, b.other = b, a
    for end in (a, b):
        for name in ("pm-1", "pm-2"):
            node, now = identity(name), time.time()
            certificate = MESH.certify(node, name, now=now)
            end.roster.add(sign_record(node, plain_record(node), certificate, MESH.authority.der), now)
    async with trio.open_nursery() as nursery:
        a.serving = b.serving = nursery
        a.clock = b.clock = mock_clock
        for end in (a, b):
            nursery.start_soon(end.proving.run)
            await until(lambda: end.proving.ready)  # noqa: B023
            await end.read()
        yield a, b
        nursery.cancel_scope.cancel()


async def until(seen: Callable[[], object]) -> None:
    for _ in range(20_000):
        if seen():
            return
        await trio.to_thread.run_sync(time.sleep, 0.002)  # the clock of these tests stands still
    raise AssertionError("it does not come about")


async def prove(a: End, epochs: int) -> None:
    """Let so many epochs pass at one end, and both ends sign."""
    for _ in range(epochs):
        await step(a, a.carry())
        await rounds(a)


async def step(a: End, hits: Hits | None = None) -> None:
    before = a.calls
    a.turn(hits)
    await until(lambda: a.calls > before and not a.proving._telling)


async def rounds(a: End) -> None:
    for end in (a, a.other, a):
        await end.proving.round()


async def test_an_epoch_of_which_a_class_had_weights_of_its_own_is_not_stated(pair: Pair) -> None:
    """The receiver counts all classes together, and no one plan is true of them."""
    a, _ = pair
    await step(a)
    await prove(a, 2)
    apart = ClassCounts("secret", "private", "batch", (250, *[1] * 6), Hits())
    a.classes = (apart,)
    await prove(a, 1)  # the class was silent
    assert a.results == {"signed": 3, "countersigned": 3}
    a.classes = (dataclasses.replace(apart, hits=Hits((1, *[0] * 6), (1420, *[0] * 6))),)
    await step(a, a.carry())
    a.classes = ()
    await prove(a, 3)
    assert a.results == {"signed": 6, "countersigned": 6, "mixed": 1}
    (link,) = (await a.verified()).links
    assert link.proofs == 6 and link.verdict == "holds"


async def test_both_ends_prove_what_one_sent(pair: Pair) -> None:
    a, b = pair
    await step(a)
    await prove(a, 4)
    for end, direction in ((a, "sent"), (b, "received")):
        (link,) = (await end.verified()).links
        assert (link.sender, link.receiver, link.proofs, link.countersigned) == ("pm-1", "pm-2", 4, 4)
        assert link.packets == 4 * sum(SHARE)
        shown = end.proving.review.link(end.other.id, "sent" if direction == "sent" else "received")
        assert list(shown.whole.values()) == [True] * 4 and shown.problem is None
    assert a.results == {"signed": 4, "countersigned": 4}
    assert b.results == {"witnessed": 4}


async def test_both_directions_at_once(pair: Pair) -> None:
    a, b = pair
    for end in pair:
        await step(end)
    for _ in range(3):
        for end in pair:
            await step(end, end.carry())
        await rounds(a)
    await rounds(b)
    for end in pair:
        report = await end.verified()
        assert sorted((link.sender, link.countersigned) for link in report.links) == [
            ("pm-1", 3),
            ("pm-2", 3),
        ]


async def test_while_a_peer_is_away_nothing_is_proved_and_the_chain_goes_on(pair: Pair) -> None:
    a, b = pair
    await step(a)
    await prove(a, 2)
    b.away = True
    await prove(a, 2)
    shown = a.proving.review.link(b.id, "sent")
    assert list(shown.whole.values()) == [True, True]
    assert a.results["unwitnessed"] == 2
    b.away = False
    await prove(a, 3)
    # The first of them closes a commitment that the peer has never had.
    assert shown.whole == dict.fromkeys(range(4), True)
    for end in pair:
        (link,) = (await end.verified()).links
        assert (link.proofs, link.countersigned) == (4, 4)


async def test_a_receipt_that_could_not_be_delivered_comes_later(pair: Pair) -> None:
    a, b = pair
    await step(a)
    await step(a, a.carry())
    await a.proving.round()
    a.away = True
    await b.proving.round()
    assert a.results == {"signed": 1}
    a.away = False
    await b.proving.round()
    assert a.results == {"signed": 1, "countersigned": 1}


async def test_a_peer_that_does_not_answer_holds_nothing_up(pair: Pair) -> None:
    a, b = pair
    await step(a)
    b.hangs = True
    for _ in range(3):
        asked = a.asked
        a.turn(a.carry())
        await until(lambda: a.asked > asked)  # noqa: B023
    b.hangs = False
    await step(a, a.carry())
    await step(a, a.carry())
    await rounds(a)
    assert a.results == {"unwitnessed": 3, "signed": 1, "countersigned": 1}


async def test_an_answer_that_comes_late_proves_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer has read its counters, and the next epoch is under way before it says so: nobody knows what it
    counted in which. Neither epoch is stated, and those that follow are."""
    a, b = pair
    await step(a)
    heard, late, handled = b.proving.turn, trio.Event(), trio.Event()

    async def slow(entry: Entry, request: messages.Turn) -> messages.Answer:
        await late.wait()
        answer = await heard(entry, request)
        handled.set()
        return answer

    async def after(entry: Entry, request: messages.Turn) -> messages.Answer:
        late.set()
        await handled.wait()
        return await heard(entry, request)

    monkeypatch.setattr(b.proving, "turn", slow)
    asked = a.asked
    a.turn(a.carry(seven([2000] * 7)))
    await until(lambda: a.asked > asked)
    monkeypatch.setattr(b.proving, "turn", after)
    for _ in range(4):
        await step(a, a.carry(seven([2000] * 7)))
    await rounds(a)
    assert a.results == {"unwitnessed": 1, "signed": 3, "countersigned": 3}


async def test_what_is_on_its_way_arrives_before_the_peer_reads(pair: Pair) -> None:
    """Bursts right before the epochs end: each is of the same epoch at both ends."""
    a, b = pair
    a.delay = 0.4
    await step(a)
    for packets in (2000, 20_000, 2000, 20_000):
        before, hits = b.received, a.carry(seven([packets] * 7))
        arrived, b.received = b.received, before

        async def arrive(arrived: Seven = arrived) -> None:
            await trio.sleep(a.delay / 2)
            b.received = arrived

        a.serving.start_soon(arrive)
        calls = a.calls
        a.turn(hits)
        for _ in range(2):
            await wait_all_tasks_blocked(0.01)
            a.clock.jump(a.delay / 2)
        await until(lambda: a.calls > calls and not a.proving._telling)  # noqa: B023
        assert b.received == arrived
    await rounds(a)
    assert a.results == {"signed": 4, "countersigned": 4}
    statement = a.proving.review.link(b.id, "sent").newest
    assert statement is not None and statement.receipt is not None
    assert statement.receipt.received == statement.statement.wire


async def test_a_reading_too_late_for_the_epoch_proves_nothing(pair: Pair) -> None:
    """So much time between the change of the map and the reading: the epoch's bytes are not those read."""
    a, _ = pair
    await step(a)
    a.turned_ago = module.PATIENCE + 0.1
    for _ in range(3):
        a.turn(a.carry())
        await until(lambda: not a.proving._telling and not a.proving._to_turn.statistics().tasks_waiting_send)
    await rounds(a)
    assert "signed" not in a.results and "mismatch" not in a.results


async def test_what_was_sent_before_the_counters_were_read_is_in_the_statement(pair: Pair) -> None:
    """The scheduler's counts end when the map changes, WireGuard's when they are read."""
    a, b = pair
    await step(a)
    hits = a.carry(seven([3000] * 7))
    early = a.carry(seven([2000] * 7))  # of the next epoch already
    before = a.calls
    a.turn(hits, early)
    await until(lambda: a.calls > before and not a.proving._telling)
    a.carry(seven([3000] * 7))
    await step(a, Hits((5000,) * 7, (5000 * 1420,) * 7))
    await rounds(a)
    assert a.results == {"signed": 2, "countersigned": 2}
    shown = a.proving.review.link(b.id, "sent")
    assert shown.newest is not None and shown.newest.statement.late_open == early.bytes


async def test_the_chain_goes_on_after_a_restart(pair: Pair) -> None:
    a, b = pair
    await step(a)
    await prove(a, 2)
    a.restart()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.proving.run)
        await until(lambda: a.proving.ready)
        assert list(a.proving.review.link(b.id, "sent").whole.values()) == [True, True]
        await a.read()
        await step(a)
        await prove(a, 2)
        (link,) = (await a.verified()).links
        assert (link.proofs, link.countersigned) == (4, 4)
        nursery.cancel_scope.cancel()


async def test_a_peer_that_lost_its_state_begins_again(pair: Pair) -> None:
    a, b = pair
    await step(a)
    await prove(a, 4)
    shutil.rmtree(a.at)
    a.restart()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.proving.run)
        await until(lambda: a.proving.ready)
        await a.read()
        await step(a)
        await prove(a, 2)
        for end in pair:  # nothing of the old chain, which contradicts the new one
            (link,) = (await end.verified()).links
            assert (link.proofs, link.countersigned) == (2, 2)
        shown = b.proving.review.link(a.id, "received")
        assert list(shown.whole) == [0, 1] and shown.newest is not None and shown.newest.number == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ahead", [1e12, 2 * 86_400.0, -2 * 86_400.0])
async def test_a_statement_of_another_time_is_refused(pair: Pair, ahead: float) -> None:
    a, b = pair
    await step(a)
    await prove(a, 1)
    a.ahead = ahead
    with capture_logs() as logged:
        await prove(a, 1)
    assert b.results == {"witnessed": 1, "refused": 1}
    assert any(line["event"] == "part of a proof refused" for line in logged)
    a.ahead = 0.0
    await prove(a, 1)
    assert b.results == {"witnessed": 2, "refused": 1}
    shown = b.proving.review.link(a.id, "received")
    assert list(shown.whole.values()) == [True, True]
    found = _direction(shown).newest
    assert found is not None and found.problem is None


def rewrite(end: End, was: int, number: int, **changed: int) -> Path:
    """Have a received proof on disk say something else, as if it had been taken."""
    before = next(end.at.rglob(f"received-*{was}"))
    proof = msgspec.msgpack.decode(before.read_bytes(), type=Proof)
    statement = decode_leaf_untrusted(proof.statement.leaf)
    assert isinstance(statement, Statement)
    leaf = msgspec.msgpack.encode(replace(statement, number=number, **changed))
    path = before.with_name(f"received-{number:019}")
    before.unlink()
    path.write_bytes(msgspec.msgpack.encode(replace(proof, statement=replace(proof.statement, leaf=leaf))))
    return path


async def test_a_date_that_is_none_is_dropped_from_disk(pair: Pair) -> None:
    a, b = pair
    await step(a)
    await prove(a, 3)
    path = rewrite(b, 2, 2, start_ms=2**62 - 60_000, end_ms=2**62)
    b.restart()
    async with trio.open_nursery() as nursery:
        with capture_logs() as logged:
            nursery.start_soon(b.proving.run)
            await until(lambda: b.proving.ready)
        (line,) = [line for line in logged if line["event"] == "a proof on disk is thrown away"]
        assert line["file"] == str(path) and not path.exists()
        shown = b.proving.review.link(a.id, "received")
        assert list(shown.whole) == [0, 1] and _direction(shown).newest is not None
        assert (await b.verified()).proofs == 2
        nursery.cancel_scope.cancel()


async def test_a_number_on_disk_that_cannot_be_gives_way_to_the_next(pair: Pair) -> None:
    a, b = pair
    await step(a)
    await prove(a, 3)
    path = rewrite(b, 2, 2**63 - 1)
    b.restart()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.proving.run)
        await until(lambda: b.proving.ready)
        await b.read()
        await step(a)
        await prove(a, 3)
        assert not path.exists()
        (link,) = (await b.verified()).links
        shown = b.proving.review.link(a.id, "received")
        assert link.proofs == 3 and shown.newest is not None and max(shown.whole) == shown.newest.number
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("ahead", [-4.0, 4.0])
async def test_a_clock_that_was_set_costs_no_proof(pair: Pair, ahead: float, restarted: bool) -> None:
    """Statements from before a clock was set back cannot be in one file with later ones. Both are kept, and
    both hold."""
    a, b = pair
    await step(a)
    await prove(a, 2)
    a.ahead = ahead
    async with trio.open_nursery() as nursery:
        if restarted:
            a.restart()
            nursery.start_soon(a.proving.run)
            await until(lambda: a.proving.ready)
            await a.read()
            await step(a)
        await prove(a, 3)
        went_back = ahead < 0
        numbers = [0, 1, 3, 4, 5] if went_back else [0, 1, 2, 3, 4]
        for end, direction in ((a, "sent"), (b, "received")):
            shown = end.proving.review.link(end.other.id, direction)  # type: ignore[arg-type]
            assert shown.whole == dict.fromkeys(numbers, True)
            (link,) = (await end.verified()).links
            assert link.countersigned == link.proofs == (3 if went_back else 5)
        assert "mismatch" not in a.results + b.results and "refused" not in b.results
        nursery.cancel_scope.cancel()


async def test_an_epoch_in_which_a_machine_slept_is_not_countersigned_and_accuses_nobody(pair: Pair) -> None:
    """Before: the receiver signed that it had held the commitment for longer than the epoch was, and both
    ends' files failed."""
    a, b = pair
    await step(a)
    await prove(a, 1)
    ledger = b.proving._ledger
    assert ledger is not None
    turned = ledger.turned

    def later(peer: NodeId, closes: bytes, opens: bytes, received: Seven, now: float, now_ms: int) -> None:
        turned(peer, closes, opens, received, now + 4.5, now_ms)

    ledger.turned = later  # type: ignore[method-assign]
    with capture_logs() as logged:
        await prove(a, 3)
    assert b.results == {"witnessed": 3, "untimely": 1}
    assert a.results == {"signed": 4, "countersigned": 3}
    assert not [line for line in logged if line["log_level"] == "warning"]
    for end in pair:
        assert {link.verdict for link in (await end.verified()).links} == {"holds"}


async def test_so_many_are_kept_and_no_more(pair: Pair, tmp_path: Path) -> None:
    a, b = pair
    a.keep = b.keep = 3
    for end in pair:
        end.proving._shelf = Shelf(end.at, 3)
    await step(a)
    await prove(a, 5)
    assert (await a.verified()).proofs == (await b.verified()).proofs == 3
    files = sorted(path.name for path in tmp_path.rglob("*-*") if path.is_file())
    assert len(files) == 6 and all(name.endswith(("2", "3", "4")) for name in files)


async def test_what_is_damaged_on_disk_is_left_out(pair: Pair) -> None:
    a, _ = pair
    await step(a)
    await prove(a, 4)
    files = sorted(path for path in a.at.rglob("sent-*"))
    files[1].write_bytes(b"rubbish")
    (a.at / HEADS).write_bytes(b"rubbish")
    (a.at / "not a node").mkdir()
    (link,) = (await a.verified()).links
    assert link.proofs == 2
    chains, heads = Shelf(a.at, 60).load()
    assert heads.next == 4 and [chain.next for chain in chains.values()] == [4]


async def test_a_loss_is_told(pair: Pair) -> None:
    a, b = pair
    await step(a)
    hits = a.carry(seven([3000] * 7))
    b.received = seven([came if i != 3 else 0 for i, came in enumerate(b.received)])
    await step(a, hits)
    await rounds(a)
    assert a.results["mismatch"] == b.results["mismatch"] == 1
    assert "dimension 3" in str(a.proving.review.link(b.id, "sent").problem)
    with pytest.raises(ProofError, match="dimension 3"):
        await a.verified()


async def test_what_peers_send_is_not_believed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair
    await step(a)
    await step(a, a.carry())
    a.away = b.away = True
    await a.proving.round()
    assert a.proving._ledger is not None
    (part,) = a.proving._ledger.unsent(b.id)
    mine, theirs = b.roster.get(b.id), b.roster.get(a.id)
    assert mine is not None and theirs is not None
    for entry, parts in (
        (mine, (part,)),
        (theirs, (part[:-1], b"", part[:300] + bytes([part[300] ^ 1]) + part[301:])),
    ):
        assert await b.proving.take(entry, messages.Prove(parts)) == messages.Done()
    assert b.results["refused"] == 4
    await b.proving.take(theirs, messages.Prove((part, part)))  # once is enough
    await b.proving.round()
    assert b.results["witnessed"] == 1
    monkeypatch.setattr(module, "OFTEN", 60.0)
    assert isinstance(await b.proving.turn(theirs, messages.Turn(b"", b"")), messages.Refused)


async def test_counters_that_begin_anew_do_not_go_back(pair: Pair) -> None:
    a, b = pair
    await step(a)
    await prove(a, 1)
    a.sent = a.received = b.sent = b.received = ZEROS  # the interfaces were made again
    for end in pair:
        await end.read()
    await prove(a, 3)
    # The one across which they began anew is not stated: what was sent before that is in no counter.
    assert a.results == {"signed": 3, "countersigned": 3}
    assert (await a.verified()).countersigned == 3


async def test_one_reading_serves_all_who_asked_before_it(pair: Pair) -> None:
    a, _ = pair
    before = a.reads
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(a.proving._fresh)
    assert a.reads - before <= 2


async def test_nothing_to_export_is_an_error(pair: Pair) -> None:
    a, b = pair
    with pytest.raises(ProofError, match="no scatter proofs yet"):
        await a.proving.export()
    await step(a)
    await prove(a, 1)
    a.roster._entries.pop(b.id)
    with pytest.raises(ProofError, match="no certificate is known of the peers"):
        await a.proving.export()


async def test_epochs_that_are_too_short_are_not_proved(tmp_path: Path) -> None:
    end = End("pm-1", tmp_path)
    end.proving._epoch = 0.05
    end.turn(Hits())
    assert end.proving._to_turn.statistics().current_buffer_used == 0


async def both_ways(a: End, b: End, epochs: int) -> None:
    """So many epochs of both directions, each signed."""
    for _ in range(epochs):
        await step(a, a.carry())
        await step(b, b.carry())
        await rounds(a)
        await rounds(b)


async def again(end: End) -> None:
    """The process ends, and starts again."""
    end.restart()
    end.serving.start_soon(end.proving.run)
    await until(lambda: end.proving.ready)
    await end.read()
    await step(end)


async def all_holds(a: End, b: End) -> None:
    for end in (a, b):
        assert {link.verdict for link in (await end.verified()).links} == {"holds"}


async def test_a_node_that_is_stopped_within_a_round_signs_no_second_head_of_it(pair: Pair) -> None:
    """Before: its own file was refused as a whole, for two heads of one round."""
    a, b = pair
    await step(a)
    await step(b)
    await both_ways(a, b, 2)
    await step(a, a.carry())
    await step(b, b.carry())
    await a.proving.round()
    put = b.proving._shelf.put
    with trio.CancelScope() as scope:

        def stop(kept: Kept) -> None:
            put(kept)
            trio.from_thread.run_sync(scope.cancel)

        b.proving._shelf.put = stop  # type: ignore[method-assign]
        await b.proving.round()
    assert scope.cancelled_caught
    await again(b)
    await both_ways(a, b, 2)
    await all_holds(a, b)


async def test_a_full_disk_costs_no_contradiction_after_the_next_start(pair: Pair) -> None:
    """Before: the peer's file was refused, from a disk that was well."""
    a, b = pair
    await step(a)
    await step(b)
    await both_ways(a, b, 3)

    def refuse(what: object) -> None:
        raise StateError("no space left on the device")

    b.proving._shelf.put = refuse  # type: ignore[assignment]
    b.proving._shelf.put_heads = refuse  # type: ignore[assignment]
    await both_ways(a, b, 3)
    await again(b)
    await both_ways(a, b, 4)
    for end in (a, b):
        assert all(link.verdict != "fails" for link in (await end.verified()).links)


@pytest.mark.parametrize("damaged", [b"", None])
async def test_damaged_or_lost_heads_begin_no_second_chain(pair: Pair, damaged: bytes | None) -> None:
    """Before: both ends' files were refused, for two heads of round 0."""
    a, b = pair
    await step(a)
    await step(b)
    await both_ways(a, b, 3)
    heads = b.at / HEADS
    heads.unlink()
    if damaged is not None:
        heads.write_bytes(damaged)
    await again(b)
    await both_ways(a, b, 3)
    await all_holds(a, b)


async def test_a_clock_that_is_hours_off_at_boot_costs_its_own_epochs_alone(pair: Pair) -> None:
    """Before: the receiver signed them, and the whole link failed for them."""
    a, _ = pair
    a.ahead = -7200.0
    await step(a)
    await prove(a, 3)
    a.ahead = 0.0
    await prove(a, 5)
    for end in pair:
        assert {link.verdict for link in (await end.verified()).links} == {"holds"}
