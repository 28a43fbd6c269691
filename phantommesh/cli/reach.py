# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that say how well peers are reached, and this host: `ping` and `netcheck`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import (
    EXIT_FAULTY,
    EXIT_UNREADY,
    CliError,
    Options,
    client_of,
    json_option,
)
from phantommesh.cli.lists import via
from phantommesh.cli.output import emit, field, say
from phantommesh.cli.peering import PEER, node_of
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.netview import NatView, NetCheck, PortmapView, RelayView
    from phantommesh.management.pingview import PingDimension, PingResult

DEFAULT_PINGS = 4
MAX_PINGS = 50  # as the API takes
PING_TIMEOUT_S = 40.0  # 50 pings take 10 s, and slow paths have some more for the answers
NETCHECK_TIMEOUT_S = 30.0  # members are asked, and each has 8 s
WIDE = 20  # cells of the longest key of `netcheck`


@click.command()
@click.argument("peer", type=PEER)
@click.option(
    "-c",
    "--count",
    type=click.IntRange(1, MAX_PINGS),
    default=DEFAULT_PINGS,
    show_default=True,
    help="Pings in each dimension.",
)
@click.option(
    "--size",
    type=click.IntRange(40, 9000),
    help="Bytes of each ping as a packet inside the overlay. [default: as small as a probe]",
)
@json_option
@click.pass_obj
def ping(options: Options, peer: str, count: int, size: int | None) -> None:
    """Ping PEER (a name, node id, address or DNS name) inside each dimension: round trip, loss, way and MTU.

    The node sends the pings, so this needs no root. The exit status is 0 if any dimension answers, else 1.
    """
    client = client_of(options, PING_TIMEOUT_S)
    result = client.ping(node_of(client, peer), count=count, size=size, idempotency_key=str(uuid.uuid4()))
    if options.json:
        emit(result)
    else:
        _show_ping(result)
    if not result.answered:
        raise _silent(result)


def _show_ping(result: PingResult) -> None:
    size = "" if result.size is None else f" of {result.size} bytes"
    say(f"{result.peer} ({result.ip4}): {result.count} pings{size} in each dimension")
    columns = ("DIMENSION", "RTT", "MIN", "MAX", "LOSS", "WAY", "MTU", "ENDPOINT", "WHY")
    first = ("DIMENSION", "RTT", "LOSS", "WAY", "MTU", "MIN", "MAX")
    table(columns, map(_ping_row, result.dimensions), first)


def _ping_row(one: PingDimension) -> tuple[object, ...]:
    return (
        one.dimension,
        _ms(one.rtt_avg_s),
        _ms(one.rtt_min_s),
        _ms(one.rtt_max_s),
        f"{100 * one.loss:.0f}%" if one.sent else None,
        via(one.way, one.via),
        one.mtu,
        one.endpoint,
        one.why or None,
    )


def _ms(seconds: float | None) -> str | None:
    return None if seconds is None else f"{1000 * seconds:.1f} ms"


def _silent(result: PingResult) -> CliError:
    if not any(one.sent for one in result.dimensions):
        return CliError(
            f"nothing could be sent to {result.peer}: no dimension has both keys and an address to send to",
            fix="see WHY above, `phantommesh status`, and `phantommesh links` for the keys",
        )
    large = f"; packets of {result.size} bytes may be too large: leave --size out" if result.size else ""
    return CliError(
        f"none of the dimensions of {result.peer} answers",
        fix=f"see `phantommesh status` and `phantommesh netcheck` for what is in the way{large}",
    )


@click.command()
@click.option(
    "--exit-code",
    is_flag=True,
    help="Exit with 4 if something is wrong, and with 5 if the node is not ready.",
)
@json_option
@click.pass_context
def netcheck(ctx: click.Context, exit_code: bool) -> None:
    """Check this host's network: uplinks, NAT, what members say of reaching it, clock, kernel.

    Members are asked to connect to this node's control port, which takes some seconds. Where no node runs,
    only this host is looked at, and the exit status is 3.
    """
    from phantommesh.client.http import NodeNotRunningError

    options: Options = ctx.obj
    client = client_of(options, NETCHECK_TIMEOUT_S)
    stopped: NodeNotRunningError | None = None
    try:
        found = client.netcheck()
    except NodeNotRunningError as error:
        found, stopped = _alone(options), error
    if options.json:
        emit(found)
    else:
        _show_netcheck(found)
    if stopped is not None:
        raise stopped
    if exit_code and not client.status().ready:
        ctx.exit(EXIT_UNREADY)
    if exit_code and found.faults:
        ctx.exit(EXIT_FAULTY)


