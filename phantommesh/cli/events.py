# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb that shows what happens in a node."""

import click

from phantommesh.cli.base import Options, json_option, place_of
from phantommesh.cli.lists import EVENTS, happened
from phantommesh.cli.output import emit, say


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
        from phantommesh.client.events import follow

        for event in follow(place_of(options), query):
            if options.json:
                emit(event)
            else:
                time, kind, node, what = happened(event)
                say(f"{time}  {kind:16}  {node or '-':16}  {what}", indent=4)
        return
    found = EVENTS.fetch(options, query)
    narrowed = "no such event is kept: see `phantommesh events` for all" if types or since else ""
    EVENTS.show(options, found, empty=narrowed)
