# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs that take the mesh off this host: down, leave."""

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import Options, json_option, need_root
from phantommesh.cli.output import emit, field, say
from phantommesh.cli.service import starting, stop_service

if TYPE_CHECKING:
    from phantommesh.nursery.overlay.taking_down import Down


@click.command()
@json_option
@click.pass_obj
def down(options: Options) -> None:
    """Take the mesh off this host, until `run`.

    Stops the node if it runs (SIGTERM, and SIGKILL after 30 s), then removes its interfaces, rules and
    routes, also those of one that was killed. Until then nothing that is sent to the mesh's addresses leaves
    this host in clear; afterwards it takes the default route, like anything else. The service that `service
    install` made is stopped first; stop another one yourself. If configuration or state are lost, it removes
    what the kernel shows as PhantomMesh's and no running node holds.

    \b
    Example:
      phantommesh down
    """
    need_root("down")
    stop_service(options)
    import trio

    from phantommesh.nursery.overlay import taking_down

    done = trio.run(partial(taking_down.down, options.state_dir, options.config))
    if options.json:
        emit(done)
        return
    _report(done)
    if done.mesh is not None:
        say(f"next: {starting(options)}", err=True)


@click.command()
@click.option("--force", is_flag=True, help="Leave although this node is an authority.")
@json_option
@click.pass_obj
def leave(options: Options, force: bool) -> None:
    """Leave the mesh for good: say goodbye, do what `down` does, move the keys aside.

    The state directory and the configuration become NAME.left-TIME, beside where they were; nothing is
    deleted. Moving both back and `phantommesh run` undoes it. The certificate holds on until it runs out: an
    authority should revoke this node.

    \b
    Example:
      phantommesh leave
    """
    need_root("leave")
    stop_service(options, disable=True)
    import trio

    from phantommesh.nursery.overlay import taking_down

    left = trio.run(
        partial(
            taking_down.leave,
            options.state_dir,
            options.config,
            force=force,
            now=datetime.now(UTC).timestamp(),
        )
    )
    if options.json:
        emit(left)
        return
    _report(left.down)
    field("told", "the other members" if left.told else "nobody: the node did not run")
    field("moved", f"{options.state_dir} to {left.state_dir}")
    if left.config is not None:
        field("moved", f"{options.config} to {left.config}")
    say("next: `phantommesh revoke` this node on an authority; to undo, move both back", err=True)


def _report(done: "Down") -> None:
    unknown = "unknown: its configuration or state is lost; this is what the kernel had"
    removed = [*done.interfaces, *done.tables, *done.prefixes]
    if done.marks:
        removed.append("rules for marked packets")
    field("mesh", done.mesh or unknown)
    field("node", done.node)
    field("removed", ", ".join(removed) or "nothing: it was down")
    if done.running:
        field("left", f"what the nodes that run here have: {', '.join(done.running)}")
