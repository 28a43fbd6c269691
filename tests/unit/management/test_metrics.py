# SPDX-License-Identifier: GPL-3.0-or-later
import re

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from phantommesh.management.metrics import Metrics, PathSample, ScatterSample, WireGuardSample
from phantommesh.management.wayview import WAY_KINDS

# The metrics that the public interface promises.
NAMES = {
    "phantommesh_bans",
    "phantommesh_threats_total",
    "phantommesh_cover_packets_total",
    "phantommesh_cover_bytes_total",
    "phantommesh_build_info",
    "phantommesh_peers",
    "phantommesh_link_handshake_seconds",
    "phantommesh_link_handshakes_total",
    "phantommesh_psk_age_seconds",
    "phantommesh_psk_rotations_total",
    "phantommesh_identity_alarms_total",
    "phantommesh_identity_suspects",
    "phantommesh_wg_bytes_total",
    "phantommesh_wg_last_handshake_seconds",
    "phantommesh_dns_queries_total",
    "phantommesh_gossip_messages_total",
    "phantommesh_gossip_convergence_seconds",
    "phantommesh_membership_changes_total",
    "phantommesh_dropped_total",
    "phantommesh_api_refused_total",
    "phantommesh_api_request_seconds",
    "phantommesh_path_loss_ratio",
    "phantommesh_path_moves_total",
    "phantommesh_path_mtu_bytes",
    "phantommesh_path_rtt_seconds",
    "phantommesh_paths",
    "phantommesh_relay_leases",
    "phantommesh_relayed_bytes_total",
    "phantommesh_scatter_class_packets_total",
    "phantommesh_scatter_entropy_bits",
    "phantommesh_scatter_proofs_total",
    "phantommesh_scatter_weight",
    "phantommesh_service_restarts_total",
    "phantommesh_agent_decisions_total",
    "phantommesh_agent_response_seconds",
    "phantommesh_agent_restarts_total",
    "phantommesh_loop_lag_seconds",
    "phantommesh_memory_patterns",
    "phantommesh_memory_recall_seconds",
    "phantommesh_faults",
    "phantommesh_node_state",
    "phantommesh_peers_traffic",
    "phantommesh_ready",
    "phantommesh_region_info",
    "phantommesh_topology_advice",
    "phantommesh_routes",
    "phantommesh_pacts",
}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def filled(clock: Clock | None = None) -> Metrics:
    metrics = Metrics(version="1.2.3", clock=clock or Clock())
    metrics.set_peers({"fresh": 2, "stale": 1})
    metrics.set_psk_ages({"pm-2": 4.0})
    metrics.set_wireguard([WireGuardSample("pm-2", 3, 10, 20, 1700000000.0)])
    metrics.set_paths([PathSample("pm-2", 3, 0.02, 0.01, 1376), PathSample("pm-2", 4, None, 1.0)])
    metrics.set_regions({"pm-2": "eu-north"})
    metrics.set_routes({"taken": 2})
    metrics.set_pacts({"resting": 3})
    metrics.set_scatter([ScatterSample("pm-2", (0.0, 0.4, 0.6, 0.0, 0.0, 0.0, 0.0), 0.97)])
    metrics.scatter_proofs.labels(result="signed").inc()
    metrics.class_packets.labels("ssh").inc()
    metrics.link_handshake_seconds.observe(0.003)
    metrics.link_handshakes.labels(role="initiator", result="ok").inc()
    metrics.psk_rotations.labels(result="ok").inc()
    metrics.dropped.labels(reason="mac").inc()
    metrics.api_request_seconds.labels(route="/v1/status", method="GET", status="200").observe(0.01)
    metrics.service_restarts.labels(service="udp").inc()
    metrics.agent_decisions.labels("cipher", "rotate", "accepted").inc()
    metrics.agent_response_seconds.labels("cipher").observe(0.01)
    metrics.agent_restarts.labels("cipher").inc()
    metrics.loop_lag_seconds.observe(0.001)
    metrics.set_faults({("peer-dark", "high"): 2})
    metrics.set_advice({"cut-member": 2})
    metrics.set_state("running", ready=True)
    metrics.set_traffic({"up": 1, "dark": 2})
    return metrics


