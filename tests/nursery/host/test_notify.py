# SPDX-License-Identifier: GPL-3.0-or-later
"""What a supervisor hears, from a process that it started and from others."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from phantommesh.nursery.host.notify import Supervisor


@pytest.fixture(params=["path", "abstract"])
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    abstract = request.param == "abstract"
    name = f"@pm-notify-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as here:
        here.bind(f"\0{name[1:]}" if abstract else name)
        here.setblocking(False)
        yield name, here


def test_it_says_what_it_is_given_and_children_are_told_nothing(heard: tuple[str, socket.socket]) -> None:
    name, here = heard
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "A": "b"}
    environment["WATCHDOG_PID"] = str(os.getpid())
    supervisor = Supervisor.take(environment)
    assert environment == {"A": "b"}
    assert supervisor.allowed == 3.0
    supervisor.say("READY=1", "STATUS=up")
    assert here.recv(100) == b"READY=1\nSTATUS=up"


async def test_signs_of_life_come_three_times_as_often_as_they_have_to(
    heard: tuple[str, socket.socket], autojump_clock: MockClock
) -> None:
    name, here = heard
    supervisor = Supervisor.take({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000"})
    with trio.move_on_after(3.5):
        await supervisor.watch()
    signs = 0
    while True:
        try:
            assert here.recv(100) == b"WATCHDOG=1"
        except BlockingIOError:
            break
        signs += 1
    assert signs == 4


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "1"},
        {"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "1"},
        {"NOTIFY_SOCKET": "@"},
        {"NOTIFY_SOCKET": "/none/at/all"},
        {"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "no"},
        {"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
async def test_a_supervisor_that_is_not_there_or_not_ours_costs_nothing(environment: dict[str, str]) -> None:
    supervisor = Supervisor.take(dict(environment))
    supervisor.say("READY=1")
    await supervisor.watch()
