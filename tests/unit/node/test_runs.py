# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run of a node does about other runs of it, and what a witness takes and tells."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.membership.messages import State
from phantommesh.node.runs import (
    ASIDE,
    GONE_ROUNDS,
    KEPT,
    MAX_HELD,
    MAX_MET,
    RECHECK,
    ROUNDS,
    SHOWN,
    TRIED,
    Answer,
    Runs,
    There,
    Witness,
)
from phantommesh.records.roster import Entry, Roster
from phantommesh.records.runs import (
    MAX_ANSWER,
    MAX_START,
    NOBODY,
    RUN_BYTES,
    WORD_BYTES,
    Run,
    RunError,
    open_word,
    sign_word,
)
from phantommesh.trust.identity import Identity, NodeId

ME, OTHER = (Identity.from_seed(bytes([i]) * 32) for i in (1, 2))
A, B, C = (bytes([name]) * RUN_BYTES for name in b"abc")
NOTHING = Answer(There.ALIVE)


class Known(dict[NodeId, Identity]):
    """A roster of these nodes, as far as a witness reads one."""

    def get(self, node_id: NodeId, default: object = None) -> object:  # type: ignore[override]
        if node_id not in self:
            return None
        return SimpleNamespace(member=SimpleNamespace(public_key=self[node_id].public_key))


def witness() -> Witness:
    return Witness(cast("Roster", Known({ME.node_id: ME, OTHER.node_id: OTHER})))


def alive(node: bytes) -> State:
    return State.ALIVE


def dead(node: bytes) -> State:
    return State.DEAD


def saw(identity: Identity, run: Run, seen: Run = NOBODY) -> Answer:
    return Answer(There.ALIVE, (sign_word(identity, run, seen).raw,))


def settled(start: int = 10, name: bytes = A) -> Runs:
    runs = Runs(ME, start, name, 0.0)
    runs.round([NOTHING], 0.0)
    return runs


@settings(max_examples=50)
@given(st.integers(1, MAX_START), st.binary(min_size=16, max_size=16), st.integers(0, MAX_START))
def test_a_word_is_read_as_it_was_signed(start: int, name: bytes, seen: int) -> None:
    word = sign_word(ME, Run(start, name), Run(seen, B))
    assert open_word(word.raw, ME.public_key) == word
    assert len(word.raw) == WORD_BYTES


@given(st.one_of(st.binary(max_size=200), st.binary(min_size=WORD_BYTES, max_size=WORD_BYTES)))
def test_other_bytes_are_no_word_and_nothing_but_a_run_error(data: bytes) -> None:
    with pytest.raises(RunError):
        open_word(data, ME.public_key)


@given(st.integers(0, WORD_BYTES - 1), st.integers(1, 255))
@settings(max_examples=40)
def test_a_word_with_one_byte_changed_is_refused(at: int, by: int) -> None:
    raw = bytearray(sign_word(ME, Run(7, A)).raw)
    raw[at] ^= by
    with pytest.raises(RunError):
        open_word(bytes(raw), ME.public_key)


@given(st.binary(max_size=MAX_ANSWER + 5))
def test_an_answer_is_read_or_refused(data: bytes) -> None:
    try:
        answer = Answer.decode_untrusted(data)
    except RunError:
        return
    assert answer.encode() == data


@given(st.integers(0, 100), st.binary(max_size=WORD_BYTES + 20))
def test_a_witness_answers_anything(node: int, data: bytes) -> None:
    bears = witness()
    answer = bears.answer(bytes([node]) * 16 + data, alive, 0.0)
    assert Answer.decode_untrusted(answer).words == ()


def test_an_answer_is_never_longer_than_it_may_be() -> None:
    bears = witness()
    bears.answer(ME.node_id + sign_word(ME, Run(9, B)).raw, alive, 0.0)
    bears.answer(ME.node_id + sign_word(ME, Run(8, A), Run(9, B)).raw, alive, 0.0)
    answer = bears.answer(ME.node_id, alive, 0.0)
    assert len(answer) == MAX_ANSWER
    assert len(Answer.decode_untrusted(answer).words) == 2


