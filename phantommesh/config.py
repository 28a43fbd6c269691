# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: TOML in, a frozen `Config` out; an error names the key, the value and the fix.

No key of it is a secret. Secrets live in the state directory, in files of their own.
"""

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Network, IPv6Network, NetmaskValueError, ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from phantommesh.dimensions import DIMENSIONS, MAX_BATCH, MIN_BATCH
from phantommesh.endpoint import parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.reachable import Reach, Why, all_loopback, is_loopback, special

MAX_CONFIG_BYTES: Final = 1024 * 1024

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PREFIX: Final = re.compile(r"[a-z][a-z0-9_-]{0,13}")
_INTERFACE: Final = re.compile(
    r"[A-Za-z0-9._@:-]{1,15}"
)  # of the kernel's names, those that nft text can hold
_SPECIAL: Final = {  # RFC 6890: addresses that never are a member's
    IPv4Network("0.0.0.0/8"): "unspecified",
    IPv4Network("127.0.0.0/8"): "loopback",
    IPv4Network("169.254.0.0/16"): "link-local",
    IPv4Network("224.0.0.0/3"): "multicast and reserved",
}
_TOKEN: Final = re.compile(r"pm[t1]_[A-Za-z0-9_-]*")

# A description completes the sentence "set KEY to ...".
Label = Annotated[str, Meta(description="1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end")]
Port = Annotated[int, Meta(ge=1, le=65535, description="a port from 1 to 65535")]
Intent = Literal["speed", "order", "private"]  # what traffic is scattered for
Switch = Annotated[bool, Meta(description="true or false")]


class ConfigError(PhantomMeshError):
    """A configuration that cannot be used."""


class NodeSection(msgspec.Struct, frozen=True):
    """This node. `endpoints`: where others reach its control port; the port may be left to `control.port`."""

    name: Label
    mesh: Label
    endpoints: Annotated[
        tuple[str, ...],
        Meta(max_length=8, description='at most 8 endpoints, e.g. ["192.0.2.7:51800", "vpn.example.net"]'),
    ] = ()


class ControlSection(msgspec.Struct, frozen=True):
    """The control port, UDP and (`tcp`) TCP, outside the tunnels it keys."""

    port: Port = 51800
    tcp: Switch = True


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


class GossipSection(msgspec.Struct, frozen=True):
    """How members watch each other. `seeds`: control ports to try for ever, beside the authorities'."""

    preset: Annotated[Literal["lan", "wan", "local"], Meta(description='"lan", "wan" or "local"')] = "lan"
    seeds: Annotated[
        tuple[str, ...],
        Meta(max_length=16, description='at most 16 endpoints, e.g. ["192.0.2.7:51800", "vpn.example.net"]'),
    ] = ()


class ScatterSection(msgspec.Struct, frozen=True):
    """How a peer's traffic is spread over the dimensions, and how long one secret map lasts.

    ``intent``: what for (docs/scatter.md says which when); ``peers``: other intents for some peers,
    by name; ``scheduler``: in place of the intent's. ``mode``: where the kernel is told to; ``batch``:
    packets that the scheduler of that name sends one way in a row; ``flowlet_ms``: the pause after which the
    scheduler ``flowlet`` may send a flow another way.
    """

    mode: Annotated[
        Literal["auto", "egress", "mark", "off"], Meta(description='"auto", "egress", "mark" or "off"')
    ] = "auto"
    intent: Annotated[Intent, Meta(description='"speed", "order" or "private"')] = "speed"
    peers: Annotated[
        dict[str, Intent], Meta(description='a table of names, each = "speed", "order" or "private"')
    ] = {}
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


class ProofsSection(msgspec.Struct, frozen=True):
    """Scatter proofs: how many of the newest epochs' are kept on disk, of each peer and direction."""

    keep: Annotated[int, Meta(ge=1, le=100_000, description="a number of epochs from 1 to 100000")] = 60


