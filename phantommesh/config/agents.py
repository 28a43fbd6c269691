# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of the agents: `[agents]` for all of them, `[agents.NAME]` for each.

Each agent's tunables are keys of its own section, one a line, with the reason for the default in the
section's docstring.
"""

from typing import Annotated

import msgspec

from phantommesh.config.kinds import Switch


class AgentSection(msgspec.Struct, frozen=True):
    """One agent. `enabled`: whether it looks at all. `dry_run`: it only says what it would do."""

    enabled: Switch = True
    dry_run: Switch = False


class FortressSection(AgentSection, frozen=True):
    """FORTRESS, which keeps floods and scans off."""


class AegisSection(AgentSection, frozen=True):
    """AEGIS, which scans this host and its configuration."""


class CipherSection(AgentSection, frozen=True):
    """CIPHER, which watches keys and certificates."""


class PhantomSection(AgentSection, frozen=True):
    """PHANTOM, which hides the shape of traffic."""


class VelocitySection(AgentSection, frozen=True):
    """VELOCITY, which chooses paths and weights."""


class StreamSection(AgentSection, frozen=True):
    """STREAM, which watches flows."""


class GenesisSection(AgentSection, frozen=True):
    """GENESIS, which tunes bounded parameters by trials."""


class NexusSection(AgentSection, frozen=True):
    """NEXUS, which drains the node and watches deployment. `drain_unready`: whether a node that is not ready
    for its own work drains by itself; on, since what it forwards for others is no better off. `skew_hours`:
    for so long members may run different versions until that is told; a day, the time of a slow rollout."""

    drain_unready: Switch = True
    skew_hours: Annotated[float, msgspec.Meta(gt=0, le=8760, description="hours, above 0")] = 24.0


class OmniscientSection(AgentSection, frozen=True):
    """OMNISCIENT, which watches the node's own health. `memory_mb`: resident memory above which that is told;
    six times the budget of a node with ten peers. A mesh of many thousand members needs more."""

    memory_mb: Annotated[int, msgspec.Meta(ge=64, le=1_048_576, description="MB, 64 or more")] = 512


class AgentsSection(msgspec.Struct, frozen=True):
    """All agents. `enabled`: whether any looks. `dry_run`: each only says what it would do, whatever its own
    section says."""

    enabled: Switch = True
    dry_run: Switch = False
    fortress: FortressSection = FortressSection()
    aegis: AegisSection = AegisSection()
    cipher: CipherSection = CipherSection()
    phantom: PhantomSection = PhantomSection()
    velocity: VelocitySection = VelocitySection()
    stream: StreamSection = StreamSection()
    genesis: GenesisSection = GenesisSection()
    nexus: NexusSection = NexusSection()
    omniscient: OmniscientSection = OmniscientSection()
