# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb that gives this node another name: the running node gets the certificate, this edits the
configuration."""

import os
import stat
import uuid

import click

from phantommesh.cli.base import CliError, Options, client_of, json_option
from phantommesh.cli.output import emit, say

RENAME_TIMEOUT_S = 60.0


@click.command()
@click.argument("name")
@json_option
@click.pass_obj
def rename(options: Options, name: str) -> None:
    """Give this node the name NAME. Its node id and addresses stay.

    The node must run, and be linked with an authority if it is none itself. It gets a certificate under the
    new name, and the configuration's node.name is set to it. Other members hear of it in seconds.
    """
    renamed = client_of(options, RENAME_TIMEOUT_S).rename(name, idempotency_key=str(uuid.uuid4()))
    _follow(options, renamed.old_name, renamed.name)
    if options.json:
        emit(renamed)
    else:
        say(f"{renamed.old_name} is {renamed.name} now ({renamed.node_id}, {renamed.ip4}, {renamed.ip6})")


def _follow(options: Options, old: str, new: str) -> None:
    """Have the configuration say the new name. Raises CliError that says how to, where it cannot be done."""
    from phantommesh.config.environment import variable
    from phantommesh.config.writing import renamed
    from phantommesh.state.files import atomic_write

    done = f"this node is {new} now"
    name = variable("node", "name")
    if os.environ.get(name) not in (None, "", new):
        raise CliError(
            f"{done}, but {name} is {os.environ[name]}", fix=f"set {name} to {new} for the next start"
        )
    by_hand = f'set node.name to "{new}" in {options.config}: else the next start is refused'
    try:
        text = options.config.read_text("utf-8")
        edited = renamed(text, old, new)
        if edited is None:
            raise CliError(f"{done}, but {options.config} does not say node.name = {old}", fix=by_hand)
        if edited != text:
            mode = stat.S_IMODE(options.config.stat().st_mode)
            atomic_write(options.config.resolve(), edited.encode("utf-8"), mode=mode)
    except FileNotFoundError:
        if os.environ.get(name) != new:
            raise CliError(f"{done}, but there is no configuration {options.config}", fix=by_hand) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{done}, but {options.config} cannot be edited: {error}", fix=by_hand) from error