class PathsSection(msgspec.Struct, frozen=True):
    """How the dimensions are watched: by probes to UDP `port` of the peers' overlay addresses, which are
    `probe_seconds` apart while there is traffic. A mesh has one such port."""

    port: Port = 51801
    probe_seconds: Annotated[float, Meta(ge=0.02, le=10, description="seconds from 0.02 to 10")] = 0.1


class ApiSection(msgspec.Struct, frozen=True):
    """The API's sockets: a Unix socket always, TCP on loopback if `listen` is set."""

    socket: Annotated[str, Meta(min_length=1, max_length=107, description="an absolute path")] = (
        "/run/phantommesh/api.sock"
    )
    listen: Annotated[str | None, Meta(description='a loopback address and port, e.g. "127.0.0.1:8480"')] = (
        None
    )


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
    """The whole configuration; every key but `node.name` and `node.mesh` has a default."""

    node: NodeSection
    control: ControlSection = ControlSection()
    wireguard: WireguardSection = WireguardSection()
    overlay: OverlaySection = OverlaySection()
    guard: GuardSection = GuardSection()
    link: LinkSection = LinkSection()
    gossip: GossipSection = GossipSection()
    scatter: ScatterSection = ScatterSection()
    proofs: ProofsSection = ProofsSection()
    paths: PathsSection = PathsSection()
    api: ApiSection = ApiSection()
    dns: DnsSection = DnsSection()
    log: LogSection = LogSection()


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError, which names the file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration {path}",
            fix="run `phantommesh init` or `phantommesh join`, or give the right path",
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8", fix="save the file as UTF-8") from None
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", fix=error.fix) from error


def parse(text: str) -> Config:
    """Check a configuration's text. Raises ConfigError naming the key, the value and the fix."""
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError("the configuration is longer than 1 MiB", fix="is this the right file?")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # also: an integer of thousands of digits is a plain ValueError, deep nesting a RecursionError
        raise ConfigError(f"not TOML: {redact(str(error))[:200]}", fix="correct that line") from None
    sections = {field.name: field.type for field in msgspec.structs.fields(Config)}
    _refuse_unknown("", document, sections)
    values = {name: _section(name, kind, document.get(name, {})) for name, kind in sections.items()}
    config = Config(**values)
    _check(config)
    return config


def render(config: Config) -> str:
    """Write a configuration that `parse` reads back equal; `init` and `join` write this."""
    lines = ["# PhantomMesh node. `phantommesh config check` says whether a change is good."]
    for section in msgspec.structs.fields(Config):
        lines.append(f"\n[{section.name}]")
        for key, value in msgspec.to_builtins(getattr(config, section.name)).items():
            lines.append(f"# {key} = not set" if value is None else f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)  # TOML's basic strings are JSON's, but for DEL, which _check lets into no value


def redacted(config: Config) -> dict[str, Any]:
    """Return the configuration as plain data to show. A token pasted into some value is starred out."""
    shown: dict[str, Any] = json.loads(redact(json.dumps(msgspec.to_builtins(config))))
    return shown


def redact(text: str) -> str:
    """Star out what follows pm1_ (an invite) and pmt_ (an API token)."""
    return _TOKEN.sub(lambda token: token[0][:4] + "***", text)


def _section(name: str, kind: Any, given: Any) -> Any:
    if not isinstance(given, dict):
        raise ConfigError(
            f"{name} = {_show(given)} is not a section", fix=f"write [{name}] on a line of its own"
        )
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    _refuse_unknown(f"{name}.", given, fields)
    values = {}
    for key, field in fields.items():
        if key in given:
            values[key] = _value(f"{name}.{key}", field.type, given[key])
        elif field.required:
            raise ConfigError(f"{name}.{key} is missing", fix=f"set {name}.{key} to {_wanted(field.type)}")
    return kind(**values)


