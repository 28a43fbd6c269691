# SPDX-License-Identifier: GPL-3.0-or-later
"""A node as a process: what it reads first, what it holds while it runs, and the signals that end it.

Before the line in `_run` nothing outside the process has changed: configuration and state are read and
checked. Below it sockets are bound, interfaces made and peers spoken to.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time

import structlog
import trio

from phantommesh.config import environment, reading
from phantommesh.config.changes import change
from phantommesh.config.sections import Config, NoConfigError
from phantommesh.dimensions import all_names, master_name
from phantommesh.errors import PhantomMeshError, first_of
from phantommesh.kem import provider
from phantommesh.management.configview import ConfigResult, ConfigView
from phantommesh.nursery import logs
from phantommesh.nursery.host import leftovers
from phantommesh.nursery.host.backend import Backend, choose
from phantommesh.nursery.host.nft import NftError
from phantommesh.nursery.host.notify import Supervisor
from phantommesh.nursery.host.owning import held, owned
from phantommesh.nursery.host.users import numbers_of
from phantommesh.nursery.names.resolve import SystemNames
from phantommesh.nursery.node import Node
from phantommesh.nursery.overlay.holding import Overlay
from phantommesh.nursery.sockets.udp import OuterSockets, UdpPort
from phantommesh.overlay.prefixes import Address
from phantommesh.records.runs import NOBODY, Run
from phantommesh.scatter.intents import named_users
from phantommesh.state.agreement import check_agreement, load_config, need_state
from phantommesh.state.directory import StateDir
from phantommesh.state.files import StateError, rewrite
from phantommesh.state.lock import LOCK_FILE, StateInUseError, StateLock
from phantommesh.state.start import NodeState, install_successor, load_node, next_generation

SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2

LOCK_LOOK = 5.0  # s between two looks at the state directory's lock

log = structlog.get_logger("phantommesh.process")


async def run(state_dir: Path, config_path: Path, *, socket_path: Path | None = None) -> None:
    """Run the node until SIGTERM or SIGINT; a second one has it leave without a goodbye. SIGHUP has it take
    over the configuration; SIGUSR1 and SIGUSR2 do nothing. Raises `PhantomMeshError` for what an operator can
    mend."""
    _forbid_core_dumps()
    trio.socket.set_custom_hostname_resolver(SystemNames())
    trio.socket.set_custom_socket_factory(OuterSockets())
    try:
        with trio.open_signal_receiver(*SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                process = _Process(state_dir, config_path, socket_path)
                nursery.start_soon(process.heed, signals)
                nursery.start_soon(process.supervisor.watch)
                above: Run | None = NOBODY
                while above is not None and not process.leave.is_set():
                    above = await process.run(above)
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        known, other = group.split(PhantomMeshError)
        if known is None or other is not None:
            raise
        raise first_of(known) from group


def _forbid_core_dumps() -> None:
    """Have neither this process nor its children, wireguard-go among them, write their memory to disk when
    they crash: it holds keys. The kernel writes no file of less than a page, and takes the limit of 1 byte as
    a word against dumps to a program, too, which it gives without a limit else (linux/fs/coredump.c). Whoever
    needs a dump raises the limit again: ``prlimit --pid PID --core=unlimited``."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if most == 0 else 1, most))


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a node starts from, read and checked."""

    lock: StateLock
    config: Config
    state: NodeState
    generation: int
    backend: Backend
    overlay: Overlay


@asynccontextmanager
async def prepared(state_dir: Path, config_path: Path) -> AsyncIterator[Prepared]:
    """Read and check all that a node needs, and hold the state directory and the interfaces' names for it.
    Nothing outside the state directory changes. Raises `PhantomMeshError`."""
    config = load_config(config_path, state_dir)
    need_state(config_path, state_dir)
    with StateDir.open(state_dir).lock() as lock:
        await trio.to_thread.run_sync(install_successor, state_dir)
        state = await trio.to_thread.run_sync(load_node, state_dir, time())
        generation = await trio.to_thread.run_sync(next_generation, state.state, time())
        backend = await _examine_settings(config, state)
        overlay = _overlay(config, state)
        with _sole_owner(config.wireguard.prefix), _sole_speaker(config):
            await _examine_host(config, overlay)
            yield Prepared(lock, config, state, generation, backend, overlay)


class _Process:
    """One process: the node that it runs, and what signals ask of it."""

    def __init__(self, state_dir: Path, config_path: Path, socket_path: Path | None) -> None:
        self._state_dir, self._config_path, self._socket_path = state_dir, config_path, socket_path
        self._node: Node | None = None
        self._alone = trio.CapacityLimiter(1)
        """Who changes the configuration now."""
        self.leave, self.hurry = trio.Event(), trio.Event()
        self.supervisor = Supervisor.take(os.environ)

    async def heed(self, signals: AsyncIterator[int]) -> None:
        """Do what signals ask, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for number in signals:
                match number:
                    case signal.SIGHUP:
                        nursery.start_soon(self._reload)
                    case signal.SIGUSR1 | signal.SIGUSR2:
                        log.info("signal ignored", signal=signal.Signals(number).name)
                    case _ if self.leave.is_set():
                        log.warning("leaving at once: nobody is told")
                        self.hurry.set()
                    case _:
                        self.supervisor.say("STOPPING=1", "STATUS=leaving")
                        self.leave.set()

    async def _reload(self) -> None:
        """Take over the configuration, all of it or nothing."""
        async with self._alone:
            node = self._node
            if node is None:
                log.info("the configuration is about to be read anyhow")
                return
            try:
                wanted = await trio.to_thread.run_sync(load_config, self._config_path, self._state_dir)
                await check(wanted, self._state_dir, held=node.parts.config.wireguard.prefix)
                await take_over(node, wanted)
            except PhantomMeshError as error:
                node.keep_config(error)

    async def view(self) -> ConfigView:
        """The file as it is, and what the node does not run with of it. Raises ConfigError."""
        found = await trio.to_thread.run_sync(_text_of, self._config_path)
        settings = None if self._node is None else self._node.parts.settings
        return ConfigView(
            file=str(self._config_path),
            config=found or "",
            restart=[] if settings is None else list(settings.waiting),
            refused="" if settings is None or settings.refused is None else str(settings.refused),
        )

    async def put(self, text: str, *, dry_run: bool) -> ConfigResult:
        """Have the file say ``text``, and the node run with it, as far as a running node can. Raises
        PhantomMeshError; then both are as before."""
        async with self._alone:
            node = self._node
            if node is None:
                raise PhantomMeshError("the node is just starting or leaving", fix="try again")
            settings = node.parts.settings
            wanted = await trio.to_thread.run_sync(reading.parse, text, environment.read(os.environ))
            await check(wanted, self._state_dir, held=settings.config.wireguard.prefix)
            done = change(settings.config, wanted)
            if not dry_run:
                before = await trio.to_thread.run_sync(_text_of, self._config_path)
                with trio.CancelScope(shield=True):  # a client that hangs up leaves nothing half done
                    await trio.to_thread.run_sync(rewrite, self._config_path, text)
                    try:
                        await take_over(node, wanted)
                    except PhantomMeshError as error:
                        await trio.to_thread.run_sync(_put_back, self._config_path, before)
                        log.error("the configuration is put back", error=str(error), fix=error.fix)
                        raise
            return ConfigResult(taken=list(done.taken), restart=list(done.waiting), dry_run=dry_run)

    async def _tell_when_up(self, node: Node) -> None:
        """Tell the supervisor that the node is up: what it has to come first is done, and its API answers."""
        await node.up.wait()
        self.supervisor.say("READY=1", f"STATUS=node {node.parts.own.member.name} is up")

    async def run(self, above: Run) -> Run | None:
        """Run the node once. Return None where that is the end; else it is to run again, as a later run than
        the one that is returned: it got a new identity, or the run that it stepped aside for has gone."""
        async with prepared(self._state_dir, self._config_path) as ready:
            # ---- above this line nothing outside the state directory has changed ----
            config, state, overlay = ready.config, ready.state, ready.overlay
            await overlay.converge()
            await leftovers.clear_tables(master_name(config.wireguard.prefix))
            with UdpPort(config.control.port) as udp:
                node = Node(
                    config, state, ready.backend, udp,
                    generation=ready.generation, overlay=overlay, above=above,
                )  # fmt: skip
                node.parts.settings.file = self._config_path
                node.parts.settings.socket = self._socket_path or Path(config.api.socket)
                node.parts.configfile.path = self._config_path
                node.reporter.configuring = self
                self._node = node
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keep_lock, ready.lock, state.state.path)
                    nursery.start_soon(self._tell_when_up, node)
                    await node.serve(self._socket_path or Path(config.api.socket), self.leave, self.hurry)
                    nursery.cancel_scope.cancel()
                self._node = None
            return _again(node)


