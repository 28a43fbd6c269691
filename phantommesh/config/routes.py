# SPDX-License-Identifier: GPL-3.0-or-later
"""What the section `[routes]` may not say: prefixes, the hosts that stand for them, and the port."""

from ipaddress import ip_address, ip_network

from phantommesh.config.refusing import bad, kind_of, show
from phantommesh.config.sections import ALL_ROUTES, Config, ConfigError, RoutesSection
from phantommesh.routable import parse_prefix, unroutable


def check(config: Config) -> None:
    """Raise ConfigError, which names the key, the value and the fix, for routes that cannot be."""
    _check_prefixes(config.routes)
    _check_probes(config)


def _check_probes(config: Config) -> None:
    """Refuse a port that this node uses for something else, and targets that are not in their prefixes."""
    routes, ports = (
        config.routes,
        (config.control.port, config.dns.port, config.paths.port, config.relay.port),
    )
    if routes.port in ports or routes.port in config.wireguard.ports:
        raise ConfigError(
            f"routes.port = {routes.port} is taken by this node already",
            fix="set routes.port to another port, the same on all nodes",
        )
    for prefix, target in routes.probe.items():
        try:
            network, host = ip_network(prefix), ip_address(target)
        except ValueError:
            network, host = None, None
        if network is None or host is None:
            raise bad("routes.probe", {prefix: target}, kind_of(RoutesSection, "probe"))
        if host not in network:
            raise ConfigError(
                f"routes.probe: {target} is not in {prefix}",
                fix="name a host in the prefix that answers pings",
            )


def _check_prefixes(routes: RoutesSection) -> None:
    accept = () if routes.accept == (ALL_ROUTES,) else routes.accept
    for key, texts in (("routes.advertise", routes.advertise), ("routes.accept", accept)):
        for text in texts:
            try:
                prefix = parse_prefix(text)
            except ValueError as error:
                raise ConfigError(
                    f"{key}: {show(text)} is not usable: {error}",
                    fix='write each as a network and its length, e.g. "10.1.0.0/16" or "2001:db8:1::/48"',
                ) from None
            if key == "routes.advertise" and (why := unroutable(prefix)):
                raise ConfigError(f"{key}: {show(text)} {why}", fix="take it out")
            if key == "routes.accept" and prefix.prefixlen == 0:
                raise ConfigError(
                    f"{key}: {show(text)} is a default route, which no member may route",
                    fix=f'for all prefixes that members route set {key} to ["all"]',
                )
    if len(set(routes.advertise)) < len(routes.advertise):
        raise ConfigError("routes.advertise names a prefix twice", fix="take one out")