def _value(key: str, kind: Any, given: Any) -> Any:
    try:
        value = msgspec.convert(given, kind)
    except (msgspec.ValidationError, RecursionError):
        raise _bad(key, given, kind) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise _bad(key, given, kind)
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and not (text.isascii() and text.isprintable()):
            raise _bad(key, given, kind)
    return value


def _check(config: Config) -> None:
    """Check what one value's type cannot say."""
    node, wireguard, link = config.node, config.wireguard, config.link
    for key, label in (("name", node.name), ("mesh", node.mesh)):
        if not _LABEL.fullmatch(label):
            raise _bad(f"node.{key}", label, Label)
    for key, endpoints in (("node.endpoints", node.endpoints), ("gossip.seeds", config.gossip.seeds)):
        for endpoint in endpoints:
            try:
                host, _ = parse_endpoint(endpoint, config.control.port)
            except ValueError as error:
                raise ConfigError(
                    f"{key}: {_show(endpoint)} is not usable: {error}",
                    fix='write each as "HOST" or "HOST:PORT", an IPv6 address as "[ADDRESS]:PORT"',
                ) from None
            _check_reach(key, endpoint, host)
    hosts = [parse_endpoint(endpoint, config.control.port)[0] for endpoint in node.endpoints]
    if not all_loopback(hosts):
        for host, endpoint in zip(hosts, node.endpoints, strict=True):
            if is_loopback(host):
                raise ConfigError(
                    f"node.endpoints: {_show(endpoint)} is a loopback address: no other machine reaches it",
                    fix="take it out; for a mesh within one machine all endpoints are loopback addresses",
                )
    for peer in config.scatter.peers:
        if not _LABEL.fullmatch(peer):
            raise ConfigError(f"scatter.peers: {_show(peer)} is no name", fix="see `phantommesh peers`")
    if not _PREFIX.fullmatch(wireguard.prefix):
        raise _bad("wireguard.prefix", wireguard.prefix, _kind(WireguardSection, "prefix"))
    for name in config.guard.forward:
        if not _INTERFACE.fullmatch(name):
            raise ConfigError(f"guard.forward: {_show(name)} is no interface's name", fix="see `ip link`")
        if name.rstrip("0123456789") == (wireguard.prefix.rstrip("0123456789") or wireguard.prefix):
            raise ConfigError(
                f"guard.forward: {_show(name)} is the mesh's own interface",
                fix="name the interfaces of the machines or containers behind this one",
            )
    last_port = wireguard.ports.stop - 1
    if last_port > 65535:
        raise ConfigError(
            f"wireguard.base_port = {wireguard.base_port} leaves no room for {DIMENSIONS} interfaces with "
            f"wireguard.port_choices = {wireguard.port_choices} ports each",
            fix="lower wireguard.base_port or wireguard.port_choices",
        )
    if wireguard.base_port <= config.control.port <= last_port:
        raise ConfigError(
            f"control.port = {config.control.port} is one of WireGuard's ports "
            f"({wireguard.base_port} to {last_port})",
            fix="set control.port or wireguard.base_port to another port",
        )
    dns = config.dns
    if dns.port == config.control.port or wireguard.base_port <= dns.port <= last_port:
        raise ConfigError(f"dns.port = {dns.port} is taken by this node already", fix="set dns.port to 53")
    if config.paths.port == config.control.port or wireguard.base_port <= config.paths.port <= last_port:
        raise ConfigError(
            f"paths.port = {config.paths.port} is taken by this node already",
            fix="set paths.port to another port, the same on all nodes",
        )
    if dns.mode == "resolved" and not dns.serve:
        raise ConfigError(
            'dns.mode = "resolved" needs the name server', fix='set dns.serve to true, or dns.mode to "hosts"'
        )
    if not dns.hosts.startswith("/"):
        raise _bad("dns.hosts", dns.hosts, _kind(DnsSection, "hosts"))
    try:
        network = IPv4Network(config.overlay.cidr4)
    except (AddressValueError, NetmaskValueError, ValueError):
        network = None
    if network is None or not 8 <= network.prefixlen <= 30:
        raise _bad("overlay.cidr4", config.overlay.cidr4, _kind(OverlaySection, "cidr4"))
    for unusable, what in _SPECIAL.items():
        if network.overlaps(unusable):
            raise ConfigError(
                f"overlay.cidr4 = {_show(config.overlay.cidr4)} holds {what} addresses ({unusable})",
                fix='choose a private range, e.g. "100.64.0.0/10" or "10.99.0.0/16"',
            )
    ascending = (
        ("link.jitter_seconds", link.jitter_seconds, "link.rotate_seconds", link.rotate_seconds),
        ("link.rotate_seconds", link.rotate_seconds, "link.stale_alarm_seconds", link.stale_alarm_seconds),
        (
            "link.stale_alarm_seconds",
            link.stale_alarm_seconds,
            "link.stale_random_seconds",
            link.stale_random_seconds,
        ),
    )
    for low_key, low, high_key, high in ascending:
        if low >= high:
            raise ConfigError(
                f"{low_key} = {low:g} is not below {high_key} = {high:g}",
                fix=f"lower {low_key} or raise {high_key}",
            )
    if not config.api.socket.startswith("/"):
        raise _bad("api.socket", config.api.socket, _kind(ApiSection, "socket"))
    if config.api.listen is not None:
        try:
            host, _ = parse_endpoint(config.api.listen)
            loopback = host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise _bad("api.listen", config.api.listen, _kind(ApiSection, "listen"))


