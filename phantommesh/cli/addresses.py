# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that turn members into addresses and back: `ip`, `whois`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import CliError, Options, client_of, json_option
from phantommesh.cli.output import emit, field, say
from phantommesh.cli.peering import PEER, Called, address_in, matching, members_of

if TYPE_CHECKING:
    from phantommesh.management.views import PeerView, Status

_WIDE = 12


@click.command("ip")
@click.argument("peer", type=PEER, required=False)
@click.option("-4", "only4", is_flag=True, help="The IPv4 address alone.")
@click.option("-6", "only6", is_flag=True, help="The IPv6 address alone.")
@json_option
@click.pass_obj
def ip(options: Options, peer: str | None, only4: bool, only6: bool) -> None:
    """Print the overlay addresses of this node, or of PEER, a line each.

    PEER is a name, a node id, an address or a DNS name.

    \b
    Example:
      ssh root@$(phantommesh ip -4 nas)
    """
    if only4 and only6:
        raise click.UsageError("give -4 or -6, not both")
    client = client_of(options)
    mesh, members = members_of(client)
    one = members[0] if peer is None else _sole(matching(members, peer, mesh), peer)
    if options.json:
        emit({"name": one.name, "node_id": one.node_id, "ip4": one.ip4, "ip6": one.ip6})
        return
    for address in ([] if only6 else [one.ip4]) + ([] if only4 else [one.ip6]):
        click.echo(address)


def _sole(found: list[Called], wanted: str) -> Called:
    """The one member that ``wanted`` means. Raises CliError where that is none, or several."""
    if not found:
        raise CliError(f"no such peer in the mesh: {wanted[:64]!r}", fix="see `phantommesh peers`")
    if len(found) > 1:
        ids = ", ".join(sorted(one.node_id for one in found))
        raise CliError(f"several members are named {wanted[:64]}", fix=f"give one of {ids}")
    return found[0]


@dataclass(frozen=True, slots=True)
class Known:
    """A member that an address leads to. ``how`` says what the address is of it: ``overlay``, ``underlay``
    or ``name``; ``endpoint``: where packets to it are sent; ``me``: this node itself."""

    name: str
    node_id: str
    role: str
    ip4: str
    ip6: str
    how: str
    endpoint: str | None
    me: bool


@click.command()
@click.argument("address", metavar="ADDR")
@json_option
@click.pass_obj
def whois(options: Options, address: str) -> None:
    """Say which member has ADDR: an overlay address, where packets to it are sent (HOST or HOST:PORT), a
    name, a node id or a DNS name.

    Several members may be behind one address of a NAT: all are shown.

    \b
    Example:
      phantommesh whois 203.0.113.17
    """
    from phantommesh.management.views import PeerView

    client = client_of(options)
    own = client.status()
    peers: list[PeerView] = client.get_all("/v1/peers", PeerView)
    found = known_by(own, peers, address)
    if not found:
        raise CliError(
            f"no member that this node knows has {address[:64]}",
            fix="see `phantommesh peers` for addresses, and `phantommesh route explain` for what is beyond "
            "the mesh",
        )
    if options.json:
        emit({"members": [asdict(one) for one in found]})
        return
    for number, one in enumerate(found):
        if number:
            say("")
        _show(one)


def _show(one: Known) -> None:
    field("name", f"{one.name}{' (this node)' if one.me else ''}", _WIDE)
    for key, value in (
        ("node id", one.node_id), ("role", one.role), ("addresses", f"{one.ip4}  {one.ip6}"),
        ("endpoint", one.endpoint or "-"), ("found by", one.how),
    ):  # fmt: skip
        field(key, value, _WIDE)


def known_by(own: Status, peers: list[PeerView], wanted: str) -> list[Known]:
    """The members that ``wanted`` leads to, this node among them."""
    members = [Called(own.node, own.node_id, own.ip4, own.ip6, me=True)]
    members += [Called(one.name, one.node_id, one.ip4, one.ip6) for one in peers]
    views = {one.node_id: one for one in peers}
    exact = matching(members, wanted, own.mesh)
    if exact:
        how = "name" if address_in(wanted) is None else "overlay"
        return [_known(own, views, one, how) for one in exact]
    here = {one.endpoint for one in own.whereabouts.witnesses} | set(own.whereabouts.endpoints)
    below = [members[0]] if any(_is_at(one, wanted) for one in here) else []
    below += [one for one in members[1:] if any(_is_at(at, wanted) for at in _places(views[one.node_id]))]
    return [_known(own, views, one, "underlay") for one in below]


def _known(own: Status, views: dict[str, PeerView], one: Called, how: str) -> Known:
    role = own.role if one.me else views[one.node_id].role
    endpoint = None if one.me else views[one.node_id].endpoint
    return Known(one.name, one.node_id, role, one.ip4, one.ip6, how, endpoint, one.me)


def _places(peer: PeerView) -> set[str]:
    """Every endpoint outside the tunnels to which packets for a peer are sent."""
    found = {peer.endpoint, *(dimension.endpoint for dimension in peer.dimensions)}
    return {endpoint.removesuffix("/tcp") for endpoint in found if endpoint is not None}


def _is_at(endpoint: str, wanted: str) -> bool:
    """Whether an endpoint ``HOST:PORT`` is what is wanted: the same text, or of the same host."""
    host = endpoint.rpartition(":")[0].strip("[]")
    if (address := address_in(wanted)) is None:
        return wanted.removesuffix("/tcp") in (endpoint, host)
    try:
        return ip_address(host) == address
    except ValueError:
        return False
