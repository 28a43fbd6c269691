# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs of attacks and bans: `threats`, `ban`, `unban`."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import CliError, Duration, Options, client_of, json_option
from phantommesh.cli.output import age, emit, field, moment, say
from phantommesh.cli.tables import table

if TYPE_CHECKING:
    from phantommesh.management.threatsview import BanView

_BY = {"own": "this node", "operator": "operator", "hinted": "hinted"}


@click.command()
@json_option
@click.pass_obj
def threats(options: Options) -> None:
    """Show attacks on this node: what was seen, from where, what is shed, and who is banned until when."""
    found = client_of(options).threats()
    if options.json:
        emit(found)
        return
    field("unknown", f"{found.unknown_s:g} datagrams a second at the control port")
    if found.shed_above is not None:
        field("shed", f"{found.shed_s:g} of them: {found.shed_above:g} a second are let through")
    field("odd", f"{found.odd_s:g} datagrams a second at WireGuard's ports")
    say("")
    if found.threats:
        table(
            ("KIND", "FROM", "SEVERITY", "PROVED BY", "COUNT", "LAST", "BANNED"),
            [
                (
                    one.kind, one.source, one.severity, ", ".join(one.proved) or "nothing", f"{one.count:g}",
                    moment(one.last), "yes" if one.banned else "no",
                )
                for one in found.threats
            ],
            ("KIND", "FROM", "PROVED BY", "BANNED"),
        )  # fmt: skip
    else:
        say("no attacks were seen", err=True)
    if found.bans:
        say("")
        _bans(found.bans)


def _bans(bans: list[BanView]) -> None:
    table(
        ("BANNED", "BY", "LEFT", "TIMES", "DROPPED", "WHY"),
        [
            (one.network, _BY.get(one.by, one.by), age(one.left_s), one.times, one.packets, one.why)
            for one in bans
        ],
        ("BANNED", "BY", "LEFT", "DROPPED"),
    )


@click.command()
@click.argument("address", metavar="ADDR")
@click.option("--for", "seconds", type=Duration(), default=600.0, show_default="10m", help="How long.")
@click.option("--force", is_flag=True, help="Also what is never banned, such as a seed; for root.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
@click.pass_obj
def ban(options: Options, address: str, seconds: float, force: bool, dry_run: bool) -> None:
    """Drop all that comes from ADDR, an address or a network, outside the tunnels.

    An IPv6 address stands for its /64, which is its host's. It warns where a member is there now.

    \b
    Example:
      phantommesh ban 192.0.2.7 --for 1h
    """
    done = client_of(options).ban(
        address, seconds=seconds, force=force, dry_run=dry_run, idempotency_key=str(uuid.uuid4())
    )
    if options.json:
        emit(done)
        return
    said = "would be banned" if done.dry_run else "is banned"
    say(f"{done.ban.network} {said} until {moment(done.ban.until)}")
    for note in done.notes:
        say(f"warning: {note}", err=True, indent=len("warning: "))


@click.command()
@click.argument("address", metavar="[ADDR]", required=False)
@click.option(
    "--all", "by", type=click.Choice(["own", "operator", "hinted"]),
    help="Lift all bans of this origin in place of one network's.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say which would be lifted, and do nothing.")
@json_option
@click.pass_obj
def unban(options: Options, address: str | None, by: str | None, dry_run: bool) -> None:
    """Lift the bans of ADDR, an address or a network as `phantommesh threats` shows it.

    \b
    Example:
      phantommesh unban 192.0.2.7
    """
    if (address is None) == (by is None):
        raise CliError("this needs an address or --all, and not both", fix="give one of the two")
    done = client_of(options).unban(network=address, by=by, dry_run=dry_run)
    if options.json:
        emit(done)
        return
    for one in done.lifted:
        said = "would be lifted" if done.dry_run else "is lifted"
        say(f"the ban of {one.network} by {_BY.get(one.by, one.by)} {said}")
    for note in done.notes:
        say(f"note: {note}", err=True, indent=len("note: "))
    if not done.lifted:
        say("there were no such bans", err=True)
