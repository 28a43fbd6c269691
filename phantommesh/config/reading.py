# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a configuration: TOML in, a frozen `Config` out; an error names the key, the value and the fix."""

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from ipaddress import AddressValueError, IPv4Network, IPv6Network, NetmaskValueError, ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec

from phantommesh.config import aclchecks, constraints, environment, intents, routes
from phantommesh.config.acl import MAX_RULES, RuleSection
from phantommesh.config.agents import LEAST_COVER, LEAST_HOP_HOURS
from phantommesh.config.refusing import bad, kind_of, show, wanted
from phantommesh.config.sections import (
    LABEL,
    MAX_INTENTS,
    RENAMED,
    RENAMED_GOALS,
    SECTIONS,
    ApiSection,
    Config,
    ConfigError,
    DnsSection,
    IntentSection,
    Label,
    NoConfigError,
    NodeSection,
    OverlaySection,
    UnknownKeyError,
    WireguardSection,
    is_section,
)
from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import parse_endpoint
from phantommesh.reachable import Reach, Why, all_loopback, is_loopback, special
from phantommesh.secret import starred

MAX_CONFIG_BYTES: Final = 1024 * 1024

_PREFIX: Final = re.compile(r"[a-z][a-z0-9_-]{0,13}")
_INTERFACE: Final = re.compile(
    r"[A-Za-z0-9._@:-]{1,15}"
)  # of the kernel's names, those that nft text can hold
_TWICE: Final = re.compile(r"Cannot declare \((.{1,200})\) twice")  # tomllib's words: it has no codes
_ACL: Final = re.compile(r"(?m)^\s*(\[acl\]|acl\s*\.)")
_RULES: Final = re.compile(r"(?m)^\s*\[\[acl\]\]")
_RULES_APART: Final = "write each rule as [[acl.rule]], not as [[acl]], in a file that has [acl]"
_QUOTED: Final = re.compile(r"'([a-z0-9_]{1,32})'")
_SPECIAL: Final = {  # RFC 6890: addresses that never are a member's
    IPv4Network("0.0.0.0/8"): "unspecified",
    IPv4Network("127.0.0.0/8"): "loopback",
    IPv4Network("169.254.0.0/16"): "link-local",
    IPv4Network("224.0.0.0/3"): "multicast and reserved",
}


def load(path: Path, variables: Mapping[str, str] | None = None) -> Config:
    """Read and check a configuration file, with the environment's ``variables`` in place of what it says.
    They do without the file where they say what has no default. Raises ConfigError, which names the file or
    the variable."""
    given = environment.read(os.environ if variables is None else variables)
    try:
        text = text_of(path)
    except NoConfigError:
        if not _sufficient(given):
            raise
        text = ""
    try:
        return parse(text, given)
    except UnknownKeyError as error:
        raise ConfigError(f"{path}: {error}", fix=error.fix) from error
    except ConfigError as error:
        explained = environment.explain(error, given)
        where = "" if explained is not error else f"{path}: "
        raise ConfigError(f"{where}{explained}", fix=explained.fix) from error


def _sufficient(given: environment.Settings) -> bool:
    """Whether a configuration needs no more than what is ``given``."""
    needed = {field.name for field in msgspec.structs.fields(NodeSection) if field.required}
    return needed <= given.get("node", {}).keys()


