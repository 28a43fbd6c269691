# SPDX-License-Identifier: GPL-3.0-or-later
"""Each key of the configuration has its variable."""

import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phantommesh.config import environment
from phantommesh.config.reading import load
from phantommesh.config.sections import (
    SECTIONS,
    ApiSection,
    Config,
    ConfigError,
    NoConfigError,
    NodeSection,
    RoutesSection,
)
from phantommesh.config.writing import renamed, render

NODE = {"PHANTOMMESH_NODE_NAME": "pm-1", "PHANTOMMESH_NODE_MESH": "lab"}

# For each key another value than the default, as text and as it is read.
ADVERTISED = "10.3.0.0/16"  # a site's prefix has to be
AGENTS = [section for section in SECTIONS if section.startswith("agents.")]
OTHERS: dict[str, tuple[str, Any]] = {
    "node.name": ("pm-2", "pm-2"),
    "node.mesh": ("home", "home"),
    "node.endpoints": ("192.0.2.1, vpn.example.net:4000", ("192.0.2.1", "vpn.example.net:4000")),
    "node.region": ("eu-north", "eu-north"),
    "control.port": ("4000", 4000),
    "control.tcp": ("false", False),
    "control.tcp_ports": ("443, 8443", (443, 8443)),
    "wireguard.backend": ("userspace", "userspace"),
    "wireguard.prefix": ("wg-", "wg-"),
    "wireguard.base_port": ("5000", 5000),
    "wireguard.mtu": ("1280", 1280),
    "wireguard.keepalive": ("0", 0),
    "wireguard.keep_interfaces": ("true", True),
    "wireguard.reconcile_seconds": ("5", 5.0),
    "wireguard.key_seconds": ("3600", 3600.0),
    "wireguard.port_choices": ("1", 1),
    "overlay.cidr4": ("10.99.0.0/16", "10.99.0.0/16"),
    "guard.forward": ("docker0,lxcbr0", ("docker0", "lxcbr0")),
    "link.rotate_seconds": ("60", 60.0),
    "link.jitter_seconds": ("1.5", 1.5),
    "link.stale_alarm_seconds": ("200", 200.0),
    "link.stale_random_seconds": ("400", 400.0),
    "link.provider": ("liboqs", "liboqs"),
    "nat.discover": ("false", False),
    "nat.measure": ("false", False),
    "relay.offer": ("true", True),
    "relay.port": ("5001", 5001),
    "relay.rate": ("1000000", 1_000_000),
    "relay.quota": ("1000000000", 1_000_000_000),
    "relay.members": ("db,web", ("db", "web")),
    "relay.use": ("false", False),
    "relay.direct_only": ("true", True),
    "relay.only": ("db,web", ("db", "web")),
    "relay.never": ("db", ("db",)),
    "relay.regions": ("eu,us", ("eu", "us")),
    "relay.never_regions": ("eu", ("eu",)),
    "routes.advertise": ("10.1.0.0/16, 2001:db8::/32", ("10.1.0.0/16", "2001:db8::/32")),
    "routes.accept": ("all", ("all",)),
    "nat.portmap": ("off", "off"),
    "gossip.preset": ("wan", "wan"),
    "gossip.seeds": ("192.0.2.9:51800", ("192.0.2.9:51800",)),
    "scatter.hook": ("off", "off"),
    "scatter.goal": ("private", "private"),
    "scatter.peers": ("pm-2=order,pm-3 = private", {"pm-2": "order", "pm-3": "private"}),
    "scatter.scheduler": ("flow", "flow"),
    "scatter.epoch_seconds": ("30", 30.0),
    "scatter.batch": ("4", 4),
    "scatter.flowlet_ms": ("100", 100),
    "proofs.keep": ("10", 10),
    "paths.port": ("4001", 4001),
    "routes.port": ("4002", 4002),
    "routes.exit": ("gate-a,gate-b", ("gate-a", "gate-b")),
    "routes.lan": ("true", True),
    "routes.masquerade": ("false", False),
    "routes.sites": (f"{ADVERTISED}=10.2.0.0/16", {ADVERTISED: "10.2.0.0/16"}),
    "routes.probe": ("10.1.0.0/16=10.1.0.9", {"10.1.0.0/16": "10.1.0.9"}),
    "paths.probe_seconds": ("1", 1.0),
    "api.socket": ("/run/x.sock", "/run/x.sock"),
    "api.listen": ("127.0.0.1:8480", "127.0.0.1:8480"),
    "api.tls": ("on", "on"),
    "api.certificate": ("/etc/api.pem", "/etc/api.pem"),
    "api.key": ("/etc/api.key", "/etc/api.key"),
    "api.client_ca": ("/etc/clients.pem", "/etc/clients.pem"),
    "api.hosts": ("vpn.example.net, 192.0.2.7", ("vpn.example.net", "192.0.2.7")),
    "dns.serve": ("false", False),
    "dns.port": ("5353", 5353),
    "dns.mode": ("off", "off"),
    "dns.hosts": ("/etc/other", "/etc/other"),
    "memory.megabytes": ("16", 16),
    "memory.half_life_seconds": ("86400", 86_400.0),
    "memory.hints": ("false", False),
    "acl.default": ("deny", "deny"),
    "log.level": ("debug", "debug"),
    "log.format": ("json", "json"),
    "agents.enabled": ("false", False),
    "agents.dry_run": ("true", True),
    "agents.aegis.mend": ("true", True),
    "agents.aegis.scan_seconds": ("60", 60.0),
    "agents.fortress.shed_at": ("600", 600.0),
    "agents.fortress.shed_rate": ("100", 100.0),
    "agents.fortress.dns_rate": ("10", 10.0),
    "agents.nexus.drain_unready": ("false", False),
    "agents.nexus.skew_hours": ("1.5", 1.5),
    "agents.omniscient.memory_mb": ("1024", 1024),
    "agents.cipher.quarantine": ("false", False),
    **{f"{agent}.enabled": ("false", False) for agent in AGENTS},
    **{f"{agent}.dry_run": ("true", True) for agent in AGENTS},
    "agents.phantom.cover_bytes_per_second": ("25000", 25_000.0),
    "agents.phantom.cover_peer_bytes_per_second": ("5000", 5000.0),
    "agents.phantom.cover_peers": ("all", "all"),
    "agents.phantom.hop_hours": ("6", 6.0),
    "agents.velocity.late_ms": ("80", 80.0),
    "agents.velocity.return_seconds": ("30", 30.0),
    "agents.velocity.most_left": ("1", 1),
    "agents.stream.elephant_kbit": ("5000", 5000.0),
    "agents.stream.most_flows": ("256", 256),
    "agents.stream.scan_targets": ("40", 40),
    "agents.stream.beacon_contacts": ("12", 12),
    "agents.stream.expected_ports": ("53,123", (53, 123)),
}


