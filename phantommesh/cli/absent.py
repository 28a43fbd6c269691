# SPDX-License-Identifier: GPL-3.0-or-later
"""What to say of a node that does not answer: that it is not running and how to start it, or that it is on
its way."""

from __future__ import annotations

from phantommesh.cli.base import NO_MESH, Options, has_node, is_far, socket_of
from phantommesh.cli.service import starting
from phantommesh.client.http import NodeNotRunningError
from phantommesh.state.lock import process_of


def explained(error: NodeNotRunningError, options: Options) -> NodeNotRunningError:
    """The error for a node that does not answer: a process that has the node's state is on its way."""
    if options.api and is_far(options):
        return error
    if (on_its_way := starting_or_leaving(options)) is None:
        return NodeNotRunningError(str(error), fix=_how_to_start(options))
    other = "" if options.socket is None else ", or give the --socket of that node"
    return NodeNotRunningError(
        f"{on_its_way}: nothing answers on {socket_of(options)}",
        fix=f"wait for it by `{options.command('wait')} --ready`{other}; if that takes long, see its log",
    )


def starting_or_leaving(options: Options) -> str | None:
    """Say that the node of this machine, which does not answer, is there; None where no process is, or none
    that this user may see."""
    pid = None if options.api and is_far(options) else process_of(options.state_dir)
    return None if pid is None else f"the node is starting or leaving (pid {pid})"


def _how_to_start(options: Options) -> str:
    if not has_node(options):
        return f"{NO_MESH}; or pass --socket"
    return f"start it with `{starting(options)}`, or pass --socket"
