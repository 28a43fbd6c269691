# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs on the systemd service: `up`, `service install`, `service uninstall`; and what `down` and `leave`
do with it first."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phantommesh.cli.base import (
    CliError,
    Options,
    client_of,
    json_option,
    need_access,
    need_node,
    need_root,
)
from phantommesh.cli.output import emit, say
from phantommesh.cli.setup import run
from phantommesh.errors import PhantomMeshError

if TYPE_CHECKING:
    from phantommesh.cli.unitfile import Unit

UNITS = Path("/etc/systemd/system")
_PLACES = (UNITS, Path("/usr/local/lib/systemd/system"), Path("/usr/lib/systemd/system"))
_RUNS = Path("/run/systemd/system")  # sd_booted(3)
NAME = "phantommesh.service"
_LOG = 5  # lines of the log that an error shows


@click.command()
@click.option("--foreground", is_flag=True, help="Run the node here, as `phantommesh run` does.")
@json_option
@click.pass_context
def up(ctx: click.Context, foreground: bool) -> None:
    """Start the node: its systemd service, and return once the node is up.

    `phantommesh service install` makes the service. `phantommesh down` is the way back.

    \b
    Example:
      phantommesh service install && phantommesh up
    """
    options: Options = ctx.obj
    if foreground:
        if options.json:
            raise click.UsageError("--foreground has no JSON document to print")
        need_root("up --foreground")
        ctx.invoke(run)
        return
    need_root("up")
    unit = unit_of(options)
    if unit is None:
        if answers(options):
            _tell(options, "the node is up already", unit)
            return
        need_node(options)
        fix = f"run `{options.command('up', '--foreground')}`"
        if not systemd_runs():
            raise CliError("there is no systemd on this machine to start the node", fix=fix)
        raise CliError(
            f"no service is installed that starts the node of {options.state_dir}",
            fix=f"run `{options.command('service', 'install')}`; or, to have it in this terminal, {fix}",
        )
    if not systemd_runs():
        raise CliError(
            f"{unit} is installed, and systemd does not run here",
            fix=f"run `{options.command('up', '--foreground')}`",
        )
    done = _systemctl("start", unit.name)
    if done.returncode:
        raise CliError(
            f"the service {unit.name} does not start{_last_words(unit.name)}",
            fix=f"see `journalctl -u {unit.name}`",
        )
    _tell(options, "the node is up", unit)


def _tell(options: Options, what: str, unit: Path | None) -> None:
    if options.json:
        emit({"up": True, "unit": None if unit is None else unit.name})
    else:
        say(what)


@click.group()
def service() -> None:
    """The systemd service that runs the node.

    \b
    Example:
      phantommesh service install --dry-run
    """


@service.command()
@click.option("--dry-run", is_flag=True, help="Print the unit, and do nothing.")
@click.option("--force", is_flag=True, help="Replace a unit of that name, whatever it is.")
@json_option
@click.pass_obj
def install(options: Options, dry_run: bool, force: bool) -> None:
    """Install and enable a systemd unit for this node, so that it starts with the machine.

    systemd learns from the node itself when it is up, and starts it again if it ends or hangs. The unit takes
    away all rights that a node does not need.

    \b
    Example:
      phantommesh service install && phantommesh up
    """
    from phantommesh.cli.unitfile import render

    unit = _unit(options)
    try:
        text = render(unit)
    except ValueError as error:
        raise CliError(f"no unit can be made: {error}", fix="give another --state-dir and --config") from None
    path = UNITS / NAME
    if dry_run:
        if options.json:
            emit({"unit": str(path), "text": text, "dry_run": True})
        else:
            click.echo(text, nl=False)
        return
    need_access("service install", path)
    if not UNITS.is_dir():
        raise CliError(
            f"there is no {UNITS}: this machine has no systemd",
            fix=f"have your supervisor run `{options.command('run')}`",
        )
    _write(path, text, force=force)
    if systemd_runs():
        for words in (("daemon-reload",), ("enable", NAME)):
            done = _systemctl(*words)
            if done.returncode:
                raise CliError(
                    f"systemctl {' '.join(words)}: {done.stderr.strip()[:200] or 'it failed'}",
                    fix="correct that, then run this again",
                )
    if options.json:
        emit({"unit": str(path), "text": text, "dry_run": False})
        return
    say(f"{path} is installed{' and enabled' if systemd_runs() else '; systemd does not run here'}")
    try:
        need_node(options)
    except PhantomMeshError as error:
        say(f"next: {error.fix}; then run `{options.command('up')}`", err=True)
    else:
        say(f"next: {options.command('up')}", err=True)


