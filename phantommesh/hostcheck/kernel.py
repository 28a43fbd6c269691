# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules about the kernel's network settings, as ip-sysctl of the kernel's documentation has them.

How a setting of one interface and that of ``all`` make one is each setting's own: the greater (rp_filter),
both (accept_source_route; accept_redirects where the host forwards), or either (route_localnet).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from phantommesh.hostcheck.finding import Finding, Rule, SetSysctl, set_sysctl
from phantommesh.hostcheck.seen import HostSeen

STRICT = Rule("reverse-path-strict", "high", "The kernel drops what comes over the dimensions")
STRICT_READ_ONLY = Rule("reverse-path-read-only", "high", "The node cannot turn off strict filtering")
MARKS_UNHEEDED = Rule("marks-unheeded", "high", "The kernel's check of sources does not heed our marks")
REDIRECTS = Rule("redirects-accepted", "medium", "A host that forwards lets neighbours change its routes")
SOURCE_ROUTES = Rule("source-routes-accepted", "medium", "Senders can prescribe a way through this host")
LOOPBACK_ROUTED = Rule("loopback-routed", "high", "Neighbours reach what listens on loopback")
FORWARDING_OFF = Rule("forwarding-off", "medium", "This node is to forward, and the host does not")
FORWARDING_OPEN = Rule(
    "forwarding-open", "low", "This host forwards for everybody, and no filter limits that"
)
ARP_PROXY = Rule("proxy-arp", "medium", "This host answers for addresses that are not its own")
RULES: Final = (
    STRICT, STRICT_READ_ONLY, MARKS_UNHEEDED, REDIRECTS, SOURCE_ROUTES, LOOPBACK_ROUTED, FORWARDING_OFF,
    FORWARDING_OPEN, ARP_PROXY,
)  # fmt: skip

_STRICT, _LOOSE = 1, 2
_CONF: Final = "net/ipv4/conf"


def findings(seen: HostSeen) -> Iterator[Finding]:
    """Judge the settings that could be read."""
    yield from _reverse_path(seen)
    yield from _marks(seen)
    yield from _neighbours(seen)
    yield from _forwarding(seen)


def _of(seen: HostSeen, interface: str, setting: str) -> int:
    return seen.settings.get(f"{_CONF}/{interface}/{setting}", 0)


def _reverse_path(seen: HostSeen) -> Iterator[Finding]:
    for name in seen.interfaces:
        if max(_of(seen, name, "rp_filter"), _of(seen, "all", "rp_filter")) == _STRICT:
            mend = SetSysctl(f"{_CONF}/{name}/rp_filter", _LOOSE)
            yield STRICT.found(
                f"rp_filter is 1 for {name}: packets come by another interface than answers leave by, and "
                "are dropped",
                f"run `{mend.command}`",
                subject=name,
                mend=mend,
            )
    coming = max(_of(seen, "default", "rp_filter"), _of(seen, "all", "rp_filter"))
    if seen.read_only and coming == _STRICT and not seen.interfaces:
        yield STRICT_READ_ONLY.found(
            "/proc/sys is read-only here, and new interfaces get rp_filter = 1: they would drop most of what "
            "comes over the mesh",
            "mount /proc/sys writable for the node, or on the host run "
            f"`{set_sysctl(f'{_CONF}/default/rp_filter', _LOOSE)}`",
            subject="net.ipv4.conf.default.rp_filter",
        )


def _marks(seen: HostSeen) -> Iterator[Finding]:
    """With an exit, the way back to a packet's sender is the tunnel unless the packet's mark is heeded."""
    if seen.config is None or not seen.config.routes.exit or not seen.interfaces:
        return
    checks = [name for name in seen.uplinks if _of(seen, name, "rp_filter") or _of(seen, "all", "rp_filter")]
    if checks and not _of(seen, "all", "src_valid_mark"):
        yield MARKS_UNHEEDED.found(
            f"src_valid_mark is 0 while {checks[0]} checks sources (rp_filter) and all traffic leaves by an "
            "exit: packets that carry the mesh are dropped as they come",
            f"run `{set_sysctl(f'{_CONF}/all/src_valid_mark', 1)}`",
            subject="net.ipv4.conf.all.src_valid_mark",
        )


