# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of the agents: `[agents]` for all of them, `[agents.NAME]` for each.

Each agent's tunables are keys of its own section, one a line, with the reason for the default in the
section's docstring.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from phantommesh.config.kinds import Switch


class AgentSection(msgspec.Struct, frozen=True):
    """One agent. `enabled`: whether it looks at all. `dry_run`: it only says what it would do."""

    enabled: Switch = True
    dry_run: Switch = False


class FortressSection(AgentSection, frozen=True):
    """FORTRESS, which keeps floods and scans off.

    `shed_at`: datagrams a second of unknown sources at the control port from which some are shed; a hundred
    newcomers at once send fewer. `shed_rate`: how many of them a second pass then, from all together; to look
    at one takes some 30 us, so these are under 1 % of a core.
    """

    shed_at: Annotated[float, Meta(ge=50, le=1e6, description="a rate a second from 50 to 1000000")] = 500.0
    shed_rate: Annotated[float, Meta(ge=10, le=1e6, description="a rate a second from 10 to 1000000")] = 200.0


class AegisSection(AgentSection, frozen=True):
    """AEGIS, which scans this host and its configuration. `mend`: whether it carries out safe fixes by
    itself, which take permissions from the node's own files or set its own interfaces; off, since an operator
    wants to know first. `scan_seconds`: between two scans; ten minutes, since what is looked at changes by
    people's hands, and a scan costs 0.1 s of CPU."""

    mend: Switch = False
    scan_seconds: Annotated[float, Meta(ge=30, le=86_400, description="seconds from 30 to 86400")] = 600.0


class CipherSection(AgentSection, frozen=True):
    """CIPHER, which watches keys and certificates. `quarantine`: whether it may close the traffic with a peer
    whose PSK is older than `link.stale_alarm_seconds`. On, since that age is what the mesh promises; off, old
    keys go on until `link.stale_random_seconds`."""

    quarantine: Switch = True


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
