# SPDX-License-Identifier: GPL-3.0-or-later
"""Code that every verb shares: the global options, how errors are told, what may be assumed of the
machine."""

import errno
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from phantommesh.cli.output import columns_of, folded, one_line, say, waiting
from phantommesh.errors import PhantomMeshError, first_of

if TYPE_CHECKING:
    from phantommesh.client.http import NodeClient
    from phantommesh.client.places import Place

STATE_DIR = Path("/var/lib/phantommesh")
SOCKET = Path("/run/phantommesh/api.sock")
CONFIG = Path("/etc/phantommesh/phantommesh.toml")

EXIT_FAILED = 1
EXIT_NOT_RUNNING = 3
EXIT_TOO_LITTLE = 4  # proofs of which nothing is wrong, and which do not show what was asked for
EXIT_FAULTY = 4  # `status --exit-code`: the node is at its work, and something is wrong
EXIT_UNREADY = 5  # `status --exit-code`: it is not at its work
_EXIT_INTERRUPTED = 130
# What helps against an error of the system that no verb has words for.
NO_MESH = "this machine is in no mesh yet: run `phantommesh init` to make one, or `phantommesh join`"
_FIXES = {
    errno.ENOENT: "give the path of a file that is there",
    errno.ENOTDIR: "give the path of a file that is there",
    errno.EISDIR: "give the path of a file, not of a directory",
    errno.EACCES: "run this with sudo, or give a path that you may use",
    errno.EPERM: "run this with sudo, or give a path that you may use",
    errno.EEXIST: "give another name, or move away what is there",
    errno.ENOSPC: "make room on that file system, then run this again",
    errno.EDQUOT: "make room on that file system, then run this again",
    errno.EROFS: "give a path on a file system that can be written to",
}
# The verbs by what they are for.
GROUPS = {
    "set up": "init invite join service up down run wait leave",
    "look": "status ip whois peers links paths topology scatter events proofs",
    "do": "ping netcheck doctor rotate revoke rename drain undrain identity",
    "others": "route federation acl token audit threats ban unban",
    "agents": "agents decisions incidents memory",
    "keep": "config set backup restore upgrade-check bugreport completion",
    "try": "lab",
}
# The verbs that ask a node, and so another machine's too; those beneath a group by the group's name.
_ASKING = (
    "invite status ip whois peers links paths topology scatter events proofs ping netcheck rotate revoke "
    "rename drain undrain identity route federation acl token audit threats ban unban agents decisions "
    "incidents memory wait"
)
REMOTE = frozenset({*_ASKING.split(), "config get", "config apply"})
_CAP_NET_ADMIN = 12  # linux/capability.h


@dataclass(slots=True)
class Options:
    """The global options of one invocation."""

    state_dir: Path
    socket: Path | None
    config: Path
    json: bool
    api: str | None = None
    """The URL of a node on another machine, which is asked in place of this machine's."""
    token_file: Path | None = None
    ca: Path | None = None
    fingerprint: str | None = None

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

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().main(*args, **extra)
        except OSError as error:  # the disk below stdout is full: click has seen to a reader that is gone
            _tell(_of_system(error))
            sys.exit(EXIT_FAILED)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _folding():
            return super().make_context(*args, **extra)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Name the verbs by what they are for, so that all of them fit a screen."""
        named = {name for names in GROUPS.values() for name in names.split()}
        rest = " ".join(name for name in self.list_commands(ctx) if name not in named)
        rows = [*GROUPS.items(), *([("more", rest)] if rest else [])]
        with formatter.section("Verbs (`phantommesh VERB --help` says more)"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _folding():
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
            _fail(ctx, _of_system(error))
        except (KeyboardInterrupt, click.Abort):  # Abort: at a prompt
            ctx.exit(_EXIT_INTERRUPTED)


@contextmanager
def _folding() -> Iterator[None]:
    """Make click's one line on a wrong usage fit the terminal."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        message = one_line(error.format_message())
        lines = folded(f"Error: {message}", columns_of(sys.stderr), len("Error: "))
        raise _FoldedError("\n".join(lines).removeprefix("Error: "), error.ctx) from None


