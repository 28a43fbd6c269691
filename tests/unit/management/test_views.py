# SPDX-License-Identifier: GPL-3.0-or-later
import msgspec
import pytest

from phantommesh.management.views import LINK_STATES, LinkView, Page, PeerView, Problem, Status
from tests.support.fakenode import FakeNode, link_view, peer_view


def test_views_survive_the_trip_to_the_command_line() -> None:
    page = Page(items=[peer_view(1), peer_view(2)], next_cursor="x")
    assert msgspec.json.decode(msgspec.json.encode(page), type=Page[PeerView]) == page
    status = FakeNode().status()
    assert msgspec.json.decode(msgspec.json.encode(status), type=Status) == status


def test_an_older_command_line_reads_a_newer_node() -> None:
    newer = msgspec.json.decode(msgspec.json.encode(link_view(1))) | {"invented_later": [1]}
    assert msgspec.json.decode(msgspec.json.encode(newer), type=LinkView) == link_view(1)


def test_an_unknown_state_is_not_taken_for_a_known_one() -> None:
    wrong = msgspec.json.decode(msgspec.json.encode(link_view(1))) | {"state": "fine"}
    assert "fine" not in LINK_STATES
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(wrong), type=LinkView)


def test_a_problem_has_no_empty_members() -> None:
    assert msgspec.json.decode(msgspec.json.encode(Problem(status=404, title="Not Found"))) == {
        "status": 404,
        "title": "Not Found",
    }