def text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        return data.decode("utf-8")
    except FileNotFoundError:
        raise NoConfigError(
            f"there is no configuration {path}",
            fix="run `phantommesh init` or `phantommesh join`, or give the right path",
        ) from None
    except OSError as error:
        denied = isinstance(error, PermissionError)
        raise ConfigError(
            f"cannot read {path}: {error.strerror}",
            fix="run this with sudo" if denied else "give the path of a readable file",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8", fix="save the file as UTF-8") from None


def parse(text: str, given: environment.Settings = MappingProxyType({})) -> Config:
    """Check a configuration's text, with the values ``given`` in place of what it says. Raises ConfigError
    naming the key, the value and the fix."""
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError("the configuration is longer than 1 MiB", fix="is this the right file?")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # also: an integer of thousands of digits is a plain ValueError, deep nesting a RecursionError
        fix = _RULES_APART if re.search(_RULES, text) and re.search(_ACL, text) else _mended(str(error))
        raise ConfigError(f"not TOML: {starred(str(error))[:200]}", fix=fix) from None
    _refuse_unknown("", document, {field.name: field for field in msgspec.structs.fields(Config)})
    if isinstance(document.get("acl"), list):  # `[[acl]]`: a file with rules and no more to say
        document["acl"] = {"rule": document["acl"]}
    for name, settings in given.items():
        _put(document, name.split("."), settings)
    values = {
        name: _section(name, kind, document.get(name, {}))
        for name, kind in SECTIONS.items()
        if "." not in name
    }
    config = Config(**values, intent=_intents(document.get("intent", [])))
    _check(config)
    return config


def _put(document: dict[str, Any], section: list[str], settings: Mapping[str, Any]) -> None:
    """Put these settings in the place of what the section says. What is no section stays, to be refused."""
    within = document
    for name in section:
        within = within.setdefault(name, {})
        if not isinstance(within, dict):
            return
    within.update(settings)


def _mended(error: str) -> str:
    """How to mend what tomllib says of a text. `init` writes all sections, so a further one of the same name
    is what a pasted example makes of the file."""
    if twice := _TWICE.match(error):
        return f"the file has [{'.'.join(re.findall(_QUOTED, twice[1]))}] further up: move the keys there"
    if error.startswith("Cannot overwrite a value"):
        return "a key is set twice: take one of the two lines out"
    return "correct that line"


def _section(name: str, kind: Any, given: Any) -> Any:
    if not isinstance(given, dict):
        raise ConfigError(
            f"{name} = {show(given)} is not a section", fix=f"write [{name}] on a line of its own"
        )
    return _filled(name, kind, given)


def _intents(given: Any) -> tuple[IntentSection, ...]:
    if not isinstance(given, list) or not all(isinstance(table, dict) for table in given):
        raise ConfigError(
            f"intent = {show(given)} is not a list of tables",
            fix="write [[intent]] on a line of its own before each of them",
        )
    if len(given) > MAX_INTENTS:
        raise ConfigError(f"there are {len(given)} intents", fix=f"have at most {MAX_INTENTS}")
    found = tuple(
        _filled(f"intent.{intents.called(table.get('name'), number)}", IntentSection, table)
        for number, table in enumerate(given, 1)
    )
    intents.check(found)
    return found


def _rules(given: Any) -> tuple[RuleSection, ...]:
    if not isinstance(given, list) or not all(isinstance(table, dict) for table in given):
        raise ConfigError(
            f"acl.rule = {show(given)} is not a list of tables",
            fix="write [[acl.rule]] on a line of its own before each rule",
        )
    if len(given) > MAX_RULES:
        raise ConfigError(f"there are {len(given)} access rules", fix=f"have at most {MAX_RULES}")
    found = tuple(
        _filled(f"acl.rule.{aclchecks.called(table.get('name'), number)}", RuleSection, table)
        for number, table in enumerate(given, 1)
    )
    aclchecks.check(found)
    return found


def _filled(name: str, kind: Any, given: dict[str, Any]) -> Any:
    """A table's keys as its Struct; ``name`` is what errors call the table."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    _refuse_unknown(f"{name}.", given, fields)
    values = {}
    for key, field in fields.items():
        if is_section(field.type):
            values[field.name] = _section(f"{name}.{key}", field.type, given.get(key, {}))
        elif field.type == tuple[RuleSection, ...]:
            values[field.name] = _rules(given.get(key, []))
        elif key in given:
            values[field.name] = _value(f"{name}.{key}", field.type, given[key])
        elif field.required:
            raise ConfigError(f"{name}.{key} is missing", fix=f"set {name}.{key} to {wanted(field.type)}")
    return kind(**values)


def _value(key: str, kind: Any, given: Any) -> Any:
    try:
        value = msgspec.convert(given, kind)
    except (msgspec.ValidationError, RecursionError):
        _refuse_renamed_goal(key, given)
        raise bad(key, given, kind) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise bad(key, given, kind)
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and not (text.isascii() and text.isprintable()):
            raise bad(key, given, kind)
    return value


def _check(config: Config) -> None:
    """Check what one value's type cannot say."""
    node, wireguard, link = config.node, config.wireguard, config.link
    for key, label in (("name", node.name), ("mesh", node.mesh)):
        if not LABEL.fullmatch(label):
            raise bad(f"node.{key}", label, Label)
    if node.region and not LABEL.fullmatch(node.region):
        raise bad("node.region", node.region, kind_of(NodeSection, "region"))
    for key, endpoints in (("node.endpoints", node.endpoints), ("gossip.seeds", config.gossip.seeds)):
        for endpoint in endpoints:
            try:
                host, _ = parse_endpoint(endpoint, config.control.port)
            except ValueError as error:
                raise ConfigError(
                    f"{key}: {show(endpoint)} is not usable: {error}",
                    fix='write each as "HOST" or "HOST:PORT", an IPv6 address as "[ADDRESS]:PORT"',
                ) from None
            _check_reach(key, endpoint, host)
    hosts = [parse_endpoint(endpoint, config.control.port)[0] for endpoint in node.endpoints]
    if not all_loopback(hosts):
        for host, endpoint in zip(hosts, node.endpoints, strict=True):
            if is_loopback(host):
                raise ConfigError(
                    f"node.endpoints: {show(endpoint)} is a loopback address: no other machine reaches it",
                    fix="take it out; for a mesh within one machine all endpoints are loopback addresses",
                )
    for peer in config.scatter.peers:
        if not LABEL.fullmatch(peer):
            raise ConfigError(f"scatter.peers: {show(peer)} is no name", fix="see `phantommesh peers`")
    if not _PREFIX.fullmatch(wireguard.prefix):
        raise bad("wireguard.prefix", wireguard.prefix, kind_of(WireguardSection, "prefix"))
    for name in config.guard.forward:
        if not _INTERFACE.fullmatch(name):
            raise ConfigError(f"guard.forward: {show(name)} is no interface's name", fix="see `ip link`")
        if name.rstrip("0123456789") == (wireguard.prefix.rstrip("0123456789") or wireguard.prefix):
            raise ConfigError(
                f"guard.forward: {show(name)} is the mesh's own interface",
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
    if config.control.tcp_ports and not config.control.tcp:
        raise ConfigError(
            "control.tcp_ports names ports, and control.tcp is off", fix="set control.tcp to true"
        )
    if config.control.port in config.control.tcp_ports:
        raise ConfigError(
            f"control.tcp_ports names {config.control.port}, which is control.port", fix="take it out"
        )
    dns = config.dns
    if dns.port == config.control.port or wireguard.base_port <= dns.port <= last_port:
        raise ConfigError(f"dns.port = {dns.port} is taken by this node already", fix="set dns.port to 53")
    if config.paths.port == config.control.port or wireguard.base_port <= config.paths.port <= last_port:
        raise ConfigError(
            f"paths.port = {config.paths.port} is taken by this node already",
            fix="set paths.port to another port, the same on all nodes",
        )
    relay = config.relay
    if relay.port in (config.control.port, dns.port, config.paths.port) or relay.port in wireguard.ports:
        raise ConfigError(
            f"relay.port = {relay.port} is taken by this node already", fix="set relay.port to another port"
        )
    constraints.check("relay", relay, members=("members", "only", "never"), both=[("only", "never")])
    routes.check(config)
    constrained = next((intent.name for intent in config.intent if intent.constrained), None)
    if constrained is not None and config.scatter.hook == "off":
        raise ConfigError(
            f"intent.{constrained} says by which members its packets may go, and scatter.hook = "
            '"off" sends all by dimension 0',
            fix='set scatter.hook to "auto"',
        )
    if dns.mode == "resolved" and not dns.serve:
        raise ConfigError(
            'dns.mode = "resolved" needs the name server', fix='set dns.serve to true, or dns.mode to "hosts"'
        )
    if not dns.hosts.startswith("/"):
        raise bad("dns.hosts", dns.hosts, kind_of(DnsSection, "hosts"))
    try:
        network = IPv4Network(config.overlay.cidr4)
    except (AddressValueError, NetmaskValueError, ValueError):
        network = None
    if network is None or not 8 <= network.prefixlen <= 30:
        raise bad("overlay.cidr4", config.overlay.cidr4, kind_of(OverlaySection, "cidr4"))
    for unusable, what in _SPECIAL.items():
        if network.overlaps(unusable):
            raise ConfigError(
                f"overlay.cidr4 = {show(config.overlay.cidr4)} holds {what} addresses ({unusable})",
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
    phantom = config.agents.phantom
    for key, value, least, why in (
        ("hop_hours", phantom.hop_hours, LEAST_HOP_HOURS, "seven dimensions hop in turn, ten minutes apart"),
        ("cover_bytes_per_second", phantom.cover_bytes_per_second, LEAST_COVER, "less hides nothing"),
    ):
        if 0 < value < least:
            raise ConfigError(
                f"agents.phantom.{key} = {value:g} is neither 0 nor at least {least:g}: {why}",
                fix=f"set agents.phantom.{key} to 0, or to {least:g} or more",
            )
    if not config.api.socket.startswith("/"):
        raise bad("api.socket", config.api.socket, kind_of(ApiSection, "socket"))
    _check_api(config.api)


def _check_api(api: ApiSection) -> None:
    if api.listen is not None:
        try:
            host, _ = parse_endpoint(api.listen)
            if host != "localhost":
                ip_address(host)
        except ValueError:
            raise bad("api.listen", api.listen, kind_of(ApiSection, "listen")) from None
        if not (api.loopback or api.encrypted):
            raise ConfigError(
                f'api.listen = "{api.listen}" is not a loopback address, and api.tls = "off": tokens would '
                "cross the network in clear",
                fix='set api.tls to "auto", or api.listen to "127.0.0.1:PORT"',
            )
    for name in ("certificate", "key", "client_ca"):
        path = getattr(api, name)
        if path and not path.startswith("/"):
            raise bad(f"api.{name}", path, kind_of(ApiSection, name))
    if bool(api.certificate) != bool(api.key):
        there, missing = ("certificate", "key") if api.certificate else ("key", "certificate")
        raise ConfigError(f"api.{there} is set, and api.{missing} is not", fix=f"set api.{missing}, too")
    for name in ("certificate", "client_ca"):
        if getattr(api, name) and (api.listen is None or not api.encrypted):
            raise ConfigError(
                f"api.{name} is set, and the API does not use TLS",
                fix=f'set api.listen, and api.tls to "on"; or remove api.{name}',
            )
    for host in api.hosts:
        if not _is_host(host):
            raise bad("api.hosts", host, kind_of(ApiSection, "hosts"))


def _is_host(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return len(text) <= 253 and all(LABEL.fullmatch(part) for part in text.split("."))
    return True


def _check_reach(key: str, endpoint: str, host: str) -> None:
    """Refuse an address that no other node has. Loopback is for meshes within one machine."""
    try:
        why = special(ip_address(host))
    except ValueError:
        return  # a name
    if why is not None and why is not Why.LOOPBACK:
        raise ConfigError(
            f"{key}: {show(endpoint)} is {why.text}",
            fix="give the address of a network by which other machines reach it",
        )


def refuse_overlay(config: Config, networks: Iterable[IPv4Network | IPv6Network]) -> None:
    """Raise ConfigError where an endpoint or a seed lies in the overlay: what goes there would be encrypted
    again and again; and where a prefix beyond the mesh does. For whoever knows the mesh's ``networks``."""
    overlay = tuple(networks)
    routes.refuse_overlay(config.routes, overlay)
    reach = Reach(overlay)
    for key, endpoints in (("node.endpoints", config.node.endpoints), ("gossip.seeds", config.gossip.seeds)):
        for endpoint in endpoints:
            host, _ = parse_endpoint(endpoint, config.control.port)
            if reach.never(host) is Why.OVERLAY:
                raise ConfigError(
                    f"{key}: {show(endpoint)} is {Why.OVERLAY.text}",
                    fix=f"give in {key} of the configuration an address of the network beneath the mesh, by "
                    "which other machines reach this one",
                )


def _refuse_unknown(prefix: str, given: dict[str, Any], known: dict[str, Any]) -> None:
    for key in given:
        if new := RENAMED.get(prefix + key):
            both = new.removeprefix(prefix) in given  # in the file, or by its variable
            fix = f"take {prefix}{key} out: {new} is set too" if both else f"rename the key to {new}"
            raise UnknownKeyError(f"{prefix}{key} is called {new} now", fix=fix)
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            fix = f"did you mean {prefix}{near[0]}?" if near else f"the keys here are {', '.join(known)}"
            raise UnknownKeyError(f"unknown key {starred(prefix + key[:64])} = {show(given[key])}", fix=fix)


def _refuse_renamed_goal(key: str, given: Any) -> None:
    values = given.items() if isinstance(given, dict) else [("", given)]
    for name, value in values if key in ("scatter.goal", "scatter.peers") else ():
        if isinstance(value, str) and (new := RENAMED_GOALS.get(value)):
            where = f"{starred(name[:64])} in {key}" if name else key
            raise ConfigError(
                f"{where} = {show(value)}: this goal is called {show(new)} now",
                fix=f"set {where} to {show(new)}",
            )
