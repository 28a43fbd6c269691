# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the guard's tables in the kernel as they should be, and counts what they drop.

The tables are there before the first interface and stay when the node ends. While it runs, the kernel tells
of each change to them, so that `nft flush ruleset` by another program is mended at once.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Final

import structlog
import trio

from phantommesh.config.sections import Config, RoutesSection
from phantommesh.dimensions import interface_names, master_name
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Contest, Fault, FaultKind
from phantommesh.nftables.reversepath import is_strict
from phantommesh.nlattr import NetlinkFormatError
from phantommesh.node.routes import sites
from phantommesh.nursery.due import WORK, alive
from phantommesh.nursery.host.nft import Fingerprint, NftError, Table
from phantommesh.nursery.host.nftwatch import watch
from phantommesh.nursery.overlay.holding import Overlay
from phantommesh.overlay import guard
from phantommesh.overlay.guard import ARP_FAMILY, DROPS, FAMILY, Guard, Visited
from phantommesh.scatter.ruleset import table_name as scatter_table
from phantommesh.wireguard.device import Network
from phantommesh.wireguard.fits import Fitted, short_segments

UNGUARDED = FaultKind("overlay-unguarded", "critical")
IPV6_DROPPED = FaultKind("ipv6-dropped", "high")

# Tuning.
INTERVAL: Final = 10.0  # s between looks when the kernel tells of nothing
MAX_BACKOFF: Final = 30.0  # s between attempts while the tables cannot be put in place

OTHER: Final = (
    "firewalld"  # a table that drops IPv6 which comes by another interface than its answers leave by
)

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOENT, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)

log = structlog.get_logger("phantommesh.guard")


@dataclass(slots=True)
class _Installed:
    """One table as it was left."""

    text: str
    seen: Fingerprint
    counted: Counter[str]


