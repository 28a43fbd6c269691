# SPDX-License-Identifier: GPL-3.0-or-later
"""What is chosen for an intent."""

from __future__ import annotations

import pytest

from phantommesh.scatter.intents import INTENTS, MANNERS, Manner, intent_of, manner_of, read_peer_intent


def test_a_peers_own_intent_comes_first_then_the_scheduler_then_the_intent() -> None:
    assert manner_of("db", "speed", [], "auto") == Manner("deck")
    assert manner_of("db", "order", [], "auto") == Manner("flow")
    assert manner_of("db", "private", [], "packet") == Manner("packet", unequal=True, segments=True)
    assert manner_of("db", "speed", ["dbx=order", "db=private"], "packet") == MANNERS["private"]
    assert manner_of("db", "speed", ["db=private", "db=order"], "auto") == MANNERS["order"]
    assert intent_of("db", "speed", ["db=private"]) == "private" and intent_of("x", "order", []) == "order"
    assert MANNERS.keys() == set(INTENTS)


@pytest.mark.parametrize("text", ["", "db", "db=", "=order", "db=fast", "db=order=private"])
def test_what_is_no_intent_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=INTENT"):
        read_peer_intent(text)
