# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the WireGuard interfaces as desired, whoever changed them: read, compare, apply, read back.

The loop is level-triggered. A restart, a crashed userspace WireGuard, an interface that was deleted and a
rival ``wg set`` are all the same case: what is read differs from what is desired. While nothing moves it
reads seldom (`calm.py`). PSKs that are new, which is all that a link's handshake changes, are written first
and read back then: what is read before that would tell nothing.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from time import time

import trio
from structlog.typing import FilteringBoundLogger

from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Contest, FaultKind
from phantommesh.nursery.dataplane.calm import Calm
from phantommesh.nursery.due import WORK, alive
from phantommesh.nursery.host.backend import Backend
from phantommesh.nursery.host.errors import ApplyError
from phantommesh.wireguard.device import DeviceConfig, DeviceState, Endpoint, PeerConfig, without_ipv6
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff, diff
from phantommesh.wireguard.insisting import Insisting

INTERFACES_MISSING = FaultKind("interfaces-missing", "critical")

INTERFACE_NOT_SET_UP = FaultKind("interface-not-set-up", "high")

MAX_BACKOFF = 20.0
"""Seconds between attempts at most, while the backend fails."""
AGAIN = 1.0
"""Seconds until the second attempt: what fails twice is told."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason why an interface is not as desired, and how many passes in a row found it."""

    error: PhantomMeshError
    times: int


