# SPDX-License-Identifier: GPL-3.0-or-later
"""Access rules in the kernel: one table, as the configuration and the members want it, and its counters.

The table is there before the node serves anything. A change of rules replaces the whole table in one
transaction, a change of members or of the host's sockets the elements of its sets. Without a rule that denies
anything there is no table, and packets cost nothing more. The table goes when the interfaces have gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import structlog
import trio

from phantommesh.acl.compiled import Compiled
from phantommesh.acl.ruleset import FAMILY, Ruleset, render, table_name
from phantommesh.acl.standing import Standing, TcpSockets
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Contest, Fault, FaultKind
from phantommesh.nlattr import NetlinkFormatError
from phantommesh.node.access import Situation
from phantommesh.nursery.due import WORK, alive
from phantommesh.nursery.host import tcpsockets
from phantommesh.nursery.host.nft import Fingerprint, NftError, Table
from phantommesh.nursery.host.nftwatch import watch

ACCESS_NOT_HELD = FaultKind("access-rules-not-held", "critical")

# Tuning.
INTERVAL: Final = 10.0  # s between looks when the kernel tells of nothing
MAX_BACKOFF: Final = 30.0  # s between attempts while the table cannot be put in place

log = structlog.get_logger("phantommesh.acl")

Counts = Counter[tuple[str, str]]
"""Packets by whose policy and which rule of it."""


class Rules(Protocol):
    """The table, as `nft.Table` has it. Each method raises NftError only."""

    async def install(self, text: str) -> None: ...

    async def remove(self) -> None: ...

    async def fingerprint(self, *sets: str) -> Fingerprint | None: ...

    async def counters_of(self, *names: str) -> dict[str, dict[bytes, tuple[int, int]]]: ...


class Access:
    """The access rules of one node. ``look`` says what they depend on now. `compiled` is what the kernel
    has, of the `situation`; None before the first time."""

    def __init__(
        self,
        look: Callable[[], Situation],
        device: str,
        names: tuple[str, ...],
        *,
        rules: Rules | None = None,
        sockets: Callable[[bool], TcpSockets] = lambda connections: tcpsockets.read(connections=connections),
    ) -> None:
        self.situation: Situation | None = None
        self.compiled: Compiled | None = None
        self.problem: PhantomMeshError | None = None
        self.contest = Contest()
        self.dropped: Counter[str] = Counter()
        self._look, self._device, self._names = look, device, names
        self._sockets, self._standing, self._blind = sockets, Standing(), False
        self._rules: Rules = rules or Table(FAMILY, table_name(device))
        self._installed: Ruleset | None = None
        self._print: Fingerprint | None = None
        self._clear = False  # whether it is known that there is no table
        self._counted, self._before = Counts(), Counts()
        self._lock, self._kicked = trio.Lock(), trio.Event()

    def kick(self) -> None:
        """Look now: the rules, the members or the kernel's table may have changed."""
        self._kicked.set()

    async def begin(self) -> None:
        """Put the table in place before anything comes. Raises NftError: a node that cannot hold its rules
        does not start."""
        await self.converge()

    async def converge(self) -> None:
        """Put in place what is missing or different, and count. Raises NftError; the table that stood before
        then still stands, or is put back by the next call."""
        async with self._lock:
            now, compiled, wanted = self._look(), self.compiled, self._installed
            if now != self.situation or compiled is None:
                compiled, wanted = await trio.to_thread.run_sync(now.compile), None
            if compiled.idle:
                await self._remove()
            else:
                if wanted is None:
                    wanted = await trio.to_thread.run_sync(render, compiled, self._device, self._names)
                await self._hold(wanted, compiled)
            self.situation, self.compiled = now, compiled

    async def counts(self) -> Counts:
        """The packets that each rule has decided on since the node started. Raises NftError."""
        async with self._lock:
            if self._installed is not None:
                await self._count(self._installed)
            return Counts(self._counted)

    async def run(self) -> None:
        """Keep the table until cancelled. A failure is logged once and tried again; it never ends this."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, {table_name(self._device): self.kick})
            delay = INTERVAL
            while True:
                self._kicked = trio.Event()
                alive(WORK)
                try:
                    await self.converge()
                    delay = INTERVAL
                    if self.problem is not None:
                        log.info("the access rules are held again")
                    self.problem = None
                except NftError as error:
                    if str(self.problem) != str(error):
                        log.error("the access rules are not held", error=str(error), fix=error.fix)
                    self.problem = error
                    delay = min(max(delay if delay < INTERVAL else 0.0, 0.5) * 2, MAX_BACKOFF)
                alive(delay)
                with trio.move_on_after(delay):
                    await self._kicked.wait()

    async def close(self) -> None:
        """Remove the table, when nothing comes by the mesh any more."""
        async with self._lock:
            try:
                await self._remove()
            except NftError as error:
                log.warning("the access rules stay in the kernel", error=str(error))

    def faults(self) -> Iterator[Fault]:
        """What is wrong."""
        if self.problem is not None:
            yield ACCESS_NOT_HELD.fault(
                f"the access rules in the kernel are not those of the configuration: {self.problem}",
                self.problem.fix,
            )

    async def _remove(self) -> None:
        if self._installed is not None:
            await self._count(self._installed)
        if not self._clear:
            await self._rules.remove()
        self._installed, self._clear, self._standing = None, True, Standing()

    async def _hold(self, wanted: Ruleset, compiled: Compiled) -> None:
        held, self._clear = self._installed, False
        if held is not None and await self._seen(held) != self._print:
            self.contest.mended("the access rules", trio.current_time())
            log.warning("somebody else changed the access rules; they are installed again")
            held = self._installed = None
        wanted = wanted.knowing(await self._known(compiled, fresh=held is None))
        if held is not None:
            await self._count(held)
            text = wanted.update(held)
            if text == "":
                return
        else:
            text = None
        try:
            await self._rules.install(wanted.install() if text is None else text)
            if text is None:
                self._before = Counts()
            if held is None:  # what has begun between that look and the table
                wanted, before = wanted.knowing(await self._known(compiled, fresh=True)), wanted
                if more := wanted.update(before):
                    await self._rules.install(more)
        except NftError:
            self._installed = held if text is None else None  # a script that failed has changed nothing
            raise
        self._installed, self._print = wanted, await self._seen(wanted)
        if self._print is None:
            self._installed = None
            raise NftError(
                f"table {wanted.table} is gone as soon as it is made",
                fix="stop the program that flushes the firewall's rules",
            )

    async def _known(self, compiled: Compiled, *, fresh: bool) -> Standing:
        """What is known of the host's sockets; what was known before where the kernel does not tell."""
        try:
            now = await trio.to_thread.run_sync(self._sockets, fresh or bool(self._standing.begun))
        except OSError as error:
            if not self._blind:
                log.warning("the host's TCP sockets cannot be read for the access rules", error=str(error))
            self._blind = True
        else:
            self._blind = False
            self._standing = self._standing.look(now, compiled.addresses, fresh=fresh)
        return self._standing

    async def _seen(self, held: Ruleset) -> Fingerprint | None:
        return await self._rules.fingerprint(*held.members, *held.sets)

    async def _count(self, held: Ruleset) -> None:
        try:
            now = held.count(await self._rules.counters_of(*held.counted))
        except (NftError, NetlinkFormatError):
            return  # it is gone, and what it had counted with it
        fresh = now - self._before
        self._before = now
        self._counted += fresh
        self.dropped["acl-denied"] += sum(packets for rule, packets in fresh.items() if rule in held.denying)