def test_the_table_above_has_every_key() -> None:
    assert {f"{section}.{key}" for _, section, key, _ in environment.variables()} == OTHERS.keys()


@pytest.mark.parametrize("key", OTHERS)
def test_every_key_has_its_variable(key: str, tmp_path: Path) -> None:
    section, _, name = key.rpartition(".")
    text, wanted = OTHERS[key]
    file = tmp_path / "pm.toml"
    # Only what is routed may be probed, or have a site.
    routed = ("10.1.0.0/16", ADVERTISED) if key in ("routes.probe", "routes.sites") else ()
    # Certificates belong to TLS.
    api = ApiSection(listen="127.0.0.1:1", tls="on", certificate="/b.pem", key="/b.key")
    config = Config(
        node=NodeSection(name="pm-1", mesh="lab"),
        routes=RoutesSection(advertise=routed),
        api=api if key in ("api.certificate", "api.key", "api.client_ca") else ApiSection(),
    )
    file.write_text(render(config))
    assert attrgetter(key)(load(file, {})) != wanted
    changed = load(file, {environment.variable(section, name): text})
    assert attrgetter(key)(changed) == wanted
    written = re.search(rf"\[{re.escape(section)}\]\n(?:.+\n)*?{name} = (.+)\n", render(changed))
    assert written is not None  # a value may also be given as the file has it
    assert load(file, {environment.variable(section, name): written[1]}) == changed
    # An empty variable counts as not set.
    assert load(file, {environment.variable(section, name): ""}) == load(file, {})


def test_the_environment_does_without_a_file(tmp_path: Path) -> None:
    none = tmp_path / "none.toml"
    assert load(none, NODE) == Config(node=NodeSection(name="pm-1", mesh="lab"))
    with pytest.raises(NoConfigError):
        load(none, {"PHANTOMMESH_NODE_NAME": "pm-1"})


@pytest.mark.parametrize("name", ["PHANTOMMESH_INTENT", "PHANTOMMESH_INTENT_SSH_GOAL", "PHANTOMMESH_INTENTS"])
def test_a_variable_for_an_intent_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="intents have no variables") as caught:
        load(tmp_path / "none", NODE | {name: "order"})
    assert "into the file" in caught.value.fix


