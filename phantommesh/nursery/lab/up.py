# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: a whole mesh of real nodes on one machine, made and judged by the user's commands and API.

A manifest is written before anything else is made and removed after everything else is gone, so whatever a
crash leaves behind is known for ours and taken down; what has no manifest is never touched.
"""

import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Literal, NoReturn

import msgspec
import trio

from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.management.views import Status
from phantommesh.nursery.host.owning import held
from phantommesh.nursery.lab import net
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.mesh import (
    POLL_S,
    LabLink,
    NodeView,
    answered,
    answering,
    configure,
    converged,
    endpoints,
    failed_logs,
    flows_between,
    links_between,
    phantommesh,
    pid_file,
    start,
    view_of,
)
from phantommesh.nursery.lab.net import RUN, STATE, LabNode, LabSpec, nodes_of, one_error
from phantommesh.nursery.lab.ping import Flow, open_traffic
from phantommesh.nursery.lab.underlay import Underlay
from phantommesh.state.files import atomic_write

MESH: Final = "lab"
_INVITE_TTL: Final = "1h"
_APART_S: Final = 45.0  # that pairs are waited for where something stands between them

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Say nothing of the progress."""


class LabResult(msgspec.Struct, frozen=True, kw_only=True):
    """A converged lab. ``joins``: seconds from the start of ``join`` to the node's first ping of node 1.
    ``apart``: the pairs that do not answer each other, which is an error where nothing stands between nodes.
    ``behind``: what each node is behind, in the words of ``--nat``."""

    name: str
    nodes: int
    backend: str
    converged_s: float
    joins: dict[str, float]
    links: list[LabLink]
    apart: list[tuple[str, str]] = []
    behind: dict[str, str] = {}


class LabNodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node: its own report, or why there is none. ``behind``: in the words of ``--nat``."""

    name: str
    status: Status | None
    problem: str | None
    behind: str = "public"


class LabStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A lab as it is. ``phase`` is building, running (by ``lab run``) or up."""

    name: str
    phase: str
    nodes: list[LabNodeStatus]
    links: list[LabLink]


Phase = Literal["building", "running", "up"]


class _Manifest(msgspec.Struct, frozen=True):
    name: str
    nodes: int
    uplinks: int
    backend: str
    phase: Phase
    underlay: Underlay = Underlay()


async def up(spec: LabSpec, say: Say = silent) -> LabResult:
    """Build a lab, wait until it has converged, and leave it running.

    Raises LabError, after taking all down but the nodes' logs, when it does not come up.
    """
    net.check_able()
    with _alone(spec.name):
        await _make_way(spec.name, say)
        async with _undone_on_failure(spec):
            result = await _up(spec, say)
            _write_manifest(spec, "up")
            return result


async def down(name: str, say: Say = silent) -> bool:
    """Remove all that a lab has made, also after a crash. Returns whether there was anything."""
    net.check_able()
    net.check_name(name)
    with _alone(name):
        manifest = _read_manifest(name)
        if manifest is None:
            return False
        say(f"taking lab {name} down")
        await _down(_spec(manifest))
        return True


async def status(name: str) -> LabStatus:
    """Ask every node of a lab. Raises LabError when there is no such lab."""
    manifest = _known(name)
    nodes = nodes_of(_spec(manifest))
    behind = manifest.underlay.describe
    found: dict[str, NodeView | str] = {}

    async def ask(node: LabNode) -> None:
        try:
            found[node.name] = await view_of(node)
        except PhantomMeshError as error:
            found[node.name] = str(error)

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(ask, node)
    views = {name: view for name, view in found.items() if isinstance(view, NodeView)}
    return LabStatus(
        name=name,
        phase=manifest.phase,
        nodes=[
            LabNodeStatus(
                name=node.name,
                status=view.status if isinstance(view, NodeView) else None,
                problem=None if isinstance(view, NodeView) else view,
                behind=behind(node.number, manifest.nodes),
            )
            for node in nodes
            for view in (found[node.name],)
        ],
        links=links_between(nodes, views),
    )


