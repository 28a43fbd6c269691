# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs on invites: `invite`, `invite list`, `invite withdraw`."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from phantommesh.cli.base import CliError, Duration, Options, client_of, json_option, need_access
from phantommesh.cli.output import age, emit, say
from phantommesh.cli.peering import Called, address_in, label_of, matching, node_of
from phantommesh.cli.setup import naming_options, tags_option
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.inviteview import InviteMade, InvitesView, InviteView, WithdrawnView
    from phantommesh.state.start import NodeState

_SHOWN = 12  # characters of an id that a table has: enough to withdraw by


@click.group(invoke_without_command=True)
@click.option("--ttl", type=Duration(), default=3600.0, show_default="1h", help="How long it may be used.")
@click.option("--name", help="Only a node of this name may use it.")
@click.option("--role", type=click.Choice(["node", "authority"]), default="node", show_default=True)
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--replace",
    "lost",
    metavar="NODE",
    help="For a machine in the place of a lost one, which it revokes.",
)
@tags_option("A tag that it gets, for access rules; may be repeated.")
@click.option(
    "--endpoint",
    "given",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Where it reaches this authority, in place of `node.endpoints`.",
)
@json_option
@click.pass_context
def invite(
    ctx: click.Context,
    ttl: float,
    name: str | None,
    role: str,
    uses: int,
    lost: str | None,
    tags: tuple[str, ...],
    given: tuple[str, ...],
) -> None:
    """Print one line that lets a machine join: a secret until it is used. As root, on an authority."""
    if ctx.invoked_subcommand is not None:
        return
    options: Options = ctx.obj
    if not options.api:
        need_access("invite", options.state_dir)
    from phantommesh.moments import span
    from phantommesh.trust.invites import MAX_ENDPOINTS, MAX_LIFE

    if ttl > MAX_LIFE:
        raise CliError(
            f"an invite is a password: it lasts {span(MAX_LIFE)} at most",
            fix="give --ttl 30d or less, and make another invite later",
        )
    if len(given) > MAX_ENDPOINTS:
        raise CliError(
            f"--endpoint is given {len(given)} times: an invite names {MAX_ENDPOINTS} at most",
            fix="leave some out",
        )
    if lost is not None and (name is not None or role != "node" or uses != 1):
        raise CliError("--replace says name, role and uses", fix="leave out --name, --role and --uses")
    make = _make_there if options.api else _make_here
    made = make(options, ttl, lost, name=name, role=role, uses=uses, tags=list(tags), endpoints=list(given))
    for note in made.notes:
        click.echo(f"note: {note}", err=True)
    if options.json:
        emit(
            {
                "invite": made.invite, "expires": made.expires, "role": made.role, "name": made.name,
                "uses": made.uses,
            }
        )  # fmt: skip
    else:
        click.echo(made.invite)


def _make_there(options: Options, ttl: float, lost: str | None, **wanted: Any) -> InviteMade:
    """Have the node that --api names make an invite."""
    client = client_of(options)
    replace = None if lost is None else node_of(client, lost)
    key = str(uuid.uuid4())
    return client.make_invite(dry_run=False, idempotency_key=key, seconds=ttl, replace=replace, **wanted)


def _make_here(options: Options, ttl: float, lost: str | None, **wanted: Any) -> InviteMade:
    """Make an invite in the state directory, whether the node runs or not."""
    from phantommesh.management.bodies import InviteRequest
    from phantommesh.node.invitations import made, ordered
    from phantommesh.state.agreement import load_config, need_state
    from phantommesh.state.start import load_node

    config = load_config(options.config, options.state_dir)
    need_state(options.config, options.state_dir)
    now = datetime.now(UTC).timestamp()
    node = load_node(options.state_dir, now)
    replace = None if lost is None else _in_roster(node, lost)
    with naming_options():
        order = ordered(node, config, InviteRequest(seconds=ttl, replace=replace, **wanted), now)
    for damaged in node.invites.damaged():
        say(f"note: {damaged} is damaged: nobody can use its invite; delete the file", err=True)
    return made(node, order, now)


def _in_roster(node: NodeState, wanted: str) -> str:
    """The node id of the member whose overlay address or DNS name this is; any other text as it is."""
    from phantommesh.trust.identity import format_node_id

    members = [entry.member for entry in node.roster]
    called = [Called(one.name, format_node_id(one.node_id), str(one.ip4), str(one.ip6)) for one in members]
    if address_in(wanted) is None and label_of(wanted, node.mesh.name) is None:
        return wanted
    found = matching(called, wanted, node.mesh.name)
    return found[0].node_id if found else wanted


@invite.command("list")
@json_option
@click.pass_obj
def list_invites(options: Options) -> None:
    """Show the invites until they run out, and who joined by each. Never their secrets.

    The node is asked, if it runs; else the state directory is read, as root.

    \b
    Example:
      phantommesh invite list
    """
    from phantommesh.client.http import NodeNotRunningError

    try:
        found = client_of(options).invites()
    except NodeNotRunningError:
        if options.api:
            raise
        found = _read_book(options)
    if options.json:
        emit(found)
        return
    for name in found.damaged:
        say(f"note: {name} is damaged: nobody can use its invite; delete the file", err=True)
    if not found.invites:
        say("there are no invites: `phantommesh invite` makes one", err=True)
        return
    table(
        ("ID", "NAME", "ROLE", "USES LEFT", "EXPIRES IN", "REPLACES", "JOINED"),
        [_row(one, time.time()) for one in found.invites],
        ("ID", "NAME", "USES LEFT", "EXPIRES IN", "ROLE"),
    )


def _row(one: InviteView, now: float) -> tuple[object, ...]:
    left = datetime.fromisoformat(one.expires).timestamp() - now
    return (
        one.id[:_SHOWN], one.name or "any", one.role, one.uses_left, age(left) if left > 0 else "over",
        one.replaces or None, ", ".join(one.joined) or None,
    )  # fmt: skip


@invite.command()
@click.argument("invite_id", metavar="ID")
@json_option
@click.pass_obj
def withdraw(options: Options, invite_id: str) -> None:
    """Take the invite ID back: nobody joins by it any more. Who joined by it stays a member.

    ID is as `invite list` shows it, or the beginning of it. Run it on the authority that made the invite, as
    root.

    \b
    Example:
      phantommesh invite withdraw 3f9a10c2
    """
    from phantommesh.client.http import NodeNotRunningError

    try:
        gone = client_of(options).withdraw_invite(invite_id)
    except NodeNotRunningError:
        if options.api:
            raise
        gone = _withdraw_here(options, invite_id)
    if options.json:
        emit(gone)
        return
    say(f"invite {gone.id} is withdrawn")
    if gone.joined:
        say(
            f"note: members stay that joined by it before: {', '.join(gone.joined)}; `phantommesh revoke "
            "NODE` takes one out of the mesh",
            err=True,
        )


def _read_book(options: Options) -> InvitesView:
    from phantommesh.node.invitations import listed

    need_access("invite list", options.state_dir)
    return listed(_node(options), datetime.now(UTC).timestamp())


def _withdraw_here(options: Options, wanted: str) -> WithdrawnView:
    from phantommesh.node.invitations import withdrawn

    need_access("invite withdraw", options.state_dir)
    return withdrawn(_node(options), wanted)


def _node(options: Options) -> NodeState:
    from phantommesh.state.agreement import need_state
    from phantommesh.state.start import load_node

    need_state(options.config, options.state_dir)
    return load_node(options.state_dir, datetime.now(UTC).timestamp())
