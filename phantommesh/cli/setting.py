# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb `set`: a key of the configuration, checked before it is written, and taken over by the node."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import CliError, Options, client_of, json_option, need_access
from phantommesh.cli.output import emit, say
from phantommesh.cli.service import answers, starting, unit_of

if TYPE_CHECKING:
    from phantommesh.config.sections import Config
    from phantommesh.management.views import Event

# Tuning.
_TAKEN_S = 10.0  # the node may read its state anew before it takes a configuration over
_LOOK_S = 0.2


@click.command("set")
@click.argument("assignments", metavar="KEY=VALUE...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Check it, and say what would have to be done.")
@json_option
@click.pass_obj
def set_keys(options: Options, assignments: tuple[str, ...], dry_run: bool) -> None:
    """Set keys of the configuration, and have the running node take them over.

    KEY is written SECTION.KEY. Lists have commas between their values. All comments stay. What the node would
    refuse is not written. It says for which keys the node has to be started again.

    \b
    Example:
      phantommesh set log.level=debug
      phantommesh set routes.advertise=10.1.0.0/16
    """
    from phantommesh.config.changes import change
    from phantommesh.config.editing import assignment, edited
    from phantommesh.state.agreement import load_config
    from phantommesh.state.files import rewrite

    changes = {(section, key): value for section, key, value in map(assignment, assignments)}
    _refuse_variables(changes)
    if not dry_run:
        need_access("set", options.config)
    before = load_config(options.config, options.state_dir)
    text = options.config.read_text("utf-8")
    new = edited(text, changes)
    after = _checked(options, new)
    done = change(before, after)
    if not dry_run and new != text:
        rewrite(options.config, new)
    # Also for what waits for a restart: the node's status says so from then on.
    reloaded = _reload(options) if (done.taken or done.waiting) and not dry_run else None
    if options.json:
        emit(
            {
                "file": str(options.config), "dry_run": dry_run, "taken": list(done.taken),
                "restart": list(done.waiting), "reloaded": reloaded,
            }
        )  # fmt: skip
        return
    _tell(options, list(done.taken), list(done.waiting), reloaded, dry_run=dry_run)


def _tell(
    options: Options, taken: list[str], restart: list[str], reloaded: bool | None, *, dry_run: bool
) -> None:
    if not taken and not restart:
        say(f"{options.config} said so already: nothing has changed")
    if dry_run:
        for key in taken:
            say(f"{key}: would be taken over at once")
        for key in restart:
            say(f"{key}: would wait for the node's next start")
        return
    for key in taken:
        say(f"{key}: {'the node has taken it over' if reloaded else 'counts from the next start on'}")
    for key in restart:
        say(f"{key}: counts from the node's next start on")
    if restart and answers(options):
        by_hand = f"{options.command('down')} && {starting(options)}"
        unit = unit_of(options)
        say(f"next: {by_hand if unit is None else f'systemctl restart {unit.stem}'}", err=True)


def _refuse_variables(changes: dict[tuple[str, str], object]) -> None:
    """Refuse a key that the environment sets: the file would have no effect."""
    from phantommesh.config.environment import variable

    for section, key in changes:
        if os.environ.get(name := variable(section, key)):
            raise CliError(
                f"{section}.{key} is from {name}, not from the file", fix=f"change or unset {name}"
            )


def _checked(options: Options, text: str) -> Config:
    """Check a configuration's text as `run` would. Raises PhantomMeshError."""
    from phantommesh.config import environment, reading
    from phantommesh.state.directory import FORMAT_FILE

    given = environment.read(os.environ)
    config = reading.parse(text, given)
    if os.geteuid() == 0 and (options.state_dir / FORMAT_FILE).exists():
        import trio

        from phantommesh.nursery import process

        held = reading.load(options.config).wireguard.prefix
        trio.run(partial(process.check, config, options.state_dir, held=held))
    return config


def _reload(options: Options) -> bool:
    """Have the node take the file over; False where none runs. Raises CliError where it refuses, or does not
    answer."""
    from phantommesh.client.http import NodeNotRunningError
    from phantommesh.state.lock import hang_up

    try:
        seen = len(_said(options))
        if not hang_up(options.state_dir):
            return False
        end = time.monotonic() + _TAKEN_S
        while len(said := _said(options)) <= seen:
            if time.monotonic() >= end:
                raise CliError(
                    "the file is written, and the node has not taken it over yet",
                    fix="see `phantommesh events`",
                )
            time.sleep(_LOOK_S)
    except NodeNotRunningError:
        return False
    if said[-1].type == "config.refused":
        why, fix = (str(said[-1].data.get(key, "")) for key in ("why", "fix"))
        raise CliError(f"the node goes on as before: {why}", fix=fix)
    return True


def _said(options: Options) -> list[Event]:
    """What the node has said of its configuration."""
    from phantommesh.management.views import Event

    return client_of(options).get_all("/v1/events", Event, {"types": "config.*"})