def test_a_variable_of_an_earlier_version_is_told_its_new_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is called PHANTOMMESH_SCATTER_GOAL now"):
        load(tmp_path / "none", NODE | {"PHANTOMMESH_SCATTER_INTENT": "order"})


@pytest.mark.parametrize(
    ("text", "variables", "error", "fix"),
    [
        (
            '[scatter]\nintent = "order"',
            {"PHANTOMMESH_SCATTER_GOAL": "order"},
            "scatter.intent is called scatter.goal now",
            "take scatter.intent out: scatter.goal is set too",
        ),
        (
            '[scatter]\ngoals = "order"',
            {"PHANTOMMESH_SCATTER_GOAL": "order"},
            'unknown key scatter.goals = "order"',
            "did you mean scatter.goal?",
        ),
        (
            "[control]\ntcp_ports = 443",
            {"PHANTOMMESH_CONTROL_TCP": "true"},
            "control.tcp_ports = 443 is not at most 2 TCP ports, e.g. [443]",
            "set control.tcp_ports to at most 2 TCP ports, e.g. [443]",
        ),
    ],
)
def test_what_the_file_has_wrong_is_not_blamed_on_a_variable(
    tmp_path: Path, text: str, variables: dict[str, str], error: str, fix: str
) -> None:
    file = tmp_path / "pm.toml"
    file.write_text(f'[node]\nname = "pm-1"\nmesh = "lab"\n{text}\n')
    with pytest.raises(ConfigError) as caught:
        load(file, variables)
    assert (str(caught.value), caught.value.fix) == (f"{file}: {error}", fix)


def test_a_fix_that_names_another_key_is_not_sent_to_this_variable() -> None:
    told = refusal(NODE | {"PHANTOMMESH_CONTROL_TCP_PORTS": "443", "PHANTOMMESH_CONTROL_TCP": "false"})
    assert told[-1] == "set PHANTOMMESH_CONTROL_TCP to true"


def test_a_peers_goal_is_mended_in_the_variable() -> None:
    told = refusal(NODE | {"PHANTOMMESH_SCATTER_PEERS": "db=order,web=speed"})
    assert told[-1] == 'set web in PHANTOMMESH_SCATTER_PEERS to "throughput"'


def test_other_programs_variables_are_left_alone(tmp_path: Path) -> None:
    others = {"PHANTOMMESH_STATE_DIR": "x", "PHANTOMMESH_SERVICE_HOST": "10.0.0.1", "HOME": "/root"}
    assert load(tmp_path / "none", NODE | others) == load(tmp_path / "none", NODE)


@given(
    st.sampled_from(sorted(OTHERS)),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
)
@example("agents.phantom.cover_peers", "0")  # a choice of words
@example("relay.regions", ":")  # its fix names another key too
def test_any_text_is_a_value_or_told_with_its_variable(key: str, text: str) -> None:
    section, _, last = key.rpartition(".")
    name = environment.variable(section, last)
    for line in refusal(NODE | {name: text}):
        assert name in line or "phantommesh init" in line or "there is no configuration" in line


def refusal(variables: dict[str, str]) -> tuple[str, ...]:
    """The error and its fix, or nothing."""
    try:
        load(Path("/nonexistent/pm.toml"), variables)
    except ConfigError as error:
        return str(error), error.fix
    return ()


@pytest.mark.parametrize(
    "text",
    [
        '[node]\nname = "old"\nmesh = "m"\n',
        "[node]\nmesh = 'm'\n  name='old' # here\n",
        'node.name = "old"\nnode.mesh = "m"\n',
        '[other]\nname = "old"\n[node]\nname = "old"\nmesh = "m"\n',
    ],
)
def test_a_rename_changes_the_nodes_name_alone(text: str) -> None:
    edited = renamed(text, "old", "new")
    assert edited is not None and edited.count("new") == 1
    assert edited.replace("'new'", "'old'").replace('"new"', '"old"').replace("'", '"') == text.replace(
        "'", '"'
    )
    assert renamed(edited, "old", "new") == edited


@pytest.mark.parametrize(
    "text", ["", "junk", '[node]\nname = "third"\n', 'node = {name = "old", mesh = "m"}\n']
)
def test_a_rename_that_is_no_edit_of_one_line_is_left_to_the_operator(text: str) -> None:
    assert renamed(text, "old", "new") is None