@service.command()
@json_option
@click.pass_obj
def uninstall(options: Options) -> None:
    """Stop the service of this node, and remove its unit.

    \b
    Example:
      phantommesh service uninstall
    """
    unit = unit_of(options)
    if unit is None:
        raise CliError(
            f"no service is installed that starts the node of {options.state_dir}",
            fix="there is nothing to remove; `phantommesh down` stops a node that runs without one",
        )
    need_access("service uninstall", unit)
    if systemd_runs():
        _systemctl("disable", "--now", unit.name)
    unit.unlink(missing_ok=True)
    if systemd_runs():
        _systemctl("daemon-reload")
    if options.json:
        emit({"removed": str(unit)})
    else:
        say(f"{unit} is removed")


def stop_service(options: Options, *, disable: bool = False) -> None:
    """Stop the service that runs this node, if there is one: it would start the node again. Raises
    CliError."""
    unit = unit_of(options)
    if unit is None or not systemd_runs():
        return
    active = _systemctl("is-active", "--quiet", unit.name).returncode == 0
    words = ("disable", "--now") if disable else ("stop",)
    if (active or disable) and _systemctl(*words, unit.name).returncode:
        raise CliError(
            f"the service {unit.name} cannot be stopped: it would start the node again",
            fix=f"see `systemctl status {unit.name}`",
        )


def starting(options: Options) -> str:
    """The command line that starts the node on this machine."""
    if unit_of(options) is not None:
        return options.command("up")
    if systemd_runs():
        return f"{options.command('service', 'install')} && {options.command('up')}"
    return options.command("run")


def unit_of(options: Options) -> Path | None:
    """The unit file that runs the node of this state directory."""
    from phantommesh.cli.unitfile import state_dir_of

    for place in _PLACES:
        try:
            text = (place / NAME).read_text("utf-8", "replace")
        except OSError:
            continue
        there = state_dir_of(text)
        if there is not None and there == options.state_dir.absolute():
            return place / NAME
    return None


def systemd_runs() -> bool:
    """Whether systemd is this machine's init: sd_booted(3)."""
    return _RUNS.is_dir() and shutil.which("systemctl") is not None


def _unit(options: Options) -> Unit:
    from phantommesh.cli.unitfile import Unit

    return Unit(_program(), options.state_dir.absolute(), options.config.absolute())


def _program() -> tuple[str, ...]:
    """How this command is started from anywhere."""
    here = Path(sys.argv[0])
    beside = Path(sys.executable).with_name("phantommesh")
    for path in ([here.absolute()] if here.name == "phantommesh" else []) + [beside]:
        if path.is_file():
            return (str(path),)
    return (sys.executable, "-m", "phantommesh")


def _write(path: Path, text: str, *, force: bool) -> None:
    from phantommesh.cli.unitfile import state_dir_of
    from phantommesh.state.files import atomic_write, cannot

    try:
        there = path.read_text("utf-8", "replace") if path.exists() else None
        if there is not None and not force:
            other = state_dir_of(there)
            ours = state_dir_of(text)
            if other is None or other != ours:
                whose = "somebody else's" if other is None else f"for the node of {other}"
                raise CliError(
                    f"{path} is there already, and {whose}", fix="see what it is; --force replaces it"
                )
        atomic_write(path, text.encode("utf-8"), mode=0o644)
    except OSError as error:
        raise cannot(f"write {path}", error) from error


def answers(options: Options) -> bool:
    """Whether the node runs, as far as this user may ask it."""
    try:
        client_of(options).status()
    except PhantomMeshError:
        return False
    return True


def _systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)


def _last_words(unit: str) -> str:
    """The error that the node ended with, from the journal; nothing where that cannot be read."""
    try:
        shown = subprocess.run(
            ["journalctl", "-u", unit, "-n", str(_LOG), "-o", "cat", "--no-pager"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return ""
    errors = [line for line in shown.stdout.splitlines() if line.startswith("error: ")]
    return f": {errors[-1].removeprefix('error: ')}" if errors else ""
