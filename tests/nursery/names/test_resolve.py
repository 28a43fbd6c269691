# SPDX-License-Identifier: GPL-3.0-or-later
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from phantommesh.nursery.names import resolve
from phantommesh.nursery.names.resolve import (
    AT_ONCE,
    FORGET,
    FRESH,
    MAX_ADDRESSES,
    SELDOM,
    TIMEOUT,
    Resolver,
    SystemNames,
    find_all,
)


class NameServer(trio.abc.HostnameResolver):
    """Answers from a table: an address, an error to raise, or None for silence."""

    def __init__(self, table: dict[str, str | Exception | None]) -> None:
        self.table = table
        self.asked: Counter[str] = Counter()
        self.waiting = self.most_waiting = 0

    async def getaddrinfo(self, host: Any, *_: Any, **__: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        self.asked[name] += 1
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)
        try:
            found = self.table[name]
            await trio.sleep(float("inf") if found is None else 0)
        finally:
            self.waiting -= 1
        if isinstance(found, Exception):
            raise found
        assert found is not None
        return [(socket.AF_UNSPEC, socket.SOCK_DGRAM, 17, "", (one, 0)) for one in found.split()]

    async def getnameinfo(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


@asynccontextmanager
async def resolving(
    table: dict[str, str | Exception | None], changed: Callable[[], None] = lambda: None
) -> AsyncIterator[tuple[Resolver, NameServer]]:
    names = NameServer(table)
    trio.socket.set_custom_hostname_resolver(names)
    resolver = Resolver(changed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resolver.run)
        with capture_logs():
            yield resolver, names
        nursery.cancel_scope.cancel()


async def test_addresses_are_not_looked_up() -> None:
    async with resolving({}) as (resolver, names):
        assert resolver.lookup("192.0.2.1") == ("192.0.2.1",)
        assert resolver.lookup("2001:DB8::0001") == ("2001:db8::1",)
        await wait_all_tasks_blocked()
        assert not names.asked


async def test_a_name_is_known_once_it_was_looked_up(autojump_clock: MockClock) -> None:
    told = 0

    def changed() -> None:
        nonlocal told
        told += 1

    async with resolving({"a.example": "192.0.2.1"}, changed) as (resolver, names):
        assert resolver.lookup("a.example") == ()
        await trio.sleep(0.1)
        assert resolver.lookup("a.example") == ("192.0.2.1",)
        assert told == 1
        await trio.sleep(FRESH * 3)
        assert told == 1
        assert names.asked["a.example"] >= 3
        names.table["a.example"] = "192.0.2.2"
        await trio.sleep(FRESH * 2)
        assert resolver.lookup("a.example") == ("192.0.2.2",)
        assert told == 2


@pytest.mark.parametrize(
    "failure", [socket.gaierror(-2, "no such name"), UnicodeError("label too long"), None, "fe80::1%eth0"]
)
async def test_a_failure_keeps_what_was_known(
    autojump_clock: MockClock, failure: str | Exception | None
) -> None:
    async with resolving({"a.example": "192.0.2.1"}) as (resolver, names):
        resolver.lookup("a.example")
        await trio.sleep(0.1)
        names.table["a.example"] = failure
        await trio.sleep(FRESH + TIMEOUT + 1)
        assert names.asked["a.example"] == 2
        assert resolver.lookup("a.example") == ("192.0.2.1",)


async def test_all_addresses_without_a_scope_are_candidates_the_families_in_turn() -> None:
    table: dict[str, str | Exception | None] = {
        "a.example": "fe80::1%eth0 2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2 192.0.2.3"
    }
    async with resolving(table) as (resolver, _):
        resolver.lookup("a.example")
        await wait_all_tasks_blocked()
        first, *others = resolver.lookup("a.example")
        assert first == "2001:db8::1"
        assert others == ["192.0.2.1", "2001:db8::2", "192.0.2.2", "192.0.2.3"]


async def test_an_order_that_turns_round_is_no_change(autojump_clock: MockClock) -> None:
    told = []
    async with resolving({"a.example": "192.0.2.1 192.0.2.2"}, lambda: told.append(1)) as (resolver, names):
        resolver.lookup("a.example")
        await trio.sleep(0.1)
        names.table["a.example"] = "192.0.2.2 192.0.2.1"
        await trio.sleep(FRESH * 2)
        assert resolver.lookup("a.example") == ("192.0.2.1", "192.0.2.2")
        assert len(told) == 1
        names.table["a.example"] = "192.0.2.3 192.0.2.2"
        await trio.sleep(FRESH * 2)
        assert resolver.lookup("a.example") == ("192.0.2.2", "192.0.2.3")


async def test_of_one_name_a_bounded_number_of_addresses_is_kept() -> None:
    async with resolving({"a.example": " ".join(f"192.0.2.{i}" for i in range(1, 99))}) as (resolver, _):
        resolver.lookup("a.example")
        await wait_all_tasks_blocked()
        assert len(resolver.lookup("a.example")) == MAX_ADDRESSES


async def test_one_silent_name_holds_up_no_other(autojump_clock: MockClock) -> None:
    table: dict[str, str | Exception | None] = {f"silent{i}.example": None for i in range(AT_ONCE - 1)}
    async with resolving({**table, "a.example": "192.0.2.1"}) as (resolver, _):
        for name in table:
            resolver.lookup(name)
        resolver.lookup("a.example")
        began = trio.current_time()
        while resolver.lookup("a.example") == ():
            await trio.sleep(0.1)
        assert trio.current_time() - began < TIMEOUT  # of a clock that jumps


async def test_only_so_many_are_asked_at_once(autojump_clock: MockClock) -> None:
    table: dict[str, str | Exception | None] = {f"silent{i}.example": None for i in range(3 * AT_ONCE)}
    async with resolving(table) as (resolver, names):
        for name in table:
            resolver.lookup(name)
        await trio.sleep(5 * TIMEOUT)
        assert names.most_waiting == AT_ONCE
        assert set(names.asked) == set(table)


async def test_a_new_name_does_not_ask_for_the_others_again(autojump_clock: MockClock) -> None:
    async with resolving({"a.example": "192.0.2.1", "b.example": "192.0.2.2"}) as (resolver, names):
        resolver.lookup("a.example")
        await trio.sleep(1)
        resolver.lookup("b.example")
        await trio.sleep(1)
        assert names.asked == {"a.example": 1, "b.example": 1}


async def test_a_name_that_nobody_asks_for_is_forgotten(autojump_clock: MockClock) -> None:
    async with resolving({"a.example": "192.0.2.1", "b.example": "192.0.2.2"}) as (resolver, names):
        resolver.lookup("a.example")
        resolver.lookup("b.example")
        for _ in range(int((FORGET + 3 * FRESH) / 30)):
            await trio.sleep(30)
            resolver.lookup("b.example")
        asked = names.asked["a.example"]
        await trio.sleep(5 * FRESH)
        assert names.asked["a.example"] == asked
        assert resolver.lookup("b.example") == ("192.0.2.2",)


async def test_there_is_an_end_to_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "MAX_NAMES", 2)
    async with resolving({"a.example": "192.0.2.1", "b.example": "192.0.2.2"}) as (resolver, names):
        assert [resolver.lookup(f"{name}.example") for name in "ab"] == [()] * 2
        await wait_all_tasks_blocked()
        assert resolver.lookup("c.example") == ()
        await wait_all_tasks_blocked()
        assert resolver.lookup("b.example") == ("192.0.2.2",)
        assert set(names.asked) == {"a.example", "b.example"}


