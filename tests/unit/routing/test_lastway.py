# SPDX-License-Identifier: GPL-3.0-or-later
"""Two ends that decide when to use frames over TCP; the network and WireGuard's roaming are a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.dimensions import ALL, DIMENSIONS, bits, has
from phantommesh.routing import lastway
from phantommesh.routing.lastway import Close, Dial, Facts, LastWay

STEP = 0.1
LOW, HIGH = b"a" * 16, b"b" * 16


@dataclass
class End:
    """One node. ``frame[i]``: WireGuard sends to the local socket. ``wanted`` is what the node asked for."""

    me: bytes
    peer: bytes
    last: LastWay
    frame: list[bool] = field(default_factory=lambda: [False] * DIMENSIONS)
    wanted: int = 0
    latest: list[float] = field(default_factory=lambda: [-inf] * DIMENSIONS)
    heard_aside: int = 0  # what the other end last said to have set aside
    calls: int = 0


class World:
    """``udp`` and ``tcp``: what passes. ``open_to``: who can be called."""

    def __init__(self, open_to: tuple[bytes, ...] = (LOW, HIGH)) -> None:
        self.now, self.udp, self.tcp, self.open_to = 0.0, True, True, open_to
        self.ends = [End(LOW, HIGH, LastWay(LOW)), End(HIGH, LOW, LastWay(HIGH))]
        self.caller: End | None = None
        self.keyed = ALL
        self.sent = self.lost = 0
        self.otherwise = 0

    def other(self, end: End) -> End:
        return self.ends[1 - self.ends.index(end)]

    def passes(self, end: End, i: int) -> bool:
        """Whether a packet of an end in a dimension arrives; the other end's WireGuard roams then."""
        other, frame = self.other(end), end.frame[i]
        if frame:
            arrives = self.caller is not None and self.tcp and has(other.last.framed(other.peer), i)
        else:
            arrives = self.udp or has(self.otherwise, i)
        if arrives:
            other.frame[i] = frame
        return arrives

    def facts(self, end: End) -> Facts:
        return Facts(
            keyed=self.keyed,
            answers=bits(self.now - sent < 1.0 for sent in end.latest),
            at_frame=bits(end.frame),
            otherwise=self.otherwise,
            drained=end.last.aside(end.peer) & self.other(end).heard_aside,
            latest=end.latest,
        )

    def carry_out(self, end: End, effects: list[lastway.Effect]) -> None:
        for effect in effects:
            match effect:
                case Dial():
                    end.calls += 1
                    if not self.tcp or end.peer not in self.open_to:
                        end.last.failed(end.peer, self.now)
                        continue
                    self.caller = end
                    self.carry_out(end, end.last.connected(end.peer, self.now, ours=True))
                    other = self.other(end)
                    if self.caller is end:
                        self.carry_out(other, other.last.connected(end.me, self.now, ours=False))
                case Close():
                    self.hang_up()

    def hang_up(self) -> None:
        if self.caller is not None:
            self.caller = None
            for end in self.ends:
                end.last.broke(end.peer, self.now)

    def step(self) -> None:
        self.now += STEP
        for end in self.ends:
            framed = end.last.framed(end.peer)
            for i in range(DIMENSIONS):
                if has(framed ^ end.wanted, i):
                    end.frame[i] = has(framed, i)
            end.wanted = framed
        for end in self.ends:  # a probe and its answer
            other = self.other(end)
            for i in range(DIMENSIONS):
                if self.passes(end, i):
                    other.heard_aside = end.last.aside(end.peer)
                    if self.passes(other, i):
                        end.latest[i] = self.now
                        end.heard_aside = other.last.aside(other.peer)
        for end in self.ends:  # traffic
            facts = self.facts(end)
            out = end.last.aside(end.peer) | end.heard_aside
            for i in range(DIMENSIONS):
                if has(facts.answers, i) and not has(out, i):
                    self.sent += 1
                    self.lost += not self.passes(end, i)
        for end in self.ends:
            effects = end.last.look(end.peer, self.facts(end), self.now)
            assert effects or end.last.deadline > self.now  # or its driver would not rest
            self.carry_out(end, effects)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.step()

    @property
    def framed(self) -> list[int]:
        return [end.last.framed(end.peer) for end in self.ends]


def blocked(open_to: tuple[bytes, ...] = (LOW, HIGH)) -> World:
    world = World(open_to)
    world.run(5.0)
    assert world.framed == [0, 0] and world.ends[0].calls == world.ends[1].calls == 0
    world.udp = False
    world.run(6.0)
    assert world.framed == [ALL, ALL]
    world.sent = world.lost = 0
    return world


def test_a_pair_without_udp_has_frames_in_all_dimensions_by_one_call() -> None:
    world = blocked()
    assert sum(end.calls for end in world.ends) == 1
    world.run(60.0)
    assert world.framed == [ALL, ALL]
    assert sum(end.calls for end in world.ends) == 1


def test_the_end_that_can_call_calls() -> None:
    for only in (LOW, HIGH):
        world = blocked((only,))
        assert world.caller is not None and world.caller.peer == only


def test_trials_that_find_udp_blocked_lose_nothing_and_grow_rare() -> None:
    world, counts = blocked(), []
    for _ in range(3):
        before = world.sent
        world.run(400.0)
        counts.append(world.sent - before)
    assert world.sent and not world.lost
    aside = 2 * DIMENSIONS * 400 / STEP - counts[-1]
    assert aside * STEP < 0.01 * 2 * DIMENSIONS * 400  # little is out of use, and seldom