def exec_(name: str, number: int, command: Sequence[str]) -> NoReturn:
    """Become a command in node ``number``'s namespace, where ``phantommesh`` and ``wg`` mean that node."""
    net.check_able()
    manifest = _known(name)
    if not 1 <= number <= manifest.nodes:
        raise LabError(f"lab {name} has no node {number}", fix=f"give a node from 1 to {manifest.nodes}")
    if not command:
        raise LabError("no command to run", fix=f"phantommesh lab exec {number} -- wg show")
    node = LabNode(name, number)
    os.execvpe("ip", node.inside(command), node.environment())  # noqa: S606  # no shell is wanted


@asynccontextmanager
async def running(spec: LabSpec, say: Say = silent, *, pairs: bool = True) -> AsyncIterator[LabResult]:
    """A lab for as long as the block takes, however it ends. Without ``pairs`` it begins as soon as each node
    was started."""
    net.check_able()
    with _alone(spec.name):
        await _make_way(spec.name, say)
        async with _undone_on_failure(spec):
            result = await _up(spec, say, pairs=pairs)
            _write_manifest(spec, "running")
        try:
            yield result
        finally:
            say(f"taking lab {spec.name} down")
            with trio.CancelScope(shield=True):
                await _down(spec)


async def _up(spec: LabSpec, say: Say, *, pairs: bool = True) -> LabResult:
    began = trio.current_time()
    nodes = nodes_of(spec)
    first = nodes[0]
    if net.allow_instances(spec.nodes * DIMENSIONS):
        say("raised fs.inotify.max_user_instances: each userspace WireGuard needs an inotify instance")
    say(f"building {spec.nodes} namespaces and {spec.uplinks} uplinks")
    await net.build(spec)
    say("making the mesh")
    await phantommesh(
        first, "init", "--mesh", MESH, "--name", first.name, *endpoints(spec, first), *spec.tag_options([1])
    )
    configure(spec, first)
    await start(first)
    terms = ["--uses", str(spec.nodes - 1), "--ttl", _INVITE_TTL]
    invite = await phantommesh(first, "invite", *terms, *spec.tag_options(range(2, spec.nodes + 1)))
    authority = await answering(first, spec.patience_s)
    joins: dict[str, float] = {}

    async def enrol(node: LabNode) -> None:
        started = trio.current_time()
        asked = [*endpoints(spec, node), *spec.tag_options([node.number])]
        await phantommesh(node, "join", invite, "--name", node.name, *asked)
        configure(spec, node)
        await start(node)
        if not pairs:
            return
        flow = Flow(node.name, first.name, authority.status.ip4)
        async with open_traffic([flow], POLL_S) as traffic:
            with trio.move_on_after(_APART_S if spec.underlay.hinders else spec.patience_s):
                await traffic.wait_answered(flow, -1.0)
        if flow.received:
            joins[node.name] = round(trio.current_time() - started, 3)

    say(f"joining {spec.nodes - 1} nodes")
    with one_error():
        async with trio.open_nursery() as nursery:
            for node in nodes[1:]:
                nursery.start_soon(enrol, node)
    if pairs:
        say("waiting until every pair is keyed in all dimensions")
    links, apart = (
        await (_hindered(nodes, spec) if spec.underlay.hinders else _plain(nodes, spec))
        if pairs
        else ([], [])
    )
    return LabResult(
        name=spec.name,
        nodes=spec.nodes,
        backend=authority.status.backend,
        converged_s=round(trio.current_time() - began, 3),
        joins=dict(sorted(joins.items())),
        links=links,
        apart=apart,
        behind={node.name: spec.underlay.describe(node.number, spec.nodes) for node in nodes},
    )


async def _plain(nodes: Sequence[LabNode], spec: LabSpec) -> tuple[list[LabLink], list[tuple[str, str]]]:
    links = await converged(nodes, spec.patience_s)
    async with open_traffic(await flows_between(nodes, spec.patience_s), POLL_S) as traffic:
        await answered(traffic, -1.0, spec.patience_s)
    return links, []


async def _hindered(nodes: Sequence[LabNode], spec: LabSpec) -> tuple[list[LabLink], list[tuple[str, str]]]:
    """Wait until every pair answers, but not for ever, and return the pairs that do not."""
    flows = await flows_between(nodes, spec.patience_s)
    async with open_traffic(flows, POLL_S) as traffic:
        with trio.move_on_after(_APART_S):
            async with trio.open_nursery() as nursery:
                for flow in flows:
                    nursery.start_soon(traffic.wait_answered, flow, -1.0)
    views = {node.name: await view_of(node) for node in nodes}
    return links_between(nodes, views), [(flow.source, flow.target) for flow in flows if not flow.received]


