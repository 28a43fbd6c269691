# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node asks of others, of whom, and when: without channels, clock or disk."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from phantommesh.control import asking, messages
from phantommesh.endpoint import Address
from phantommesh.gossip.envelope import REQUEST, Envelope
from phantommesh.gossip.machine import AskKeys, Effect, Gossip
from phantommesh.membership.effects import FetchRecord, Sync
from phantommesh.membership.machine import Membership
from phantommesh.membership.presets import LAN
from phantommesh.node.news import (
    ASK_QUEUE,
    ASKED,
    SILENT,
    SLOW,
    STANDING_ASKED,
    STANDING_FIRST,
    STANDING_MAX,
    SYNC_QUEUE,
    News,
    Standing,
    Take,
    Task,
)
from phantommesh.records.roster import Roster
from phantommesh.trust.groupkey import Keyring
from phantommesh.trust.identity import NodeId
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import NOW, identity, make_mesh

MESH = make_mesh()
ME = identity("me").node_id
OTHERS = [identity(f"other {i}").node_id for i in range(6)]
SOMEWHERE = Address("192.0.2.9", 51800)
UNREADABLE = asking.Shut((), messages.KeysAre(b"", b"", b""))


class World:
    """A node that has links with ``linked``."""

    def __init__(self, linked: Sequence[NodeId] = OTHERS) -> None:
        self.roster, self.revocations = Roster(MESH.root, Revocations(MESH.root)), Revocations(MESH.root)
        self.membership = Membership(
            node=ME, generation=1, record_seq=0, record_hash=bytes(16), rng=Random(1), now=0.0, params=LAN
        )
        ring = Keyring()
        sealed, requests = (
            Envelope(ME, ring, start=1, revoked=self.revocations, digest=lambda: bytes(8), label=label)
            for label in (b"test", REQUEST)
        )
        self.gossip = Gossip(
            self.membership, sealed, where=lambda _: (), digest=lambda: bytes(8), in_use=lambda _: None
        )
        self.forbidden: set[str] = set()
        self.wanted: list[Effect] = []
        self.news = News(
            ME, self.roster, self.revocations, self.gossip, requests, told={},
            where=lambda _: (), may=lambda _, host: host not in self.forbidden,
            reachable=lambda first: list(dict.fromkeys((*map(NodeId, first), *linked))),
            linked=lambda member: member in linked, carry_out=self.wanted.extend,
        )  # fmt: skip

    def ask(self, digest: bytes = b"another") -> Task:
        assert self.news.wish(AskKeys(None, digest), 0.0, NOW)
        task = self.news.next("ask", lambda: 0.0, lambda: NOW)
        assert task is not None
        return task


def asked_of(task: Task) -> list[NodeId]:
    """Whom the task calls while nobody answers."""
    return [step.member for step in task if isinstance(step, asking.Call)]


def test_group_keys_are_asked_of_a_few_members_until_one_answers() -> None:
    assert asked_of(World().ask()) == OTHERS[:ASKED]
    task = World().ask()
    assert isinstance(task.send(None), asking.Call)
    second = task.send(None)  # the first is away
    assert isinstance(second, asking.Call) and second.member == OTHERS[1]
    take = task.send(UNREADABLE)
    assert take == Take(OTHERS[1], UNREADABLE)
    third = task.send(None)  # what the second gave cannot be read
    assert isinstance(third, asking.Call) and third.member == OTHERS[2]
    task.send(UNREADABLE)
    try:
        task.send(False)
    except StopIteration:
        return
    raise AssertionError("somebody is asked after one has answered")


def test_a_member_without_a_link_is_not_asked() -> None:
    world = World(linked=[])
    assert asked_of(world.ask()) == []
    assert world.news.wish(Sync(OTHERS[0]), 0.0, NOW)
    task = world.news.next("sync", lambda: 0.0, lambda: NOW)
    assert task is not None and list(task) == []
    assert world.news.dropped["gossip-sync-unlinked"] == 1


def test_what_waits_is_bounded_and_what_finds_no_room_is_counted() -> None:
    news = World().news
    assert [news.wish(Sync(OTHERS[0]), 0.0, NOW) for _ in range(SYNC_QUEUE + 2)][-3:] == [True, False, False]
    members = [NodeId(bytes([i]) * 16) for i in range(ASK_QUEUE + 1)]
    asks = [news.wish(AskKeys(member, b"another"), 0.0, NOW) for member in members]
    assert asks == [True] * ASK_QUEUE + [False]
    assert news.dropped == {"gossip-sync-queue": 2, "gossip-ask-queue": 1}


def fetch(world: World, source: NodeId, number: int, now: float) -> None:
    node = identity(f"told of {number}").node_id
    wanted = FetchRecord(node, 1, bytes([number]) * 32, source)
    assert world.news.wish(wanted, now, NOW)