class _FoldedError(click.UsageError):
    """Wrong usage whose lines fit the terminal, click's hint at `--help` among them."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the usage, the hint and the message."""
        shown, columns = StringIO(), columns_of(sys.stderr)
        super().show(shown)
        for line in shown.getvalue().splitlines():
            fits = columns is None or len(line) <= columns
            click.echo(line if fits else "\n".join(folded(line, columns, 0)), file=file, err=True)


def _fail(ctx: click.Context, error: BaseException) -> NoReturn:
    from phantommesh.client.http import NodeNotRunningError

    if isinstance(error, NodeNotRunningError) and (options := ctx.find_object(Options)) is not None:
        from phantommesh.cli.absent import explained

        error = explained(error, options)
    _tell(error)
    if isinstance(error, NodeNotRunningError):
        ctx.exit(EXIT_NOT_RUNNING)
    ctx.exit(error.status if isinstance(error, CliError) else EXIT_FAILED)


def _tell(error: BaseException) -> None:
    say(f"error: {error}", err=True, indent=len("error: "))
    if isinstance(error, PhantomMeshError) and error.fix:
        say(f"fix: {error.fix}", err=True, indent=len("fix: "))


def _of_system(error: OSError) -> CliError:
    return CliError(_sentence(error), fix=_FIXES.get(error.errno or 0, ""))


def _sentence(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _set_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_object(Options).json = True  # type: ignore[union-attr]


# Accepted before and after the verb.
json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_set_json, help="One JSON document on stdout."
)


def accept_globals(command: click.Command, words: tuple[str, ...] = ()) -> None:
    """Let every verb below ``command``, which ``words`` lead to, take the global options after its name too.

    A verb that works on this machine alone refuses --api wherever it stands; PHANTOMMESH_API is for those
    that ask a node.

    A verb without a JSON document refuses --json wherever it stands; PHANTOMMESH_JSON is for all verbs, so
    there it has no effect.
    """
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            accept_globals(each, (*words, name))
        if not command.invoke_without_command:
            return
    taken = {option for param in command.params for option in param.opts}
    far = bool(words) and (words[0] in REMOTE or " ".join(words) in REMOTE)
    for option, attribute in _PATHS:
        if option not in taken:
            command.params.append(_global(option, attribute))
    for option, attribute in _TEXTS:
        if far:
            command.params.append(_global(option, attribute, str))
        else:
            refuse = partial(_refuse_far, option=option, attribute=attribute)
            command.params.append(click.Option([option], hidden=True, expose_value=False, callback=refuse))
    if "--json" not in taken:
        command.params.append(
            click.Option(["--json"], is_flag=True, hidden=True, expose_value=False, callback=_refuse_json)
        )


_PATHS = (
    ("--state-dir", "state_dir"), ("--socket", "socket"), ("--config", "config"),
    ("--token-file", "token_file"), ("--ca", "ca"),
)  # fmt: skip
_TEXTS = (("--api", "api"), ("--fingerprint", "fingerprint"))


def _global(option: str, attribute: str, kind: Any = None) -> click.Option:
    def take(ctx: click.Context, _param: click.Parameter, value: Path | str | None) -> None:
        if value is not None:
            setattr(ctx.find_object(Options), attribute, value)

    kind = kind or click.Path(path_type=Path, readable=False)
    return click.Option([option], type=kind, hidden=True, expose_value=False, callback=take)


def _refuse_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    before = ctx.find_root().get_parameter_source("json")
    if value or before is ParameterSource.COMMANDLINE:
        raise click.UsageError("this verb has no JSON document to print: leave --json out", ctx)


