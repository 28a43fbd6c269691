# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges what the agents do on the simulated day, by a table of its own and by what is true.

The bounds are written down here again, from the agents' docstrings and the issue, and none is imported: an
agent, or APEX, that loses a bound does not take it from here, too. An **oscillation** is an action that
ended, or was replaced, and was done again the same by the same agent on the same subject within twice the
cool-down of its kind, or `FINDING` for kinds that have none. An action that is done once oscillates where it
is done again within that time. What could not be carried out was not done, and may be tried again. Where the
trouble itself came again meanwhile, the action is a **repetition**, and counted as that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from ipaddress import ip_network
from math import inf
from typing import Final, assert_never

from phantommesh.agents.actions import (
    Action,
    Ban,
    Cover,
    Deal,
    Drain,
    Mend,
    Pin,
    Quarantine,
    Raise,
    Renew,
    ReplaceKey,
    Restart,
    Rotate,
    Shed,
    Throttle,
    Tune,
    Weigh,
)
from phantommesh.agents.base import Proposal
from tests.simulation.day_world import HOP, Machine, World, private

FINDING: Final = 60.0  # s
LEAD: Final = 10.0  # s that the end of an action may come after the trouble's next beginning
COOL_DOWN: Final[dict[type, float]] = {
    Ban: 0.0, Shed: 10.0, Throttle: 30.0, Raise: 0.0, Mend: 300.0, Rotate: 30.0, ReplaceKey: 300.0,
    Renew: 300.0, Quarantine: 30.0, Weigh: 10.0, Deal: 10.0, Pin: 10.0, Cover: 10.0, Tune: 10.0, Drain: 0.0,
    Restart: 30.0,
}  # fmt: skip
ONCE: Final = (Mend, Rotate, ReplaceKey, Renew, Restart)
WHO: Final[dict[type, frozenset[str]]] = {
    Ban: frozenset({"fortress"}), Shed: frozenset({"fortress"}), Throttle: frozenset({"fortress"}),
    Mend: frozenset({"aegis"}), Rotate: frozenset({"cipher"}), ReplaceKey: frozenset({"cipher", "phantom"}),
    Renew: frozenset({"cipher"}), Quarantine: frozenset({"cipher"}),
    Weigh: frozenset({"velocity", "phantom"}), Deal: frozenset({"velocity", "stream"}),
    Pin: frozenset({"stream"}), Cover: frozenset({"phantom"}), Tune: frozenset({"genesis", "phantom"}),
    Drain: frozenset({"nexus"}), Restart: frozenset({"omniscient"}),
}  # fmt: skip
TUNED: Final = {"paths.probe_seconds": (0.05, 0.4)}
SEVERITIES: Final = ("low", "medium", "high", "critical")


