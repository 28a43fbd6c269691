# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings: one Struct a section of the configuration, with bounds and defaults."""

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from phantommesh.config.acl import AclSection
from phantommesh.config.agents import AgentsSection
from phantommesh.config.kinds import Port, Switch
from phantommesh.config.memory import MemorySection
from phantommesh.dimensions import DIMENSIONS, MAX_BATCH, MIN_BATCH
from phantommesh.errors import PhantomMeshError
from phantommesh.routable import MAX_ROUTES

LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a DNS label in lower case

# A description completes the sentence "set KEY to ...".
Label = Annotated[str, Meta(description="1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end")]
# What is wanted of the scattering.
Goal = Literal["auto", "throughput", "order", "latency", "private"]
GOALS: Final = '"auto", "throughput", "order", "latency" or "private"'
MAX_REGION_CHARS: Final = 32
Names = Annotated[
    tuple[str, ...], Meta(max_length=1024, description='at most 1024 names of members, e.g. ["db", "web"]')
]
Regions = Annotated[
    tuple[str, ...], Meta(max_length=64, description='at most 64 names of regions, e.g. ["eu-west"]')
]
ALL_ROUTES: Final = "all"  # in `routes.accept`: any prefix
MAX_INTENTS: Final = 64

RENAMED: Final = {"scatter.intent": "scatter.goal", "scatter.mode": "scatter.hook"}
"""Keys of earlier versions, and what they are called now (docs/decisions/0063-one-vocabulary.md)."""
RENAMED_GOALS: Final = {"speed": "throughput"}
"""Values of a goal in earlier versions, and what they are called now."""


class ConfigError(PhantomMeshError):
    """A configuration that cannot be used."""


class UnknownKeyError(ConfigError):
    """A key of the file that there is not, or not by this name: no variable is to blame."""


class NoConfigError(ConfigError):
    """There is no configuration."""


class NodeSection(msgspec.Struct, frozen=True):
    """This node. `endpoints`: where others reach its control port; the port may be left to `control.port`.
    `region`: where it stands, by a name that all nodes nearby have, too. Its record tells the others."""

    name: Label
    mesh: Label
    endpoints: Annotated[
        tuple[str, ...],
        Meta(max_length=8, description='at most 8 endpoints, e.g. ["192.0.2.7:51800", "vpn.example.net"]'),
    ] = ()
    region: Annotated[
        str,
        Meta(
            max_length=MAX_REGION_CHARS,
            description="up to 32 characters of a-z, 0-9 and '-', with no '-' at either end, or nothing",
        ),
    ] = ""


class ControlSection(msgspec.Struct, frozen=True):
    """The control port, UDP and (`tcp`) TCP, outside the tunnels it keys. `tcp_ports`: further ports at which
    it takes TCP, for peers in networks that let nothing else out."""

    port: Port = 51800
    tcp: Switch = True
    tcp_ports: Annotated[
        tuple[Port, ...], Meta(max_length=2, description="at most 2 TCP ports, e.g. [443]")
    ] = ()


class WireguardSection(msgspec.Struct, frozen=True):
    """The seven interfaces: names `prefix`0..6, MTU in bytes, key pairs no older than `key_seconds`.

    UDP ports are `base_port`..+6 at first. With each new key pair an interface takes the next of its
    `port_choices` ports, which are 7 apart; 1 leaves it the one it has.
    """

    backend: Annotated[
        Literal["auto", "kernel", "userspace"], Meta(description='"auto", "kernel" or "userspace"')
    ] = "auto"
    prefix: Annotated[
        str, Meta(description="up to 14 characters of a-z, 0-9, '_' and '-', starting with a letter")
    ] = "pm"
    base_port: Annotated[
        int, Meta(ge=1, le=65535 - DIMENSIONS + 1, description="the first of seven ports, from 1 to 65529")
    ] = 51820
    mtu: Annotated[int, Meta(ge=1280, le=9000, description="a number of bytes from 1280 to 9000")] = 1420
    keepalive: Annotated[int, Meta(ge=0, le=65535, description="seconds from 0 (off) to 65535")] = 25
    keep_interfaces: Switch = False
    reconcile_seconds: Annotated[float, Meta(ge=0.1, le=60, description="seconds from 0.1 to 60")] = 2.0
    key_seconds: Annotated[
        float, Meta(ge=10, le=2_592_000, description="seconds from 10 to 2592000 (30 days)")
    ] = 86_400.0
    port_choices: Annotated[int, Meta(ge=1, le=8, description="a number from 1 to 8")] = 2

    @property
    def ports(self) -> range:
        """The UDP ports that the interfaces may have."""
        return range(self.base_port, self.base_port + DIMENSIONS * self.port_choices)