def _neighbours(seen: HostSeen) -> Iterator[Finding]:
    forwards = _of(seen, "all", "forwarding") == 1
    devices = (*seen.uplinks, *seen.interfaces)
    takes = [name for name in devices if _of(seen, name, "accept_redirects")]
    if forwards and takes and _of(seen, "all", "accept_redirects"):
        yield REDIRECTS.found(
            f"accept_redirects is 1 on a host that forwards ({takes[0]}): a neighbour can lead its traffic "
            "elsewhere",
            f"run `{set_sysctl(f'{_CONF}/all/accept_redirects', 0)}`",
            subject="net.ipv4.conf.all.accept_redirects",
        )
    takes = [name for name in devices if _of(seen, name, "accept_source_route")]
    if takes and _of(seen, "all", "accept_source_route"):
        yield SOURCE_ROUTES.found(
            f"accept_source_route is 1 for {takes[0]}: a sender can have this host pass packets on, past "
            "filters that go by addresses",
            f"run `{set_sysctl(f'{_CONF}/all/accept_source_route', 0)}`",
            subject="net.ipv4.conf.all.accept_source_route",
        )
    for name in devices:
        if _of(seen, name, "proxy_arp") or _of(seen, "all", "proxy_arp"):
            which = name if _of(seen, name, "proxy_arp") else "all"
            if which == "all" or name in seen.interfaces:
                yield ARP_PROXY.found(
                    f"proxy_arp is 1 for {which}: this host answers neighbours who ask for addresses that it "
                    "only has a route to, those of members among them",
                    f"run `{set_sysctl(f'{_CONF}/{which}/proxy_arp', 0)}`",
                    subject=f"net.ipv4.conf.{which}.proxy_arp",
                )
                break
    if seen.config is None or seen.config.api.listen is None:
        return
    for name in ("all", *seen.uplinks):
        if _of(seen, name, "route_localnet"):
            yield LOOPBACK_ROUTED.found(
                f"route_localnet is 1 for {name}: a neighbour who sends to 127.0.0.1 by way of this host "
                f"reaches the API at {seen.config.api.listen}",
                f"run `{set_sysctl(f'{_CONF}/{name}/route_localnet', 0)}`; where kube-proxy set it, leave "
                "api.listen out of the configuration: the Unix socket remains",
                subject=f"net.ipv4.conf.{name}.route_localnet",
            )


def _forwarding(seen: HostSeen) -> Iterator[Finding]:
    config, forwards = seen.config, _of(seen, "all", "forwarding") == 1
    wanted = ""
    if config is not None:
        wanted = (
            "routes.advertise" if config.routes.advertise
            else "guard.forward" if config.guard.forward
            else "relay.offer" if config.relay.offer is True
            else ""
        )  # fmt: skip
    known = f"{_CONF}/all/forwarding" in seen.settings
    if wanted and known and not forwards and seen.read_only:
        yield FORWARDING_OFF.found(
            f"{wanted} has this node forward packets, forwarding is off, and /proc/sys is read-only here",
            f"mount /proc/sys writable for the node, or on the host run "
            f"`{set_sysctl('net/ipv4/ip_forward', 1)}`",
            subject="net.ipv4.ip_forward",
        )
    # With one way out there is nothing to forward between; containers inherit the setting from their host.
    between = len(seen.uplinks) > 1 and not seen.container
    if forwards and between and not wanted and not any(chain.hook == "forward" for chain in seen.chains):
        yield FORWARDING_OPEN.found(
            "ip_forward is 1, no packet filter of another program has a say in it, and nothing in the node's "
            "configuration needs it",
            f"run `{set_sysctl('net/ipv4/ip_forward', 0)}` where this machine is to forward nothing; else "
            "filter what it may forward",
            subject="net.ipv4.ip_forward",
        )