class Reconciler:
    """Drives one backend. ``interval`` is the seconds between passes when nothing kicks it; with ``calm``
    they are more while nothing moves.

    ``on_actual`` is called with what was read, after every read; ``actual`` is the latest. A failure is
    logged with its fix, counted in ``failures``, kept in ``problems`` by interface (empty: nothing can be
    read) until a pass succeeds, and retried with back-off; it never ends ``run``. ``contest`` counts what
    somebody else changed. No peer gets an endpoint that ``forbids``, whatever is desired, or keeps one that
    it roamed to; ``dropped`` counts the former, each once for as long as it stays desired.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        interval: float,
        on_actual: Callable[[Mapping[str, DeviceState]], None],
        log: FilteringBoundLogger,
        forbids: Callable[[Endpoint], bool] = lambda endpoint: False,
        calm: Calm | None = None,
        insisting: Insisting | None = None,
        first: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        self.failures = 0
        self.problems: dict[str, Problem] = {}
        self.contest = Contest()
        self.dropped: Counter[str] = Counter()
        self.actual: Mapping[str, DeviceState] = {}
        self._wanted: Callable[[], Mapping[str, DeviceConfig]] = dict
        self._refused: set[tuple[str, bytes, str]] = set()
        self._renewed: set[tuple[str, bytes]] = set()
        self._forbids = forbids
        self._backend = backend
        self._interval, self._calm = interval, calm
        self._insisting = Insisting() if insisting is None else insisting
        self._first = first
        self._on_actual = on_actual
        self._log = log
        self._applied: dict[str, DeviceConfig] = {}
        self._managed: set[str] = set()
        self._pass = trio.Lock()
        self._kicked, self._news, self._failing = trio.Event(), False, False

    def follow(self, desired: Callable[[], Mapping[str, DeviceConfig]]) -> None:
        """From now on each pass asks this for what is desired, and removes interfaces that are not named
        there. Kick the loop when what is desired has changed: so the change of one peer costs nothing for the
        others until the next pass, which reads all of them."""
        self._wanted = desired
        self.kick()

    @property
    def desired(self) -> dict[str, DeviceConfig]:
        """Return what is desired now, without endpoints that are forbidden."""
        return self._look()[0]

    def _look(self) -> tuple[dict[str, DeviceConfig], set[tuple[str, bytes, str]]]:
        """Return what is desired now, and the endpoints that were left out of it: device, peer's key,
        host."""
        desired, refused = dict(self._wanted()), set[tuple[str, bytes, str]]()
        for name, config in desired.items():
            bad = dict[bytes, PeerConfig]()
            for key, peer in config.peers.items():
                if peer.endpoint is not None and self._forbids(peer.endpoint):
                    bad[key] = replace(peer, endpoint=None)
                    refused.add((name, key, peer.endpoint.host))
            if bad:
                desired[name] = replace(config, peers={**config.peers, **bad})
        return desired, refused

    def kick(self) -> None:
        """Start the next pass now: what is desired may have changed."""
        self._news = True
        self._kicked.set()

    def hear(self) -> None:
        """What is there may have changed, says the kernel: start the next pass now. Passes that fail keep
        their distance, for an attempt that fails changes things itself."""
        if not self._failing:
            self._kicked.set()

    def overslept(self) -> None:
        """This host has slept. Each peer without a session is made anew when it gets its next PSK: the first
        packet after the sleep may have had WireGuard try the old one in vain."""
        self._renewed = {(name, key) for name, device in self.actual.items() for key in device.peers}

    async def resend(self) -> None:
        """This host's addresses are others: have WireGuard send from these. A failure is logged, and mended
        by WireGuard itself some seconds later."""
        async with self._pass:
            try:
                await self._backend.resend(self.actual)
            except PhantomMeshError as error:
                self._log.warning("WireGuard may send from an old address", error=str(error), fix=error.fix)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reconcile until cancelled. Reports started after the first pass, good or bad."""
        started = False
        delay = self._interval
        while True:
            self._kicked = trio.Event()
            alive(WORK)
            before = self.failures
            try:
                await self.converge()
            except PhantomMeshError:
                pass  # logged and counted by converge
            if self.failures == before:
                delay = self._interval if self._calm is None else self._calm.pause
                self._failing = False
            else:
                delay = min(delay * 2, MAX_BACKOFF) if self._failing else min(AGAIN, self._interval)
                self._failing = True
                if not self._news:
                    self._kicked = trio.Event()  # what was heard during the pass was the attempt itself
            if not started:
                task_status.started()
                started = True
            await self._rest(min(delay, self._insisting.pause(trio.current_time())))

    async def _rest(self, seconds: float) -> None:
        """Wait for so long, or for a kick. Meanwhile see whether traffic begins, as often as there would be a
        pass."""
        end = trio.current_time() + seconds
        while True:
            alive(self._interval)
            with trio.move_on_at(min(end, trio.current_time() + self._interval)):
                await self._kicked.wait()
            if self._calm is not None:
                self._calm.look()
            if self._kicked.is_set() or trio.current_time() >= end:
                return

    async def converge(self) -> Mapping[str, DeviceState]:
        """Make one pass now and return what was read at its end.

        An interface that could not be changed is logged, and shows in the result as it is. Raises
        BackendError when nothing could be read.
        """
        async with self._pass:
            desired, refused = self._look()
            self.dropped["endpoint-forbidden"] += len(refused - self._refused)
            self._refused = refused
            if not self._backend.ipv6:
                desired = {name: without_ipv6(config) for name, config in desired.items()}
            names = self._managed | desired.keys()
            await self._first()
            if self._news:
                self._news = False
                changes = self._differences(self.actual, desired)
                if changes and all(map(_only_psks, changes)):
                    self._note(desired, set(await self._apply(changes)))  # what failed is tried again below
            actual = await self._read(names)
            await trio.lowlevel.checkpoint()  # with 100 peers reading and comparing take milliseconds each
            changes = self._differences(actual, desired)
            failed: set[str] = set()
            if changes:
                if self._calm is not None and not all(map(_only_psks, changes)):
                    self._calm.stir()
                failed = self._tell(await self._apply(changes))
                self._note_others(changes, desired, failed)
                actual = await self._read(names)
            self._managed = set(desired) | (names & actual.keys())
            self._note(desired, failed)
            for name in self.problems.keys() - failed:
                del self.problems[name]
                self._log.info("interface is well again", interface=name)
            return actual

    def _differences(
        self, actual: Mapping[str, DeviceState], desired: Mapping[str, DeviceConfig]
    ) -> list[DeviceDiff]:
        return diff(
            actual,
            desired,
            now=time(),
            applied=self._applied,
            forbids=self._forbids,
            insists=self._insisting.insists,
            renews=lambda device, peer: (device, peer) in self._renewed,
        )

    def _note(self, desired: Mapping[str, DeviceConfig], failed: set[str]) -> None:
        """Remember what was applied, which the interfaces that failed have not."""
        self._applied = {
            name: self._applied[name] if name in failed else config
            for name, config in desired.items()
            if name not in failed or name in self._applied
        }

    async def _read(self, names: set[str]) -> dict[str, DeviceState]:
        try:
            actual = await self._backend.devices(names)
        except PhantomMeshError as error:
            self.failures += 1
            self._complain("", error)
            raise
        if self.problems.pop("", None) is not None:
            self._log.info("interfaces can be read again")
        self.actual = actual
        self._on_actual(actual)
        return actual

    def _note_others(
        self, changes: list[DeviceDiff], desired: Mapping[str, DeviceConfig], failed: set[str]
    ) -> None:
        """Count the interfaces that this pass put right although nothing else was desired than before."""
        for change in changes:
            name = change.name
            link = change.create or change.changes_link
            ours = link or change.listen_port is not None or change.private_key is not None
            if ours and name not in failed and name in desired and desired[name] == self._applied.get(name):
                self.contest.mended(f"interface {name}", trio.current_time())

    async def _apply(self, changes: list[DeviceDiff]) -> dict[str, PhantomMeshError]:
        """Create and change; return the names that failed, and why."""
        failures: dict[str, PhantomMeshError] = {}

        async def create(change: DeviceDiff) -> None:
            try:
                await self._backend.create(change.name, change.mtu or 0)
            except PhantomMeshError as error:
                failures[change.name] = error

        # Seen through even while the node leaves: a half-made interface would stay for ever.
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for change in changes:
                    if change.create:
                        nursery.start_soon(create, change)
        try:
            await self._backend.apply([change for change in changes if change.name not in failures])
        except ApplyError as error:
            failures.update(error.failures)
        made = [change for change in changes if change.name not in failures]
        self._insisting.applied(made, self.actual, trio.current_time())
        self._renewed.difference_update(
            (one.name, peer.public_key) for one in made for peer in one.peers if peer.create
        )
        for change in changes:
            if change.name not in failures:
                self._log.debug("interface changed", interface=change.name, peers=len(change.peers))
        return failures

    def _tell(self, failures: Mapping[str, PhantomMeshError]) -> set[str]:
        """Keep and count these failures; return the names."""
        for name, failure in failures.items():
            self._complain(name, failure)
        self.failures += bool(failures)
        return set(failures)

    def _complain(self, name: str, error: PhantomMeshError) -> None:
        """Keep a failure, and log it once for as long as it stays the same."""
        before = self.problems.get(name)
        same = before is not None and str(before.error) == str(error)
        self.problems[name] = Problem(error, before.times + 1 if before is not None and same else 1)
        if not same:
            self._log.warning("interface not as desired", interface=name, error=str(error), fix=error.fix)


def _only_psks(change: DeviceDiff) -> bool:
    """Whether a change gives peers that are there other preshared keys, and does nothing else."""
    return change == DeviceDiff(change.name, peers=change.peers) and all(
        peer.psk is not None and peer == PeerDiff(peer.public_key, psk=peer.psk, config=peer.config)
        for peer in change.peers
    )