class OverlaySection(msgspec.Struct, frozen=True):
    """The IPv4 overlay. `init` writes it into the mesh's root certificate, which decides from then on."""

    cidr4: Annotated[str, Meta(description='an IPv4 network of /8 to /30, e.g. "100.64.0.0/10"')] = (
        "100.64.0.0/10"
    )


class GuardSection(msgspec.Struct, frozen=True):
    """Use of the mesh through this node: by machines or containers behind the interfaces of `forward`. Their
    traffic to the mesh may pass, and what the host publishes of them at its overlay address."""

    forward: Annotated[
        tuple[str, ...],
        Meta(max_length=32, description='at most 32 names of interfaces, e.g. ["docker0"]'),
    ] = ()


class LinkSection(msgspec.Struct, frozen=True):
    """When links rotate their keys and when a link without a handshake counts as stale, in seconds."""

    rotate_seconds: Annotated[float, Meta(ge=1, le=120, description="seconds from 1 to 120")] = 90.0
    jitter_seconds: Annotated[float, Meta(ge=0, le=60, description="seconds from 0 to 60")] = 5.0
    stale_alarm_seconds: Annotated[float, Meta(ge=10, le=3600, description="seconds from 10 to 3600")] = 180.0
    stale_random_seconds: Annotated[float, Meta(ge=10, le=3600, description="seconds from 10 to 3600")] = (
        300.0
    )
    provider: Annotated[Literal["cryptography", "liboqs"], Meta(description='"cryptography" or "liboqs"')] = (
        "cryptography"
    )


class NatSection(msgspec.Struct, frozen=True):
    """How this node finds out where it is reached. `discover`: by the host's own addresses and by what other
    members see of it, beside `node.endpoints`. `portmap`: whether it asks the gateway to open its ports (PCP,
    NAT-PMP; UPnP with the extra of that name). `measure`: whether it finds out how often a NAT or firewall
    needs keepalives; until that is known, and where it is off, `wireguard.keepalive` is the pace."""

    discover: Switch = True
    portmap: Annotated[Literal["auto", "off"], Meta(description='"auto" or "off"')] = "auto"
    measure: Switch = True


class RelaySection(msgspec.Struct, frozen=True):
    """Relays: members that forward the ciphertext of two others that do not reach each other.

    `offer`: whether this node forwards, `"auto"` where it has `node.endpoints` or a public IPv4 address of
    its own; at UDP `port`, which has to be open to others; at most `rate` bytes a second in each direction of
    a lease, and `quota` bytes a day of each (a pair has up to seven leases); only between `members` of these
    names, and between all where there are none. `use`: whether this node goes over relays itself.

    Which members may pass on this node's own packets, as relays or by joining its connections: none with
    `direct_only`; else those of these names (`only`) and in these `regions`, where any are given, without
    `never` and `never_regions`. Where that leaves no way, nothing is sent. A region is a member's own word,
    and a member may take another name: a node id in place of a name holds against a member that does.
    """

    offer: Annotated[bool | Literal["auto"], Meta(description='true, false or "auto"')] = "auto"
    port: Port = 51810
    rate: Annotated[
        int, Meta(ge=10_000, le=100_000_000_000, description="bytes a second from 10000 to 100000000000")
    ] = 12_500_000
    quota: Annotated[int, Meta(ge=1_000_000, le=2**60, description="a number of bytes above 1000000")] = (
        50_000_000_000
    )
    members: Names = ()
    use: Switch = True
    direct_only: Switch = False
    only: Names = ()
    never: Names = ()
    regions: Regions = ()
    never_regions: Regions = ()