async def test_a_name_without_an_answer_gives_way_to_a_new_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "MAX_NAMES", 3)
    table = {"a.example": "192.0.2.1", "silent0.example": None, "silent1.example": None}
    async with resolving({**table, "b.example": "192.0.2.2"}) as (resolver, names):
        for name in table:
            resolver.lookup(name)
        await trio.sleep(1)
        resolver.lookup("silent0.example")
        resolver.lookup("b.example")
        await trio.sleep(2 * FRESH)
        assert resolver.lookup("a.example") == ("192.0.2.1",)
        assert resolver.lookup("b.example") == ("192.0.2.2",)
        assert names.asked["silent1.example"] == 1 < names.asked["silent0.example"]


async def test_a_heap_of_silent_names_does_not_hold_up_the_next(autojump_clock: MockClock) -> None:
    """A member's record may name what never answers, and so may many members'."""
    table: dict[str, str | Exception | None] = {f"silent{i}.example": None for i in range(480)}
    async with resolving({**table, "a.example": "192.0.2.1"}) as (resolver, _):
        for name in table:
            resolver.lookup(name)
        await trio.sleep(0.1)
        began = trio.current_time()
        while resolver.lookup("a.example") == ():
            await trio.sleep(0.1)
        assert trio.current_time() - began <= TIMEOUT + 0.1