def test_a_later_run_makes_a_settled_one_step_aside_for_good_and_say_so() -> None:
    runs = settled()
    runs.round([saw(ME, Run(11, B))], 1.0)
    assert runs.aside == Run(11, B)
    assert runs.news == runs.question()
    word = open_word(runs.question()[16:], ME.public_key)
    assert word.proves_two and (word.run, word.seen) == (Run(10, A), Run(11, B))


@pytest.mark.parametrize(
    "told",
    [
        saw(ME, Run(9, B)),  # an earlier run: each restart is shown one
        saw(ME, Run(10, A)),  # itself
        saw(OTHER, Run(11, B)),  # another node's
        Answer(There.ALIVE, (sign_word(OTHER, Run(11, B)).raw.replace(OTHER.node_id, ME.node_id),)),  # forged
        Answer(There.GONE),
        Answer(There.ALIVE, (bytes(WORD_BYTES),)),
        saw(ME, Run(MAX_START, B)),  # nobody could come after it
    ],
)
def test_nothing_else_does(told: Answer) -> None:
    runs = settled()
    runs.round([told] * 3, 1.0)
    assert runs.aside is None and runs.run == Run(10, A) and runs.twin is None


def test_who_comes_into_the_mesh_takes_the_number_after_the_latest() -> None:
    runs = Runs(ME, 10, A, 0.0)
    runs.round([], 0.0)  # nobody answered: it is not in yet
    runs.round([saw(ME, Run(500, B)), saw(ME, Run(400, B))], 1.0)
    assert runs.aside is None and runs.run == Run(501, A)
    first = settled(500, B)  # had that run been there, it would step aside now
    first.round([saw(ME, runs.run)], 2.0)
    assert first.aside == runs.run


def test_a_run_starts_above_the_one_that_its_process_gave_way_to() -> None:
    assert Runs(ME, 10, A, 0.0, above=Run(40, B)).run == Run(41, A)
    assert Runs(ME, 90, A, 0.0, above=Run(40, B)).run == Run(90, A)


def test_two_that_start_at_one_moment_do_not_both_stay() -> None:
    one, other = settled(10, A), settled(10, B)
    one.round([saw(ME, other.run)], 1.0)
    other.round([saw(ME, one.run)], 1.0)
    assert (one.aside, other.aside) == (Run(10, B), None)


def test_the_run_that_stays_hears_the_proof_and_passes_it_on_once() -> None:
    runs = settled(11, B)
    proof = saw(ME, Run(10, A), Run(11, B))
    runs.round([proof], 1.0)
    assert runs.twin == Run(10, A) and runs.aside is None
    assert runs.news == ME.node_id + proof.words[0]
    runs.news = None
    runs.round([proof], 2.0)
    assert runs.news is None


def test_it_comes_back_when_all_that_answer_find_the_other_gone_twice() -> None:
    runs = settled()
    runs.round([saw(ME, Run(11, B))], 1.0)
    gone, there = Answer(There.GONE), Answer(There.ALIVE)
    for answers in ([gone], [], [gone, there], [gone]):
        runs.round(answers, 2.0)
        assert not runs.over and runs.due == 2.0 + ASIDE
    for _ in range(GONE_ROUNDS - 1):
        runs.round([gone], 3.0)
    assert runs.over


def test_one_witness_that_lies_does_not_keep_it_away() -> None:
    runs = settled()
    runs.round([saw(ME, Run(11, B))], 1.0)
    for _ in range(GONE_ROUNDS):
        runs.round([Answer(There.GONE), Answer(There.GONE), Answer(There.ALIVE)], 2.0)
    assert runs.over


