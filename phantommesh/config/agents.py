# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of the agents: `[agents]` for all of them, `[agents.NAME]` for each.

Each agent's tunables are keys of its own section, one a line, with the reason for the default in the
section's docstring.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from phantommesh.config.kinds import Port, Switch

LEAST_HOP_HOURS: Final = 1.2  # `agents.phantom.HOP_APART` for each of seven dimensions, and a little
LEAST_COVER: Final = 1000.0  # bytes a second: the least that one peer may be given


class AgentSection(msgspec.Struct, frozen=True):
    """One agent. `enabled`: whether it looks at all. `dry_run`: it only says what it would do."""

    enabled: Switch = True
    dry_run: Switch = False


class FortressSection(AgentSection, frozen=True):
    """FORTRESS, which keeps floods and scans off.

    `shed_at`: datagrams a second of unknown sources at the control port from which some are shed; a hundred
    newcomers at once send fewer. `shed_rate`: how many of them a second pass then, from all together; to look
    at one takes some 30 us, so these are under 1 % of a core. `dns_rate`: DNS queries a second that a member
    is answered while it abuses the name server; five are enough for a person who works there meanwhile.
    """

    shed_at: Annotated[float, Meta(ge=50, le=1e6, description="a rate a second from 50 to 1000000")] = 500.0
    shed_rate: Annotated[float, Meta(ge=10, le=1e6, description="a rate a second from 10 to 1000000")] = 200.0
    dns_rate: Annotated[float, Meta(ge=1, le=100, description="a rate a second from 1 to 100")] = 5.0


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
    """PHANTOM, which hides the shape of traffic.

    `cover_bytes_per_second`: bytes a second on the uplinks that all cover traffic may take. 0, since bytes
    cost money and nobody should pay for cover without having asked; 12500 is a tenth of a megabit.
    `cover_peer_bytes_per_second`: the most of that for one peer. 12500 is a tenth of what a page load of a
    second takes.
    `cover_peers`: `private` covers peers with traffic of that goal, by `[scatter]` or by an intent; `all`
    each peer that has traffic. `private`, since that goal hides more, for fewer bytes, than cover does.
    `hop_hours`: after so long a dimension gets another WireGuard key and port; 0: as `wireguard.key_seconds`
    says alone. 0, since each hop takes a dimension out of use for a moment.
    """

    cover_bytes_per_second: Annotated[
        float, Meta(ge=0, le=1_000_000, description="0 to 1000000 bytes a second")
    ] = 0.0
    cover_peer_bytes_per_second: Annotated[
        float, Meta(ge=1000, le=125_000, description="1000 to 125000 bytes a second")
    ] = 12_500.0
    cover_peers: Annotated[Literal["private", "all"], Meta(description='"private" or "all"')] = "private"
    hop_hours: Annotated[float, Meta(ge=0, le=8760, description="0 to 8760 hours")] = 0.0


class VelocitySection(AgentSection, frozen=True):
    """VELOCITY, which chooses paths and weights.

    `late_ms`: how much longer than at its best a path's answers take when it is left; by half of that it is
    late still. 40 is half of what a call notices, and more than a busy host adds.
    `return_seconds`: how long a path that was left has to be sound. 5 is as long as it takes to tell a loss
    in twenty from none by ten probes a second.
    `most_left`: paths of one peer that may be left at once. With three of seven left, four carry traffic:
    fewer would tell an observer of one path too much.
    """

    late_ms: Annotated[float, Meta(ge=10, le=1000, description="10 to 1000 ms")] = 40.0
    return_seconds: Annotated[float, Meta(ge=1, le=600, description="1 to 600 seconds")] = 5.0
    most_left: Annotated[int, Meta(ge=0, le=6, description="0 to 6 paths")] = 3


class StreamSection(AgentSection, frozen=True):
    """STREAM, which watches flows.

    `elephant_kbit`: kbit/s from which on a flow is an elephant. 2000 is a fifth of a slow uplink.
    `most_flows`: flows that the kernel counts at once for each IP version. 1024 are read in a few
    milliseconds.
    `scan_targets`: ports of one host, or three times as many hosts at one port, that a source calls within a
    minute to be reported. Few programs call twenty ports of a host.
    `beacon_contacts`: calls in a row at even distances that make them a beacon's. Eight by chance are rare.
    `expected_ports`: ports whose regular calls are nothing: names, time, metrics and message queues.
    """

    elephant_kbit: Annotated[float, Meta(ge=100, le=1_000_000, description="100 to 1000000 kbit/s")] = 2000.0
    most_flows: Annotated[int, Meta(ge=64, le=8192, description="64 to 8192 flows")] = 1024
    scan_targets: Annotated[int, Meta(ge=5, le=1000, description="5 to 1000 targets")] = 20
    beacon_contacts: Annotated[int, Meta(ge=5, le=50, description="5 to 50 calls")] = 8
    expected_ports: Annotated[
        tuple[Port, ...], Meta(max_length=64, description="at most 64 ports, e.g. [53, 123]")
    ] = (53, 123, 1883, 5353, 8883, 9090, 9100)


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
