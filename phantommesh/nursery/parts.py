# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a running node. `making` makes them, `weaving` says how the parts act on each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from phantommesh.agents.council import Council
from phantommesh.config.sections import Config
from phantommesh.control.sessions import Sessions
from phantommesh.errors import PhantomMeshError
from phantommesh.link.copies import Copies
from phantommesh.link.effects import Enrolment
from phantommesh.link.machine import Links
from phantommesh.management.events import EventLog
from phantommesh.management.metrics import Metrics
from phantommesh.node.peers import Peers
from phantommesh.node.wiring import Wiring
from phantommesh.nursery.dataplane.access import Access
from phantommesh.nursery.dataplane.banning import Banning
from phantommesh.nursery.dataplane.beyond import BeyondMesh
from phantommesh.nursery.dataplane.borrowing import Borrower
from phantommesh.nursery.dataplane.calm import Calm
from phantommesh.nursery.dataplane.cgroups import CgroupMarks
from phantommesh.nursery.dataplane.covering import CoverTraffic
from phantommesh.nursery.dataplane.draining import Drainer
from phantommesh.nursery.dataplane.flows import FlowCounts
from phantommesh.nursery.dataplane.framed import Framed
from phantommesh.nursery.dataplane.gateway import GatewayDriver
from phantommesh.nursery.dataplane.lending import Lending
from phantommesh.nursery.dataplane.paths import PathDriver
from phantommesh.nursery.dataplane.reconciler import Reconciler
from phantommesh.nursery.dataplane.rekeying import KeyReplacer
from phantommesh.nursery.dataplane.routetalk import RouteTalk
from phantommesh.nursery.dataplane.scattering import Scattering
from phantommesh.nursery.dataplane.splitting import Splitter
from phantommesh.nursery.dataplane.tuning import Tuning
from phantommesh.nursery.host.backend import Backend
from phantommesh.nursery.host.changes import Changes
from phantommesh.nursery.host.vitals import VitalSigns
from phantommesh.nursery.keeping.audit import Audit
from phantommesh.nursery.keeping.configfile import ConfigFile
from phantommesh.nursery.keeping.decisions import Decisions
from phantommesh.nursery.keeping.groupkeys import GroupKeys
from phantommesh.nursery.keeping.memory import MemoryKeeper
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.keeping.tokens import TokenKeeper
from phantommesh.nursery.members.attending import Attending
from phantommesh.nursery.members.authority import AuthorityDesk
from phantommesh.nursery.members.bridging import Bridging
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.members.carrying import Carrying
from phantommesh.nursery.members.federating import Federating
from phantommesh.nursery.members.finding import Finding
from phantommesh.nursery.members.gossip import GossipDriver
from phantommesh.nursery.members.hinting import Hinting
from phantommesh.nursery.members.lifetimes import LifetimeDriver
from phantommesh.nursery.members.links import LinkDriver
from phantommesh.nursery.members.mapping import Mapping
from phantommesh.nursery.members.own import OwnRecord
from phantommesh.nursery.members.places import Places
from phantommesh.nursery.members.policing import Policing
from phantommesh.nursery.members.proving import Proving
from phantommesh.nursery.members.punching import PunchDriver
from phantommesh.nursery.members.runs import RunWatch
from phantommesh.nursery.members.serving import ControlServer
from phantommesh.nursery.members.succession import Succession
from phantommesh.nursery.members.surveying import Surveying
from phantommesh.nursery.members.taking import Taking
from phantommesh.nursery.names.naming import Naming
from phantommesh.nursery.names.resolve import Resolver
from phantommesh.nursery.overlay.guarding import Guarding
from phantommesh.nursery.overlay.holding import Overlay
from phantommesh.nursery.sockets.tcp import TcpPort
from phantommesh.nursery.sockets.udp import UdpPort
from phantommesh.nursery.sockets.wgports import WireguardPorts
from phantommesh.nursery.supervisor import Services
from phantommesh.routing.failover import Failover
from phantommesh.routing.ways import Ways
from phantommesh.scatter.intents import Intents
from phantommesh.state.start import NodeState


@dataclass(slots=True)
class Settings:
    """The configuration that the node runs with, its intents with the users whom this machine has.
    ``refused`` says why the file could not be taken over, and ``waiting`` names the keys of the file that
    only a restart does: see `config.changes`. ``file`` is where the configuration was read, and ``socket``
    where the API listens, as far as that is known."""

    config: Config
    intents: Intents
    refused: PhantomMeshError | None = None
    waiting: tuple[str, ...] = ()
    file: Path | None = None
    socket: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """One node's live parts. ``started`` is on trio's clock, ``names`` are the seven interfaces'."""

    settings: Settings
    state: NodeState
    backend: Backend
    udp: UdpPort
    overlay: Overlay
    names: Sequence[str]
    started: float
    metrics: Metrics
    events: EventLog
    sessions: Sessions
    keys: GroupKeys
    keeper: RosterKeeper
    resolver: Resolver
    places: Places
    own: OwnRecord
    caller: Caller
    attending: Attending
    carrying: Carrying
    bridging: Bridging
    naming: Naming
    copies: Copies
    federating: Federating
    policing: Policing
    enrolment: Enrolment
    links: Links
    driver: LinkDriver
    wgports: WireguardPorts
    lending: Lending
    drainer: Drainer
    borrower: Borrower
    punching: PunchDriver
    lifetimes: LifetimeDriver
    ways: Ways
    peers: Peers
    finding: Finding
    mapping: Mapping
    changes: Changes
    calm: Calm
    wiring: Wiring
    reconciler: Reconciler
    scattering: Scattering
    cgroups: CgroupMarks
    splitter: Splitter
    flows: FlowCounts
    cover: CoverTraffic
    tuning: Tuning
    guarding: Guarding
    banning: Banning
    access: Access
    failover: Failover
    beyond: BeyondMesh
    gateway: GatewayDriver
    talk: RouteTalk
    paths: PathDriver
    framed: Framed
    rekeying: KeyReplacer
    desk: AuthorityDesk
    taking: Taking
    gossip: GossipDriver
    runs: RunWatch
    proving: Proving
    succession: Succession
    surveying: Surveying
    memory: MemoryKeeper
    hinting: Hinting
    council: Council
    decisions: Decisions
    audit: Audit
    tokens: TokenKeeper
    services: Services
    vitals: VitalSigns
    configfile: ConfigFile
    server: ControlServer
    tcp: TcpPort

    @property
    def config(self) -> Config:
        """The configuration that the node runs with now."""
        return self.settings.config

    def each(self) -> Iterator[object]:
        """All parts, in the order above."""
        return (getattr(self, field.name) for field in fields(self))

    def dropped(self) -> Counter[str]:
        """Counts of all that the parts have dropped so far, by reason. A part that drops has a counter
        ``dropped``."""
        counts = Counter[str]()
        for part in self.each():
            dropped = getattr(part, "dropped", None)
            if isinstance(dropped, Counter):
                counts.update(dropped)
        return counts
