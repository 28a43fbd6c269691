# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb `bugreport`: one archive for whoever is to find a fault, without secrets.

Keys, invites and tokens are never read for it, but for what somebody wrote into the configuration or a log:
that is starred out. The rules that scatter traffic are a secret, too, as long as their epoch lasts: of the
kernel's tables there are the names alone.
"""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phantommesh import __version__
from phantommesh.cli.base import CliError, Options, client_of, json_option
from phantommesh.cli.output import emit, say, waiting
from phantommesh.cli.output import size as shown_size
from phantommesh.errors import PhantomMeshError

if TYPE_CHECKING:
    from phantommesh.client.http import NodeClient

# Tuning.
_NODE_S = 30.0  # `netcheck` and `topology` ask members
_COMMAND_S = 10.0
_LOG_LINES = 2000
_PAGE = 1000

# Of a node that runs: the answer's name, and its path.
ASKED = {
    name: f"/v1/{name}"
    for name in (
        "status", "netcheck", "topology", "routes", "federation", "threats", "memory", "drain",
    )
} | {
    name: f"/v1/{name}?limit={_PAGE}"
    for name in ("peers", "links", "paths", "scatter", "proofs", "agents", "decisions", "incidents", "events")
}  # fmt: skip
# Of the machine: no command that prints a key, and none with rules that are secret.
COMMANDS = {
    "uname": ("uname", "-a"),
    "addresses": ("ip", "-d", "address"),
    "routes4": ("ip", "route", "show", "table", "all"),
    "routes6": ("ip", "-6", "route", "show", "table", "all"),
    "rules4": ("ip", "rule"),
    "rules6": ("ip", "-6", "rule"),
    "nft-tables": ("nft", "list", "tables"),
    "sockets": ("ss", "-lnup"),
    "log": (
        "journalctl",
        "-u",
        "phantommesh.service",
        "-n",
        str(_LOG_LINES),
        "--no-pager",
        "-o",
        "short-iso",
    ),
}


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, readable=False),
    help="The file to write. [default: phantommesh-TIME.tar.gz, here]",
)
@json_option
@click.pass_obj
def bugreport(options: Options, output: Path | None) -> None:
    """Write one archive with what is needed to find a fault: the node's state as it reports it, the
    configuration, the log, this machine's network. No keys, invites or tokens.

    It has names and addresses of the mesh: see whom you give it to. It works without a node, too.

    \b
    Example:
      sudo phantommesh bugreport
    """
    now = datetime.now(UTC)
    path = output or Path(f"phantommesh-{now:%Y%m%dT%H%M%SZ}.tar.gz")
    if os.path.lexists(path):
        raise CliError(f"{path} is there already", fix="give another --output, or move it away")
    missing: dict[str, str] = {}
    with waiting("collecting"):
        found = dict(_collected(options, missing))
    found["report.json"] = _json(
        {
            "made": now.isoformat(), "version": __version__, "python": sys.version, "missing": missing,
            "platform": platform.platform(), "user": os.geteuid(), "options": str(options.state_dir),
        }
    )  # fmt: skip
    _write(path, found)
    count = path.stat().st_size
    if options.json:
        emit({"file": str(path), "bytes": count, "files": sorted(found), "missing": missing})
        return
    say(f"{path}: {shown_size(count)}, {len(found)} files")
    for name, why in missing.items():
        say(f"without {name}: {why}", err=True, indent=2)
    say("it has names and addresses of the mesh, and no secrets", err=True)


def _collected(options: Options, missing: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yield each file by its name, secrets starred out; note what cannot be had, and why."""
    client = client_of(options, _NODE_S)
    sources: dict[str, Callable[[], bytes]] = {}
    if (why := _silent(client)) is None:
        sources |= {f"node/{name}.json": _asking(client, path) for name, path in ASKED.items()}
        sources["node/metrics.txt"] = _asking(client, "/metrics")
    else:
        missing["node"] = why
    sources["config.toml"] = lambda: _config(options)
    sources["doctor.json"] = lambda: _doctor(options)
    sources["state.json"] = lambda: _state(options)
    sources |= {f"machine/{name}.txt": _running(words) for name, words in COMMANDS.items()}
    for name, read in sources.items():
        try:
            yield name, redacted(read())
        except (PhantomMeshError, OSError, subprocess.SubprocessError) as error:
            missing[name] = str(error)[:300]


def redacted(data: bytes) -> bytes:
    """Star out invites and tokens, wherever they stand."""
    from phantommesh.secret import starred

    return starred(data.decode("utf-8", "backslashreplace")).encode("utf-8")


def _silent(client: NodeClient) -> str | None:
    try:
        client.status()
    except PhantomMeshError as error:
        return str(error)
    return None


def _asking(client: NodeClient, path: str) -> Callable[[], bytes]:
    return lambda: client.request("GET", path)


def _running(words: tuple[str, ...]) -> Callable[[], bytes]:
    def run() -> bytes:
        done = subprocess.run(words, capture_output=True, timeout=_COMMAND_S, check=False)
        return b"$ " + " ".join(words).encode() + b"\n" + done.stdout + done.stderr

    return run


def _config(options: Options) -> bytes:
    """The configuration as it counts: what is a comment in the file may be anything, so it is not read."""
    from phantommesh.config import writing
    from phantommesh.state.agreement import load_config

    return writing.render(load_config(options.config, options.state_dir)).encode()


def _doctor(options: Options) -> bytes:
    from phantommesh.cli.doctor import findings

    return _json(findings(options))


def _state(options: Options) -> bytes:
    """Names, sizes and times of the files of the state directory: none of it is read."""
    names: list[dict[str, object]] = []
    for file in sorted(options.state_dir.rglob("*")):
        status = file.lstat()
        names.append(
            {
                "name": file.relative_to(options.state_dir).as_posix(), "bytes": status.st_size,
                "mode": f"{status.st_mode:o}", "owner": status.st_uid, "changed": int(status.st_mtime),
            }
        )  # fmt: skip
    if not names:
        raise CliError(
            f"{options.state_dir} is empty, or may not be read",
            fix="run the verb as root, or give --state-dir",
        )
    return _json(names)


def _json(value: object) -> bytes:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1)


def _write(path: Path, files: dict[str, bytes]) -> None:
    """Write the archive, all of it or nothing: half a file would be in the way of the next try. Raises
    StateError."""
    from phantommesh.state.files import cannot, open_new

    try:
        out = open_new(path)
        try:
            with out, tarfile.open(fileobj=out, mode="w:gz") as tar:
                for name, data in sorted(files.items()):
                    info = tarfile.TarInfo(f"phantommesh/{name}")
                    info.size, info.mode = len(data), 0o600
                    tar.addfile(info, io.BytesIO(data))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot(f"write {path}", error) from error