def test_a_fault_that_is_mended_counts_for_nothing() -> None:
    metrics = filled()
    value = metrics.registry.get_sample_value
    labels = {"code": "peer-dark", "severity": "high"}
    assert value("phantommesh_faults", labels) == 2
    assert value("phantommesh_peers_traffic", {"traffic": "dark"}) == 2
    assert value("phantommesh_peers_traffic", {"traffic": "left"}) == 0
    metrics.set_faults({})
    metrics.set_state("leaving", ready=False)
    assert value("phantommesh_faults", labels) == 0 and value("phantommesh_ready") == 0
    assert value("phantommesh_node_state", {"state": "leaving"}) == 1
    assert value("phantommesh_node_state", {"state": "running"}) == 0


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_the_names_are_exactly_those_of_the_interface() -> None:
    text = filled().render()[0].decode()
    assert set(re.findall(r"^# TYPE (\S+)", text, re.M)) == NAMES
    assert "_created" not in text
    assert list(text_string_to_metric_families(text))


def test_labels_are_those_of_the_interface() -> None:
    metrics = filled()
    assert value(metrics, "phantommesh_peers", state="fresh") == 2
    assert value(metrics, "phantommesh_link_handshakes_total", role="initiator", result="ok") == 1
    assert value(metrics, "phantommesh_wg_bytes_total", peer="pm-2", dimension="3", direction="tx") == 20
    assert value(metrics, "phantommesh_wg_last_handshake_seconds", peer="pm-2", dimension="3") == 1.7e9
    assert value(metrics, "phantommesh_path_rtt_seconds", peer="pm-2", dimension="3") == 0.02
    assert value(metrics, "phantommesh_path_rtt_seconds", peer="pm-2", dimension="4") is None
    assert value(metrics, "phantommesh_path_loss_ratio", peer="pm-2", dimension="4") == 1.0
    assert value(metrics, "phantommesh_path_mtu_bytes", peer="pm-2", dimension="3") == 1376
    assert value(metrics, "phantommesh_path_mtu_bytes", peer="pm-2", dimension="4") is None
    assert value(metrics, "phantommesh_routes", state="taken") == 2
    assert value(metrics, "phantommesh_pacts", state="resting") == 3
    assert value(metrics, "phantommesh_region_info", peer="pm-2", region="eu-north") == 1
    assert value(metrics, "phantommesh_path_moves_total", way="direct") == 0
    metrics.set_ways({"direct": 5, "relayed": 2})
    assert [value(metrics, "phantommesh_paths", way=way) for way in WAY_KINDS] == [5, 2, 0, 0]
    metrics.set_ways({"tcp": 7})
    assert [value(metrics, "phantommesh_paths", way=way) for way in WAY_KINDS] == [0, 0, 7, 0]
    assert value(metrics, "phantommesh_scatter_weight", peer="pm-2", dimension="2") == 0.6
    assert value(metrics, "phantommesh_scatter_entropy_bits", peer="pm-2") == 0.97
    assert value(
        metrics, "phantommesh_api_request_seconds_count", route="/v1/status", method="GET", status="200"
    )


def test_two_nodes_in_one_process_share_nothing() -> None:
    one, two = filled(), Metrics(version="2", clock=Clock())
    assert value(one, "phantommesh_dropped_total", reason="mac") == 1
    assert value(two, "phantommesh_dropped_total", reason="mac") is None
    assert REGISTRY.get_sample_value("phantommesh_dropped_total", {"reason": "mac"}) is None


def test_a_psk_ages_between_two_feeds_and_leaves_with_its_peer() -> None:
    clock = Clock()
    metrics = filled(clock)
    clock.now += 30.0
    assert value(metrics, "phantommesh_psk_age_seconds", peer="pm-2") == 34.0
    metrics.set_psk_ages({})
    assert value(metrics, "phantommesh_psk_age_seconds", peer="pm-2") is None


def test_what_left_the_device_leaves_the_metrics() -> None:
    metrics = filled()
    metrics.set_wireguard([WireGuardSample("pm-3", 0, 1, 1, 0.0)])
    assert value(metrics, "phantommesh_wg_bytes_total", peer="pm-2", dimension="3", direction="tx") is None
    assert value(metrics, "phantommesh_wg_last_handshake_seconds", peer="pm-3", dimension="0") == 0.0


def test_a_state_without_peers_becomes_zero() -> None:
    metrics = filled()
    metrics.set_peers({"fresh": 3})
    assert value(metrics, "phantommesh_peers", state="stale") == 0


def test_openmetrics_is_served_to_who_asks() -> None:
    body, content_type = filled().render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert b"_created" not in body
