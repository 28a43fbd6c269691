# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of benchmarks.traffic_analysis: no attacker trains on what it is tested on, no feature is
another's, no byte is counted twice."""

import random
import socket
import statistics
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.traffic import attack, fingerprint, observer, pages, splitting
from benchmarks.traffic.cover import INNER, OUTER, SHARE, Budget, size
from benchmarks.traffic.pagelab import order
from benchmarks.traffic.traces import Capture, Load, Packet, Visit, cut, folds, load, save

GROUPS = [fingerprint.counts, fingerprint.times, fingerprint.lengths]

packets = st.lists(
    st.builds(
        Packet,
        st.integers(0, 2_000_000),
        st.integers(60, 1484).flatmap(lambda n: st.sampled_from([n, -n])),
        st.integers(0, 6),
    ),
    max_size=120,
).map(sorted)


def visits(number: int, repetitions: int) -> list[Visit]:
    """Page p has p + 1 packets on path 0 and one on path 1; the first one's time is the repetition."""
    return [
        Visit(page, repetition, 0.1, [Packet(repetition, 100, 0)] * (page + 1) + [Packet(repetition, 100, 1)])
        for page, repetition in order(number, range(repetitions), seed=5)
    ]


# --- splits ---


@given(st.integers(2, 6), st.integers(0, 40))
def test_folds_are_neighbours_that_test_each_repetition_once(number: int, more: int) -> None:
    repetitions = list(range(100, 100 + number + more))
    found = folds(repetitions * 3, number)
    assert sorted(r for fold in found for r in fold) == repetitions
    assert len(found) == number
    for fold in found:
        assert fold and max(fold) - min(fold) == len(fold) - 1


@pytest.mark.parametrize("number", [0, 1, 4])
def test_folds_that_cannot_be(number: int) -> None:
    with pytest.raises(ValueError, match="do not make"):
        folds([0, 1, 2], number)


def test_no_repetition_is_trained_on_and_tested_whatever_its_path() -> None:
    asked: list[int] = []

    def spy(train: list[list[float]], labels: list[int], test: list[list[float]]) -> Sequence[int]:
        assert len(labels) == len(train)
        trained, tested = ({int(row[0]) for row in rows} for rows in (train, test))
        assert trained and tested and not trained & tested
        assert trained | tested == set(range(8))
        asked.extend(sorted(tested))
        return [0] * len(test)

    samples = attack.samples_of_paths(visits(5, 8), range(2), lambda seen: [seen[0].time])
    assert len(samples) == 5 * 8 * 2
    attack.judge(samples, spy, 4)
    assert asked == list(range(8))


def test_who_knows_is_right_on_the_path_where_it_shows_and_at_chance_elsewhere() -> None:
    def by_count(train: list[list[float]], labels: list[int], test: list[list[float]]) -> Sequence[int]:
        known = {row[0]: label for row, label in zip(train, labels, strict=True)}
        return [known[row[0]] for row in test]

    samples = attack.samples_of_paths(visits(5, 8), range(2), lambda seen: [float(len(seen))])
    result = attack.judge([s for s in samples if s.path == 0], by_count, 4)
    assert (result.mean, result.worst_path, result.folds) == (1.0, 1.0, [1.0] * 4)
    result = attack.judge([s for s in samples if s.path == 1], by_count, 4)
    assert result.mean == pytest.approx(1 / 5)
    both = attack.judge(samples, by_count, 4)
    assert both.worst_path > both.mean


def test_shuffled_labels_leave_chance() -> None:
    def nearest(train: list[list[float]], labels: list[int], test: list[list[float]]) -> Sequence[int]:
        known = {row[0]: label for row, label in zip(train, labels, strict=True)}
        return [known[row[0]] for row in test]

    samples = attack.samples_of_all(visits(20, 40), lambda seen: [float(len(seen))])
    assert attack.judge(samples, nearest).mean == 1.0
    control = attack.shuffled(samples, 3)
    assert sorted(s.page for s in control) == sorted(s.page for s in samples)
    assert attack.judge(control, nearest).mean < 4 / 20