class RoutesSection(msgspec.Struct, frozen=True):
    """Prefixes beyond the mesh. `advertise`: those that this node is to route for others, as soon as an
    authority approves them; a default route makes it an exit. `accept`: prefixes within these are sent to the
    members that route them; ["all"]: any but default routes.

    `exit`: the members by which all traffic of this host leaves that nothing else leads elsewhere, by name or
    node id, the best first. Nothing of that kind leaves by another way, in both families, whether one of them
    carries it or not. `lan`: the host's own private networks are reached directly all the same.

    `sites`: for an advertised prefix, the network of the same length that is really there, where that one is
    another: 10.77.1.5 of the mesh is 192.168.1.5 there. So two sites that have the same addresses are reached
    by a prefix each. `masquerade`: what this node forwards to the prefixes that it routes has an address of
    this host, so that answers find back; else the network there needs a route to the overlay by this node.
    `probe`: for such a prefix, an address in it (of its site, where it has one) that has to answer pings, or
    the node tells the others that its route there does not work. `port`: the UDP port of overlay addresses by
    which members ask for that. A mesh has one such port."""

    advertise: Annotated[
        tuple[str, ...],
        Meta(max_length=MAX_ROUTES, description='at most 16 prefixes, e.g. ["10.1.0.0/16"]'),
    ] = ()
    accept: Annotated[
        tuple[str, ...],
        Meta(max_length=64, description='at most 64 prefixes, e.g. ["10.0.0.0/8"], or ["all"]'),
    ] = ()
    sites: Annotated[
        dict[str, str],
        Meta(
            max_length=MAX_ROUTES,
            description='a table of at most 16 advertised prefixes, each = "the network that is there"',
        ),
    ] = {}
    exit: Annotated[
        tuple[str, ...],
        Meta(max_length=8, description='at most 8 names of members, e.g. ["gate-a", "gate-b"]'),
    ] = ()
    lan: Switch = False
    masquerade: Switch = True
    probe: Annotated[
        dict[str, str],
        Meta(max_length=16, description='a table of at most 16 prefixes, each = "an address in it"'),
    ] = {}
    port: Port = 51802


class GossipSection(msgspec.Struct, frozen=True):
    """How members watch each other. `seeds`: control ports to try for ever, beside the authorities'."""

    preset: Annotated[Literal["lan", "wan", "local"], Meta(description='"lan", "wan" or "local"')] = "lan"
    seeds: Annotated[
        tuple[str, ...],
        Meta(max_length=16, description='at most 16 endpoints, e.g. ["192.0.2.7:51800", "vpn.example.net"]'),
    ] = ()


class ScatterSection(msgspec.Struct, frozen=True):
    """How a peer's traffic is spread over the dimensions, and how long one secret map lasts.

    ``goal``: what is wanted (docs/scatter.md says which when); ``peers``: other goals for some peers,
    by name; ``scheduler``: in place of the goal's. ``hook``: where the kernel is told to; ``batch``:
    packets that the scheduler of that name sends one way in a row; ``flowlet_ms``: the pause after which the
    scheduler ``flowlet`` may send a flow another way.
    """

    hook: Annotated[
        Literal["auto", "egress", "mark", "off"], Meta(description='"auto", "egress", "mark" or "off"')
    ] = "auto"
    goal: Annotated[Goal, Meta(description=GOALS)] = "auto"
    peers: Annotated[dict[str, Goal], Meta(description=f"a table of names, each = {GOALS}")] = {}
    scheduler: Annotated[
        Literal["auto", "packet", "batch", "deck", "flow", "flowlet"],
        Meta(description='"auto", "packet", "batch", "deck", "flow" or "flowlet"'),
    ] = "auto"
    epoch_seconds: Annotated[float, Meta(ge=0.05, le=3600, description="seconds from 0.05 to 3600")] = 60.0
    batch: Annotated[
        int,
        Meta(ge=MIN_BATCH, le=MAX_BATCH, description=f"a number of packets from {MIN_BATCH} to {MAX_BATCH}"),
    ] = 8
    flowlet_ms: Annotated[int, Meta(ge=1, le=10000, description="milliseconds from 1 to 10000")] = 60


