# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs of who may use the API over TCP, and who did: `token`, `audit`."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import Duration, Options, client_of, json_option
from phantommesh.cli.output import emit, moment, say
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.audit import AuditEntry


@click.group()
def token() -> None:
    """Tokens for the API over TCP: who asks, and what they may do.

    The API listens there where api.listen is set. Requests have the header "Authorization: Bearer TOKEN".
    """


@token.command("create")
@click.option(
    "--scope", type=click.Choice(["read", "operate", "admin"]), required=True,
    help="read: look. operate: also rotate, drain, ban a little. admin: all that root may.",
)  # fmt: skip
@click.option("--ttl", type=Duration(), default=7_776_000.0, show_default="90d", help="How long it is good.")
@click.option("--name", default="unnamed", show_default=True, help="To know it by in lists and records.")
@click.option("--dry-run", is_flag=True, help="Say what would be made, and make nothing.")
@json_option
@click.pass_obj
def create(options: Options, scope: str, ttl: float, name: str, dry_run: bool) -> None:
    """Make a token and print it, alone on stdout. Nothing has it but this answer.

    Example: phantommesh token create --scope read --ttl 30d --name grafana > token
    """
    made = client_of(options).make_token(
        scope=scope, seconds=ttl, name=name, dry_run=dry_run, idempotency_key=str(uuid.uuid4())
    )
    if options.json:
        emit(made)
        return
    about = f"of scope {scope} until {moment(made.expires)}"
    if made.token is None:
        say(f"a token named {made.name} {about} would be made", err=True)
        return
    say(f"token {made.id} ({made.name}) {about}; it is shown this once", err=True)
    click.echo(made.token)


@token.command("list")
@json_option
@click.pass_obj
def list_tokens(options: Options) -> None:
    """Show all tokens without their text, the newest first. USED is since the node started."""
    found = client_of(options).tokens()
    if options.json:
        emit(found)
        return
    if not found.tokens:
        say("there are no tokens: make one with `phantommesh token create`", err=True)
        return
    table(
        ("ID", "NAME", "SCOPE", "STATE", "EXPIRES", "USED", "MADE", "BY"),
        [
            (
                one.id, one.name, one.scope.value, one.state, moment(one.expires),
                None if one.used is None else moment(one.used), moment(one.made), one.by,
            )
            for one in found.tokens
        ],
        ("ID", "NAME", "SCOPE", "STATE"),
    )  # fmt: skip


@token.command("revoke")
@click.argument("token_id", metavar="ID")
@json_option
@click.pass_obj
def revoke_token(options: Options, token_id: str) -> None:
    """Take a token's rights, from now on. ID is that of `phantommesh token list`."""
    done = client_of(options).revoke_token(token_id)
    if options.json:
        emit(done)
    else:
        say(f"token {done.id} ({done.name}) is {done.state}")


@click.command()
@json_option
@click.pass_obj
def audit(options: Options) -> None:
    """Show who asked the API for which change, and what came of it: the latest 1024.

    The state directory has more, in audit/; `phantommesh decisions --verify DIRECTORY` checks that nobody
    has changed it.
    """
    from phantommesh.management.audit import AuditEntry

    found = client_of(options).get_all("/v1/audit", AuditEntry)
    if options.json:
        from phantommesh.management.views import Page

        emit(Page(items=found, next_cursor=None))
        return
    if not found:
        say("nobody has asked for a change yet", err=True)
        return
    table(
        ("TIME", "WHO", "FROM", "STATUS", "WHAT", "DETAIL"),
        [
            (moment(one.time), one.who, one.address, one.status, _what(one), one.detail or None)
            for one in found
        ],
        ("TIME", "WHO", "STATUS", "WHAT"),
    )  # fmt: skip


def _what(one: AuditEntry) -> str:
    asked = " ".join(f"{key}={json.dumps(value)}" for key, value in one.asked.items())
    return f"{one.method} {one.path} {asked}".rstrip()