async def test_a_known_name_is_looked_up_before_those_that_never_answered(autojump_clock: MockClock) -> None:
    table: dict[str, str | Exception | None] = {f"silent{i}.example": None for i in range(200)}
    async with resolving({"a.example": "192.0.2.1", **table}) as (resolver, names):
        resolver.lookup("a.example")
        await trio.sleep(0.1)
        for name in table:
            resolver.lookup(name)
        await trio.sleep(200 / AT_ONCE * TIMEOUT)
        names.asked.clear()
        for _ in range(10):
            await trio.sleep(FRESH)
            for name in ("a.example", *table):
                resolver.lookup(name)
        assert names.asked["a.example"] >= 8


async def test_a_name_that_never_answered_is_asked_ever_more_seldom(autojump_clock: MockClock) -> None:
    async with resolving({"silent.example": None}) as (resolver, names):
        for _ in range(int(24 * 3600 / 300)):
            resolver.lookup("silent.example")
            await trio.sleep(300)
        assert 24 <= names.asked["silent.example"] <= 32
        names.table["silent.example"] = "192.0.2.1"
        for _ in range(int(SELDOM / 300) + 2):
            resolver.lookup("silent.example")
            await trio.sleep(300)
        assert resolver.lookup("silent.example") == ("192.0.2.1",)


# --- the system's resolver


async def test_a_look_up_that_hangs_takes_no_thread_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    released, hanging = threading.Event(), 0

    def getaddrinfo(host: bytes, *_: object) -> list[object]:
        nonlocal hanging
        hanging += 1
        released.wait(60)
        return []

    monkeypatch.setattr(resolve, "THREADS", 3)
    system = SystemNames()
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(60):
                    nursery.start_soon(system.getaddrinfo, b"silent.example", None)
                while hanging < 3:
                    await trio.sleep(0.01)
                free = trio.to_thread.current_default_thread_limiter()
                assert free.borrowed_tokens == 0
                assert await trio.to_thread.run_sync(lambda: "signed") == "signed"
                nursery.cancel_scope.cancel()  # each is left to itself
        assert hanging == 3
    finally:
        released.set()


async def test_the_systems_resolver_answers_both_ways() -> None:
    system = SystemNames()
    found = await system.getaddrinfo(b"127.0.0.1", 80, socket.AF_INET, socket.SOCK_STREAM, flags=0)
    assert found[0][4] == ("127.0.0.1", 80)
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    assert await system.getnameinfo(("127.0.0.1", 80), numeric) == ("127.0.0.1", "80")


async def test_whoever_wants_all_addresses_asks_it() -> None:
    asked = []

    class Noting(SystemNames):
        async def getaddrinfo(self, host: bytes | None, *how: Any, **named: Any) -> Any:
            asked.append(host)
            return await super().getaddrinfo(host, *how, **named)

    trio.socket.set_custom_hostname_resolver(Noting())
    assert "127.0.0.1" in await find_all("localhost")
    assert asked == [b"localhost"]


async def test_names_that_change_together_are_told_of_together(autojump_clock: MockClock) -> None:
    """Members name eight hosts each, and can have them all change each time that they are looked up."""
    hosts, told = [f"{i}.example" for i in range(200)], list[float]()
    async with resolving(dict.fromkeys(hosts, "192.0.2.1"), lambda: told.append(trio.current_time())) as (
        resolver,
        names,
    ):
        for turn in range(2, 5):
            for host in hosts:
                resolver.lookup(host)
            await trio.sleep(FRESH)
            assert {resolver.lookup(host) for host in hosts} == {(f"192.0.2.{turn - 1}",)}
            names.table |= dict.fromkeys(hosts, f"192.0.2.{turn}")
        assert 3 <= len(told) <= 9