class IntentSection(msgspec.Struct, frozen=True):
    """One `[[intent]]`: a class of the traffic that this node sends, and what is wanted of it.

    A packet is of the first class, in the file's order, that it matches in all that is set: it goes to one of
    ``peers`` (names; all where there are none), is of ``protocol``, has one of ``ports`` at either end, is
    marked with ``dscp``, and comes from a socket of ``user`` of this machine, and of a process in ``cgroup``
    or below. config/intents.py has the names that stand for numbers.

    Which dimensions its packets may take: with ``direct_only`` those that lead to the peer directly; else
    those too that go by members of these names (``relays``) in these ``regions``, where any are given,
    without ``never_relays`` and ``never_regions``; and only while these go by at least so many ``hands``: the
    direct way is one, and each relay. Where that leaves none, packets of the class are dropped.
    """

    name: Label
    goal: Annotated[Goal, Meta(description=GOALS)]
    peers: Annotated[
        tuple[str, ...],
        Meta(max_length=1024, description='at most 1024 names of members, e.g. ["db", "web"]'),
    ] = ()
    protocol: Annotated[
        int | str | None, Meta(description='a protocol\'s name, e.g. "udp", or its number from 0 to 255')
    ] = None
    ports: Annotated[
        tuple[int | str, ...],
        Meta(max_length=32, description='at most 32 ports and ranges of ports, e.g. [22, "8000-8010"]'),
    ] = ()
    dscp: Annotated[int | str | None, Meta(description='a DSCP\'s name, e.g. "ef", or a number to 63')] = None
    user: Annotated[
        int | str | None, Meta(description="the name of a user of this machine, or a number of one")
    ] = None
    cgroup: Annotated[
        str | None, Meta(description='a path below /sys/fs/cgroup, e.g. "system.slice/backup.service"')
    ] = None
    direct_only: Switch = False
    relays: Names = ()
    never_relays: Names = ()
    regions: Regions = ()
    never_regions: Regions = ()
    hands: Annotated[
        int,
        Meta(ge=1, le=DIMENSIONS, description=f"a number of relays and direct ways from 1 to {DIMENSIONS}"),
    ] = 1

    @property
    def constrained(self) -> bool:
        """Whether it matters to the class by which members its packets go."""
        names = (*self.relays, *self.never_relays, *self.regions, *self.never_regions)
        return self.direct_only or self.hands > 1 or bool(names)


class ProofsSection(msgspec.Struct, frozen=True):
    """Scatter proofs: how many of the newest epochs' are kept on disk, of each peer and direction."""

    keep: Annotated[int, Meta(ge=1, le=100_000, description="a number of epochs from 1 to 100000")] = 60


class PathsSection(msgspec.Struct, frozen=True):
    """How the dimensions are watched: by probes to UDP `port` of the peers' overlay addresses, which are
    `probe_seconds` apart while there is traffic. A mesh has one such port."""

    port: Port = 51801
    probe_seconds: Annotated[float, Meta(ge=0.02, le=10, description="seconds from 0.02 to 10")] = 0.1


