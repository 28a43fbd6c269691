# SPDX-License-Identifier: GPL-3.0-or-later
"""What the section `[routes]` may not say: prefixes, the hosts that stand for them, and the port."""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from phantommesh.config.refusing import bad, kind_of, show
from phantommesh.config.sections import ALL_ROUTES, LABEL, Config, ConfigError, RoutesSection
from phantommesh.routable import Network, is_exit, parse_prefix, unroutable, within


def check(config: Config) -> None:
    """Raise ConfigError, which names the key, the value and the fix, for routes that cannot be."""
    _check_port(config)
    _check_prefixes(config.routes)
    _check_sites(config.routes)
    _check_probes(config.routes)
    _check_exit(config)


def _check_port(config: Config) -> None:
    """Refuse a port that this node uses for something else."""
    port = config.routes.port
    others = {
        "control.port": config.control.port,
        "dns.port": config.dns.port,
        "paths.port": config.paths.port,
        "relay.port": config.relay.port,
    }
    by = next((key for key, other in others.items() if other == port), "")
    if not by and port in config.wireguard.ports:
        by = "wireguard.base_port"
    if by:
        raise ConfigError(
            f"routes.port = {port} is taken by this node already ({by})",
            fix="set routes.port to another port, the same on all nodes",
        )


def _check_probes(routes: RoutesSection) -> None:
    """Refuse targets that are not in their prefixes, and those of prefixes that this node does not route."""
    for prefix, target in routes.probe.items():
        try:
            network, host = ip_network(prefix), ip_address(target)
        except ValueError:
            network, host = None, None
        if network is None or host is None:
            raise bad("routes.probe", {prefix: target}, kind_of(RoutesSection, "probe"))
        if (there := routes.sites.get(prefix)) is not None:
            network = parse_prefix(there)
        if host not in network:
            raise ConfigError(
                f"routes.probe: {target} is not in {network}",
                fix=f"name a host in {network} that answers pings",
            )
        if prefix not in routes.advertise:
            raise ConfigError(
                f"routes.probe: {prefix} is no prefix of routes.advertise, so {target} is never asked",
                fix="name the prefix as routes.advertise has it, or take it out of routes.probe",
            )


def _parse(key: str, text: str, how: str) -> Network:
    """Read a prefix that a key has; ``how`` says how to write one. Raises ConfigError."""
    try:
        return parse_prefix(text)
    except ValueError as error:
        raise ConfigError(f"{key}: {show(text)} is not usable: {error}", fix=f"write {how}") from None


def _check_prefixes(routes: RoutesSection) -> None:
    if ALL_ROUTES in routes.accept and len(routes.accept) > 1:
        raise ConfigError(
            f'routes.accept has "{ALL_ROUTES}", and other prefixes beside it',
            fix=f'set routes.accept to ["{ALL_ROUTES}"], or take "{ALL_ROUTES}" out',
        )
    accept = () if routes.accept == (ALL_ROUTES,) else routes.accept
    for key, texts in (("routes.advertise", routes.advertise), ("routes.accept", accept)):
        for text in texts:
            prefix = _parse(
                key, text, 'each as a network and its length, e.g. "10.1.0.0/16" or "2001:db8:1::/48"'
            )
            if key == "routes.advertise" and (why := unroutable(prefix)):
                raise ConfigError(f"{key}: {show(text)} {why}", fix="take it out")
            if key == "routes.accept" and prefix.prefixlen == 0:
                raise ConfigError(
                    f"{key}: {show(text)} is a default route, which is taken of a member by name alone",
                    fix=f'name the member in routes.exit; for all other prefixes set {key} to ["all"]',
                )
    if len(set(routes.advertise)) < len(routes.advertise):
        raise ConfigError("routes.advertise names a prefix twice", fix="take one out")


def _check_sites(routes: RoutesSection) -> None:
    """Refuse sites that no address of a prefix could stand for, or too many."""
    for text, there in routes.sites.items():
        if text not in routes.advertise:
            raise ConfigError(
                f"routes.sites: {show(text)} is not in routes.advertise",
                fix="add it there, or take it out here",
            )
        prefix = parse_prefix(text)
        site = _parse("routes.sites", there, 'it as a network and its length, e.g. "192.168.1.0/24"')
        if why := unroutable(site):
            raise ConfigError(
                f"routes.sites: {show(there)} {why}", fix="name the network that is really there"
            )
        if (site.version, site.prefixlen) != (prefix.version, prefix.prefixlen):
            raise ConfigError(
                f"routes.sites: {text} and {there} are not of one size",
                fix="each address of one has its own in the other: name a network of "
                f"IPv{prefix.version} with /{prefix.prefixlen}",
            )
        if site == prefix:
            raise ConfigError(f"routes.sites: {text} is there by its own addresses", fix="take it out")


def _check_exit(config: Config) -> None:
    """Refuse what an exit, or a node that uses one, cannot do."""
    routes = config.routes
    default = next((text for text in routes.advertise if is_exit(parse_prefix(text))), None)
    if default is not None and not routes.masquerade:
        raise ConfigError(
            f"routes.masquerade = false with {show(default)} in routes.advertise: no network beyond an exit "
            "has a route back to the overlay",
            fix="set routes.masquerade to true",
        )
    if routes.exit and routes.advertise:
        raise ConfigError(
            "routes.exit and routes.advertise are both set: a node whose own traffic leaves by an exit "
            "routes nothing for others",
            fix="take one of them out",
        )
    if routes.exit and config.relay.offer is True:
        raise ConfigError(
            "routes.exit and relay.offer = true are both set: a node whose own traffic leaves by an exit "
            "takes nothing from its own interfaces that it could relay",
            fix="empty routes.exit, or take relay.offer out",
        )
    for name in routes.exit:
        if not LABEL.fullmatch(name):
            raise ConfigError(f"routes.exit: {show(name)} is no name", fix="see `phantommesh peers`")
    if len(set(routes.exit)) < len(routes.exit):
        raise ConfigError("routes.exit names a member twice", fix="take one out")


def refuse_overlay(routes: RoutesSection, networks: Iterable[Network]) -> None:
    """Raise ConfigError where a prefix that this node advertises, or its site, overlaps the overlay, or one
    that it accepts has overlay addresses alone: no member may route them. For whoever knows the mesh's
    ``networks``."""
    overlay = tuple(networks)
    for text in routes.advertise:
        if why := unroutable(parse_prefix(text), overlay):
            raise ConfigError(f"routes.advertise: {show(text)} {why}", fix="take it out")
    for text in routes.sites.values():
        if why := unroutable(parse_prefix(text), overlay):
            raise ConfigError(
                f"routes.sites: {show(text)} {why}", fix="name the network that is really there"
            )
    for text in routes.accept if routes.accept != (ALL_ROUTES,) else ():
        if any(within(parse_prefix(text), network) for network in overlay):
            raise ConfigError(
                f"routes.accept: {show(text)} has overlay addresses alone, which are the members' own",
                fix="take it out: members are reached without it",
            )
