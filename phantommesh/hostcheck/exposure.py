# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules about ports: what others reach of this node that they should not, and what keeps them from reaching
what they should."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Final

from phantommesh.config.sections import Config
from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import parse_endpoint
from phantommesh.hostcheck.finding import Finding, Rule
from phantommesh.hostcheck.firewall import Fate, Packet, fates
from phantommesh.hostcheck.seen import HostSeen

CONFIG_REFUSED = Rule("config-refused", "high", "The configuration cannot be used")
API_EXPOSED = Rule("api-exposed", "critical", "The API's port is open beyond this machine")
PORT_DROPPED = Rule("port-dropped", "medium", "Another packet filter drops what comes to the node's ports")
PORT_REDIRECTED = Rule("port-redirected", "high", "Another packet filter sends the node's ports elsewhere")
SENDING_DROPPED = Rule("sending-dropped", "high", "Another packet filter drops what the node sends")
MESH_DROPPED = Rule("mesh-dropped", "high", "Another packet filter drops what comes over the mesh")
FORWARDING_DROPPED = Rule(
    "forwarding-dropped", "medium", "Another packet filter drops what the node forwards"
)
PORT_TAKEN = Rule("port-taken", "high", "Another program has a port of the node's")
RULES: Final = (
    CONFIG_REFUSED, API_EXPOSED, PORT_DROPPED, PORT_REDIRECTED, SENDING_DROPPED, MESH_DROPPED,
    FORWARDING_DROPPED, PORT_TAKEN,
)  # fmt: skip

_MOST_NAMED: Final = 3
_NEW: Final[Packet] = {
    "state": "new",
    "status": "none",
}  # the first packet of a connection, as conntrack says
_SEE: Final = "see `nft list ruleset` and `iptables-save`"


def findings(seen: HostSeen) -> Iterator[Finding]:
    """Judge listeners and packet filters by the configuration's ports."""
    if seen.config_error:
        yield CONFIG_REFUSED.found(seen.config_error, seen.config_fix or "correct the file", subject="config")
    if seen.config is None:
        return
    yield from _api(seen, seen.config)
    yield from _taken(seen)
    yield from _coming(seen, seen.config)
    yield from _sent(seen, seen.config)
    yield from _inside(seen, seen.config)


def ports_of(config: Config) -> tuple[tuple[str, int], ...]:
    """The ports at which others reach a node, by transport: control, WireGuard as it starts, relay."""
    found = [("udp", config.control.port)]
    found += [("tcp", config.control.port)] if config.control.tcp else []
    found += [("tcp", port) for port in config.control.tcp_ports]
    found += [("udp", config.wireguard.base_port + i) for i in range(DIMENSIONS)]
    found += [("udp", config.relay.port)] if config.relay.offer is True else []
    return tuple(found)


def _api(seen: HostSeen, config: Config) -> Iterator[Finding]:
    if config.api.listen is None or config.api.encrypted:
        return
    _, port = parse_endpoint(config.api.listen, None)
    for one in seen.listeners:
        if one.protocol == "tcp" and one.port == port and not ip_address(one.address).is_loopback:
            by = f" by {one.program}" if one.program else ""
            yield API_EXPOSED.found(
                f"TCP port {port}, the API's, is open at {one.address}{by}: what is sent there crosses the "
                "network in clear, tokens among it",
                "stop that program; reach the API by the Unix socket, by an ssh tunnel, or over the mesh",
                subject=f"tcp/{port}",
            )


def _taken(seen: HostSeen) -> Iterator[Finding]:
    for one in seen.others_ports:
        by = one.program or "another program"
        yield PORT_TAKEN.found(
            f"UDP port {one.port} is taken by {by}: the node cannot have it",
            "stop that program, or set control.port or wireguard.base_port to free ports",
            subject=f"udp/{one.port}",
        )


def _coming(seen: HostSeen, config: Config) -> Iterator[Finding]:
    """What becomes of a stranger's first packet to each port."""
    dropped: dict[str, list[str]] = {}
    for protocol, port in ports_of(config):
        packet: Packet = {
            "protocol": protocol, "dport": port, "iif": _uplink(seen), **_NEW,
        }  # fmt: skip
        found = {fate.where: fate for hook in ("prerouting", "input") for fate in _fates(seen, hook, packet)}
        for fate in found.values():
            if fate.kind == "redirect":
                yield PORT_REDIRECTED.found(
                    f"{fate.where} sends {protocol} port {port} to {fate.target}: others' handshakes reach "
                    "that instead of the node",
                    f"take the port out of that rule; {_SEE}",
                    subject=f"{protocol}/{port}",
                )
            else:
                dropped.setdefault(fate.where, []).append(f"{protocol} {port}")
    for where, ports in dropped.items():
        yield PORT_DROPPED.found(
            f"{where} drops what comes to {_named(ports)}: who does not hear from this node first cannot "
            "reach it",
            f"let these ports in, with a rule before that one; {_SEE}",
            subject=where,
        )


def _sent(seen: HostSeen, config: Config) -> Iterator[Finding]:
    dropped: dict[str, list[str]] = {}
    for protocol, port in ports_of(config):
        if protocol != "udp":
            continue  # an answer over TCP belongs to a connection that came
        packet: Packet = {"protocol": "udp", "sport": port, "oif": _uplink(seen), **_NEW}
        for hook in ("output", "postrouting"):
            for fate in _fates(seen, hook, packet):
                if fate.kind == "drop":
                    dropped.setdefault(fate.where, []).append(f"udp {port}")
    for where, ports in dropped.items():
        yield SENDING_DROPPED.found(
            f"{where} drops what the node sends from {_named(ports)}",
            f"let it out, with a rule before that one; {_SEE}",
            subject=where,
        )


def _inside(seen: HostSeen, config: Config) -> Iterator[Finding]:
    """What becomes of what members send: to the probes' port here, and through this host."""
    for name in seen.interfaces:
        packet: Packet = {"protocol": "udp", "dport": config.paths.port, "iif": name, **_NEW}
        if drops := [f for hook in ("prerouting", "input") for f in _fates(seen, hook, packet)]:
            yield MESH_DROPPED.found(
                f"{drops[0].where} drops what comes in by {name}: probes get no answer, and the node takes "
                "its paths for dead",
                f"let in what comes by the node's interfaces, as the mesh's own guard checks it; {_SEE}",
                subject=drops[0].where,
            )
            break
    if not (config.guard.forward or config.routes.advertise):
        return
    master = seen.interfaces[0] if seen.interfaces else config.wireguard.prefix
    behind = config.guard.forward[0] if config.guard.forward else _uplink(seen)
    for came, leaves in ((master, behind), (behind, master)):
        packet = {"iif": came, "oif": leaves, **_NEW}
        for fate in _fates(seen, "forward", packet):
            if fate.kind == "drop":
                yield FORWARDING_DROPPED.found(
                    f"{fate.where} drops what this host is to forward from {came} to {leaves}",
                    f"let it pass, with a rule before that one; {_SEE}",
                    subject=fate.where,
                )
                return


def _fates(seen: HostSeen, hook: str, packet: Packet) -> Iterator[Fate]:
    return fates(seen.chains, hook, packet)


def _uplink(seen: HostSeen) -> str:
    return seen.uplinks[0] if seen.uplinks else "eth0"


def _named(ports: Iterable[str]) -> str:
    every = list(ports)
    more = f" and {len(every) - _MOST_NAMED} more" if len(every) > _MOST_NAMED else ""
    return ", ".join(every[:_MOST_NAMED]) + more
