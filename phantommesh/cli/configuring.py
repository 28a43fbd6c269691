# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs for the configuration: check, show, write; and of a running node: get, apply."""

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TextIO

import click

from phantommesh.cli.base import Options, client_of, json_option, need_access
from phantommesh.cli.output import emit, say

# Tuning.
_APPLY_S: Final = 30.0  # the node reads its state anew to check a configuration
_MOST_TEXT: Final = 1 << 20  # characters of a file: more the node refuses unread


@click.group()
def config() -> None:
    """Check, show, change and restore the configuration."""


@config.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def config_check(options: Options, file: Path | None) -> None:
    """Say whether `run` would take the configuration (or FILE) on this host, with the state directory that is
    there.

    Who may not read the state directory hears of the file alone.
    """
    from phantommesh.config import reading
    from phantommesh.state.agreement import load_config

    path = file or options.config
    checked = load_config(path, options.state_dir) if file is None else reading.load(path)
    state = _state_of(options)
    if state == "checked":
        import trio

        from phantommesh.nursery import process
        from phantommesh.nursery.api.sockets import check_path

        check_path(options.socket or Path(checked.api.socket))
        trio.run(process.check, checked, options.state_dir)
    if options.json:
        emit({"file": str(path), "ok": True, "state": state})
    else:
        also = {
            "checked": f", and agrees with {options.state_dir}",
            "unreadable": f"; {options.state_dir} was not read: that needs root",
            "none": "",
        }[state]
        say(f"{path} is good{also}")


def _state_of(options: Options) -> Literal["checked", "unreadable", "none"]:
    """Whether there is a state directory to check a configuration against."""
    from phantommesh.state.directory import FORMAT_FILE

    try:
        (options.state_dir / FORMAT_FILE).lstat()
    except PermissionError:
        return "unreadable"
    except OSError:
        return "none"
    readable = os.geteuid() == 0 or os.access(options.state_dir / FORMAT_FILE, os.R_OK)
    return "checked" if readable else "unreadable"


@config.command("write")
@json_option
@click.pass_obj
def config_write(options: Options) -> None:
    """Write a lost configuration anew, from what the state directory knows.

    It has this node's name, mesh and network, and the endpoints and ports of its last record; all else is at
    the defaults. A configuration that is there is not touched.
    """
    need_access("config write", options.config)
    from phantommesh.state.agreement import remake_config
    from phantommesh.state.making import write_config
    from phantommesh.state.start import load_node

    made = remake_config(load_node(options.state_dir, datetime.now(UTC).timestamp()))
    write_config(options.config, made)
    if options.json:
        emit({"file": str(options.config), "node": made.node.name, "mesh": made.node.mesh})
    else:
        say(
            f"{options.config} is written: see its endpoints and ports, and what else was set in the lost one"
        )


@config.command("show")
@json_option
@click.pass_obj
def config_show(options: Options) -> None:
    """Show the configuration with its defaults, as the environment changes it; secrets are starred out."""
    from phantommesh.config import writing
    from phantommesh.secret import starred
    from phantommesh.state.agreement import load_config

    shown = load_config(options.config, options.state_dir)
    if options.json:
        emit(writing.redacted(shown))
    else:
        click.echo(starred(writing.render(shown)), nl=False)


@config.command("get")
@json_option
@click.pass_obj
def config_get(options: Options) -> None:
    """Print the configuration's file of the running node, to change and to give to `config apply`.

    \b
    Example:
      phantommesh config get > new.toml
    """
    found = client_of(options).config()
    if options.json:
        emit(found)
        return
    click.echo(found.config, nl=False)
    for key in found.restart:
        say(f"note: {key} counts from the node's next start on", err=True)
    if found.refused:
        say(f"note: the node does not run with this file: {found.refused}", err=True)


@config.command("apply")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.option("--dry-run", is_flag=True, help="Check it, and say what would change.")
@json_option
@click.pass_obj
def config_apply(options: Options, file: TextIO, dry_run: bool) -> None:
    """Have the running node check FILE (- for stdin), write it to its own file and take it over.

    Where the node refuses it, file and node stay as they are.

    \b
    Example:
      phantommesh config apply new.toml --dry-run
    """
    done = client_of(options, _APPLY_S).set_config(
        file.read(_MOST_TEXT), dry_run=dry_run, idempotency_key=str(uuid.uuid4())
    )
    if options.json:
        emit(done)
        return
    for key in done.taken:
        say(f"{key}: {'would be taken over at once' if dry_run else 'the node has taken it over'}")
    for key in done.restart:
        say(f"{key}: {'would wait for' if dry_run else 'waits for'} the node's next start")
    if not done.taken and not done.restart:
        say("the node runs with this already")