def _check_reach(key: str, endpoint: str, host: str) -> None:
    """Refuse an address that no other node has. Loopback is for meshes within one machine."""
    try:
        why = special(ip_address(host))
    except ValueError:
        return  # a name
    if why is not None and why is not Why.LOOPBACK:
        raise ConfigError(
            f"{key}: {_show(endpoint)} is {why.text}",
            fix="give the address of a network by which other machines reach it",
        )


def refuse_overlay(config: Config, networks: Iterable[IPv4Network | IPv6Network]) -> None:
    """Raise ConfigError where an endpoint or a seed lies in the overlay: what goes there would be encrypted
    again and again. For whoever knows the mesh's ``networks``."""
    reach = Reach(tuple(networks))
    for key, endpoints in (("node.endpoints", config.node.endpoints), ("gossip.seeds", config.gossip.seeds)):
        for endpoint in endpoints:
            host, _ = parse_endpoint(endpoint, config.control.port)
            if reach.never(host) is Why.OVERLAY:
                raise ConfigError(
                    f"{key}: {_show(endpoint)} is {Why.OVERLAY.text}",
                    fix=f"give in {key} of the configuration an address of the network beneath the mesh, by "
                    "which other machines reach this one",
                )


def _refuse_unknown(prefix: str, given: dict[str, Any], known: dict[str, Any]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            fix = f"did you mean {prefix}{near[0]}?" if near else f"the keys here are {', '.join(known)}"
            raise ConfigError(f"unknown key {redact(prefix + key[:64])} = {_show(given[key])}", fix=fix)


def _bad(key: str, given: Any, kind: Any) -> ConfigError:
    wanted = _wanted(kind)
    return ConfigError(f"{key} = {_show(given)} is not {wanted}", fix=f"set {key} to {wanted}")


def _kind(section: type[msgspec.Struct], key: str) -> Any:
    return next(field.type for field in msgspec.structs.fields(section) if field.name == key)


def _wanted(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        for note in get_args(kind)[1:]:
            if isinstance(note, Meta) and note.description:
                return note.description
    raise TypeError(f"{kind} has no description")


def _show(value: Any) -> str:
    """A value for an error message: short, on one line, no tokens."""
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):
        text = "a value that is too deep"
    text = redact(text)
    return text if len(text) <= 80 else text[:77] + "..."
