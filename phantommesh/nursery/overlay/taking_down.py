# SPDX-License-Identifier: GPL-3.0-or-later
"""`down` and `leave`: the mesh is taken off this host on purpose, whether its node runs or was killed.

Everything else that ends a node leaves the overlay's range closed. This alone opens it again, as its last
step, when nothing of the overlay is left; what goes wrong before leaves it closed.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Final, Literal

import msgspec
import trio

from phantommesh.config.sections import Config, ConfigError
from phantommesh.dimensions import all_names, master_name
from phantommesh.errors import PhantomMeshError
from phantommesh.names import hosts as hosts_file
from phantommesh.node.pactmaking import networks_of
from phantommesh.nursery.host import beyond, leftovers, marking, netlink
from phantommesh.nursery.host.leftovers import Found
from phantommesh.nursery.host.owning import owned
from phantommesh.nursery.overlay import closing, hostview
from phantommesh.state import directory
from phantommesh.state.agreement import load_config, need_state
from phantommesh.state.directory import StateDir
from phantommesh.state.files import StateError, cannot
from phantommesh.state.lock import LOCK_FILE, StateInUseError, holder
from phantommesh.state.start import load_mesh, load_node
from phantommesh.trust.certificates import Mesh, Role
from phantommesh.wireguard.device import Network

STOP_SECONDS: Final = 30.0  # a node says goodbye for some seconds; one that takes longer than this hangs
_KILL_SECONDS: Final = 10.0  # from SIGKILL to the end
_LOOK_SECONDS: Final = 0.1  # between looks at who holds the state directory
_LOOKS: Final = 20  # for a process that holds it
_STARTS: Final = 3  # of a node that somebody starts again

_EVERYTHING: Final = (ip_network("0.0.0.0/0"), ip_network("::/0"))

How = Literal["stopped", "killed", "not-running"]


class TakeDownError(PhantomMeshError):
    """The mesh could not be taken off this host. The part of it that is left is closed."""


class Down(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `down`: how the ``node`` ended, and what `down` has removed. ``mesh`` is None where no
    state says which; ``marks`` says whether there were rules for marked packets; ``running`` names the
    scattering interfaces of other nodes, which run here and keep what is theirs."""

    mesh: str | None
    node: How
    interfaces: list[str]
    prefixes: list[str]
    tables: list[str]
    marks: bool
    running: list[str]

    @property
    def nothing(self) -> bool:
        """Whether nothing was there to be removed."""
        return not (self.interfaces or self.prefixes or self.tables or self.marks)


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `leave`. ``told``: the others heard of it from the node itself. ``config`` is None where
    there was no file."""

    mesh: str
    told: bool
    down: Down
    state_dir: str
    config: str | None


async def down(state_dir: Path, config_path: Path) -> Down:
    """Stop this state directory's node if it runs, and remove all that it put on the host.

    If configuration or state are lost, it removes what the kernel shows as ours and no running node holds. If
    there is nothing of that kind, it raises the error that says what is lost.

    Raises PhantomMeshError: ConfigError, StateError, BackendError, NftError or TakeDownError.
    """
    try:
        config, state, mesh = _read(state_dir, config_path)
    except StateError as error:
        return await _without_state(error)
    except ConfigError as error:
        if await trio.Path(config_path).exists():
            raise  # an operator can mend that
        return await _without_state(error)
    found = await _find(config)
    async with _stopped(state) as how:
        return await _remove(config, state, mesh, found, how)


async def leave(state_dir: Path, config_path: Path, *, force: bool, now: float) -> Left:
    """Do what `down` does, and move state directory and configuration aside: ``NAME.left-TIME``.

    A node that runs tells the others that it leaves. Raises as `down` does, and TakeDownError for an
    authority unless ``force`` is set, before anything has changed.
    """
    config, state, mesh = _read(state_dir, config_path)
    if state.has(directory.AUTHORITY_KEY) and not force:
        others = await trio.to_thread.run_sync(_other_authorities, state.path, now)
        raise _authority_stays(state, mesh, others)
    suffix = datetime.fromtimestamp(now, UTC).strftime(".left-%Y%m%dT%H%M%SZ")
    found = await _find(config)
    async with _stopped(state) as how:
        done = await _remove(config, state, mesh, found, how)
        aside = await trio.to_thread.run_sync(_move, state.path, suffix)
        settings = None
        if await trio.Path(config_path).exists():  # else the environment has all of it
            settings = str(await trio.to_thread.run_sync(_move, config_path, suffix))
    return Left(mesh=mesh.name, told=how == "stopped", down=done, state_dir=str(aside), config=settings)


def _read(state_dir: Path, config_path: Path) -> tuple[Config, StateDir, Mesh]:
    """Read what is needed to know what is ours here, even where the rest of the state is damaged."""
    config = load_config(config_path, state_dir)
    state = StateDir(state_dir.resolve())
    need_state(config_path, state_dir)
    if not state.path.is_dir():
        StateDir.open(state_dir)  # says what is wrong with it
    return config, state, load_mesh(state)


def _other_authorities(path: Path, now: float) -> list[str]:
    """The names of the mesh's other authorities, as far as this node knows; none where its state is
    damaged."""
    try:
        node = load_node(path, now)
    except StateError:
        return []
    members = (entry.member for entry in node.roster if entry.valid(now))
    return [m.name for m in members if m.role is Role.AUTHORITY and m.node_id != node.identity.node_id]


def _authority_stays(state: StateDir, mesh: Mesh, others: Sequence[str]) -> TakeDownError:
    """Say what a mesh loses with this authority, and how it leaves all the same."""
    root = state.path / directory.ROOT_KEY
    keep = f"copy {root} to a safe place, then " if root.is_file() else ""
    if others:
        return TakeDownError(
            f"this node is an authority of mesh {mesh.name}, beside {', '.join(others)}",
            fix=f"{keep}run `phantommesh leave --force`",
        )
    return TakeDownError(
        f"this node is the last authority of mesh {mesh.name}: without one nobody is invited, renewed or "
        "revoked, and the mesh ends as its certificates run out",
        fix=f"to end the mesh, {keep}run `phantommesh leave --force`; to go on with it, make another "
        "authority first, with the line that `phantommesh invite --role authority` prints where the root "
        "key is",
    )


def _move(path: Path, suffix: str) -> Path:
    path = path.resolve()
    aside = path.with_name(path.name + suffix)
    try:
        path.rename(aside)
    except OSError as error:
        raise cannot(f"move {path} aside; the mesh is down, but `run` would bring it back", error) from error
    return aside


# ---- the node ----


@asynccontextmanager
async def _stopped(state: StateDir) -> AsyncIterator[How]:
    """Hold the state directory, after ending the node that held it."""
    how: How = "not-running"
    with ExitStack() as held:
        for _ in range(_STARTS):
            try:
                held.enter_context(state.lock())
                break
            except StateInUseError:
                how = await _stop(state)
        else:
            raise TakeDownError(
                f"the node on {state.path} is started again each time it ends",
                fix="stop the service that does it first (systemctl stop phantommesh), then run this again",
            )
        yield how


async def _stop(state: StateDir) -> How:
    """End the process that holds the state directory."""
    for _ in range(_LOOKS):
        with holder(state.path / LOCK_FILE) as handle:
            if handle is not None:
                return await _end(handle, state.path)
        await trio.sleep(_LOOK_SECONDS)
        try:
            with state.lock():
                return "stopped"  # it has just ended by itself
        except StateInUseError:
            continue
    raise TakeDownError(
        f"a node runs on {state.path} where this process cannot see it",
        fix="stop it where it runs (its container), then run this again there; or run this as root",
    )


async def _end(handle: int, path: Path) -> How:
    for number, seconds, how in (
        (signal.SIGTERM, STOP_SECONDS, "stopped"),
        (signal.SIGKILL, _KILL_SECONDS, "killed"),
    ):
        try:
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return "stopped"
        except PermissionError as error:
            raise cannot(f"stop the node on {path}", error) from error
        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_readable(handle)
            return "stopped" if how == "stopped" else "killed"
    raise TakeDownError(f"the node on {path} does not end", fix="see what blocks its process")


# ---- what it put on the host ----


async def _find(config: Config) -> list[str]:
    """Which of the node's interfaces are there."""
    links = await trio.to_thread.run_sync(netlink.read_links, all_names(config.wireguard.prefix))
    return sorted(name for name, link in links.items() if link.ours)


