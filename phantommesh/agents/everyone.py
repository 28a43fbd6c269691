# SPDX-License-Identifier: GPL-3.0-or-later
"""All agents, and how each is made from its settings: for the node and the simulator."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType
from typing import Any, Final

from phantommesh.agents.aegis import Aegis
from phantommesh.agents.base import PRECEDENCE, Agent, AgentName
from phantommesh.agents.cipher import Cipher
from phantommesh.agents.council import Council, Order, Phase
from phantommesh.agents.fortress import Fortress
from phantommesh.agents.genesis import Genesis
from phantommesh.agents.nexus import Nexus
from phantommesh.agents.omniscient import Omniscient
from phantommesh.agents.phantom import Phantom
from phantommesh.agents.stream import Stream
from phantommesh.agents.velocity import Velocity
from phantommesh.config.agents import AgentSection, AgentsSection

MAKERS: Final[Mapping[AgentName, Callable[[AgentsSection], Agent[Any]]]] = MappingProxyType(
    {
        "fortress": lambda settings: Fortress(settings.fortress),
        "aegis": lambda settings: Aegis(every=settings.aegis.scan_seconds, mend=settings.aegis.mend),
        "cipher": lambda settings: Cipher(quarantines=settings.cipher.quarantine),
        "phantom": lambda settings: Phantom(settings.phantom),
        "velocity": lambda settings: Velocity(settings.velocity),
        "stream": lambda settings: Stream(settings.stream),
        "genesis": lambda settings: Genesis(Random(os.urandom(16))),  # noqa: S311  # an order of trials
        "nexus": lambda settings: Nexus(settings.nexus),
        "omniscient": lambda settings: Omniscient(settings.omniscient),
    }
)
"""How to make each agent. A further agent is one line here, and one in `nursery/agents/looks.py`."""


def section_of(settings: AgentsSection, name: AgentName) -> AgentSection:
    """An agent's own settings."""
    section: AgentSection = getattr(settings, name)
    return section


def phase_of(settings: AgentsSection, name: AgentName) -> Phase:
    """What the settings say of an agent."""
    own = section_of(settings, name)
    if not (settings.enabled and own.enabled):
        return "paused"
    return "dry-run" if settings.dry_run or own.dry_run else "running"


def make_council(settings: AgentsSection, trace: Callable[[], str], now: float) -> Council:
    """All agents, each as its settings say."""
    makers = [MAKERS[name] for name in PRECEDENCE if name in MAKERS]
    council = Council((make(settings) for make in makers), trace=trace, now=now)
    for name in council.seats:
        follow(council, name, settings, now)
    return council


def follow(council: Council, name: AgentName, settings: AgentsSection, now: float) -> list[Order]:
    """Have an agent pause, run, or run dry, as the settings say. Return what is to be lifted then."""
    phase = phase_of(settings, name)
    if phase == "paused":
        return council.pause(name, now)
    return council.resume(name, now, dry_run=phase == "dry-run")
