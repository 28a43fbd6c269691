# SPDX-License-Identifier: GPL-3.0-or-later
"""What is chosen for an intent."""

from __future__ import annotations

from typing import get_args

from phantommesh.config.sections import Intent, ScatterSection
from phantommesh.scatter.intents import MANNERS, Manner, intent_of, manner_of


def test_a_peers_own_intent_comes_first_then_the_scheduler_then_the_intent() -> None:
    assert manner_of("db", ScatterSection()) == Manner("deck")
    assert manner_of("db", ScatterSection(intent="order")) == Manner("flow")
    packet = ScatterSection(intent="private", scheduler="packet", peers={"dbx": "order"})
    assert manner_of("db", packet) == Manner("packet", unequal=True, segments=True)
    assert manner_of("dbx", packet) == MANNERS["order"]
    assert intent_of("db", packet) == "private" and intent_of("dbx", packet) == "order"
    assert MANNERS.keys() == set(get_args(Intent))
