# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs on routes: who may route which prefix beyond the mesh, what this node takes; and, in
`cli/explaining.py`, why traffic goes where it goes."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import Options, client_of, json_option
from phantommesh.cli.explaining import explain
from phantommesh.cli.output import emit, field, say
from phantommesh.cli.peering import PEER, node_of
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.routeview import RouteResult, RoutesView, RouteView

TIMEOUT_S = 30.0


@click.group()
def route() -> None:
    """Prefixes beyond the mesh: who may route them, and what this node takes. And which way traffic goes.

    A node asks for the prefixes of its routes.advertise. An authority approves them. Other nodes take those
    that their routes.accept allows, and default routes of the members that their routes.exit names.
    """


route.add_command(explain)


@route.command("list")
@json_option
@click.pass_obj
def list_routes(options: Options) -> None:
    """Show all routes that are known here, and which of them carry packets."""
    found = client_of(options).routes()
    if options.json:
        emit(found)
        return
    told = [f"{one} ({found.sites[one]} there)" if one in found.sites else one for one in found.advertise]
    field("advertises", ", ".join(told) or "nothing", 12)
    field("accepts", ", ".join(found.accept) or "nothing", 12)
    if found.exit:
        beside = "; the host's own private networks are reached directly" if found.lan else ""
        field("exit", f"{', '.join(found.exit)}{beside}", 12)
    say("")
    if not found.routes:
        say("no member routes any prefix, or asks to")
        return
    table(
        ("PREFIX", "ROUTER", "STATE", "TAKEN", "CARRIED", "WHY"),
        [
            (
                one.prefix,
                one.router,
                _state(one),
                _taken(one),
                "yes" if one.carried else "no",
                _why(one, found) or None,
            )
            for one in found.routes
        ],
        ("PREFIX", "STATE", "ROUTER", "TAKEN", "CARRIED"),
    )
    waiting: dict[str, list[str]] = {}
    for one in found.routes:
        if one.asked:
            waiting.setdefault(one.router, []).append(one.prefix)
    if waiting:
        say("")
        say(f"asked for: approve {'' if found.authority else 'on an authority '}with")
        for router, prefixes in waiting.items():
            say(f"  phantommesh route approve {router} {' '.join(prefixes)}")


@route.command()
@click.argument("node", type=PEER)
@click.argument("prefix", nargs=-1, required=True)
@json_option
@click.pass_obj
def approve(options: Options, node: str, prefix: tuple[str, ...]) -> None:
    """Approve that NODE (a name, node id or address) routes each PREFIX; "exit" means 0.0.0.0/0 and ::/0.

    Run this on an authority. The node gets a certificate with the prefixes within seconds if it asks for
    them: where routes.advertise in its configuration names them.
    """
    key, client = str(uuid.uuid4()), client_of(options, TIMEOUT_S)
    _tell(options, client.approve_routes(node_of(client, node), prefix, idempotency_key=key), "approved")


@route.command("revoke")
@click.argument("node", type=PEER)
@click.argument("prefix", nargs=-1, required=True)
@json_option
@click.pass_obj
def revoke_routes(options: Options, node: str, prefix: tuple[str, ...]) -> None:
    """Withdraw each PREFIX ("exit": both default routes) from NODE (a name, node id or address), which stays
    a member.

    Run this on an authority. All members hear of it in seconds, and send nothing more to NODE for PREFIX.
    """
    key, client = str(uuid.uuid4()), client_of(options, TIMEOUT_S)
    _tell(options, client.revoke_routes(node_of(client, node), prefix, idempotency_key=key), "revoked")


def _tell(options: Options, done: RouteResult, what: str) -> None:
    if options.json:
        emit(done)
        return
    say(f"{what} for {done.name}: {', '.join(done.prefixes)}")
    if done.certified:
        say(f"it has a certificate for {', '.join(done.certified)}")
    if done.waiting:
        say(f"it gets one for {', '.join(done.waiting)} when it asks: its routes.advertise has to name each")


def _state(one: RouteView) -> str:
    """Where a route stands on its way from a wish to an offer."""
    if one.claimed and not one.certified:
        return "not certified"
    if one.claimed:
        return "offered"
    if one.certified:
        return "certified"
    return "approved" if one.approved else "asked for"


def _why(one: RouteView, found: RoutesView) -> str:
    """Why this node does not take a route that is offered; empty where it does, or nobody offers it."""
    from phantommesh.routable import is_exit, parse_prefix, within

    if one.conflict or one.accepted or not (one.claimed and one.certified):
        return one.conflict
    if one.prefix in found.advertise:
        return "this node advertises it"
    prefix = parse_prefix(one.prefix)
    if is_exit(prefix):
        return "not in routes.exit"
    if found.accept == ["all"] or any(within(prefix, parse_prefix(accepted)) for accepted in found.accept):
        return ""
    return "not in routes.accept"


def _taken(one: RouteView) -> str:
    if one.conflict:
        return "conflict"
    if one.rank is None:
        return "no"
    return "yes" if one.rank == 0 else f"yes, as no. {one.rank + 1}"
