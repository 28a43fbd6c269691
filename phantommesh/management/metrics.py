# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's Prometheus metrics: one registry per node, never the global one.

Labels are bounded: peers are members of the mesh, dimensions are 0 to 6, and reasons, roles and results are
words in the source. No label ever holds an address, a packet's content or a request's text.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from phantommesh.management.views import FLOWS, LIVES, Flow, Life
from phantommesh.management.wayview import WAY_KINDS, WayKind

PREFIX = "phantommesh_"

# From under the loopback handshake's goal (5 ms) up to the give-up time of a lossy path.
_HANDSHAKE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_CONVERGENCE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_API_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RECALL_BUCKETS = (1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 1e-3)
_RESPONSE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class WireGuardSample:
    """One peer on one dimension, as last read from the device."""

    peer: str
    dimension: int
    rx_bytes: int
    tx_bytes: int
    last_handshake: float
    """Unix seconds; 0.0: never."""


@dataclass(frozen=True, slots=True)
class PathSample:
    """One peer on one dimension, as its probes measure it; ``rtt`` in seconds, None before the first; ``mtu``
    in bytes, None while nothing comes back."""

    peer: str
    dimension: int
    rtt: float | None
    loss: float
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class ScatterSample:
    """One peer's scatter: the share of each dimension by the map in use, and the entropy of what was sent."""

    peer: str
    weights: tuple[float, ...]
    entropy_bits: float | None