async def _remove(config: Config, state: StateDir, mesh: Mesh, interfaces: list[str], how: How) -> Down:
    if config.dns.mode == "hosts":
        await trio.to_thread.run_sync(
            hosts_file.write, Path(config.dns.hosts), partial(hosts_file.without_block, mesh=mesh.name)
        )
    device = master_name(config.wireguard.prefix)
    networks = (mesh.network4, mesh.network6, *await trio.to_thread.run_sync(_of_others, state))

    def belongs(found: Found) -> bool:
        # Under other names: what has no interface is of no use to anybody, and with one it may be another
        # mesh's that was kept for a restart.
        return found.device == device or not found.links or found.carries(networks)

    done = await _clear(belongs, networks)
    seen = set() if device in done.running else set(interfaces)  # a stop removes them, too
    removed = sorted(seen.union(done.interfaces))
    return msgspec.structs.replace(done, mesh=mesh.name, node=how, interfaces=removed)


def _of_others(state: StateDir) -> tuple[Network, ...]:
    """The networks of meshes that there is a pact with, as far as the state says."""
    try:
        return networks_of(state.read(directory.PACTS)) if state.has(directory.PACTS) else ()
    except PhantomMeshError:
        return ()


async def _without_state(error: PhantomMeshError) -> Down:
    """Remove all that is ours in the kernel and that no running node holds. Raises ``error`` where there is
    nothing, and TakeDownError where there is a running node alone."""
    done = await _clear(lambda _: True, _EVERYTHING)
    if not done.nothing:
        return done
    if done.running:
        raise TakeDownError(
            f"{error}; a node runs here with the interface {done.running[0]}, and nothing is left of others",
            fix=f"stop it first (systemctl stop phantommesh), then run this again; or {error.fix}",
        )
    raise error


