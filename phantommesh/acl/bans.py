# SPDX-License-Identifier: GPL-3.0-or-later
"""Bans with expiry: which networks are kept out of this host, by whom, until when; and who never is. Pure.

A ban has an `Origin`: ``own`` (this node's own evidence), ``hinted`` (own evidence that was enough only
because other members had warned) or ``operator``. The kernel has a set for each, so that one can be dropped
whole. Own bans grow by repetition (`step_of`). All times are Unix seconds: bans outlive a restart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Final, Literal, get_args

import msgspec

from phantommesh.errors import DecodeError, PhantomMeshError
from phantommesh.rates import source_block
from phantommesh.routable import Network, Places

Origin = Literal["own", "operator", "hinted"]
ORIGINS: Final[tuple[Origin, ...]] = get_args(Origin)

# Tuning.
STEPS: Final = (600.0, 3600.0, 21_600.0, 86_400.0)
"""Seconds of an offender's first ban, its second, and so on: ten minutes outlast a scan, and a day is what a
dynamic address usually stays with one household."""
FORGIVEN: Final = 7 * 86_400.0  # s after the end of a ban in which another counts as a repetition
LONGEST: Final = 10 * 365 * 86_400.0  # s; an operator's ban
MOST: Final[Mapping[Origin, int]] = {"own": 4096, "operator": 1024, "hinted": 256}
"""Bans of each origin. Own and hinted ones beyond make that one give way which ends first."""
MOST_OFFENDERS: Final = 8192  # blocks whose earlier bans are remembered
NARROWEST_6: Final = 64  # a host owns its whole /64
MAX_STATE: Final = 4 * 1024 * 1024  # bytes of the file


class BanError(PhantomMeshError):
    """A ban that cannot be."""


class Ban(msgspec.Struct, frozen=True, kw_only=True):
    """One ban. ``kinds`` are those of its evidence, ``times`` how often the network was banned, this time
    included."""

    network: str
    origin: Origin
    since: float
    until: float
    why: str
    kinds: tuple[str, ...] = ()
    times: int = 1

    @property
    def parsed(self) -> Network:
        """The network."""
        return _parsed(self.network)


@lru_cache(maxsize=8192)  # as many as there may be bans
def _parsed(text: str) -> Network:
    return ip_network(text)


class Offender(msgspec.Struct, frozen=True):
    """How often a block was banned, and when its last ban ends or ended."""

    times: int
    until: float


class _State(msgspec.Struct):
    bans: list[Ban] = []
    offenders: dict[str, Offender] = {}


def block_of(host: str) -> str:
    """The network that a ban of this host covers: an IPv4 address, or the /64 that a host of IPv6 owns."""
    block = source_block(host)
    return f"{block}/64" if ":" in block else f"{block}/32"


def parse_network(text: str) -> Network:
    """Read what an operator wants to ban: an address, or a network. An IPv6 address stands for its /64.
    Raises BanError."""
    if "%" in text:  # Python takes any text there, and puts it out again
        raise BanError("a scope (after %) is of one link, and bans are not", fix="leave it out")
    try:
        if "/" not in text:
            return ip_network(block_of(str(ip_address(text.strip("[]")))))
        network = ip_network(text, strict=False)
    except ValueError:
        raise BanError(
            "this is neither an address nor a network",
            fix="give one like 192.0.2.7, 192.0.2.0/24 or 2001:db8::/64",
        ) from None
    if network.version == 6 and network.prefixlen > NARROWEST_6:
        return network.supernet(new_prefix=NARROWEST_6)
    if network.prefixlen == 0:
        raise BanError("this would ban everybody", fix="give a narrower network")
    return network


class Shield:
    """Networks that are never banned, each with the reason. Those of members' observed addresses are banned
    by an operator's word only: whatever comes from there, a stranger may have sent
    (docs/decisions/0077-bans.md).
    """

    def __init__(self, always: Iterable[tuple[Network, str]], members: Iterable[tuple[Network, str]]) -> None:
        self._always: Places[str] = Places(always)
        self._members: Places[str] = Places(members)

    def why(self, network: Network) -> str:
        """Why this network is not to be banned on this node's own evidence; empty where it may be."""
        return self.always(network) or next(iter(self._members.meeting(network)), "")

    def always(self, network: Network) -> str:
        """Why this network is not to be banned by anybody; empty where it may be."""
        return next(iter(self._always.meeting(network)), "")

    def of_member(self, network: Network) -> bool:
        """Whether a member is, or was just, at an address of this network."""
        return self._members.meets(network)


