# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb `upgrade-check`: whether this program reads what another version of it left on this machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import click

from phantommesh import __version__
from phantommesh.cli.base import EXIT_FAILED, Options, client_of, json_option, need_access
from phantommesh.cli.output import emit, say, waiting
from phantommesh.cli.tables import table
from phantommesh.errors import DecodeError, PhantomMeshError

if TYPE_CHECKING:
    from phantommesh.state.start import NodeState


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was looked at. ``lost``: it is read as if it were not there; ``refused``: the node would
    not start."""

    what: str
    result: Literal["good", "absent", "lost", "refused", "unknown"]
    detail: str
    fix: str = ""


@click.command("upgrade-check")
@json_option
@click.pass_context
def upgrade_check(ctx: click.Context) -> None:
    """Say whether this version runs this node: reads its configuration and state, and suits this host.

    Run the new version's before you restart the node with it; the old one may run on meanwhile. Nothing is
    changed. The exit status is 1 where the node would not start.

    \b
    Example:
      phantommesh upgrade-check
      systemctl restart phantommesh
    """
    options: Options = ctx.obj
    need_access("upgrade-check", options.state_dir)
    with waiting("checking"):
        found = list(_checks(options))
    refused = [one for one in found if one.result == "refused"]
    if options.json:
        emit({"version": __version__, "ok": not refused, "checks": [asdict(one) for one in found]})
    else:
        table(("WHAT", "RESULT", "DETAIL"), [(one.what, one.result, one.detail) for one in found])
        for one in found:
            if one.fix:
                say(f"{one.what}: {one.fix}", err=True, indent=2)
        verdict = "would not run this node" if refused else "runs this node"
        say(f"version {__version__} {verdict}")
    if refused:
        ctx.exit(EXIT_FAILED)


def _checks(options: Options) -> Iterator[Checked]:
    yield _running(options)
    yield _tried("configuration", lambda: _config(options))
    node, state = _state(options)
    yield state
    if node is not None:
        yield _tried("this host", lambda: _host(options))
        yield from _files(node)
        yield _members(node)


def _tried(what: str, look: Callable[[], str]) -> Checked:
    try:
        return Checked(what, "good", look())
    except (PhantomMeshError, BaseExceptionGroup) as error:
        from phantommesh.errors import first_of

        one = first_of(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(one, PhantomMeshError):
            raise
        return Checked(what, "refused", str(one), one.fix)


def _running(options: Options) -> Checked:
    from phantommesh.client.http import NodeNotRunningError

    try:
        runs = client_of(options).status().version
    except NodeNotRunningError:
        return Checked("running node", "absent", f"none runs; this is {__version__}")
    except PhantomMeshError as error:
        return Checked("running node", "unknown", str(error), error.fix)
    same = "the same as this" if runs == __version__ else f"this is {__version__}"
    return Checked("running node", "good", f"version {runs}, {same}")


def _config(options: Options) -> str:
    from phantommesh.state.agreement import load_config

    load_config(options.config, options.state_dir)
    return f"{options.config} is read"


def _state(options: Options) -> tuple[NodeState | None, Checked]:
    from phantommesh.state.start import load_node

    try:
        node = load_node(options.state_dir, time.time())
    except PhantomMeshError as error:
        return None, Checked("state", "refused", str(error), error.fix)
    return node, Checked("state", "good", f"{options.state_dir} is read: {node.name} of {node.mesh.name}")


def _host(options: Options) -> str:
    import trio

    from phantommesh.nursery import process
    from phantommesh.state.agreement import load_config

    config = load_config(options.config, options.state_dir)

    async def check() -> None:
        await process.check(config, options.state_dir, held=config.wireguard.prefix)

    trio.run(check)
    return f"it has what the configuration asks for: backend {config.wireguard.backend}"


def _files(node: NodeState) -> Iterator[Checked]:
    """The files that a node does without where it cannot read them: that would lose something."""
    from phantommesh.acl.bans import Bans
    from phantommesh.mnemonic.file import decode as decode_memory
    from phantommesh.state import directory

    def memory() -> None:
        if lost := decode_memory(node.state.read(directory.MEMORY)).lost:
            raise DecodeError(f"{lost} bytes of it are not read")

    readers: dict[str, Callable[[], object]] = {
        directory.BANS: lambda: Bans.decode(node.state.read(directory.BANS), time.time()),
        directory.MEMORY: memory,
    }
    for name, read in readers.items():
        if not (node.state.path / name).exists():
            continue
        try:
            read()
        except (PhantomMeshError, DecodeError, ValueError, OSError) as error:
            yield Checked(name, "lost", f"it would begin anew: {error}", "see the old version's notes")
        else:
            yield Checked(name, "good", "it is read")


def _members(node: NodeState) -> Checked:
    versions = Counter(
        entry.record.version for entry in node.roster if entry.member.node_id != node.identity.node_id
    )
    if not versions:
        return Checked("members", "absent", "no other member is known")
    said = ", ".join(f"{count} at {version}" for version, count in sorted(versions.items()))
    near = all(_near(version) for version in versions)
    fix = "" if near else "versions that differ by one release work together: upgrade in steps"
    return Checked("members", "good" if near else "unknown", said, fix)


def _near(version: str) -> bool:
    """Whether a member's version is at most one release from this one: the second number differs by one at
    most, while the first is zero or the same."""
    try:
        theirs, ours = ([int(part) for part in text.split(".")[:2]] for text in (version, __version__))
    except ValueError:
        return False
    return len(theirs) == 2 and theirs[0] == ours[0] and abs(theirs[1] - ours[1]) <= 1
