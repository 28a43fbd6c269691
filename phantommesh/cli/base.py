# SPDX-License-Identifier: GPL-3.0-or-later
"""Code that every verb shares: the global options, how errors are told, what may be assumed of the
machine."""

import errno
import os
import platform
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from phantommesh.cli.output import one_line
from phantommesh.errors import PhantomMeshError, first_of

if TYPE_CHECKING:
    from phantommesh.client.http import NodeClient

STATE_DIR = Path("/var/lib/phantommesh")
SOCKET = Path("/run/phantommesh/api.sock")
CONFIG = Path("/etc/phantommesh/phantommesh.toml")

EXIT_FAILED = 1
EXIT_NOT_RUNNING = 3
EXIT_TOO_LITTLE = 4  # proofs of which nothing is wrong, and which do not show what was asked for
_EXIT_INTERRUPTED = 130
# What helps against an error of the system that no verb has words for.
_FIXES = {
    errno.ENOENT: "give the path of a file that is there",
    errno.ENOTDIR: "give the path of a file that is there",
    errno.EISDIR: "give the path of a file, not of a directory",
    errno.EACCES: "run this with sudo, or give a path that you may use",
    errno.EPERM: "run this with sudo, or give a path that you may use",
    errno.ENOSPC: "make room on that file system, then run this again",
    errno.EDQUOT: "make room on that file system, then run this again",
    errno.EROFS: "give a path on a file system that can be written to",
}
_CAP_NET_ADMIN = 12  # linux/capability.h


@dataclass(slots=True)
class Options:
    """The global options of one invocation."""

    state_dir: Path
    socket: Path | None
    config: Path
    json: bool

    def command(self, *words: str) -> str:
        """Return a command line with these global options, as far as they are not the defaults."""
        given = [("--state-dir", self.state_dir, STATE_DIR), ("--config", self.config, CONFIG)]
        options = [word for option, path, default in given if path != default for word in (option, str(path))]
        return shlex.join(["phantommesh", *options, *words])


class CliError(PhantomMeshError):
    """A verb that cannot do its work here. ``status`` is what the command line exits with."""

    def __init__(self, message: str, *, fix: str = "", status: int = EXIT_FAILED) -> None:
        super().__init__(message, fix=fix)
        self.status = status


class Cli(click.Group):
    """Prints an operator's error as one line and its fix; a traceback means a bug."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PhantomMeshError as error:
            _fail(ctx, error)
        except BaseExceptionGroup as group:
            known, other = group.split(PhantomMeshError)
            if known is None or other is not None:
                raise
            _fail(ctx, first_of(known))
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            _fail(ctx, CliError(_sentence(error), fix=_FIXES.get(error.errno or 0, "")))
        except KeyboardInterrupt:
            ctx.exit(_EXIT_INTERRUPTED)


def _fail(ctx: click.Context, error: BaseException) -> NoReturn:
    from phantommesh.client.http import NodeNotRunningError

    click.echo(f"error: {one_line(str(error))}", err=True)
    if isinstance(error, PhantomMeshError) and error.fix:
        click.echo(f"fix: {one_line(error.fix)}", err=True)
    if isinstance(error, NodeNotRunningError):
        ctx.exit(EXIT_NOT_RUNNING)
    ctx.exit(error.status if isinstance(error, CliError) else EXIT_FAILED)


def _sentence(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _set_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_object(Options).json = True  # type: ignore[union-attr]


# Accepted before and after the verb.
json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_set_json, help="One JSON document on stdout."
)


class Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value))
        if match is None or int(match[1]) == 0:
            self.fail(f"{value!r} is not a time such as 30m, 1h or 7d", param, ctx)
        return int(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[match[2]]


def socket_of(options: Options) -> Path:
    """The socket to use: what the operator said, else the config's, else the default."""
    if options.socket is not None:
        return options.socket
    if set_here := os.environ.get(
        "PHANTOMMESH_API_SOCKET"
    ):  # as `config.environment`, which is slow to import
        return Path(set_here)
    if not os.access(options.config, os.R_OK):
        return SOCKET
    from phantommesh.config import reading

    return Path(reading.load(options.config).api.socket)


def client_of(options: Options, timeout: float = 10.0) -> "NodeClient":
    from phantommesh.client.http import NodeClient

    return NodeClient(socket_of(options), timeout=timeout)


def default_name() -> str:
    name = re.sub(r"[^a-z0-9]+", "-", platform.node().split(".")[0].lower()).strip("-")[:63].strip("-")
    if not name:
        raise CliError("this machine's host name makes no node name", fix="give --name NODE")
    return name


def need_root(verb: str) -> None:
    if os.geteuid() == 0 or _has_net_admin():
        return
    raise CliError(
        f"`phantommesh {verb}` needs root: it sets up network interfaces", fix=f"sudo phantommesh {verb}"
    )


def _has_net_admin() -> bool:
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> _CAP_NET_ADMIN & 1)


def need_access(verb: str, *paths: Path) -> None:
    """Say before any work that the verb may not write where it must."""
    if os.geteuid() == 0:
        return
    for path in paths:
        here = path.absolute()
        try:
            while not here.exists():
                here = here.parent
            allowed = os.access(here, os.W_OK)
        except PermissionError:
            allowed = False
        if not allowed:
            raise CliError(
                f"`phantommesh {verb}` needs root: no permission to write {path}",
                fix=f"sudo phantommesh {verb} ...",
            )


def endpoints_option(func: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--endpoint",
        "endpoints",
        multiple=True,
        metavar="HOST[:PORT]",
        help="Where others reach this node; may be repeated.",
    )(func)