def _refuse_far(
    ctx: click.Context, _param: click.Parameter, value: str | None, *, option: str, attribute: str
) -> None:
    before = ctx.find_root().get_parameter_source(attribute)
    if value is not None or before is ParameterSource.COMMANDLINE:
        raise click.UsageError(f"this verb works on this machine alone: leave {option} out", ctx)


class Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value))
        if match is None or int(match[1]) == 0:
            self.fail(f"{value!r} is not a time such as 30m, 1h or 7d", param, ctx)
        return int(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[match[2]]


def place_of(options: Options) -> "Place":
    """The node to ask: the one of --api, else this machine's. Raises PhantomMeshError."""
    if not options.api or not is_far(options):
        return socket_of(options)
    from phantommesh.client.places import remote, token_of

    token = token_of(options.token_file, os.environ)
    return remote(options.api, token=token, authority=options.ca, pin=options.fingerprint)


def is_far(options: Options) -> bool:
    """Whether --api counts, where --socket may be given too: the command line goes before the environment.
    Raises click.UsageError where neither goes before the other."""
    if options.socket is None:
        return True
    root = click.get_current_context().find_root()

    def is_set_here(name: str, value: object) -> bool:
        source = root.get_parameter_source(name)
        return source is ParameterSource.ENVIRONMENT and root.params.get(name) == value

    socket, api = is_set_here("socket_path", options.socket), is_set_here("api", options.api)
    if socket == api:
        raise click.UsageError("--api and --socket are two nodes: leave one of them out")
    return socket


def socket_of(options: Options) -> Path:
    """The socket to use: what the operator said, else the config's, else the default."""
    if options.socket is not None:
        return options.socket
    # As `config.environment`, which is slow to import.
    if set_here := os.environ.get("PHANTOMMESH_API_SOCKET"):
        return Path(set_here)
    if os.access(options.config, os.R_OK):
        from phantommesh.config import reading
        from phantommesh.config.sections import ConfigError

        try:
            return Path(reading.load(options.config).api.socket)
        except ConfigError as error:  # a node that runs goes on with what it read at its start
            if os.access(SOCKET, os.F_OK):
                return SOCKET
            raise CliError(
                str(error), fix=f"{error.fix}; or ask a node that runs with another socket by --socket"
            ) from error
    if os.access(SOCKET, os.F_OK) or not _is_closed(options.config):
        return SOCKET
    raise CliError(
        f"there is no socket {SOCKET}, and {options.config}, which may name another one, may not be read",
        fix="give --socket (or set PHANTOMMESH_SOCKET), or run this with sudo",
    )


def _is_closed(path: Path) -> bool:
    """Whether something is there that may not be read, as far as can be told."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(path, os.R_OK)


def client_of(options: Options, timeout: float = 10.0) -> "NodeClient":
    """A client of the node, which says on a terminal that it waits for an answer."""
    from phantommesh.client.http import NodeClient

    class Patient(NodeClient):
        def request(self, method: str, path: str, **given: Any) -> bytes:
            with waiting("the node is at work on it"):
                return super().request(method, path, **given)

    return Patient(place_of(options), timeout=timeout)


def default_name() -> str:
    name = re.sub(r"[^a-z0-9]+", "-", platform.node().split(".")[0].lower()).strip("-")[:63].strip("-")
    if not name:
        raise CliError("this machine's host name makes no node name", fix="give --name NODE")
    return name


def need_node(options: Options) -> None:
    """Raise CliError where this machine is in no mesh yet, and StateError where the node's state is lost."""
    from phantommesh.state.agreement import need_state

    if not has_node(options):
        raise CliError(f"there is no node to start in {options.state_dir}", fix=NO_MESH)
    need_state(options.config, options.state_dir)


def has_node(options: Options) -> bool:
    """Whether this machine is in a mesh, as far as this user may see."""
    from phantommesh.state.directory import FORMAT_FILE

    try:
        (options.state_dir / FORMAT_FILE).lstat()
    except PermissionError:
        return True
    except OSError:
        return os.path.lexists(options.config)
    return True


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
