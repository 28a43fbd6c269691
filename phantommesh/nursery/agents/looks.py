# SPDX-License-Identifier: GPL-3.0-or-later
"""What each agent sees: one function an agent, which builds its snapshot from the node's parts.

A further agent is one line here, and one in `agents/everyone.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from phantommesh.agents.base import AgentName
from phantommesh.nursery.agents import (
    look_aegis,
    look_cipher,
    look_fortress,
    look_genesis,
    look_nexus,
    look_omniscient,
    look_phantom,
    look_stream,
    look_velocity,
)
from phantommesh.nursery.parts import Parts

Look: TypeAlias = Callable[[Parts], Awaitable[object]]
"""Returns the agent's frozen ``Seen``. What blocks goes to a thread there."""

LOOKS: Final[Mapping[AgentName, Look]] = MappingProxyType(
    {
        "fortress": look_fortress.look,
        "aegis": look_aegis.look,
        "cipher": look_cipher.look,
        "phantom": look_phantom.look,
        "velocity": look_velocity.look,
        "stream": look_stream.look,
        "genesis": look_genesis.look,
        "nexus": look_nexus.look,
        "omniscient": look_omniscient.look,
    }
)
