# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of the agents: `[agents]` for all of them, `[agents.NAME]` for each.

Each agent's tunables are keys of its own section, one a line, with the reason for the default in the
section's docstring.
"""

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
    """NEXUS, which drains the node and watches deployment."""


class OmniscientSection(AgentSection, frozen=True):
    """OMNISCIENT, which watches the node's own health."""


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