async def _clear(belongs: Callable[[Found], bool], networks: Sequence[Network]) -> Down:
    """Remove what belongs to this node and is not held by another that runs; open ``networks`` last."""
    with ExitStack() as held:
        found = await leftovers.find()
        # Held until all is gone, so that no node begins meanwhile.
        free = {device for device in found if held.enter_context(owned(device))}
        running = {device: each for device, each in found.items() if device not in free}
        gone = [found[device] for device in sorted(free) if belongs(found[device])]
        for each in gone:
            await leftovers.remove(each)
        marks = await marking.remove(())  # the interfaces of those that are gone are gone
        spared = [beyond.table_of(device) for device, each in found.items() if each not in gone]
        marks = await trio.to_thread.run_sync(beyond.remove, spared) or marks
        view = await trio.to_thread.run_sync(hostview.look, networks, ())
        kept = leftovers.held_closed(view.closed, running)
        await trio.to_thread.run_sync(closing.close, kept, view.closed)
    return Down(
        mesh=None,
        node="not-running",
        interfaces=sorted(name for each in gone for name in each.links),
        prefixes=sorted({str(ours.network) for ours in view.closed - kept}),
        tables=[f"{family} {name}" for each in gone for family, name in each.tables],
        marks=marks,
        running=sorted(running),
    )