def _alone(options: Options) -> NetCheck:
    """The part that needs no node."""
    from phantommesh.config.reading import load
    from phantommesh.config.sections import WireguardSection
    from phantommesh.dimensions import all_names
    from phantommesh.errors import PhantomMeshError
    from phantommesh.management.netview import NetCheck, UplinkView
    from phantommesh.nursery.host.features import read_features
    from phantommesh.nursery.host.uplinks import read_uplinks

    unknown = ["NAT, port mapping, hairpin, UDP, TCP and clock: no node runs here that members could see"]
    settings = WireguardSection()
    try:
        settings = load(options.config).wireguard
    except PhantomMeshError as error:
        unknown.append(f"configuration: {error}")
    uplinks: list[UplinkView] = []
    try:
        uplinks = read_uplinks(all_names(settings.prefix))
    except PhantomMeshError as error:
        unknown.append(f"uplinks: {error}")
    return NetCheck(
        node=None, uplinks=uplinks, overlay_mtu=settings.mtu, features=read_features(), unknown=unknown
    )


def _show_netcheck(found: NetCheck) -> None:
    rows: list[tuple[str, str]] = [("node", found.node or "none runs here")]
    for uplink in found.uplinks:
        default = f", default route of {' and '.join(uplink.default_for)}" if uplink.default_for else ""
        mtu = "unknown" if uplink.mtu is None else str(uplink.mtu)
        rows.append((f"uplink {uplink.interface}", f"{', '.join(uplink.addresses)}; MTU {mtu}{default}"))
    if not found.uplinks:
        rows.append(("uplink", "none was found"))
    for nat in found.nat:
        at = f" ({_first(nat.public)}; {_members(nat.witnesses)})" if nat.witnesses and nat.public else ""
        rows.append((f"NAT {nat.family}", f"{nat.kind}: {nat.why}{at}{_holes(nat)}"))
    rows.append(("port mapping", _portmap(found.portmap)))
    if found.portmap.fix:
        rows.append(("  fix", found.portmap.fix))
    rows.append(("hairpin", _yes(found.hairpin)))
    if found.node is not None:
        rows.append(("relays", _relays(found.relays)))
    least = "" if found.least_mtu is None else f", and {found.least_mtu} fit all ways in use"
    rows.append(("overlay MTU", "unknown" if found.overlay_mtu is None else f"{found.overlay_mtu}{least}"))
    for one in found.reached:
        by = f" (by {_first(one.by)})" if one.by else ""
        rows.append((one.transport.upper(), f"{_yes(one.reached)}: {one.why}{by}"))
    rows.append(("clock", _clock(found)))
    rows += [(each.name, f"{_yes(each.there)}: {each.why}") for each in found.features]
    for fault in found.faults:
        rows += [("degraded", fault.text), *([("  fix", fault.fix)] if fault.fix else [])]
    rows += [("not known", text) for text in found.unknown]
    for key, value in rows:
        field(key, value, WIDE)


def _holes(nat: NatView) -> str:
    """How long holes stay open, as far as it was measured."""
    if nat.open:
        return "; UDP comes in unasked, so no keepalives are needed"
    if nat.lives_s is None:
        return ""
    lives = f"for {nat.lives_s:g} s at least" if nat.lives_s else "for less than 20 s"
    every = "" if nat.keepalive_s is None else f", so keepalives go out every {nat.keepalive_s} s"
    return f"; idle holes stay open {lives}{every}"


def _first(items: Iterable[str], most: int = 4) -> str:
    named = list(items)
    more = f" and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(named[:most]) + more


def _members(count: int) -> str:
    return "1 member" if count == 1 else f"{count} members"


def _yes(there: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[there]


def _relays(known: RelayView) -> str:
    offered = _first(known.offered) or "no member"
    own = "" if known.port is None else f"; this node at UDP port {known.port}, {known.leases} leases"
    return f"offered by {offered}{own}"


def _portmap(known: PortmapView) -> str:
    at = f" at {known.endpoint}" if known.endpoint else ""
    return f"{known.state}{at}" + (f": {known.why}" if known.why else "")


def _clock(found: NetCheck) -> str:
    ahead = found.clock.ahead_s
    if ahead is None:
        return "unknown"
    if abs(ahead) < 2:
        return f"as that of {_members(found.clock.members)}"
    way = "ahead of" if ahead > 0 else "behind"
    return f"{abs(ahead):.0f} s {way} {_members(found.clock.members)}"