class Referee:
    """What was found of all machines. ``outside``: actions outside their bounds, each with what was wrong."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.outside: list[str] = []
        self.false_bans: list[str] = []
        self.oscillations: list[str] = []
        self.oscillated = Counter[str]()
        self.repeated = Counter[str]()
        self.busiest: dict[str, int] = {}
        """By agent, the most actions that one subject of one machine had in an hour."""
        self._hour: Counter[tuple[int, str, str]] = Counter()
        self._hours = 0.0
        self._ended: dict[tuple[int, str, str], tuple[Action, float]] = {}
        self._stands: dict[tuple[int, str, str], Action] = {}
        self._tokens: dict[tuple[int, str], tuple[float, float]] = {}
        self._hops: dict[int, float] = {}  # by machine, when PHANTOM replaced a key last
        self._rotations: dict[tuple[int, str], list[float]] = defaultdict(list)

    def restarted(self, one: Machine) -> None:
        """A machine's node begins anew: nothing of before stands."""
        for table in (self._ended, self._stands, self._tokens, self._rotations):
            for key in [key for key in table if key[0] == one.number]:
                del table[key]  # type: ignore[arg-type]

    def did(self, one: Machine, proposal: Proposal) -> None:
        """An action was accepted, and is being carried out."""
        now, action, agent = self._world.now, proposal.action, proposal.agent
        if wrong := self._wrong(one, proposal):
            self.outside.append(f"{one.name} {agent} {proposal.subject}: {wrong} ({proposal.why})")
        where = one.number, agent, str(proposal.subject)
        if now >= self._hours + 3600.0:
            self._hours, self._hour = now, Counter()
        self._hour[where] += 1
        self.busiest[agent] = max(self.busiest.get(agent, 0), self._hour[where])
        window = 2 * COOL_DOWN[type(action)] or FINDING
        once = isinstance(action, ONCE)
        if not once and where in self._stands and not _same(self._stands[where], action):
            self._ended[where] = self._stands[where], now  # replaced
        before = self._ended.get((*where[:2], f"{where[2]} {type(action).__name__}") if once else where)
        if before is not None and _same(before[0], action) and now < before[1] + window:
            if self._anew(one, proposal, before[1]):
                self.repeated[agent] += 1
            else:
                self.oscillated[agent] += 1
                self.oscillations.append(
                    f"{one.name} {agent} {proposal.subject}: {action} again after {now - before[1]:.1f} s"
                )
        if once:
            self._ended[*where[:2], f"{where[2]} {type(action).__name__}"] = action, now
        else:
            self._stands[where] = action

    def failed(self, one: Machine, proposal: Proposal) -> None:
        """The action could not be carried out."""
        subject, name = str(proposal.subject), type(proposal.action).__name__
        self._stands.pop((one.number, proposal.agent, subject), None)
        self._ended.pop((one.number, proposal.agent, f"{subject} {name}"), None)

    def lifted(self, one: Machine, proposal: Proposal) -> None:
        """A lasting action has ended."""
        where = one.number, proposal.agent, str(proposal.subject)
        if where in self._stands and _same(self._stands[where], proposal.action):
            del self._stands[where]
            self._ended[where] = proposal.action, self._world.now

    def _anew(self, one: Machine, proposal: Proposal, ended: float) -> bool:
        """Whether what the action is about came again by itself since shortly before the action's end."""
        now, action = self._world.now, proposal.action
        if isinstance(action, Weigh) and one.session is not None:
            return any(
                ill.dimension == action.dimension and ended - LEAD <= ill.since <= now
                for ill in one.session.ills
            )
        if isinstance(action, Cover) and one.session is not None and one.session.peer == int(action.peer):
            return one.session.began >= ended - LEAD
        return one.befell.get(proposal.agent, 0.0) >= ended - LEAD

    # Bounds.

    def _wrong(self, one: Machine, proposal: Proposal) -> str:
        now, action = self._world.now, proposal.action
        left, at = self._tokens.get((one.number, proposal.agent), (64.0, now))
        left = min(64.0, left + 2.0 * (now - at)) - 1.0
        self._tokens[one.number, proposal.agent] = left, now
        who = WHO.get(type(action))
        if left < -1e-6:
            return "more than two actions a second"
        if who is not None and proposal.agent not in who:
            return "another agent's action"
        if not proposal.evidence or not now < proposal.until <= now + 86_400.0:
            return "no evidence, or no end"
        if proposal.agent == "phantom" and isinstance(action, Cover | ReplaceKey):
            return self._hidden(one, action)
        return self._bounds(one, action)

    def _hidden(self, one: Machine, action: Cover | ReplaceKey) -> str:
        """PHANTOM covers private traffic, and replaces one key after another where it was asked to."""
        now = self._world.now
        if isinstance(action, Cover):
            peer = int(action.peer)
            used = one.session is not None and one.session.peer == peer
            used = used or (one.ended[0] == peer and now <= one.ended[1] + 31.0)
            fits = 0.0 <= action.bytes_per_s <= 8000.0 and private(one, self._world.machines[peer])
            return "" if fits and used and len(one.covered) < 16 else "cover that nobody needs, or too much"
        before = self._hops.get(one.number, -inf)
        self._hops[one.number] = now
        asked = one.number % 4 == 0 and 0 <= action.dimension <= 6
        fits = asked and now - one.keys[action.dimension] > HOP and now - before >= 599.0
        return "" if fits else "a key is replaced that is young, or too soon after another"

    def _bounds(self, one: Machine, action: Action) -> str:  # a table
        world, now = self._world, self._world.now
        match action:
            case Ban(text, seconds):
                network = ip_network(text)
                host = str(network.network_address)
                if host not in world.attackers or world.member_at(host):
                    self.false_bans.append(f"{one.name} bans {text}")
                single = network.prefixlen == (32 if network.version == 4 else 64)
                return "" if single and 0 < seconds <= 86_400 else f"a ban of {text} for {seconds} s"
            case Shed(rate):
                return "" if rate >= 10 and one.floods[0] <= now <= one.floods[1] + 31 else "no flood is shed"
            case Throttle(address, rate):
                return "" if rate >= 1 and address in one.asks else f"{address} is throttled"
            case Raise(rule, severity, text, fix):
                fits = rule and text and severity in SEVERITIES and max(len(text), len(fix)) <= 300
                return "" if fits else "a finding that says nothing, or too much"
            case Mend():
                return "" if one.open_file else "there is nothing to mend"
            case Rotate(peer):
                return self._rotation(one, world.machines[int(peer)])
            case ReplaceKey(dimension):
                late = 0 <= dimension <= 6 and now - one.keys[dimension] > 86_400
                return "" if late else "a key is replaced that is young"
            case Renew():
                return "" if now > one.certificate else "a certificate is renewed that is good"
            case Quarantine(peer, seconds):
                age = world.psk_age(one, world.machines[int(peer)])
                stale = age is not None and age >= 180.0 and 0 < seconds <= 3600
                return "" if stale else f"a link is closed whose PSK is {age} s old"
            case Weigh(peer, dimension, factor):
                number = int(peer)
                others = {i for who, i in one.left if who == number} | ({dimension} if not factor else set())
                if not (0.0 <= factor <= 4.0 and 0 <= dimension <= 6):
                    return "a weight that cannot be"
                return "" if len(others) <= 3 else f"{len(others)} paths of a peer are left"
            case Deal(_, peer) | Pin(_, peer):
                pins = len(one.pins) < 48
                return "" if 0 <= int(peer) < len(world.machines) and pins else "too many flows are pinned"
            case Cover(_, rate):
                return f"{rate} bytes of cover traffic a second, which is PHANTOM's"
            case Tune(parameter, value):
                low, high = TUNED.get(parameter, (1.0, 0.0))
                return "" if low <= value <= high else f"{parameter} is {value}"
            case Drain():
                beside = [m for m in world.machines if m is not one and m.drains and m.region == one.region]
                unready = one.unready is not None and now - one.unready >= 30.0
                return "" if unready and not beside else "a node drains that is ready, or is not alone"
            case Restart(service):
                wedged = now - one.wedged.get(service, now) >= 2.0
                return "" if wedged else f"{service} is restarted and was well"
            case _:
                assert_never(action)

    def _rotation(self, one: Machine, other: Machine) -> str:
        now, sign = self._world.now, one.copied or other.copied or other.twice
        if not sign and (self._world.psk_age(one, other) or 0.0) < 155.0:
            return "a PSK is made anew that is young, and nothing is wrong"
        past = self._rotations[one.number, other.id]
        past[:] = [at for at in past if now - at < 300.0]
        past.append(now)
        return "" if len(past) <= 3 else "more than three rotations in five minutes"


def _same(before: Action, after: Action) -> bool:
    """A finding is the same while its rule is, as its figures move; of closed links, while they are."""
    if isinstance(before, Raise) and isinstance(after, Raise):
        same = before.rule == after.rule
        return same and (before.rule != "cipher-quarantine" or before.text == after.text)
    return before == after