# --- features ---


@given(packets, packets)
def test_features_have_one_length_and_are_finite(some: list[Packet], others: list[Packet]) -> None:
    for group in GROUPS:
        found = group(some)
        assert len(found) == len(group(others)) == len(group([]))
        assert all(abs(value) < 1e9 for value in found)


@given(packets, st.integers(0, 10**15))
def test_features_do_not_tell_when_a_load_was(some: list[Packet], later: int) -> None:
    moved = [Packet(p.time + later, p.size, p.path) for p in some]
    assert fingerprint.all_groups(some) == fingerprint.all_groups(moved)


@given(packets)
def test_groups_see_only_what_they_are_named_for(some: list[Packet]) -> None:
    slower = [Packet(p.time * 3, p.size, p.path) for p in some]
    longer = [Packet(p.time, p.size + (16 if p.size > 0 else -16), p.path) for p in some]
    assert fingerprint.counts(some) == fingerprint.counts(slower) == fingerprint.counts(longer)
    assert fingerprint.times(some) == fingerprint.times(longer)
    assert fingerprint.lengths(some) == fingerprint.lengths(slower)
    assert fingerprint.no_lengths(some) == fingerprint.no_lengths(longer)


def test_counts_of_a_known_load() -> None:
    out, back = Packet(0, 100, 0), Packet(5, -1480, 0)
    found = fingerprint.counts([out, back, back, out])
    assert found[:4] == [4, 2, 2, 0.5]  # all, inbound, outbound, its share
    assert found[4:8] == [1.5, 1.5, 1.5, 0.5]  # where the outbound ones are, and the inbound ones
    assert fingerprint.lengths([out, back])[0] == 100


# --- capture ---


def frame(source: str, destination: str, ports: tuple[int, int], length: int, protocol: int = 17) -> bytes:
    ip = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, 64, protocol, 0)
    ip += socket.inet_aton(source) + socket.inet_aton(destination)
    return bytes(12) + b"\x08\x00" + ip + struct.pack("!HHHH", *ports, length - 20, 0)


@pytest.mark.parametrize(
    ("seen", "size"),
    [
        (frame("10.201.3.1", "10.201.3.2", (51823, 51823), 1480), 1480),
        (frame("10.201.3.2", "10.201.3.1", (51823, 40000), 124), -124),
        (frame("10.201.3.2", "10.201.3.9", (51823, 51823), 124), 0),  # not the client's
        (frame("10.201.3.1", "10.201.3.2", (51800, 51800), 1232), 0),  # the control port
        (frame("10.201.3.1", "10.201.3.2", (51823, 51823), 1480, protocol=6), 0),
        (frame("10.201.3.1", "10.201.3.2", (51823, 51823), 1480)[:30], 0),
        (bytes(12) + b"\x08\x06" + bytes(28), 0),
    ],
)
def test_observer_keeps_what_wireguard_sends(seen: bytes, size: int) -> None:
    assert observer.parse(seen, socket.inet_aton("10.201.3.1")) == size


def test_each_load_gets_what_came_until_the_next(tmp_path: Path) -> None:
    seen = [Packet(at, size, 0) for at, size in ((999_999, 100), (1_000_000, 124), (1_900_000, -1480))]
    seen += [Packet(2_000_000, 60, 1), Packet(2_100_000, -124, 1)]  # 60: a keepalive
    loads = [Load(7, 0, 1.0, 1.5), Load(8, 0, 2.0, 2.25)]
    first, second = cut(seen, loads)
    assert (first.page, first.packets) == (7, seen[1:3])
    assert (second.page, second.seconds, second.packets) == (8, 0.25, seen[4:])
    assert second.on(0) == [] and second.on(1) == seen[4:]
    capture = Capture("plain", 7, ["/a"], {"seed": 1}, [first, second])
    assert capture.bytes == 124 + 1480 + 124
    save(capture, tmp_path / "new" / "plain")
    assert load(tmp_path / "new" / "plain") == capture