async def take_over(node: Node, wanted: Config) -> None:
    """Have a node run with a configuration that was checked. Where the kernel refuses its access rules, the
    node goes back to what it ran with. Raises PhantomMeshError."""
    settings, access = node.parts.settings, node.parts.access
    uids = await trio.to_thread.run_sync(numbers_of, named_users(wanted.intent))
    before, waiting, refused = settings.config, settings.waiting, settings.refused
    node.reload(wanted, uids)
    try:
        await access.converge()
    except NftError:
        node.reload(before, await trio.to_thread.run_sync(numbers_of, named_users(before.intent)))
        settings.waiting, settings.refused = waiting, refused
        access.kick()
        raise
    if settings.config.log != before.log:
        logs.configure(settings.config.log.level, settings.config.log.format)


def _text_of(path: Path) -> str | None:
    """A configuration's text; None where there is no file. Raises ConfigError."""
    try:
        return reading.text_of(path)
    except NoConfigError:
        return None


def _put_back(path: Path, before: str | None) -> None:
    """Have the file say what it said. Raises StateError."""
    if before is None:
        path.unlink(missing_ok=True)
    else:
        rewrite(path, before)


def _again(node: Node) -> Run | None:
    if node.parts.succession.done.is_set():
        log.warning("starting again with the new identity")
        return NOBODY
    if node.parts.runs.over.is_set() and (passed := node.parts.runs.runs.aside) is not None:
        log.warning("the other copy of this node has gone: starting again")
        return passed
    return None


