# SPDX-License-Identifier: GPL-3.0-or-later
"""The sessions that handshakes leave behind for request channels."""

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from phantommesh.control.sessions import Session, Sessions
from phantommesh.link.effects import Opened
from phantommesh.secret import Secret

TraceFunction = Callable[[FrameType, str, Any], Any]


def session(peer: bytes, name: bytes, invite: bytes = b"") -> Session:
    return Session(peer, name, Secret(name * 4), Secret(name * 4), invite)


def test_the_newest_few_of_each_peer_are_kept() -> None:
    sessions = Sessions()
    for i in range(5):
        sessions.add(session(b"a", bytes([i]) * 8))
    assert [i for i in range(5) if sessions.get(bytes([i]) * 8)] == [2, 3, 4]
    newest = sessions.newest(b"a")
    assert newest is not None and newest.name == bytes([4]) * 8
    sessions.add(session(b"b", b"invited!", b"invite"))
    assert sessions.newest(b"b") is None
    sessions.add(session(b"b", b"b" * 8))
    sessions.add(session(b"c", b"c" * 8))
    assert sessions.get(bytes([2]) * 8) is not None


def lines_run(ask: Callable[[], object]) -> int:
    """How many lines of Python run."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> TraceFunction:
        nonlocal count
        count += event == "line"
        return trace

    gc.disable()  # else what other tests left behind is collected meanwhile, with its finalizers' lines
    sys.settrace(trace)
    try:
        ask()
    finally:
        sys.settrace(None)
        gc.enable()
    return count


def test_to_ask_for_a_members_session_costs_the_same_in_any_mesh() -> None:
    """A member's false news of records has this node ask for everybody's session, several times a second."""
    costs = []
    for size in (3, 1500):
        sessions = Sessions()
        for i in range(size):
            for j in range(3):
                name = bytes([j]) + i.to_bytes(7)
                sessions.add(Session(i.to_bytes(2), name, Secret(b"o" * 32), Secret(b"i" * 32)))
        costs.append(lines_run(lambda: sessions.newest((1).to_bytes(2))))  # noqa: B023
    assert costs[0] == costs[1] > 0


def test_newcomers_push_out_newcomers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.control.sessions.NEWCOMERS_KEPT", 4)
    sessions = Sessions()
    sessions.add(session(b"a", b"a" * 8))
    for i in range(9):
        sessions.add(session(bytes([i]), bytes([i]) * 8, b"invite"))
    assert [i for i in range(9) if sessions.get(bytes([i]) * 8)] == [5, 6, 7, 8]
    assert sessions.newest(b"a") is not None


def opened(peer: bytes, key_out: bytes, key_in: bytes) -> Opened:
    return Opened(peer, "responder", b"session1", Secret(key_out * 32), Secret(key_in * 32), 1, 0.1)


def test_a_session_has_a_name_that_nobody_chose() -> None:
    """A handshake's own session id is in clear on the network: another handshake can have taken it."""
    mine = opened(b"victim", b"o", b"i")
    stolen = opened(b"thief", b"p", b"j")
    sessions = Sessions()
    for one in (stolen, mine):
        sessions.add(Session.of(one))
    kept = sessions.newest(b"victim")
    assert kept is not None and sessions.get(kept.name) == kept
    other_end = opened(b"server", b"i", b"o")
    assert Session.of(other_end).name == kept.name


def test_a_peer_cannot_take_the_name_of_anothers_session() -> None:
    sessions = Sessions()
    sessions.add(session(b"a", b"n" * 8))
    sessions.add(session(b"b", b"n" * 8))
    kept = sessions.get(b"n" * 8)
    assert kept is not None and kept.peer == b"a"


def test_who_is_no_member_any_more_loses_its_sessions() -> None:
    sessions = Sessions()
    for one in (session(b"a", b"a" * 8), session(b"b", b"b" * 8), session(b"c", b"c" * 8, b"invite")):
        sessions.add(one)
    sessions.retain({b"a"})
    assert [bool(sessions.get(name * 8)) for name in (b"a", b"b", b"c")] == [True, False, True]


def test_a_session_does_not_show_its_keys() -> None:
    shown = repr(Session(b"authority", b"session1", Secret(b"o" * 32), Secret(b"i" * 32)))
    assert "oooo" not in shown and "iiii" not in shown