class ApiSection(msgspec.Struct, frozen=True):
    """The API's sockets: a Unix socket always, TCP if `listen` is set.

    `tls`: whether TCP is encrypted; `"auto"`: beyond loopback, where it has to be, and with a certificate of
    yours. `certificate` and `key`: PEM files, read again when they change; without them the node makes a
    certificate for itself, and its log has the fingerprint. `client_ca`: a PEM file; then clients
    need a certificate of one of these authorities, and a token as well. `hosts`: names and addresses by which
    clients call the node, besides its name, that name in the mesh's zone, `node.endpoints` and its
    addresses."""

    socket: Annotated[str, Meta(min_length=1, max_length=107, description="an absolute path")] = (
        "/run/phantommesh/api.sock"
    )
    listen: Annotated[
        str | None, Meta(description='an address of this host and a port, e.g. "127.0.0.1:8480"')
    ] = None
    tls: Annotated[Literal["auto", "on", "off"], Meta(description='"auto", "on" or "off"')] = "auto"
    certificate: Annotated[str, Meta(max_length=4096, description="an absolute path, or nothing")] = ""
    key: Annotated[str, Meta(max_length=4096, description="an absolute path, or nothing")] = ""
    client_ca: Annotated[str, Meta(max_length=4096, description="an absolute path, or nothing")] = ""
    hosts: Annotated[
        tuple[str, ...],
        Meta(max_length=16, description='at most 16 DNS names and addresses, e.g. ["vpn.example.net"]'),
    ] = ()

    @property
    def loopback(self) -> bool:
        """Whether `listen` is reached from this machine only."""
        host = "" if self.listen is None else self.listen.rpartition(":")[0].strip("[]")
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def encrypted(self) -> bool:
        """Whether TCP is encrypted."""
        return self.tls == "on" or (self.tls == "auto" and (bool(self.certificate) or not self.loopback))


class DnsSection(msgspec.Struct, frozen=True):
    """The name server on this node's overlay addresses, and how this machine comes to ask it."""

    serve: Switch = True
    port: Port = 53
    mode: Annotated[
        Literal["auto", "resolved", "hosts", "off"],
        Meta(description='"auto", "resolved", "hosts" or "off"'),
    ] = "auto"
    hosts: Annotated[str, Meta(min_length=1, max_length=4096, description="an absolute path")] = "/etc/hosts"


class LogSection(msgspec.Struct, frozen=True):
    """The log's level and format: `auto` is JSON unless stderr is a terminal."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description='"debug", "info", "warning" or "error"'),
    ] = "info"
    format: Annotated[Literal["auto", "json", "console"], Meta(description='"auto", "json" or "console"')] = (
        "auto"
    )


class Config(msgspec.Struct, frozen=True):
    """The whole configuration; every key but `node.name` and `node.mesh` has a default. ``intent`` has the
    tables `[[intent]]` in the file's order; all others are sections."""

    node: NodeSection
    control: ControlSection = ControlSection()
    wireguard: WireguardSection = WireguardSection()
    overlay: OverlaySection = OverlaySection()
    guard: GuardSection = GuardSection()
    link: LinkSection = LinkSection()
    nat: NatSection = NatSection()
    relay: RelaySection = RelaySection()
    routes: RoutesSection = RoutesSection()
    gossip: GossipSection = GossipSection()
    scatter: ScatterSection = ScatterSection()
    proofs: ProofsSection = ProofsSection()
    paths: PathsSection = PathsSection()
    api: ApiSection = ApiSection()
    dns: DnsSection = DnsSection()
    memory: MemorySection = MemorySection()
    acl: AclSection = AclSection()
    agents: AgentsSection = AgentsSection()
    log: LogSection = LogSection()
    intent: tuple[IntentSection, ...] = ()


def is_section(kind: Any) -> bool:
    """Whether a key is a section within its section, as `[agents.fortress]` is."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def is_tables(kind: Any) -> bool:
    """Whether a key is a list of tables, as `[[acl.rule]]` is."""
    of = get_args(kind)
    return get_origin(kind) is tuple and bool(of) and is_section(of[0])


def _sections(prefix: str, kind: Any) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    for field in msgspec.structs.fields(kind):
        if is_section(field.type):
            yield f"{prefix}{field.name}", field.type
            yield from _sections(f"{prefix}{field.name}.", field.type)


SECTIONS: Final[dict[str, type[msgspec.Struct]]] = dict(_sections("", Config))
"""The sections by name, each with its type. A section within another is ``OUTER.INNER``."""


def keys(section: str) -> Iterator[str]:
    """Yield the keys of a section, without the sections in it."""
    return (field.name for field in msgspec.structs.fields(SECTIONS[section]) if not is_section(field.type))