def test_a_member_that_lets_questions_for_records_wait_has_one_worker_at_most() -> None:
    """It tells of records that nobody has. Each question to it lasts until the caller gives up."""
    world, mute, honest = World(), OTHERS[0], OTHERS[1]
    clock = 100.0

    def take() -> Task | None:
        return world.news.next("fetch", lambda: clock, lambda: NOW)

    fetch(world, mute, 0, clock)
    first = take()
    assert first is not None
    asked = first.send(None)
    assert isinstance(asked, asking.Call) and asked.member == mute
    clock += SLOW + 1
    first.send(None)  # the caller has given up
    fetch(world, mute, 1, clock)
    first.close()
    for number in (2, 3, 4):
        fetch(world, mute, number, clock)
    waiting = take()  # of the silent member's word, and of nothing else
    assert waiting is not None
    asked = waiting.send(None)
    assert isinstance(asked, asking.Call) and asked.member != mute, "the silent member is asked first"
    fetch(world, mute, 5, clock)
    assert take() is None, "the silent member has another worker"
    fetch(world, honest, 6, clock)
    next_task = take()
    assert next_task is not None
    asked = next_task.send(None)
    assert isinstance(asked, asking.Call) and asked.member == honest
    waiting.close()
    again = take()
    assert again is not None
    again.send(None)
    again.close()
    clock += SILENT
    fetch(world, mute, 7, clock)
    last = take()
    assert last is not None
    asked = last.send(None)
    assert isinstance(asked, asking.Call) and asked.member == mute, "it is forgiven"


def test_a_member_that_always_has_news_and_never_answers_keeps_nobody_from_being_asked() -> None:
    """A member that was revoked would be the last to be found out. It lets each question wait for 15 s."""
    world, liar, honest = World(), OTHERS[0], OTHERS[1]

    def take() -> Task | None:
        return world.news.next("ask", lambda: 0.0, lambda: NOW)

    assert world.news.wish(AskKeys(liar, b"0"), 0.0, NOW)
    stuck = take()
    assert stuck is not None
    stuck.send(None)
    assert not any(world.news.wish(AskKeys(liar, bytes([i])), 0.0, NOW) for i in range(1, 100))
    assert world.news.wish(AskKeys(honest, b"revoked"), 0.0, NOW)
    asked = take()
    assert asked is not None and asked_of(asked) == [honest]
    stuck.close()
    assert world.news.wish(AskKeys(liar, b"again"), 0.0, NOW)


def test_a_record_is_looked_for_once_at_a_time_and_again_after_nobody_had_it() -> None:
    world = World()
    wanted = FetchRecord(OTHERS[0], 1, b"h" * 16, OTHERS[1])
    assert world.news.wish(wanted, 0.0, NOW) and not world.news.wish(wanted, 0.0, NOW)
    task = world.news.next("fetch", lambda: 0.0, lambda: NOW)
    assert task is not None and world.news.next("fetch", lambda: 0.0, lambda: NOW) is None
    assert OTHERS[1] in asked_of(task)
    assert world.news.dropped["gossip-record-not-found"] == 1
    assert world.news.wish(wanted, 0.0, NOW)


def test_a_fetch_that_is_given_up_frees_its_place() -> None:
    world = World()
    assert world.news.wish(FetchRecord(OTHERS[0], 1, b"h" * 16, OTHERS[1]), 0.0, NOW)
    task = world.news.next("fetch", lambda: 0.0, lambda: NOW)
    assert task is not None
    next(task)
    task.close()
    assert not world.news.fetching


def test_nothing_is_asked_at_a_forbidden_address() -> None:
    world = World()
    world.forbidden.add(SOMEWHERE.host)
    assert world.news.question(asking.CallUnlinked(SOMEWHERE, [b"h" * 16])) is None
    assert world.news.dropped["gossip-record-forbidden"] == 1


def test_whether_it_was_revoked_a_node_asks_while_it_is_quiet_and_less_and_less_often() -> None:
    roster = Roster(MESH.root, Revocations(MESH.root))
    for i in range(2 * STANDING_ASKED):
        roster.add(MESH.record(identity(f"other {i}"), f"n{i}"), NOW)
    standing = Standing(ME, Random(1), 10.0)
    assert standing.look(roster, 9.9, quiet=True, revoked=False) == []
    assert standing.look(roster, 10.0, quiet=False, revoked=False) == []
    assert 10.0 + 0.75 * STANDING_FIRST <= standing.due <= 10.0 + 1.25 * STANDING_FIRST
    pauses = []
    for _ in range(12):
        now = standing.due
        assert len(standing.look(roster, now, quiet=False, revoked=True)) == STANDING_ASKED
        pauses.append(standing.due - now)
    assert pauses[0] < 2.0 * STANDING_FIRST < pauses[-1]
    assert 0.75 * STANDING_MAX <= pauses[-1] <= 1.25 * STANDING_MAX