OPEN: Final = Shield((), ())


def step_of(times: int) -> float:
    """The seconds of an offender's ban, the ``times``-th (from 1)."""
    return STEPS[min(times, len(STEPS)) - 1]


class Bans:
    """The bans that stand, and the offenders of the last days. Bounded (`MOST`, `MOST_OFFENDERS`)."""

    def __init__(self) -> None:
        self._bans: dict[Origin, OrderedDict[str, Ban]] = {origin: OrderedDict() for origin in ORIGINS}
        self._offenders: OrderedDict[str, Offender] = OrderedDict()

    def __iter__(self) -> Iterator[Ban]:
        """All, by origin."""
        return (ban for origin in ORIGINS for ban in self._bans[origin].values())

    def __len__(self) -> int:
        return sum(map(len, self._bans.values()))

    def copy(self) -> Bans:
        """What there is now, for whoever may have to go back to it."""
        found = Bans()
        found._bans = {origin: bans.copy() for origin, bans in self._bans.items()}
        found._offenders = self._offenders.copy()
        return found

    def of(self, origin: Origin) -> list[Ban]:
        """Those of one origin."""
        return list(self._bans[origin].values())

    def get(self, network: str) -> Ban | None:
        """The ban of exactly this network that ends last."""
        found = [self._bans[origin][network] for origin in ORIGINS if network in self._bans[origin]]
        return max(found, key=lambda ban: ban.until, default=None)

    def times(self, block: str, now: float) -> int:
        """How often a block was banned of late by this node's own evidence."""
        found = self._offenders.get(block)
        return 0 if found is None or now > found.until + FORGIVEN else found.times

    def add(
        self, network: Network, origin: Origin, seconds: float, why: str, now: float, shield: Shield, *,
        kinds: Iterable[str] = (), force: bool = False,
    ) -> Ban:  # fmt: skip
        """Ban a network, or have it banned for longer. ``force`` bans also what is never banned. Raises
        BanError."""
        text, kinds = str(network), tuple(sorted(set(kinds)))
        if not 0 < seconds <= LONGEST:
            raise BanError("a ban lasts more than no time and at most ten years", fix="give another time")
        if origin != "operator" and not narrow(network):
            raise BanError(f"{text} is wider than one source", fix="")
        refused = shield.always(network) if origin == "operator" else shield.why(network)
        if refused and not force:
            one = network.prefixlen in (network.max_prefixlen, NARROWEST_6)
            fix = "give another address" if one else "narrow the network"
            raise BanError(
                f"{text} is never banned: {refused}",
                fix=f"{fix} (`phantommesh threats` has those that attack); --force bans it all the same",
            )
        bans = self._bans[origin]
        if text not in bans and len(bans) >= MOST[origin]:
            if origin == "operator":
                raise BanError(
                    f"there are {MOST[origin]} bans already", fix="lift some, or ban wider networks"
                )
            del bans[min(bans, key=lambda key: bans[key].until)]
        before, times = bans.get(text), 1
        if origin != "operator":
            standing = before is not None and now < before.until
            times = max(1, self.times(text, now) + (0 if standing else 1))
            self._remember(text, times, now + seconds)
        since = now if before is None else before.since
        ban = bans[text] = Ban(
            network=text, origin=origin, since=since, until=now + seconds, why=why, kinds=kinds, times=times
        )
        return ban

    def _remember(self, block: str, times: int, until: float) -> None:
        self._offenders.pop(block, None)
        self._offenders[block] = Offender(min(times, 1000), until)
        if len(self._offenders) > MOST_OFFENDERS:
            self._offenders.popitem(last=False)

    def remove(self, network: Network) -> list[Ban]:
        """Lift all bans of exactly this network, and forget that it offended: an operator said so."""
        self._offenders.pop(str(network), None)
        return [bans.pop(str(network)) for bans in self._bans.values() if str(network) in bans]

    def drop(self, origin: Origin) -> list[Ban]:
        """Lift all bans of one origin."""
        gone, self._bans[origin] = list(self._bans[origin].values()), OrderedDict()
        return gone

    def lift(self, shield: Shield) -> list[tuple[Ban, str]]:
        """Lift own and hinted bans of what is never banned, as things are now; with the reasons. That they
        offended is remembered: who is there now did not send what was sent before, or it did."""
        found = [
            (ban, why)
            for origin in ("own", "hinted")
            for ban in self._bans[origin].values()
            if (why := shield.why(ban.parsed))
        ]
        for ban, _ in found:
            self.end(ban)
        return found

    def end(self, ban: Ban) -> bool:
        """Lift one ban, if it still stands as it is."""
        if self._bans[ban.origin].get(ban.network) != ban:
            return False
        del self._bans[ban.origin][ban.network]
        return True

    def expire(self, now: float) -> list[Ban]:
        """Forget the bans that are over, and offenders long forgiven."""
        gone = [ban for ban in self if now >= ban.until]
        for ban in gone:
            self.end(ban)
        for block in [b for b, o in self._offenders.items() if now > o.until + FORGIVEN]:
            del self._offenders[block]
        return gone

    def encode(self) -> bytes:
        """The bytes to keep."""
        return msgspec.json.encode(_State(list(self), dict(self._offenders)))

    @classmethod
    def decode(cls, data: bytes, now: float) -> Bans:
        """Read what was kept. Raises DecodeError."""
        try:
            if len(data) > MAX_STATE:
                raise DecodeError("the file of bans is too large")
            state, found = msgspec.json.decode(data, type=_State), cls()
            for ban in state.bans:
                if str(ban.parsed) != ban.network or "%" in ban.network or not ban.until < float("inf"):
                    raise DecodeError("a ban of what is no network")
                if now < ban.until and len(found._bans[ban.origin]) < MOST[ban.origin]:
                    found._bans[ban.origin][ban.network] = ban
            for block, offender in list(state.offenders.items())[-MOST_OFFENDERS:]:
                ip_network(block)
                found._offenders[block] = offender
        except (msgspec.MsgspecError, ValueError, UnicodeDecodeError, RecursionError) as error:
            raise DecodeError("the file of bans is damaged") from error
        found.expire(now)
        return found


def for_kernel(bans: Iterable[Ban]) -> dict[str, Ban]:
    """Of one origin's bans, those to put into a set that takes no overlapping networks: the widest of each.
    A narrower one that lasts longer comes when the wider one is over."""
    found: dict[str, Ban] = {}
    wider: dict[tuple[int, int], set[int]] = {}
    for ban in sorted(bans, key=lambda ban: ban.parsed.prefixlen):
        network = ban.parsed
        value, bits = int(network.network_address), network.max_prefixlen
        held = any(
            value >> bits - length in places
            for (version, length), places in wider.items()
            if version == network.version and length <= network.prefixlen
        )
        if not held:
            place = wider.setdefault((network.version, network.prefixlen), set())
            place.add(value >> bits - network.prefixlen)
            found[ban.network] = ban
    return found


def narrow(network: Network) -> bool:
    """Whether a network is a block (`block_of`): an IPv4 address, or a /64."""
    return network.prefixlen == (NARROWEST_6 if network.version == 6 else network.max_prefixlen)