# --- pages, order, cover, rules ---


def test_resources_are_what_a_browser_loads_from_the_same_server() -> None:
    html = """<link rel="stylesheet" href="../s.css?v=1#x"><link rel="next" href="n.html"><img src='a.png'>
      <script src="/t/j.js"></script><img src="a.png"><img src="http://elsewhere/b.png"><img src="data:x">
      <link rel="alternate stylesheet" href="no.css"><link rel="shortcut icon" href="i.ico"><a href="c.html">
      <object data="d.svg"></object><img src="http://[bad"><script>x</script>"""
    found = pages.resources_of(html, "/site/deep/page.html")
    assert found == ["/site/s.css", "/site/deep/a.png", "/t/j.js", "/site/deep/i.ico", "/site/deep/d.svg"]


def test_pages_are_chosen_evenly_by_the_seed() -> None:
    all_pages = [
        pages.Page(f"/{site}/{n}", 3, 1) for site, many in (("a", 50), ("b", 4)) for n in range(many)
    ]
    chosen = pages.choose(all_pages, 12, 1)
    assert len(set(chosen)) == 12 and sum(page.path.startswith("/b") for page in chosen) == 4
    assert chosen == pages.choose(all_pages, 12, 1) != pages.choose(all_pages, 12, 2)


def test_every_repetition_is_a_round_in_an_order_of_its_own() -> None:
    made = order(30, range(3), 1)
    rounds = [[page for page, repetition in made if repetition == r] for r in range(3)]
    assert all(sorted(turn) == list(range(30)) for turn in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert [r for _, r in made] == sorted(r for _, r in made)


@given(st.lists(st.integers(0, 50_000), max_size=60), st.integers(0, 2**32))
def test_adaptive_cover_stays_within_its_share(sends: list[int], seed: int) -> None:
    rng, budget, counter, real, decoys = random.Random(seed), Budget(1000), 1000, 0, 0
    for sent in sends:
        real += sent
        counter += sent
        budget.seen(counter)
        while budget.take(payload := size(rng)):
            counter += payload + INNER + OUTER
            decoys += payload + INNER + OUTER
            assert decoys <= SHARE * real
    assert decoys >= SHARE * real - 1500


def test_rules_deal_batches_by_their_weights() -> None:
    rng = random.Random(1)
    dealt = splitting.deal(7000, splitting.Rule("x"), rng)
    assert all(0.12 < dealt.count(path) / 7000 < 0.165 for path in range(7))
    runs = splitting.deal(999, splitting.Rule("x", (5, 5)), rng)
    assert len(runs) == 999 and all(len(set(runs[at : at + 5])) == 1 for at in range(0, 999, 5))
    shares = []
    for alpha in (100.0, 1.0, 0.05):
        rule = splitting.Rule("x", alpha=alpha)
        tops = [splitting.deal(300, rule, rng) for _ in range(50)]
        shares.append(statistics.fmean(max(map(dealt.count, range(7))) / 300 for dealt in tops))
    assert shares[0] < 0.3 < shares[1] < 0.6 < shares[2]


def test_padding_goes_up_to_the_next_length() -> None:
    assert [splitting.padded(n, (124, 640)) for n in (100, -124, -125, 641)] == [124, -124, -640, 641]
    assert splitting.padded(-333, ()) == -333


@given(packets)
def test_a_split_load_has_the_packets_it_had(some: list[Packet]) -> None:
    whole = Visit(1, 2, 0.3, some)
    divided = splitting.split(whole, splitting.Rule("x", (1, 3), 0.3), "5")
    assert [(p.time, p.size) for p in divided.packets] == [(p.time, p.size) for p in some]
    assert divided == splitting.split(whole, splitting.Rule("x", (1, 3), 0.3), "5")
