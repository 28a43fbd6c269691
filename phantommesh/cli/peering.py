# SPDX-License-Identifier: GPL-3.0-or-later
"""A PEER on the command line: a name, a node id, an overlay address or a DNS name of the mesh.

A node takes names and node ids. The two other forms have a dot or a colon in them, which neither a name nor a
node id has: only then is the node asked for its members first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from phantommesh.cli.base import SOCKET, CliError

if TYPE_CHECKING:
    from phantommesh.client.http import NodeClient

# Tuning.
_COMPLETION_S = 1.0  # a shell that completes a word waits no longer for the node

_DOMAIN = "internal"  # names/zone.py serves NAME.MESH.internal


@dataclass(frozen=True, slots=True)
class Called:
    """A member by all that it goes by. ``me``: this node itself."""

    name: str
    node_id: str
    ip4: str
    ip6: str
    me: bool = False


def members_of(client: NodeClient) -> tuple[str, list[Called]]:
    """Return the mesh's name and its members, this node first. Raises NodeNotRunningError or ApiError."""
    from phantommesh.management.views import PeerView

    own = client.status()
    peers: list[PeerView] = client.get_all("/v1/peers", PeerView)
    found = [Called(own.node, own.node_id, own.ip4, own.ip6, me=True)]
    return own.mesh, found + [Called(peer.name, peer.node_id, peer.ip4, peer.ip6) for peer in peers]


def node_of(client: NodeClient, wanted: str) -> str:
    """Return what a node takes for the member that ``wanted`` means: ``wanted`` itself if that is no address
    and no DNS name of the mesh, else a node id.

    Raises CliError for an address or a DNS name of the mesh that no member has; NodeNotRunningError and
    ApiError.
    """
    if "." not in wanted and ":" not in wanted:
        return wanted
    mesh, members = members_of(client)
    if any(member.name == wanted for member in members):
        return wanted
    address = address_in(wanted)
    if address is None and label_of(wanted, mesh) is None:
        return wanted  # the node says what it thinks of it
    found = matching(members, wanted, mesh)
    if not found:
        raise CliError(f"no member of {mesh} has the address or name {wanted}", fix="see `phantommesh peers`")
    return found[0].node_id


def matching(members: Sequence[Called], wanted: str, mesh: str) -> list[Called]:
    """The members that a name, a node id, an overlay address or a DNS name means. Several for a name that
    two members claim."""
    address = address_in(wanted)
    if address is not None:
        return [one for one in members if address in (ip_address(one.ip4), ip_address(one.ip6))]
    label = label_of(wanted, mesh) or wanted
    by_id = [one for one in members if one.node_id == wanted]
    return by_id or [one for one in members if one.name == label]


def address_in(text: str) -> IPv4Address | IPv6Address | None:
    """The address that a text is, in brackets or not; None if it is none."""
    try:
        return ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def label_of(wanted: str, mesh: str) -> str | None:
    """The node's name in a DNS name of this mesh, None for any other text. A name of another mesh is never
    taken for the member of the same name here."""
    labels = wanted.lower().rstrip(".").split(".")
    match labels:
        case [name, zone, domain] if zone == mesh and domain == _DOMAIN:
            return name
        case _:
            return None


class Peer(click.ParamType[str]):
    """A PEER, which the shell completes with the names that the node knows."""

    name = "peer"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return nothing, silently, where no node answers."""
        from phantommesh.client.http import NodeClient
        from phantommesh.errors import PhantomMeshError

        socket = ctx.find_root().params.get("socket_path") or SOCKET
        try:
            _, members = members_of(NodeClient(socket, timeout=_COMPLETION_S))
        except (PhantomMeshError, OSError):
            return []
        return [CompletionItem(one.name) for one in members if one.name.startswith(incomplete)]


PEER = Peer()
