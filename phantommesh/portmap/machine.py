# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks one gateway to map ports, and keeps the mappings: PCP first, then NAT-PMP, then UPnP. Sans-I/O.

Nothing is asked for more than one port before the gateway has shown that it answers at all. Most do not, and
are tried again seldom. A mapping is renewed at half of its life (RFC 6887, section 11.2.1), and at once where
the gateway's clock shows that it was started anew. An announcement of the gateway's is a reason to ask for
one port, and nothing else: everybody in its network can forge one, and the answer has the clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from math import inf
from random import Random
from typing import Final

from phantommesh.portmap import natpmp, pcp
from phantommesh.portmap.effects import AskUpnp, Changed, Effect, EndUpnp, Send
from phantommesh.portmap.values import NO_ADDRESS, Granted, Method, PortMapError, Refusal, Wanted

# Tuning.
LIFETIME: Final = 1800  # s that are asked for
LONGEST: Final = 7200.0  # s that a grant is taken to last at most
SOONEST: Final = 30.0  # s between a grant and its renewal at least: a gateway may say that it lasts a second
FIRST: Final = 0.25  # s until a question is asked again, then twice as long each time (RFC 6886, section 3.1)
TRIES: Final = 4  # questions without an answer until the next method, or the next renewal
AGAIN: Final = 600.0  # s until a gateway that grants nothing is asked again
REFUSED: Final = 300.0  # s until a port that was refused is asked for again,
SHORT: Final = 60.0  # s the same where the gateway has no address outside: it may not be connected yet
MAX_WANTED: Final = 32  # ports
HEEDED: Final = 5.0  # s between announcements that count: a gateway repeats them
SPREAD: Final = 1.0  # s within which a host asks after an announcement, since all hosts hear it at once
RESTARTED: Final = 2  # s that a gateway's clock may be behind what it should be (RFC 6887, section 8.5)


@dataclass(slots=True)
class _Job:
    """One port. ``due``: when to ask next. ``granted`` holds until ``until``."""

    nonce: bytes
    wish: int
    due: float
    tries: int = 0
    granted: Granted | None = None
    until: float = inf
    result: int = 0


