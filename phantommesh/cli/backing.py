# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs `backup` and `restore`."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from phantommesh.cli.base import CliError, Options, json_option, need_access
from phantommesh.cli.output import age, emit, field, say, waiting
from phantommesh.cli.output import size as shown_size
from phantommesh.cli.service import starting

if TYPE_CHECKING:
    from phantommesh.secret import Secret
    from phantommesh.state.backup import Manifest

MIN_PASSPHRASE = 12  # characters: whoever has the file may try as many as they like
_VARIABLE = "PHANTOMMESH_PASSPHRASE_FILE"

passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, readable=False),
    envvar=_VARIABLE,
    help="Its first line is the passphrase. [default: asks for it]",
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@passphrase_option
@json_option
@click.pass_obj
def backup(options: Options, file: Path, passphrase_file: Path | None) -> None:
    """Write this node's state and configuration to FILE, encrypted with a passphrase.

    The node may run meanwhile. FILE has the node's keys, and on an authority the mesh's: nobody opens it
    without the passphrase, and without it nobody helps you. A file that is there is not overwritten.

    \b
    Example:
      phantommesh backup /media/usb/nas.backup
    """
    need_access("backup", options.state_dir)
    from phantommesh.state.backup import manifest_of, pack
    from phantommesh.state.directory import StateDir
    from phantommesh.state.files import place_new
    from phantommesh.state.sealing import seal
    from phantommesh.state.start import load_node

    if os.path.lexists(file):
        raise CliError(f"{file} is there already", fix="give another name, or move it away")
    now = datetime.now(UTC).timestamp()
    manifest = manifest_of(load_node(options.state_dir, now), now)
    passphrase = _passphrase(passphrase_file, new=True)
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        with waiting(f"writing {file}"), _new(new) as out:
            seal(pack(manifest, options.config, StateDir.open(options.state_dir)), passphrase, out)
            out.flush()
            os.fsync(out.fileno())
        place_new(new, file)
    finally:
        new.unlink(missing_ok=True)
    count = file.stat().st_size
    if options.json:
        emit({"file": str(file), "bytes": count, "manifest": manifest})
        return
    say(f"{file}: {shown_size(count)}, the node {manifest.node} of mesh {manifest.mesh}")
    say("keep the passphrase elsewhere; try `phantommesh restore FILE --check` now and then", err=True)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@click.option("--check", is_flag=True, help="Open and check FILE, and write nothing.")
@passphrase_option
@json_option
@click.pass_obj
def restore(options: Options, file: Path, check: bool, passphrase_file: Path | None) -> None:
    """Put the state and configuration of FILE, which `backup` wrote, in place. Nothing is overwritten.

    A backup may be older than what the mesh knows of the node: that heals when the node runs. Never run it
    beside the original.

    \b
    Example:
      phantommesh restore /media/usb/nas.backup
    """
    from phantommesh.state.backup import restore as put_back
    from phantommesh.state.backup import unpack
    from phantommesh.state.directory import check_vacant
    from phantommesh.state.files import StateError
    from phantommesh.state.sealing import HEADER, unseal
    from phantommesh.state.sealing import check as check_header

    if not check:
        need_access("restore", options.state_dir, options.config)
        try:
            check_vacant(options.state_dir)
        except StateError as error:
            raise CliError(
                str(error),
                fix=f"to replace it, run `{options.command('down')}` and move {options.state_dir} away; or "
                "give another --state-dir; --check looks into FILE alone",
            ) from None
    with file.open("rb") as source:
        check_header(source.read(HEADER))  # before the passphrase is asked for
        source.seek(0)
        passphrase = _passphrase(passphrase_file, new=False)
        with waiting(f"reading {file}"):
            content = unpack(unseal(source, passphrase))
    if not check:
        put_back(content, options.state_dir, options.config, datetime.now(UTC).timestamp())
    if options.json:
        emit({"file": str(file), "restored": not check, "manifest": content.manifest})
        return
    _tell(options, content.manifest, len(content.files), check=check)


def _tell(options: Options, manifest: Manifest, count: int, *, check: bool) -> None:
    old = time.time() - datetime.fromisoformat(manifest.made).timestamp()
    field("mesh", manifest.mesh)
    field("node", f"{manifest.node} ({manifest.role}, {manifest.node_id})")
    field("made", f"{manifest.made}, {age(old)} ago, by version {manifest.version}")
    if check:
        say(f"the backup is whole: {count} files; nothing was written")
        return
    field("restored", f"{count} files to {options.state_dir}")
    say(
        "what the mesh has learnt since comes when the node runs: records, revocations, keys. If it got a "
        "new identity meanwhile, the mesh has revoked this one: see `phantommesh status`",
        err=True,
    )
    say("keep the original off: of two runs of one node one steps aside, and all members are told", err=True)
    say(f"next: {starting(options)}", err=True)


def _new(path: Path) -> BinaryIO:
    from phantommesh.state.files import open_new

    return open_new(path)


def _passphrase(file: Path | None, *, new: bool) -> Secret:
    """The passphrase, from a file or a prompt: an argument would be seen by all users of this machine. Raises
    CliError or StateError."""
    from phantommesh.secret import Secret
    from phantommesh.state.files import read_file

    if file is not None:
        if not file.exists():
            raise CliError(
                f"there is no file {file}", fix=f"give the right path by --passphrase-file or {_VARIABLE}"
            )
        lines = read_file(file, secret=True).splitlines()
        passphrase = lines[0] if lines else b""
    elif sys.stdin is not None and sys.stdin.isatty():
        entered: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True)
        passphrase = entered.encode("utf-8")
    else:
        raise CliError(
            "there is no terminal to ask for a passphrase",
            fix=f"give --passphrase-file, or set {_VARIABLE}",
        )
    if new and len(passphrase) < MIN_PASSPHRASE:
        raise CliError(
            f"the passphrase has fewer than {MIN_PASSPHRASE} characters",
            fix="take a longer one: whoever has the file may try as many as they like",
        )
    return Secret(passphrase)
