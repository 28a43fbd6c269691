# SPDX-License-Identifier: GPL-3.0-or-later
"""Bans and shedding in the kernel, and what its sets tell of sources: one table, kept as it should be.

The table is there before the node serves anything, with the bans that the state directory remembers, and it
stays when the node ends: its elements end by themselves. Each look reads the kernel's counters of unknown
sources. A table that somebody removed is found missing by that look, and put back; so is one without its sets
of counted ports. Other rules and sets that somebody changed are found by the next check.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from time import time
from typing import Final, Protocol

import structlog
import trio

from phantommesh.acl import banrules
from phantommesh.acl.banrules import ARRIVED, FAR, HELD, KNOWN, MOST_SOURCES, NEAR, ODD, SHED, Ports, Sender
from phantommesh.acl.bans import (
    OPEN,
    ORIGINS,
    Ban,
    BanError,
    Bans,
    Origin,
    Shield,
    block_of,
    for_kernel,
    parse_network,
)
from phantommesh.acl.threats import Offences, Proof, Threat, ThreatLog
from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError, PhantomMeshError
from phantommesh.faults import Contest, Fault, FaultKind
from phantommesh.nlattr import NetlinkFormatError
from phantommesh.nursery.host.neighbours import Neighbours, look_for, read_neighbours
from phantommesh.nursery.host.nft import Fingerprint, NftError, Table
from phantommesh.nursery.keeping.saver import Patience, Saver
from phantommesh.routable import Network
from phantommesh.state import directory
from phantommesh.state.directory import StateDir

BANS_NOT_HELD = FaultKind("bans-not-held", "high")

EXPIRED: Final = "its time is over"
LIFTED: Final = "an operator lifted it"

_NEIGHBOUR: Final[Proof] = "neighbour"

# Tuning.
LOOK: Final = 0.25  # s between looks at the kernel's counters while strangers send anything
IDLE_LOOK: Final = 0.5  # s between them otherwise; with two looks more a flood is banned within a second
CHECK: Final = 5.0  # s between looks at whether the table is still ours, and at who is never banned
REFRESH: Final = 30.0  # s between looks at who is logged in and such; each ban looks anew by itself
MAX_BACKOFF: Final = 30.0  # s between attempts while the table cannot be put in place
BULK: Final = 100  # datagrams of one neighbour to the control port in one look, from which it is a flood
ROOM: Final = 0.9  # of the places of a set of sources; with fewer free ones it proves nothing
ANSWER: Final = 0.02  # s to wait for a neighbour's answer, which takes a millisecond mostly
MOST_HALVINGS: Final = 32  # of bans some of which nft refuses: two bad ones are found among 4096
MOST_NAMED: Final = 8  # of them in one fault or line of the log
MOST_READS: Final = 3  # of the neighbours' table at one look, each after such a wait
MOST_ASKED: Final = 8  # neighbours whose MAC address is asked for at one look

log = structlog.get_logger("phantommesh.bans")


class Rules(Protocol):
    """The table, as `nft.Table` has it. Each method raises NftError only."""

    async def install(self, text: str) -> None: ...

    async def fingerprint(self, *sets: str) -> Fingerprint | None: ...

    async def counters_of(self, *names: str) -> dict[str, dict[bytes, tuple[int, int]]]: ...


class Surroundings(Protocol):
    """The node and its host, as far as bans depend on them: see `shielding.Shielding`."""

    async def refresh(self) -> None:
        """Read what the host alone knows."""

    def ports(self) -> Ports:
        """What is protected."""

    def known(self) -> Collection[Network]:
        """Whose datagrams are never counted or shed."""

    def shield(self) -> Shield:
        """Who is never banned."""


class Banning:
    """The bans of one node. ``told`` is called with each new threat, ``changed`` with each ban that comes or
    (True) goes, and why."""

    def __init__(
        self, around: Surroundings, state: StateDir, *, rules: Rules | None = None,
        wall: Callable[[], float] = time,
    ) -> None:  # fmt: skip
        self.bans, self.offences, self.log = Bans(), Offences(), ThreatLog()
        self.told: Callable[[Threat], None] = lambda threat: None
        self.changed: Callable[[Ban, bool, str], None] = lambda ban, gone, why: None
        self.problem: PhantomMeshError | None = None
        self.contest = Contest()
        self.dropped: Counter[str] = Counter()
        self.shield = OPEN
        self.rates: dict[str, float] = {ARRIVED: 0.0, ODD: 0.0, SHED: 0.0}
        """Datagrams of unknown sources a second, by what became of them (`banrules`), at the last look."""
        self.shed: float | None = None
        """Datagrams a second of unknown sources that the control port takes; None: all."""
        self.disk = Patience(log, "bans")
        self._around, self._wall = around, wall
        self._state, self._saver = state, Saver(self._write)
        self._rules: Rules = rules or Table(banrules.FAMILY, banrules.table_name(around.ports().device))
        self._installed: Ports | None = None
        self._print: Fingerprint | None = None
        self._in_known: frozenset[Network] = frozenset()
        self._senders: dict[tuple[Sender, int], int] = {}
        self._totals: dict[str, int] = {}
        self._looked = self._checked = self._moved = self._refreshed = float("-inf")
        self._refused: frozenset[Ban] = frozenset()
        self._filled = 0.0
        self._lock = trio.Lock()

    # What others do.

    def blame(self, reason: str, source: Address, proved: bool) -> None:
        """A datagram from this source could not be used. ``proved``: it had a cookie of ours."""
        if source.transport != "via":
            proof: Proof | None = "tcp" if source.transport == "tcp" else "cookie" if proved else None
            self.offences.note(reason, source.host, proof, trio.current_time())

    def blame_stream(self, reason: str, host: str) -> None:
        """A connection from this host could not be used."""
        self.offences.note(reason, host, "tcp", trio.current_time())

    def blame_query(self, reason: str, host: str) -> None:
        """A DNS query from this overlay address was beyond a rate. That is shown; nobody is banned for it."""
        self.offences.note(reason, host, None, trio.current_time())

    async def ban(
        self, network: Network, origin: Origin, seconds: float, why: str, *, kinds: Iterable[str] = (),
        force: bool = False,
    ) -> Ban:  # fmt: skip
        """Ban a network, in the kernel when this returns. Raises BanError and NftError."""
        async with self._lock:
            await self._refresh()
            now, before = self._wall(), self.bans.copy()
            ban = self.bans.add(network, origin, seconds, why, now, self.shield, kinds=kinds, force=force)
            try:
                await self._hold(ban, before)
            except NftError:  # a ban that the kernel does not have is none, here and on disk
                self.bans = before
                self._saver.mark()
                raise
            self.offences.forget(ban.network)
            self._saver.mark()
            log.warning("banned", network=ban.network, by=origin, seconds=round(seconds), why=why)
            self.changed(ban, False, why)
            return ban

    async def plan(
        self, network: Network, origin: Origin, seconds: float, why: str, *, force: bool = False
    ) -> Ban:
        """The ban that `ban` would make. Raises BanError."""
        await self._refresh()
        scratch, now = self.bans.copy(), self._wall()
        scratch.expire(now)
        return scratch.add(network, origin, seconds, why, now, self.shield, force=force)

    async def unban(self, network: Network, why: str = LIFTED) -> list[Ban]:
        """Lift all bans of exactly this network, in the kernel when this returns. Raises NftError."""
        async with self._lock:
            return await self._gone(self.bans.remove(network), why)

    async def lift(self, network: Network, origin: Origin, why: str) -> list[Ban]:
        """Lift the ban of one origin."""
        async with self._lock:
            found = [ban for ban in self.bans.of(origin) if ban.network == str(network)]
            return await self._gone([ban for ban in found if self.bans.end(ban)], why)

    async def drop(self, origin: Origin, why: str) -> list[Ban]:
        """Lift all bans of one origin."""
        async with self._lock:
            return await self._gone(self.bans.drop(origin), why)

    async def limit(self, rate: float | None) -> None:
        """Have the control port take so many datagrams a second of unknown sources; None: all. Raises
        NftError."""
        async with self._lock:
            if self.shed == rate:
                return
            self.shed = rate
            log.warning("a flood is shed" if rate is not None else "nothing is shed any more", rate=rate)
            if self._installed is not None:
                self._installed = self._ports()
                await self._change(banrules.reshed(self._installed))

    async def hits(self) -> dict[tuple[Origin, str], int]:
        """Packets dropped of each banned network, by origin. Raises NftError."""
        counters = await self._rules.counters_of(*HELD)
        return {
            (ban.origin, ban.network): counters[f"{ban.origin}{ban.parsed.version}"].get(first, (0, 0))[0]
            for ban in self.bans
            for first in (ban.parsed.network_address.packed,)
        }

    async def _gone(self, gone: list[Ban], why: str) -> list[Ban]:
        for ban in gone:
            log.info("ban lifted", network=ban.network, by=ban.origin, why=why)
            self.changed(ban, True, why)
        if gone:
            self._saver.mark()
            await self._refill()
        return gone

    async def _hold(self, ban: Ban, before: Bans) -> None:
        """Have a ban in the kernel that was not among those before. Raises NftError where it is not there."""
        added = ban.origin != "operator" and len(self.bans) == len(before) + 1
        if added and self._installed is not None:  # it takes the place of none, and overlaps none
            await self._change(banrules.insert(self._installed.device, [ban], self._wall()))
        else:
            await self._refill()
        if ban in self._refused:
            self._refused -= {ban}
            raise NftError(f"nft refused {ban.network}", fix="ban it in another form, or for a shorter time")

    async def _refill(self) -> None:
        if self._installed is None:
            await self._put()
            return
        self._filled = trio.current_time()
        text = partial(banrules.refill, self._installed.device, self._taken(), self._wall())
        await self._change(await trio.to_thread.run_sync(text))

    def _taken(self) -> list[Ban]:
        """The bans that nft has not refused."""
        return [ban for ban in self.bans if ban not in self._refused] if self._refused else list(self.bans)

    async def _change(self, text: str) -> None:
        """Change the table that is there; one that is gone is made anew by the next look."""
        try:
            await self._rules.install(text)
            self._print = await self._rules.fingerprint(*KNOWN)
        except NftError:
            self._installed = None
            await self._put()

    # The table.

    def load(self) -> None:
        """Take over the bans on disk; what cannot be read is left out. Blocks."""
        if not self._state.has(directory.BANS):
            return
        try:
            self.bans = Bans.decode(self._state.read(directory.BANS), self._wall())
        except (DecodeError, PhantomMeshError) as error:
            self.dropped["bans-damaged"] += 1
            log.warning("bans of before are not known", error=str(error))

    async def begin(self) -> None:
        """Put the table in place with the bans of before. Where that fails, `run` tries again."""
        await trio.to_thread.run_sync(self.load)
        async with self._lock:
            try:
                await self._refresh()
                await self._put()
            except NftError as error:
                self.problem = error
                log.error("bans are not held", error=str(error), fix=error.fix)

    def _ports(self) -> Ports:
        return replace(self._around.ports(), shed=self.shed)

    async def _put(self) -> None:
        ports, known, bans = self._ports(), frozenset(self._around.known()), self._taken()
        self._filled, refused = trio.current_time(), frozenset[Ban]()
        text = partial(banrules.render, ports, bans, known, self._wall())
        try:
            await self._rules.install(await trio.to_thread.run_sync(text))
        except NftError:
            if not bans:
                raise
            # No ban that nft refuses may leave this host without the others, and without the table.
            await self._rules.install(banrules.render(ports, (), known, self._wall()))
            refused = await self._insert_by_parts(ports.device, bans)
        self._print = await self._rules.fingerprint(*KNOWN)
        if self._print is None:
            raise NftError(
                f"table {banrules.FAMILY} {banrules.table_name(ports.device)} is gone as soon as it is made",
                fix="stop the program that flushes the firewall's rules",
            )
        self._installed, self._in_known = ports, known
        self._senders, self._totals = {}, {}
        self.offences.unsettle()  # who sent that is forgotten with the sets of before
        self._refused |= refused
        if refused:
            log.error("nft refused bans", networks=sorted(ban.network for ban in refused)[:MOST_NAMED])

    async def _insert_by_parts(self, device: str, bans: list[Ban]) -> frozenset[Ban]:
        """Put bans into the empty sets, each part that is refused by halves; return those that stay out."""
        refused: list[Ban] = []
        by_origin = ([ban for ban in bans if ban.origin == origin] for origin in ORIGINS)
        parts = [list(for_kernel(mine).values()) for mine in by_origin if mine]
        halvings = MOST_HALVINGS
        while parts:
            part = parts.pop()
            try:
                await self._rules.install(banrules.insert(device, part, self._wall()))
            except NftError:
                if len(part) == 1 or not halvings:
                    refused += part
                    continue
                halvings -= 1
                parts += [part[: len(part) // 2], part[len(part) // 2 :]]
        return frozenset(refused)

    async def _refresh(self) -> None:
        """Look who is never banned, as things are now."""
        self._refreshed = trio.current_time()
        await self._around.refresh()
        self.shield = self._around.shield()

    def offended(self, host: str) -> bool:
        """Whether the block of a host was banned of late, by this node's own evidence."""
        return self.bans.times(block_of(host), self._wall()) > 0

    def shields(self, source: str) -> bool:
        """Whether a source block (as `rates.source_block` has it) is never banned here on another's word."""
        try:
            return bool(self.shield.why(parse_network(source)))
        except BanError:
            return True

    async def run(self) -> None:
        """Look and keep until cancelled. A failure is logged once and tried again; it never ends this."""
        delay = LOOK
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            while True:
                try:
                    async with self._lock:
                        await self._look()
                    quiet = trio.current_time() >= self._moved + banrules.WINDOW
                    delay = IDLE_LOOK if quiet else LOOK
                    if self.problem is not None:
                        log.info("bans are held again")
                    self.problem = None
                except (NftError, NetlinkFormatError, DecodeError) as raised:
                    error = (
                        raised
                        if isinstance(raised, PhantomMeshError)
                        else NftError(str(raised), fix="it is tried again by itself")
                    )
                    if str(self.problem) != str(error):
                        log.error("bans are not held", error=str(error), fix=error.fix)
                    self.problem, self._installed = error, None
                    delay = min(max(delay, LOOK) * 2, MAX_BACKOFF)
                await trio.sleep(delay)

    async def _keep(self) -> None:
        while True:
            await self._saver.marked()
            async with self.disk.patiently():
                await self.save()

    async def save(self) -> None:
        """Write the bans if they have changed. Raises StateError."""
        await self._saver.save()

    async def _write(self) -> None:
        await trio.to_thread.run_sync(self._state.write, directory.BANS, self.bans.encode())

    async def _look(self) -> None:
        now = trio.current_time()
        if self._installed is None:
            await self._put()
        self.offences.settle()  # the kernel has counted all of that
        try:
            counters = await self._rules.counters_of(ARRIVED, ODD, SHED)
            if any(banrules.total(counters[name]) != self._totals.get(name, 0) for name in (ARRIVED, ODD)):
                counters |= await self._rules.counters_of(NEAR, *FAR.values())
        except NftError as error:
            if error.code != errno.ENOENT:
                raise
            await self._mend(now)
            return
        if not all(counters[name] for name in (ARRIVED, ODD, SHED)):  # somebody emptied one of them
            await self._mend(now)
            return
        await self._count(counters, now)
        for threat in self.log.see((*self.offences.bound(now), *self.offences.loose(now)), self._wall()):
            self.told(threat)
        if gone := self.bans.expire(self._wall()):
            for ban in gone:
                self.changed(ban, True, EXPIRED)
            self._saver.mark()
            await self._refill()
        if now >= self._checked + CHECK:
            self._checked = now
            await self._check(now)

    async def _mend(self, now: float) -> None:
        self.contest.mended("the table of bans", now)
        log.warning("somebody else removed or changed the table of bans; it is put back")
        await self._put()

    async def _as_left(self) -> bool:
        """Whether the kernel has the rules, the known sources and the bans that this node put there."""
        if await self._rules.fingerprint(*KNOWN) != self._print:
            return False
        if not (bans := self._taken()):
            return True
        held = await self._rules.counters_of(*HELD)
        return await trio.to_thread.run_sync(partial(banrules.holds, held, bans, self._wall()))

    async def _check(self, now: float) -> None:
        """See whether the table is as it was left, and who is never banned now."""
        if now >= self._refreshed + REFRESH:
            await self._refresh()
        else:
            self.shield = self._around.shield()
        lifted = self.bans.lift(self.shield)
        for ban, why in lifted:
            await self._gone([ban], f"it is {why}")
        if self._ports() != self._installed or not await self._as_left():
            if self._ports() == self._installed:
                await self._mend(now)
            else:
                await self._put()
        elif (known := frozenset(self._around.known())) != self._in_known:
            self._in_known = known
            await self._change(banrules.reknow(self._around.ports().device, known))
            self.offences.unsettle()  # what came from an address while it was known was seen by nobody
        if now >= self._filled + banrules.MOST_TIMEOUT / 2:
            await self._refill()

    # What the kernel has counted.

    async def _count(self, counters: dict[str, dict[bytes, tuple[int, int]]], now: float) -> None:
        took, self._looked = now - self._looked, now
        for name in (ARRIVED, ODD, SHED):
            counted = banrules.total(counters[name])
            fresh = max(0, counted - self._totals.get(name, 0))
            self._totals[name] = counted
            self.rates[name] = fresh / took if 0 < took < float("inf") else 0.0
            if name == SHED:
                self.dropped["flood-shed"] += fresh
        if NEAR not in counters:  # nothing has come
            if now >= self._moved + banrules.WINDOW:
                self._senders = {}  # as the kernel has forgotten them, too
            return
        self._moved = now
        senders: dict[tuple[Sender, int], int] = {}
        for name in (NEAR, *FAR.values()):
            senders |= banrules.read_senders(name, counters[name])
        before, self._senders = self._senders, senders
        fresh_by = {which: n - before.get(which, 0) for which, n in senders.items() if n != before.get(which)}
        proved = frozenset[str]()
        # In a set without room the kernel counts no further sender: then nobody knows who else sends.
        if fresh_by and all(len(counters[name]) < ROOM * MOST_SOURCES for name in (NEAR, *FAR.values())):
            proved = await self._prove({sender for sender, _ in fresh_by}, {sender for sender, _ in senders})
        control, came = self._around.ports().control, Counter[str]()
        for (sender, port), packets in fresh_by.items():
            count = packets if packets > 0 else senders[sender, port]
            block, proof = block_of(sender.host), _NEIGHBOUR if sender.host in proved else None
            if port != control:
                # Another port in the last seconds; a port again counts little.
                self.offences.add(block, "scan", 1.0 if (sender, port) not in before else 0.01, proof, now)
                continue
            came[sender.host] += count
            if count >= BULK and sender.mac:
                self.offences.add(block, "flood", float(count), proof, now)
        for host in proved:
            self.offences.neighbour(block_of(host), came[host], now)

    async def _prove(self, fresh: set[Sender], all_of_late: set[Sender]) -> frozenset[str]:
        """Those of these sources that are neighbours which sent all of this themselves: by the MAC address to
        which an answer would go. An address that is used from elsewhere too proves nothing, and neither does
        one that is known: there the kernel does not look who sends."""
        near = {sender for sender in fresh if sender.mac}
        if not near:
            return frozenset()
        table: Neighbours = await trio.to_thread.run_sync(read_neighbours)
        unknown = [(one.interface, one.host) for one in near if (one.interface, one.host) not in table.macs]
        if unknown:
            await trio.to_thread.run_sync(partial(look_for, unknown[:MOST_ASKED]))
            for _ in range(MOST_READS):
                await trio.sleep(ANSWER)
                table = await trio.to_thread.run_sync(read_neighbours)
                if all(one in table.macs for one in unknown):
                    break
        ways = Counter(sender.host for sender in all_of_late)
        return frozenset(
            sender.host
            for sender in near
            if ways[sender.host] == 1
            and table.sole(sender.interface, sender.host) == sender.mac
            and ip_network(sender.host) not in self._in_known
        )

    def faults(self) -> Iterator[Fault]:
        """What is wrong."""
        if self.problem is not None:
            yield BANS_NOT_HELD.fault(f"nobody is kept out of this host: {self.problem}", self.problem.fix)
        elif self._refused and (out := [ban.network for ban in self.bans if ban in self._refused]):
            yield BANS_NOT_HELD.fault(
                f"nft refused {len(out)} of {len(self.bans)} bans: {', '.join(out[:MOST_NAMED])}",
                "lift them with `phantommesh unban`",
            )