class Mapper:
    """The mappings of one gateway for the host's address ``own``. ``now`` is seconds on a clock that only
    goes forward. ``upnp``: whether its driver can do UPnP."""

    def __init__(self, own: IPv4Address, *, random: Random, now: float, upnp: bool = False) -> None:
        self.dropped: Counter[str] = Counter()
        self.method: Method | None = None  # by which the gateway answers
        self._own, self._random = own, random
        self._methods = [Method.PCP, Method.NAT_PMP, *([Method.UPNP] if upnp else [])]
        self._trying = 0
        self._jobs: dict[Wanted, _Job] = {}
        self._wait = -inf  # until when nothing is asked
        self._address: IPv4Address | None = None  # NAT-PMP's
        self._address_at = -inf  # when it was last asked for
        self._upnp_asked = False
        self._upnp_refused = ""
        self._epoch: tuple[float, int] | None = None
        self._announced = -inf  # when the gateway last was heard to announce itself
        self._told = False  # and no answer has come since

    # --- what is wanted, and what there is ---

    def granted(self, now: float) -> dict[Wanted, Granted]:
        """The mappings that hold."""
        return {
            wanted: job.granted
            for wanted, job in self._jobs.items()
            if job.granted is not None and now < job.until
        }

    @property
    def refused(self) -> Refusal | None:
        """Why the most important port is not mapped that was refused; None where none was."""
        if self.method is None:
            return None
        if self.method is Method.UPNP:
            return Refusal(Method.UPNP, text=self._upnp_refused) if self._upnp_refused else None
        return next((Refusal(self.method, job.result) for job in self._jobs.values() if job.result), None)

    @property
    def tried(self) -> tuple[Method, ...]:
        """The protocols that the gateway is asked by, in their order."""
        return tuple(self._methods)

    def want(self, wanted: Iterable[Wanted], now: float) -> list[Effect]:
        """Have these ports mapped, the most important first, and no others."""
        ports = list(dict.fromkeys(wanted))[:MAX_WANTED]
        effects = list[Effect]()
        for gone in [one for one in self._jobs if one not in ports]:
            effects += self._end(gone, self._jobs.pop(gone))
        before = self._jobs
        self._jobs = {
            one: before.get(one) or _Job(self._random.randbytes(pcp.NONCE_BYTES), one.port, now)
            for one in ports
        }
        return effects + self.tick(now)

    def again(self, now: float) -> list[Effect]:
        """The gateway may be another one, or may have been started anew: ask it now."""
        self._trying, self._wait, self._address, self._epoch = 0, -inf, None, None
        self.method, self._upnp_asked = None, False
        for job in self._jobs.values():
            job.due, job.tries = now, 0
        return self.tick(now)

    def announced(self, datagram: bytes, now: float) -> list[Effect]:
        """Take what a gateway says to all hosts: it was started anew (RFC 6887, section 14.1; RFC 6886,
        section 3.2.1). Never raises."""
        if not (pcp.announcement(datagram) or natpmp.announcement(datagram)):
            self.dropped["portmap-malformed"] += 1
            return []
        if now < self._announced + HEEDED or not self._jobs:
            return []
        self._announced, self._told = now, True
        if self.method not in (Method.PCP, Method.NAT_PMP):
            return self.again(now)
        first = next(iter(self._jobs.values()))
        first.due, first.tries = min(first.due, now + self._random.uniform(0.0, SPREAD)), 0
        return []

    def close(self) -> list[Effect]:
        """End all mappings; one effect each."""
        jobs, self._jobs = self._jobs, {}
        return [effect for wanted, job in jobs.items() for effect in self._end(wanted, job)]

    def _end(self, wanted: Wanted, job: _Job) -> list[Effect]:
        if job.granted is None:
            return []
        match self.method:
            case Method.PCP:
                return [Send(self._pcp(wanted, job, lifetime=0, external=0))]
            case Method.NAT_PMP:
                return [Send(natpmp.ask(wanted.protocol, wanted.port, 0, 0))]
            case Method.UPNP:
                return [EndUpnp(wanted, job.granted)]
            case None:
                return []

    # --- time ---

    @property
    def deadline(self) -> float:
        """When `tick` next has something to do."""
        dues = [max(job.due, self._wait) for job in self._asked()]
        ends = [job.until for job in self._jobs.values() if job.granted is not None]
        return min([*dues, *ends], default=inf)

    def _asked(self) -> list[_Job]:
        """The jobs that may be asked for: one only, until the gateway has answered."""
        if self._upnp_asked:
            return []
        jobs = list(self._jobs.values())
        return jobs if self.method is not None else jobs[:1]

    def tick(self, now: float) -> list[Effect]:
        """Ask what is due, and forget what is over."""
        effects = list[Effect]()
        for job in self._jobs.values():
            if job.granted is not None and now >= job.until:
                job.granted, job.until = None, inf
                effects.append(Changed())
        asked = self._asked()
        for wanted, job in list(self._jobs.items()):
            if job not in asked or now < max(job.due, self._wait):
                continue
            if job.tries >= TRIES:
                if self.method is None:
                    return effects + self._next_method(now)
                self._silent(job, now)
                continue
            if self._methods[self._trying] is Method.UPNP:
                return [*effects, self._ask_upnp()]
            effects += map(Send, self._questions(wanted, job, now))
            job.due, job.tries = now + FIRST * 2**job.tries, job.tries + 1
        return effects

    def _silent(self, job: _Job, now: float) -> None:
        """The gateway answered before and does not now."""
        left = 0.0 if job.granted is None else job.until - now
        job.due, job.tries = now + max(SOONEST, left / 2), 0
        if job.granted is None:
            self.method, self._trying = None, 0  # all is to be found anew

    def _next_method(self, now: float) -> list[Effect]:
        self._trying += 1
        for job in self._jobs.values():
            job.due, job.tries = now, 0
        if self._trying < len(self._methods):
            return self.tick(now)
        self._trying, self._wait = 0, now + AGAIN
        return []

    def _questions(self, wanted: Wanted, job: _Job, now: float) -> list[bytes]:
        """What is asked for a port. NAT-PMP's mappings do not say at which address they are, and the gateway
        may have another since: it is asked for that too, now and then."""
        if self._methods[self._trying] is Method.PCP:
            return [self._pcp(wanted, job, lifetime=LIFETIME, external=self._wish(wanted, job))]
        asked = [natpmp.ask(wanted.protocol, wanted.port, self._wish(wanted, job), LIFETIME)]
        if self._address is not None and now < self._address_at + LIFETIME / 2:
            return asked
        first, self._address_at = self._address is None, now
        return [natpmp.ASK_ADDRESS] if first else [natpmp.ASK_ADDRESS, *asked]

    def _wish(self, wanted: Wanted, job: _Job) -> int:
        """The external port to ask for: the one that there is; for TCP the one that UDP has."""
        if job.granted is not None:
            return job.granted.port
        twins = (j.granted.port for w, j in self._jobs.items() if w.port == wanted.port and j.granted)
        return next(twins, job.wish)

    def _pcp(self, wanted: Wanted, job: _Job, *, lifetime: int, external: int) -> bytes:
        return pcp.MapRequest(job.nonce, self._own, wanted.protocol, wanted.port, external, lifetime).encode()

    # --- answers ---

    def receive(self, datagram: bytes, now: float) -> list[Effect]:
        """Take a datagram that came from the gateway. Never raises."""
        method = self._methods[self._trying]
        try:
            if method is Method.PCP:
                if pcp.other_version(datagram):
                    return self._next_method(now) if self.method is None else []
                return self._take_pcp(pcp.decode_untrusted(datagram), now)
            if method is Method.NAT_PMP:
                return self._take_natpmp(natpmp.decode_untrusted(datagram), now)
        except PortMapError:
            pass
        self.dropped["portmap-malformed"] += 1
        return []

    def _take_pcp(self, answer: pcp.MapAnswer, now: float) -> list[Effect]:
        found = [
            (wanted, job)
            for wanted, job in self._jobs.items()
            if (wanted.protocol, wanted.port, job.nonce) == (answer.protocol, answer.internal, answer.nonce)
        ]
        if not found:
            self.dropped["portmap-unasked"] += 1
            return []
        self._answers(Method.PCP, answer.epoch, now)
        granted = Granted(answer.address, answer.external, float(answer.lifetime))
        return self._settle(found[0][1], granted, answer.result, now)

    def _take_natpmp(self, answer: natpmp.AddressAnswer | natpmp.MapAnswer, now: float) -> list[Effect]:
        if isinstance(answer, natpmp.AddressAnswer):
            if answer.result not in (natpmp.SUCCESS, natpmp.NETWORK_FAILURE):
                return []
            if answer.result or answer.address.is_unspecified:
                return self._nowhere(answer.epoch, now)
            before, self._address = self._address, answer.address
            self._answers(Method.NAT_PMP, answer.epoch, now)
            if before is not None:
                return self._at(answer.address, now) if before != answer.address else []
            for job in self._jobs.values():
                job.due, job.tries = now, 0
            return self.tick(now)
        asked = self._jobs.get(Wanted(answer.protocol, answer.internal))
        if asked is None or self._address is None or not asked.tries:
            self.dropped["portmap-unasked"] += 1
            return []
        if self._answers(Method.NAT_PMP, answer.epoch, now):
            return self.tick(now)  # it may have another address since
        granted = Granted(self._address, answer.external, float(answer.lifetime))
        return self._settle(asked, granted, answer.result, now)

    def _nowhere(self, epoch: int, now: float) -> list[Effect]:
        """NAT-PMP's gateway has no address. What it has mapped may come back with one."""
        self._answers(Method.NAT_PMP, epoch, now)
        self._address = None
        for job in self._jobs.values():
            job.due, job.tries, job.result = now + SHORT, 0, natpmp.NETWORK_FAILURE
        return []

    def _at(self, address: IPv4Address, now: float) -> list[Effect]:
        """The gateway has another address, and its mappings with it."""
        held = [job for job in self._jobs.values() if job.granted is not None and now < job.until]
        for job in held:
            if job.granted is not None:
                job.granted = job.granted._replace(address=address)
        return [Changed()] if held else []

    def _settle(self, job: _Job, granted: Granted, result: int, now: float) -> list[Effect]:
        nowhere = pcp.NETWORK_FAILURE if self.method is Method.PCP else natpmp.NETWORK_FAILURE
        if not result and granted.address.is_unspecified:
            result = nowhere
        before, job.tries, job.result = job.granted, 0, result
        if result or not granted.port or granted.lifetime <= 0:
            job.due = now + (SHORT if result == nowhere else REFUSED)
            return self.tick(now)
        life = min(granted.lifetime, LONGEST)
        job.granted, job.until = granted, now + life
        job.due = now + max(SOONEST, life / 2 * self._random.uniform(0.9, 1.0))
        changed = before is None or (before.address, before.port) != (granted.address, granted.port)
        return [*([Changed()] if changed else []), *self.tick(now)]

    def _answers(self, method: Method, epoch: int, now: float) -> bool:
        """The gateway answers. Where its clock is behind, it was started anew and has lost all mappings:
        return whether it was. A gateway that had just been started shows that only by a clock that began
        when it announced itself."""
        self.method, before = method, self._epoch
        self._epoch, told, self._told = (now, epoch), self._told, False
        if before is None:
            return False
        young = told and epoch <= now - self._announced + RESTARTED
        if not young and epoch >= before[1] + (now - before[0]) * 7 / 8 - RESTARTED:
            return False
        self._address = None
        for job in self._jobs.values():
            job.due, job.tries = min(job.due, now), 0
        return True

    # --- UPnP ---

    def _ask_upnp(self) -> AskUpnp:
        self._upnp_asked = True
        return AskUpnp(
            tuple((wanted, self._wish(wanted, job)) for wanted, job in self._jobs.items()), LIFETIME
        )

    def upnp(self, granted: Mapping[Wanted, Granted], now: float, *, refused: str = "") -> list[Effect]:
        """The driver has asked by UPnP. ``refused``: what the gateway says of a port that it does not map.
        Neither is there where no gateway answers."""
        self._upnp_asked, self._upnp_refused = False, refused
        if not granted and not refused:
            for job in self._jobs.values():
                job.tries = TRIES
                job.due = now
            self.method = None
            return self.tick(now)
        self.method, effects = Method.UPNP, list[Effect]()
        for wanted, job in self._jobs.items():
            if wanted in granted:
                effects += self._settle(job, granted[wanted], 0, now)
            else:
                job.due = now + (SHORT if refused == NO_ADDRESS else REFUSED)
        return effects