def test_udp_that_passes_again_is_taken_by_all_dimensions_without_loss() -> None:
    world = blocked()
    world.udp = True
    world.run(60.0)
    assert world.framed == [0, 0] and world.caller is None
    assert not any(end.frame[i] for end in world.ends for i in range(DIMENSIONS))
    assert world.sent and not world.lost
    world.run(60.0)
    assert sum(end.calls for end in world.ends) == 1


def test_a_word_by_udp_is_a_reason_to_try_at_once_and_only_once() -> None:
    world = blocked()
    assert world.caller is not None
    world.run(100.0)  # the next trial is far
    world.udp = True
    for _ in range(100):
        for end in world.ends:
            end.last.udp_heard(end.peer, world.now)
        world.step()
    assert world.framed[world.ends.index(world.caller)] == 0
    world = blocked()
    began, trials = world.now, 0
    while world.now < began + 300.0:
        aside = [end.last.aside(end.peer) for end in world.ends]
        for end in world.ends:
            end.last.udp_heard(end.peer, world.now)
        world.step()
        then = zip([end.last.aside(end.peer) for end in world.ends], aside, strict=True)
        trials += any(now and not was for now, was in then)
    assert trials <= 6  # 0, 30, 90, 210 s and so on: words by UDP that lead to nothing change no more


def test_a_slow_node_that_hears_its_peer_by_udp_waits_longer_and_not_for_ever() -> None:
    world = World()
    world.udp = False  # of WireGuard's ports only
    while world.now < 5.5:
        for end in world.ends:
            end.last.udp_heard(end.peer, world.now)
        world.step()
        assert not any(end.calls for end in world.ends)
    world.run(2.0)
    assert world.framed == [ALL, ALL]
    world = World()
    world.run(5.0)
    for end in world.ends:
        end.last.udp_heard(end.peer, world.now)
    world.udp = False
    world.run(1.0 + lastway.UDP_LATELY)  # what answered until a second ago answers
    assert world.framed == [ALL, ALL]


def test_udp_may_be_blocked_again_and_again() -> None:
    world = World()
    for i in range(1, 4):
        world.udp = False
        world.run(10.0)
        assert world.framed == [ALL, ALL]
        world.udp = True
        world.run(90.0)
        assert world.framed == [0, 0] and sum(end.calls for end in world.ends) == i


def test_frames_are_left_where_something_better_is_offered() -> None:
    world = blocked()
    world.otherwise = 0b101
    for end in world.ends:
        end.frame[0] = end.frame[2] = False
    world.run(30.0)
    assert world.framed == [0, 0] and world.caller is None
    assert not world.lost


def test_a_connection_that_breaks_is_made_again() -> None:
    world = blocked()
    world.run(10.0)
    world.hang_up()
    world.run(2.0)
    assert world.framed == [ALL, ALL] and world.caller is not None


def test_a_peer_that_cannot_be_called_is_called_ever_less_often() -> None:
    world = World(())
    world.run(5.0)
    world.udp = False
    world.run(600.0)
    assert world.framed == [0, 0]
    assert all(10 < end.calls < 20 for end in world.ends)


def test_a_handshake_over_tcp_has_wireguard_wait_for_frames() -> None:
    world = World()
    world.udp = False
    world.keyed = 0
    world.run(5.0)
    world.keyed = ALL
    for end in world.ends:
        end.last.over_tcp(end.peer, world.now)
        assert end.last.held(end.peer, world.now) == ALL
    world.run(0.5)
    assert world.framed == [ALL, ALL]
    assert all(end.last.held(end.peer, world.now) == 0 for end in world.ends)


def test_nothing_is_held_for_long_or_where_a_path_answers() -> None:
    world = World(())
    world.run(2.0)
    low = world.ends[0]
    low.last.over_tcp(HIGH, world.now)
    world.run(0.1)
    assert low.last.held(HIGH, world.now) == 0 and low.last.deadline == inf
    world.udp = False
    world.run(3.0)
    low.last.over_tcp(HIGH, world.now)
    world.run(lastway.HOLD + 0.2)
    assert low.last.held(HIGH, world.now) == 0


def test_a_peer_that_is_gone_is_forgotten() -> None:
    world = blocked()
    [low, _] = world.ends
    assert low.last.retain(()) == [Close(HIGH)]
    assert low.last.framed(HIGH) == 0 and low.last.deadline == inf


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["udp", "no udp", "tcp", "no tcp", "break", "heard", "better", "worse"]),
            st.integers(1, 300),
        ),
        max_size=12,
    )
)
def test_whatever_happens_the_ends_come_to_agree(happens: list[tuple[str, int]]) -> None:
    world = World()
    for what, steps in happens:
        match what:
            case "udp" | "no udp":
                world.udp = what == "udp"
            case "tcp" | "no tcp":
                world.tcp = what == "tcp"
                if not world.tcp:
                    world.hang_up()
            case "break":
                world.hang_up()
            case "heard":
                world.ends[0].last.udp_heard(HIGH, world.now)
            case _:
                world.otherwise = 0b11 if what == "better" else 0
        for _ in range(steps):
            world.step()
    world.udp, world.tcp, world.otherwise = False, True, 0
    for _ in range(1000):
        world.step()
        if world.framed == [ALL, ALL]:
            break
    assert world.framed == [ALL, ALL]
    world.udp = True
    world.run(400.0)
    assert world.framed == [0, 0] and world.caller is None