async def _down(spec: LabSpec) -> None:
    """Remove everything; the manifest last, so that an interrupted removal is taken up again."""
    nodes = nodes_of(spec)
    await net.destroy(spec.namespaces)
    for node in nodes:
        for path in (node.state_dir, node.wireguard_sockets, *_files(node)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    net.delay_log(spec.name).unlink(missing_ok=True)
    _manifest_path(spec.name).unlink(missing_ok=True)
    for directory in (STATE, STATE.parent, RUN, RUN.parent):
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EBUSY):
                raise


def _files(node: LabNode) -> list[Path]:
    # An interrupted join leaves its draft or a directory half made, an atomic write its temporary file, which
    # may be one of a draft: hidden, with our name in it.
    hidden = [
        path
        for parent in (STATE, RUN)
        for dots in (".", "..")
        for path in parent.glob(f"{dots}{node.name}.*")
    ]
    return [node.config, node.log, node.socket, pid_file(node), *hidden]


@asynccontextmanager
async def _undone_on_failure(spec: LabSpec) -> AsyncIterator[None]:
    """Write the manifest; when the block fails, take all down, but leave a copy of the logs to look at."""
    STATE.mkdir(parents=True, exist_ok=True, mode=0o755)
    RUN.mkdir(parents=True, exist_ok=True, mode=0o755)
    strangers = [name for name in spec.namespaces if net.namespace_exists(name)]
    strangers += [str(node.state_dir) for node in nodes_of(spec) if node.state_dir.exists()]
    if strangers:
        raise LabError(f"{strangers[0]} exists, and no lab made it", fix="remove it, or give another --name")
    _write_manifest(spec, "building")
    try:
        yield
    except BaseException:
        with trio.CancelScope(shield=True):
            logs = {node.log: node.log.read_bytes() for node in nodes_of(spec) if node.log.exists()}
            await _down(spec)
            if logs:
                failed_logs(spec.name).mkdir(mode=0o700, parents=True, exist_ok=True)
            for path, content in logs.items():
                (failed_logs(spec.name) / path.name).write_bytes(content)
        raise
    shutil.rmtree(failed_logs(spec.name), ignore_errors=True)


async def _make_way(name: str, say: Say) -> None:
    """Take down what a crashed lab command left. Raises LabError when the lab is up on purpose."""
    manifest = _read_manifest(name)
    if manifest is None:
        return
    if manifest.phase == "up":
        raise LabError(
            f"lab {name} is up already", fix=f"phantommesh lab down --name {name}, or another --name"
        )
    say(f"taking down what an interrupted lab {name} left")
    await _down(_spec(manifest))


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Hold a lab's name against other lab commands. Raises LabError."""
    with held(f"lab-{name}") as free:
        if not free:
            raise LabError(
                f"another command is at work on lab {name}", fix="wait for it, or give another --name"
            )
        yield


def _manifest_path(name: str) -> Path:
    return STATE / f"{name}.json"


def _write_manifest(spec: LabSpec, phase: Phase) -> None:
    manifest = _Manifest(spec.name, spec.nodes, spec.uplinks, spec.backend, phase, spec.underlay)
    atomic_write(_manifest_path(spec.name), msgspec.json.encode(manifest), mode=0o644)


def _read_manifest(name: str) -> _Manifest | None:
    path = _manifest_path(name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Manifest)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError:
        raise LabError(
            f"{path} is damaged", fix=f"remove it, the namespaces {name}-* and {STATE}/{name}-*"
        ) from None


def _known(name: str) -> _Manifest:
    net.check_name(name)
    manifest = _read_manifest(name)
    if manifest is None:
        raise LabError(f"there is no lab {name}", fix=f"phantommesh lab up --name {name}")
    return manifest


def _spec(manifest: _Manifest) -> LabSpec:
    return LabSpec(
        manifest.name, manifest.nodes, manifest.uplinks, manifest.backend, underlay=manifest.underlay
    )