async def check(config: Config, state_dir: Path, *, held: str | None = None) -> None:
    """Refuse what `run` refuses of a configuration, for this state directory and this host. Nothing changes,
    and the node may run meanwhile: then ``held`` is the prefix of the interfaces that it has. Raises
    `PhantomMeshError`."""
    state = await trio.to_thread.run_sync(load_node, state_dir, time())
    await _examine_settings(config, state)
    await _examine_host(config, _overlay(config, state, held))


async def _examine_settings(config: Config, state: NodeState) -> Backend:
    """Return the WireGuard to use. Raises `PhantomMeshError` where the configuration is another node's, or
    asks for what this machine does not have."""
    check_agreement(config, state.mesh, state.member_at_issue())
    provider(config.link.provider)
    return await choose(config.wireguard.backend)


async def _examine_host(config: Config, overlay: Overlay) -> None:
    await overlay.examine()
    reading.refuse_overlay(config, overlay.routed)


def _overlay(config: Config, state: NodeState, held: str | None = None) -> Overlay:
    return Overlay(
        (state.mesh.network4, state.mesh.network6),
        all_names(held or config.wireguard.prefix),
        lambda: _addresses(state),
        interval=config.wireguard.reconcile_seconds,
    )


async def keep_lock(lock: StateLock, path: Path) -> None:
    """See to it, until cancelled, that no second node runs on the state directory though its lock is removed
    meanwhile. Raises StateInUseError where one does: then this node is to end."""
    while True:
        await trio.sleep(LOCK_LOOK)
        try:
            anew = await trio.to_thread.run_sync(lock.check)
        except StateInUseError as error:
            raise StateInUseError(
                f"{error}: somebody removed the file {LOCK_FILE} and started it, so this node ends",
                fix="leave one of them running, and remove no files of a state directory that is in use",
            ) from error
        except StateError as error:
            log.warning("state directory not held", error=str(error), fix=error.fix)
            continue
        if anew:
            log.warning(
                "the state directory's lock was removed: it is made and held anew",
                file=str(path / LOCK_FILE),
                fix="remove no files of a state directory that is in use",
            )


def _addresses(state: NodeState) -> dict[Address, str]:
    """The members' names by overlay address, this node's own among them."""
    now, own = time(), state.member_at_issue()
    members = [entry.member for entry in state.roster if entry.valid(now)]
    return {address: member.name for member in (*members, own) for address in (member.ip4, member.ip6)}


@contextmanager
def _sole_owner(prefix: str) -> Iterator[None]:
    """Hold the interfaces' names against a second node in this network namespace, which would fight over
    them."""
    with owned(master_name(prefix)) as free:
        if not free:
            raise PhantomMeshError(
                f"another node here has the interfaces {prefix}0 to {prefix}6",
                fix="stop it first; or, for a node of a second mesh, set wireguard.prefix and "
                "wireguard.base_port in the config, and the other keys that docs/operations.md has for two "
                "meshes on one host",
            )
        yield


@contextmanager
def _sole_speaker(config: Config) -> Iterator[None]:
    """Hold the mesh's names against a node of a second mesh of the same name here, where this host is told
    of them: each would take the other's out of the hosts file or the resolver."""
    if config.dns.mode == "off":
        yield
        return
    mesh = config.node.mesh
    with held(f"names-{mesh}") as free:
        if not free:
            raise PhantomMeshError(
                f"another node here tells this host of the names of a mesh that is called {mesh}, too",
                fix='stop it first, or set dns.mode = "off" in the config: a mesh is never called another',
            )
        yield