class _DeviceCollector(Collector):
    """Makes series of the last device read and of the PSK ages. The series of a peer that left go with the
    peer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.samples: tuple[WireGuardSample, ...] = ()
        self.scatter: tuple[ScatterSample, ...] = ()
        self.paths: tuple[PathSample, ...] = ()
        self.regions: Mapping[str, str] = {}
        self.psk_ages: tuple[float, Mapping[str, float]] = (0.0, {})

    def feed_psk_ages(self, ages: Mapping[str, float]) -> None:
        self.psk_ages = (self._clock(), dict(ages))

    def collect(self) -> Iterator[Metric]:
        fed_at, ages = self.psk_ages
        elapsed = self._clock() - fed_at
        psk_age = GaugeMetricFamily(
            PREFIX + "psk_age_seconds",
            "Seconds since the last post-quantum PSK was installed for a peer.",
            labels=["peer"],
        )
        for peer, age in ages.items():
            psk_age.add_metric([peer], age + elapsed)
        yield psk_age

        moved = CounterMetricFamily(
            PREFIX + "wg_bytes",
            "Bytes WireGuard moved, as the device counts them.",
            labels=["peer", "dimension", "direction"],
        )
        handshake = GaugeMetricFamily(
            PREFIX + "wg_last_handshake_seconds",
            "Unix time of the last WireGuard handshake; 0: never.",
            labels=["peer", "dimension"],
        )
        for sample in self.samples:
            dimension = str(sample.dimension)
            moved.add_metric([sample.peer, dimension, "rx"], sample.rx_bytes)
            moved.add_metric([sample.peer, dimension, "tx"], sample.tx_bytes)
            handshake.add_metric([sample.peer, dimension], sample.last_handshake)
        yield moved
        yield handshake

        region = GaugeMetricFamily(
            PREFIX + "region_info",
            "Always 1; where each member, this node among them, stands by its own word.",
            labels=["peer", "region"],
        )
        for peer, stands in self.regions.items():
            region.add_metric([peer, stands], 1)
        yield region

        rtt = GaugeMetricFamily(
            PREFIX + "path_rtt_seconds",
            "Smoothed round trip inside a dimension.",
            labels=["peer", "dimension"],
        )
        loss = GaugeMetricFamily(
            PREFIX + "path_loss_ratio",
            "Ratio lost of late inside a dimension, of probes or of traffic, whichever is worse.",
            labels=["peer", "dimension"],
        )
        mtu = GaugeMetricFamily(
            PREFIX + "path_mtu_bytes",
            "Largest packet inside the overlay that a dimension carries as far as is known.",
            labels=["peer", "dimension"],
        )
        for path in self.paths:
            if path.mtu is not None:
                mtu.add_metric([path.peer, str(path.dimension)], path.mtu)
            loss.add_metric([path.peer, str(path.dimension)], path.loss)
            if path.rtt is not None:
                rtt.add_metric([path.peer, str(path.dimension)], path.rtt)
        yield rtt
        yield loss
        yield mtu

        weight = GaugeMetricFamily(
            PREFIX + "scatter_weight",
            "Share of a peer's traffic that a dimension has by the map in use.",
            labels=["peer", "dimension"],
        )
        entropy = GaugeMetricFamily(
            PREFIX + "scatter_entropy_bits",
            "Shannon entropy of the dimensions of the packets sent in this epoch and the one before.",
            labels=["peer"],
        )
        for scattered in self.scatter:
            for i, share in enumerate(scattered.weights):
                weight.add_metric([scattered.peer, str(i)], share)
            if scattered.entropy_bits is not None:
                entropy.add_metric([scattered.peer], scattered.entropy_bits)
        yield weight
        yield entropy


class _WithoutCreated(Collector):
    """A registry without the ``_created`` series: nothing reads them, and they cost a series each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class Metrics:
    """Every metric of one node.

    ``clock`` is any monotonic clock in seconds that may be read from a worker thread; it only makes the ages
    of the last ``set_psk_ages`` grow.
    """

    def __init__(self, *, version: str, clock: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        build = Gauge(
            PREFIX + "build_info",
            "Always 1; the labels say what runs.",
            ["version", "python"],
            registry=self.registry,
        )
        build.labels(version, platform.python_version()).set(1)
        self._peers = Gauge(
            PREFIX + "peers", "Peers by the state of their link.", ["state"], registry=self.registry
        )
        self._peer_states: set[str] = set()
        self._faults = Gauge(
            PREFIX + "faults",
            "Faults that the node tells of now, by code and severity; 0 once there was one.",
            ["code", "severity"],
            registry=self.registry,
        )
        self._fault_kinds: set[tuple[str, str]] = set()
        self._lives = Gauge(
            PREFIX + "node_state",
            "1 for the state that the node is in, 0 for the others.",
            ["state"],
            registry=self.registry,
        )
        self.ready = Gauge(PREFIX + "ready", "1 if /readyz answers 200, else 0.", registry=self.registry)
        self._traffic = Gauge(
            PREFIX + "peers_traffic",
            "Peers by how traffic with them stands: up means that a probe came back of late.",
            ["traffic"],
            registry=self.registry,
        )
        for traffic in FLOWS:
            self._traffic.labels(traffic).set(0)
        self._ways = Gauge(
            PREFIX + "paths",
            "Dimensions of all peers by the way that they take; none: nothing comes back.",
            ["way"],
            registry=self.registry,
        )
        self.path_moves = Counter(
            PREFIX + "path_moves_total",
            "Dimensions that took another way than before, by the new way.",
            ["way"],
            registry=self.registry,
        )
        self._routes = Gauge(
            PREFIX + "routes",
            "Prefixes beyond the mesh: of this node's own offered and unapproved; of others' taken, carried, "
            "in conflict with this host, and claimed without a certificate.",
            ["state"],
            registry=self.registry,
        )
        self._pacts = Gauge(
            PREFIX + "pacts",
            "Pacts with other meshes that name this node, by state; ended ones whether they did or not.",
            ["state"],
            registry=self.registry,
        )
        self._advice = Gauge(
            PREFIX + "topology_advice",
            "What is weak about the mesh now, by kind; 0 once there was one.",
            ["kind"],
            registry=self.registry,
        )
        self._advice_kinds: set[str] = set()
        self.relay_leases = Gauge(
            PREFIX + "relay_leases", "Leases that this node has given as a relay.", registry=self.registry
        )
        self.relayed_bytes = Counter(
            PREFIX + "relayed_bytes_total", "Bytes that this node has relayed.", registry=self.registry
        )
        for way in WAY_KINDS:
            self._ways.labels(way).set(0)
            if way != "none":
                self.path_moves.labels(way)
        self.link_handshake_seconds = Histogram(
            PREFIX + "link_handshake_seconds",
            "Seconds from the first message of a finished link handshake to its last.",
            buckets=_HANDSHAKE_BUCKETS,
            registry=self.registry,
        )
        self.link_handshakes = Counter(
            PREFIX + "link_handshakes_total",
            "Link handshakes by this node's role and their result.",
            ["role", "result"],
            registry=self.registry,
        )
        self.psk_rotations = Counter(
            PREFIX + "psk_rotations_total",
            "PSK installs by result.",
            ["result"],
            registry=self.registry,
        )
        self.identity_alarms = Counter(
            PREFIX + "identity_alarms_total",
            "Identities found to be in use on two machines, perhaps: a peer's, or this node's own (self).",
            ["whose"],
            registry=self.registry,
        )
        for whose in ("peer", "self"):
            self.identity_alarms.labels(whose)  # so that an alert can be written before there is any alarm
        self.identity_suspects = Gauge(
            PREFIX + "identity_suspects",
            "Identities that may be in use on two machines now.",
            registry=self.registry,
        )
        self.gossip_messages = Counter(
            PREFIX + "gossip_messages_total",
            "Gossip datagrams by kind and direction.",
            ["type", "direction"],
            registry=self.registry,
        )
        self.gossip_convergence_seconds = Histogram(
            PREFIX + "gossip_convergence_seconds",
            "Seconds from the first word of a new record to its being verified here.",
            buckets=_CONVERGENCE_BUCKETS,
            registry=self.registry,
        )
        self.membership_changes = Counter(
            PREFIX + "membership_changes_total",
            "Changes of other members as this node sees them, by the state after it.",
            ["state"],
            registry=self.registry,
        )
        self.dropped = Counter(
            PREFIX + "dropped_total",
            "Control datagrams, DNS queries, probes and unscattered packets dropped, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.cover_packets = Counter(
            PREFIX + "cover_packets_total", "Packets of cover traffic sent.", registry=self.registry
        )
        self.cover_bytes = Counter(
            PREFIX + "cover_bytes_total",
            "Bytes of cover traffic sent, as they are on an uplink of IPv4.",
            registry=self.registry,
        )
        self.threats = Counter(
            PREFIX + "threats_total",
            "Attacks seen, by kind; a kind of one source counts again after ten minutes without it.",
            ["kind", "severity"],
            registry=self.registry,
        )
        self.bans = Gauge(PREFIX + "bans", "Networks that are banned now.", registry=self.registry)
        self.dns_queries = Counter(
            PREFIX + "dns_queries_total",
            "Answered queries for the mesh's names, by result.",
            ["result"],
            registry=self.registry,
        )
        self.class_packets = Counter(
            PREFIX + "scatter_class_packets_total",
            "Packets sent by class of traffic, to peers that an intent is for; a GSO burst counts as one.",
            ["class"],
            registry=self.registry,
        )
        self.scatter_proofs = Counter(
            PREFIX + "scatter_proofs_total",
            "Steps of scatter proofs by what came of them.",
            ["result"],
            registry=self.registry,
        )
        self.api_request_seconds = Histogram(
            PREFIX + "api_request_seconds",
            "Seconds an API request took, by route pattern, method and status.",
            ["route", "method", "status"],
            buckets=_API_BUCKETS,
            registry=self.registry,
        )
        self.api_refused = Counter(
            PREFIX + "api_refused",
            "Requests to the API that were refused for who made them or from where, by status.",
            ["status"],
            registry=self.registry,
        )
        self.service_restarts = Counter(
            PREFIX + "service_restarts_total",
            "Restarts of a supervised service.",
            ["service"],
            registry=self.registry,
        )
        self.agent_decisions = Counter(
            PREFIX + "agent_decisions_total",
            "What agents proposed, by the kind of action and what was decided.",
            ["agent", "action", "result"],
            registry=self.registry,
        )
        self.agent_response_seconds = Histogram(
            PREFIX + "agent_response_seconds",
            "Seconds from the event, or from the agent's turn, to its action being done.",
            ["agent"],
            buckets=_RESPONSE_BUCKETS,
            registry=self.registry,
        )
        self.agent_restarts = Counter(
            PREFIX + "agent_restarts_total",
            "Agents that failed and were replaced by a fresh instance.",
            ["agent"],
            registry=self.registry,
        )
        self.loop_lag_seconds = Histogram(
            PREFIX + "loop_lag_seconds",
            "How late the event loop woke a task that slept.",
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )
        self.memory_patterns = Gauge(
            PREFIX + "memory_patterns", "Threat patterns that this node remembers.", registry=self.registry
        )
        self.memory_recall_seconds = Histogram(
            PREFIX + "memory_recall_seconds",
            "Seconds that the recall of a threat pattern took.",
            buckets=_RECALL_BUCKETS,
            registry=self.registry,
        )
        self._devices = _DeviceCollector(clock)
        self.registry.register(self._devices)

    def count_query(self, result: str) -> None:
        """Count a query of the mesh's names by its result."""
        self.dns_queries.labels(result).inc()

    def count_proof(self, result: str) -> None:
        """Count a scatter proof by its result."""
        self.scatter_proofs.labels(result).inc()

    def set_peers(self, by_state: Mapping[str, int]) -> None:
        """Set how many peers are in each link state; a state seen before and absent now becomes 0."""
        self._peer_states.update(by_state)
        for state in self._peer_states:
            self._peers.labels(state).set(by_state.get(state, 0))

    def set_faults(self, by_kind: Mapping[tuple[str, str], int]) -> None:
        """Set how many faults there are of each (code, severity). One seen before and absent now becomes
        0."""
        self._fault_kinds.update(by_kind)
        for kind in self._fault_kinds:
            self._faults.labels(*kind).set(by_kind.get(kind, 0))

    def set_routes(self, by_state: Mapping[str, int]) -> None:
        """Set how many prefixes beyond the mesh there are in each state."""
        for state, count in by_state.items():
            self._routes.labels(state).set(count)

    def set_pacts(self, by_state: Mapping[str, int]) -> None:
        """Set how many pacts there are in each state."""
        for state, count in by_state.items():
            self._pacts.labels(state).set(count)

    def set_advice(self, by_kind: Mapping[str, int]) -> None:
        """Set how much advice of each kind there is. One seen before and absent now becomes 0."""
        self._advice_kinds.update(by_kind)
        for kind in self._advice_kinds:
            self._advice.labels(kind).set(by_kind.get(kind, 0))

    def set_state(self, now: Life, *, ready: bool) -> None:
        """Set the node's state, and whether it is ready."""
        for state in LIVES:
            self._lives.labels(state).set(state == now)
        self.ready.set(ready)

    def set_traffic(self, flows: Mapping[Flow, int]) -> None:
        """Set how many peers are in each state of traffic."""
        for traffic in FLOWS:
            self._traffic.labels(traffic).set(flows.get(traffic, 0))

    def set_ways(self, ways: Mapping[WayKind, int]) -> None:
        """Set how many dimensions take each way."""
        for way in WAY_KINDS:
            self._ways.labels(way).set(ways.get(way, 0))

    def set_psk_ages(self, ages: Mapping[str, float]) -> None:
        """Replace the PSK age of every peer, in seconds as of now, by peer name."""
        self._devices.feed_psk_ages(ages)

    def set_wireguard(self, samples: Iterable[WireGuardSample]) -> None:
        """Replace what was last read from the devices."""
        self._devices.samples = tuple(samples)

    def set_paths(self, samples: Iterable[PathSample]) -> None:
        """Replace what is known of the paths."""
        self._devices.paths = tuple(samples)

    def set_regions(self, regions: Mapping[str, str]) -> None:
        """Replace what members say of where they stand, by name."""
        self._devices.regions = dict(regions)

    def set_scatter(self, samples: Iterable[ScatterSample]) -> None:
        """Replace what is known of the scatter of each peer."""
        self._devices.scatter = tuple(samples)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the exposition and its content type, in the format ``accept`` (an Accept header) prefers.

        Thread-safe, and for many peers slow enough to belong in a worker thread.
        """
        encode, content_type = choose_encoder(accept)
        return encode(_WithoutCreated(self.registry)), content_type
