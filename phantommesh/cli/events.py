# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb that shows what happens in a node."""

from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import Options, client_of, json_option, socket_of
from phantommesh.cli.output import emit, one_line, table

if TYPE_CHECKING:
    from phantommesh.views import Event


@click.command()
@click.option("-f", "--follow", "on", is_flag=True, help="Go on with each new one, until interrupted.")
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Only these: link.opened, or a whole family, peer.*; may be repeated.",
)
@click.option(
    "--since",
    type=click.IntRange(0),
    metavar="SEQ",
    help="Only later ones than this number. [default: all that the node has kept]",
)
@json_option
@click.pass_obj
def events(options: Options, on: bool, types: tuple[str, ...], since: int | None) -> None:
    """Show what happened in the node lately.

    With --json one page; with --follow as well, one JSON document a line.
    """
    query = {"types": ",".join(types), "since": "oldest" if since is None else str(since)}
    if on:
        from phantommesh.nursery.follow import follow

        for event in follow(socket_of(options), query):
            if options.json:
                emit(event)
            else:
                click.echo(one_line(f"{event.time}  {event.type:16}  {event.node or '-':16}  {_says(event)}"))
        return
    from phantommesh.views import Event, Page

    found = client_of(options).get_all("/v1/events", Event, query)
    if options.json:
        emit(Page(items=found, next_cursor=None))
        return
    rows = [(event.time, event.type, event.node, _says(event)) for event in found]
    table(["TIME", "TYPE", "NODE", "WHAT"], rows)


def _says(event: "Event") -> str:
    """The event's data in a line, without what stands beside it already."""
    shown = {key: value for key, value in event.data.items() if key not in {"peer", "node_id"}}
    return " ".join(f"{key}={_plain(value)}" for key, value in shown.items() if value not in (None, ""))


def _plain(value: object) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)