def test_a_proof_of_runs_before_the_present_one_says_nothing() -> None:
    proof, present = sign_word(ME, Run(10, A), Run(11, B)), sign_word(ME, Run(900, C))
    bears = witness()
    bears.answer(ME.node_id + present.raw, alive, 0.0)
    bears.answer(ME.node_id + proof.raw, alive, 1.0)
    assert not bears.found
    assert Answer.decode_untrusted(bears.answer(ME.node_id + present.raw, alive, 2.0)).words == ()
    runs = settled(900, C)
    runs.round([Answer(There.ALIVE, (proof.raw,))], 1.0)
    assert runs.twin is None and runs.news is None and runs.aside is None


def test_each_word_of_a_run_is_a_new_one_until_its_last() -> None:
    runs = settled()
    words = [open_word(runs.question()[16:], ME.public_key) for _ in range(3)]
    assert [word.count for word in words] == sorted({word.count for word in words})
    runs.round([saw(ME, Run(11, B))], 1.0)
    assert runs.question() == runs.question()


def test_forged_numbers_make_it_ask_and_no_more() -> None:
    runs, asked, now = settled(), 0, 100.0
    runs.due = float("inf")
    for generation in range(2_000):  # ten minutes, three a second
        now += 0.3
        runs.notice(generation, 0, now)
        if now >= runs.due:
            asked += 1
            runs.round([NOTHING], now)
    assert runs.aside is None
    assert 0 < asked <= 600 / RECHECK * (len(ROUNDS) + 1) * 2


def test_a_later_word_that_is_shown_unasked_makes_it_ask_at_once_and_no_more() -> None:
    runs = settled()
    later = sign_word(ME, Run(11, B)).raw
    for raw in (
        b"",
        bytes(WORD_BYTES),
        sign_word(ME, Run(9, B)).raw,  # an earlier run
        sign_word(ME, Run(10, A), count=7).raw,  # itself
        sign_word(OTHER, Run(11, B)).raw,
        later[:-1] + bytes([later[-1] ^ 1]),  # forged
    ):
        assert not runs.shown(raw, 100.0)
    assert runs.due < 100.0
    runs.due = float("inf")
    assert runs.shown(later, 100.0)
    assert runs.due == 100.0 and runs.aside is None and runs.twin is None
    runs.round([NOTHING], 100.0)  # it was an old word, and the witnesses know of no such run
    assert runs.aside is None


def test_words_that_are_shown_again_and_again_make_it_ask_at_most_once_a_second() -> None:
    runs, asked, now = settled(), 0, 100.0
    later = sign_word(ME, Run(11, B)).raw
    for _ in range(1_000):
        now += 0.01
        asked += runs.shown(later, now)
    assert 0 < asked <= 10


def test_a_run_that_has_not_come_in_or_has_stepped_aside_takes_no_word_unasked() -> None:
    later = sign_word(ME, Run(12, B)).raw
    assert not Runs(ME, 10, A, 0.0).shown(later, 1.0)
    runs = settled()
    runs.round([saw(ME, Run(11, B))], 1.0)
    assert not runs.shown(later, 2.0)


@pytest.mark.parametrize(
    ("state", "met"), [(State.ALIVE, 1), (State.SUSPECT, 1), (State.DEAD, 0), (State.LEFT, 0), (None, 0)]
)
def test_a_witness_has_a_later_word_for_a_run_that_may_be_there(state: State | None, met: int) -> None:
    bears = witness()
    old, new = (sign_word(ME, run).raw for run in (Run(10, A), Run(11, B)))
    bears.answer(ME.node_id + old, lambda _: None, 0.0)  # its start: nobody knows it yet
    assert not bears.met
    for count in range(3):
        bears.answer(ME.node_id + sign_word(ME, Run(10, A), count=count).raw, alive, 1.0)
    assert not bears.met  # the same run
    bears.answer(ME.node_id + new, lambda _: state, 2.0)
    assert [word.raw for word in bears.met] == [new] * met
    bears.answer(ME.node_id + new, lambda _: state, 3.0)
    bears.answer(ME.node_id + old, lambda _: state, 3.0)
    assert len(bears.met) == met