class Guarding:
    """The guard of one node. ``want`` says what it should be now; ``problem`` why it is not. ``flushed`` is
    called when the kernel tells that the rules of the table ``beside``, which another service keeps, were
    changed. ``others`` are the networks of other meshes that the rules in place keep to what is allowed;
    ``joined`` is called when they have changed. ``quarantined`` are the addresses that the rules in place
    keep to probes."""

    def __init__(
        self, want: Callable[[], Guard], *, beside: str = "", flushed: Callable[[], None] = lambda: None,
        joined: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.others: tuple[IPv6Network, ...] = ()
        self.quarantined: frozenset[IPv4Address | IPv6Address] = frozenset()
        self._joined = joined
        self.problem: PhantomMeshError | None = None
        self.drops_ipv6 = False  # another program's rules drop what comes over the mesh by IPv6
        self.contest = Contest()
        self.dropped: Counter[str] = Counter()
        self._want, self._beside, self._flushed = want, beside, flushed
        self._installed: dict[str, _Installed] = {}
        self._without: set[str] = set()  # families that this kernel does not have
        self._lock = trio.Lock()
        self._kicked = trio.Event()

    def kick(self) -> None:
        """Look now: what is wanted, or the kernel's table, may have changed."""
        self._kicked.set()

    async def converge(self) -> None:
        """Put in place what is missing or different, and count what was dropped. Raises NftError; a table
        that stood before then still stands."""
        async with self._lock:
            want = self._want()
            try:
                await self._keep(FAMILY, want.table, guard.render(want))
            except NftError:
                self._join(())  # what is in place is not known
                self.quarantined = frozenset()
                raise
            self._join(want.others)
            self.quarantined = frozenset(want.quarantined)
            if ARP_FAMILY not in self._without:
                try:
                    await self._keep(ARP_FAMILY, want.table, guard.render_arp(want))
                except NftError as error:
                    if error.code not in _UNSUPPORTED:
                        raise
                    self._without.add(ARP_FAMILY)
                    log.info("this kernel has no ARP rules: neighbours can ask for overlay addresses")

    def _join(self, others: tuple[IPv6Network, ...]) -> None:
        if self.others != others:
            self.others = others
            self._joined()

    async def run(self) -> None:
        """Keep the tables until cancelled. A failure is logged once and tried again; it never ends this."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            delay = INTERVAL
            while True:
                self._kicked = trio.Event()
                alive(WORK)
                try:
                    await self.converge()
                    delay = INTERVAL
                    if self.problem is not None:
                        log.info("the overlay is guarded again")
                    self.problem = None
                    self.drops_ipv6 = await self._look_beside()
                except NftError as error:
                    if str(self.problem) != str(error):
                        log.error("the overlay is not guarded", error=str(error), fix=error.fix)
                    self.problem = error
                    delay = min(max(delay if delay < INTERVAL else 0.0, 0.5) * 2, MAX_BACKOFF)
                alive(delay)
                with trio.move_on_after(delay):
                    await self._kicked.wait()

    async def _look_beside(self) -> bool:
        try:
            found = is_strict(await Table(FAMILY, OTHER).rules(), OTHER)
        except (NftError, NetlinkFormatError):
            return False
        if found and not self.drops_ipv6:
            log.warning("another packet filter drops the mesh's IPv6", table=OTHER)
        return found

    def faults(self) -> Iterator[Fault]:
        """What is wrong."""
        if self.problem is not None:
            yield UNGUARDED.fault(f"the overlay is open to neighbours: {self.problem}", self.problem.fix)
        if self.drops_ipv6:
            yield IPV6_DROPPED.fault(
                "firewalld drops IPv6 from the mesh: it comes by other interfaces than its answers leave by",
                "set IPv6_rpfilter=loose in /etc/firewalld/firewalld.conf (before firewalld 2.2: no), and "
                "run `firewall-cmd --complete-reload`",
            )

    async def _keep(self, family: str, name: str, text: str) -> None:
        table, known = Table(family, name), self._installed.get(family)
        seen = await table.fingerprint()
        if known is None or known.text != text or known.seen != seen:
            if known is not None and known.text == text:
                self.contest.mended("the guard's rules", trio.current_time())
                log.warning(
                    "somebody else changed the guard's rules; they are installed again", family=family
                )
            await table.install(text)
            seen = await table.fingerprint()
            if seen is None:
                raise NftError(
                    f"table {family} {name} is gone as soon as it is made",
                    fix="stop the program that flushes the firewall's rules",
                )
            known = self._installed[family] = _Installed(text, seen, Counter())
        now = Counter(guard.read_drops(await table.counters(DROPS)))
        self.dropped += now - known.counted
        known.counted = now

    async def _watch(self) -> None:
        """Look whenever the kernel tells of a change to a table of ours that is no element's."""
        await watch({self._want().table: self.kick, self._beside: self._flushed})


def make_guarding(
    config: Config, addresses: Callable[[], tuple[IPv4Address, IPv6Address]],
    ports: Callable[[], tuple[int, ...]], overlay: Overlay, fits: Callable[[], Iterable[Fitted]], *,
    beyond: Callable[[], tuple[Network, ...]], beside: Callable[[], tuple[Network, ...]],
    carriers: Callable[[], tuple[tuple[Network, IPv4Address | IPv6Address], ...]],
    routes: Callable[[], tuple[Network, ...]], around: Callable[[], tuple[Network, ...] | None],
    settings: Callable[[], RoutesSection], visited: Callable[[], Visited], flushed: Callable[[], None],
    joined: Callable[[], None], quarantined: Callable[[], tuple[IPv4Address | IPv6Address, ...]],
) -> Guarding:  # fmt: skip
    """Make the guard of a node, which has these overlay addresses and these WireGuard ports; ``fits`` says
    how large packets to the peers may be, ``beyond`` which prefixes it takes of others, ``carriers`` at which
    addresses, ``beside`` what stays the host's beside an exit, ``routes`` which prefixes it routes for
    others, ``settings`` how, ``around`` the networks that are no part of a default route of these, and
    ``visited`` who of other meshes may send here, and ``quarantined`` with which addresses nothing but probes
    is exchanged."""
    wireguard = config.wireguard
    master = master_name(wireguard.prefix)

    def want() -> Guard:
        routed, section, (others, visitors) = routes(), settings(), visited()
        return Guard(
            master,
            interface_names(wireguard.prefix),
            addresses(),
            overlay.routed,
            config.control.port,
            ports(),
            config.guard.forward,
            short_segments(fits()) if config.guard.forward or routed else (),
            beyond(),
            carriers(),
            routed,
            tuple(sites(section).items()),
            not section.masquerade,
            beside(),
            around(),
            others,
            visitors,
            quarantined(),
            config.paths.port,
        )

    return Guarding(want, beside=scatter_table(master), flushed=flushed, joined=joined)