def test_a_witness_keeps_few_words_for_earlier_runs() -> None:
    people = [Identity.from_seed(i.to_bytes(32)) for i in range(MAX_MET + 5)]
    bears = Witness(cast("Roster", Known({one.node_id: one for one in people})))
    for one in people:
        bears.answer(one.node_id + sign_word(one, Run(1, A)).raw, alive, 0.0)
    assert len(bears.met) == MAX_MET


def test_all_runs_of_a_node_come_to_the_same_witnesses() -> None:
    entries = [
        cast("Entry", SimpleNamespace(member=SimpleNamespace(node_id=bytes([i]) * 16))) for i in range(40)
    ]
    one, other = settled().whom(entries), settled(11, B).whom(reversed(entries))
    assert one == other and len(one) == TRIED
    assert ME.node_id not in {entry.member.node_id for entry in one}


def test_a_witness_tells_each_run_of_the_other_and_who_steps_aside_of_nobody_else() -> None:
    bears = witness()
    old, new = (sign_word(ME, run).raw for run in (Run(10, A), Run(11, B)))
    assert Answer.decode_untrusted(bears.answer(ME.node_id + old, alive, 0.0)).words == ()
    assert Answer.decode_untrusted(bears.answer(ME.node_id + new, alive, 1.0)).words == ()
    assert Answer.decode_untrusted(bears.answer(ME.node_id + old, alive, 2.0)).words == (new,)
    assert not bears.found
    last = sign_word(ME, Run(10, A), Run(11, B)).raw
    bears.answer(ME.node_id + last, alive, 3.0)
    assert bears.found == [ME.node_id]
    assert last in Answer.decode_untrusted(bears.answer(ME.node_id + new, alive, 4.0)).words
    assert Answer.decode_untrusted(bears.answer(ME.node_id + new, alive, 4.0 + KEPT)).words == ()


def test_the_dead_are_there_while_their_word_is_shown() -> None:
    bears = witness()
    old, new = (sign_word(ME, run).raw for run in (Run(10, A), Run(11, B)))
    bears.answer(ME.node_id + new, alive, 0.0)

    def there(now: float, state: State = State.DEAD) -> There:
        return Answer.decode_untrusted(bears.answer(ME.node_id + old, lambda _: state, now)).there

    assert [there(SHOWN - 1), there(SHOWN)] == [There.ALIVE, There.GONE]
    bears.answer(ME.node_id + new, dead, SHOWN)
    assert there(SHOWN + 1) is There.GONE  # anybody can show a word that was shown
    bears.answer(ME.node_id + sign_word(ME, Run(11, B), count=1).raw, dead, SHOWN + 2)
    bears.answer(ME.node_id + new, dead, SHOWN + 3)  # and not in place of a newer one
    assert there(SHOWN + 2) is There.ALIVE
    assert there(2 * SHOWN + 1) is There.ALIVE
    assert there(2 * SHOWN + 2) is There.GONE
    assert there(SHOWN + 1, State.LEFT) is There.GONE
    assert there(SHOWN + 1, State.SUSPECT) is There.ALIVE


def test_a_witness_counts_what_is_not_genuine_and_holds_a_bounded_number() -> None:
    identities = {Identity.from_seed(i.to_bytes(32)).node_id: ME for i in range(3)}
    bears = Witness(cast("Roster", Known(identities)))
    bears.answer(bytes(16) + sign_word(ME, Run(1, A)).raw, alive, 0.0)
    bears.answer(next(iter(identities)) + bytes(WORD_BYTES), alive, 0.0)
    assert sum(bears.dropped.values()) == 2 and not bears._held
    assert MAX_HELD * 2 * WORD_BYTES < 16 << 20
