# SPDX-License-Identifier: GPL-3.0-or-later
"""CIPHER: whether keys are as young as this node promises, and what is done where they are not.

**Where the line is.** The node's own machinery keeps keys young: `link/` makes a PSK with each peer every 90
s and tries again where that fails, `dataplane/rekeying` replaces WireGuard keys, `members/own` renews the
certificate, `keeping/groupkeys` makes group keys, `link/copies` and `node/runs` find identities on two
machines and raise `identity-copied` and `copy-running`. CIPHER does none of that on schedule. It acts where
the machinery should have acted and has not, and it decides what follows from an alarm.

**Inputs** (`Seen`): of each link the age of its PSK, whether the last attempt failed, and WireGuard's newest
handshake; chains that broke, copies and equivocations; ages of the WireGuard keys; how overdue the
certificate and the group key are; handshakes with a wrong signature. All of it is this node's own measurement
of its own links, keys and files. What members say of others is no input.

**Policy.**

- *A PSK that the machinery forgot*: older than the machinery ever lets one get, by `OVERDUE`, and no attempt
  failed: Rotate. Where attempts fail the machinery tries already, and CIPHER does not add to that.
- *A stale link*: the PSK is older than `link.stale_alarm_seconds`, by default 180 s, two periods. That age is
  the promise, so the peer's traffic is closed in the kernel (Quarantine) until the link has a new PSK.
  Handshakes and probes go on. It ends at the look that the finished handshake wakes. It also ends where
  WireGuard can carry nothing more under the old PSK: `link/psk` has put a random PSK in place, and the
  sessions from before are over 180 s later. So a peer that is gone for good stays closed by its keys, and no
  quarantine stands for it for ever.
- *A chain that broke and no start of the peer's explains it after `SETTLE`*, *a copied identity*, *two
  records of one number*: Rotate with that peer, so that no keys from before the sign stay in use, and so that
  a thief and the owner show themselves in seconds, not at the next period. The broken chain is a finding; the
  others are already (`identity-copied`, `record-equivocation`). A peer that restarted breaks its chain too:
  gossip's news of the start explains that, and nothing is done.
- *A WireGuard key past its life*, *a certificate past its renewal time of which no attempt failed*: seen for
  `SLACK` in this run, so that the machinery had its turn: ReplaceKey of the oldest, Renew. A *group key that
  is due* only an authority can make: a finding.
- *Wrong signatures*, `FORGED` a minute: somebody with the mesh's admission secret shakes hands in a member's
  name: a finding. Nothing is closed for it, as the name is the victim's.

**Bounds.** A re-key for a sign costs a token: `SIGN_BURST` of one peer and then one in 300 s, `ALL_BURST` of
all peers and then one in 10 s. So a member that breaks its chain again and again has this node shake hands
less often than it does itself. At most `MOST` quarantines and `MOST_ROTATIONS` a look; the quarantines that
were not proposed for longest go first.

**Never**: a quarantine for anything but the age of this node's own link with that very peer; a revocation;
another identity; a key made earlier than the machinery's settings say, but for a sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from phantommesh.agents.actions import MOST_TEXT, Quarantine, Raise, Renew, ReplaceKey, Rotate
from phantommesh.agents.base import Agent, Evidence, Expectation, Observation, Proposal, Subject
from phantommesh.link.psk import FORGET_OLD_AFTER
from phantommesh.rates import Bucket, Rates

# Tuning. Seconds, unless it says otherwise.
EVERY: Final = 10.0  # between looks; alarms and finished handshakes wake it at once
OVERDUE: Final = 10.0  # after the longest period: an attempt that fails has failed after 6 s
SETTLE: Final = 5.0  # that gossip's news of a start, and the machinery's own answer to a sign, may take
SIGN_LIFE: Final = 120.0  # a sign older than that was answered by the next scheduled PSK
SLACK: Final = (
    420.0  # that overdue keys are left to the machinery: seven dimensions, each tried again in 60 s
)
GROUP_SLACK: Final = 3600.0  # that no authority may have made a group key: authorities are switched off, too
LASTS: Final = (
    120.0  # that a quarantine stands without being proposed again: a benched agent leaves none behind
)
RAISED: Final = 60.0  # that a finding stands likewise
MOST: Final = (
    36  # quarantines proposed in one look, and re-keys: with findings below `council.MOST_PROPOSALS`
)
MOST_ROTATIONS: Final = 16
SIGN_RATE, SIGN_BURST = 1 / 300, 2  # re-keys a second, and at once, that the signs of one peer may cause
ALL_RATE, ALL_BURST = 0.1, 8  # and those of all peers
FORGED: Final = 10  # wrong signatures a minute; packets that are damaged on the way fail an earlier check
MINUTE: Final = 60.0
REKEYED: Final = 45.0  # age of a PSK by which a Rotate has worked when it is measured, 30 to 40 s after
NAMED: Final = 5  # members named in a finding

SignKind = Literal["chain-reset", "copied", "equivocation"]


class LinkSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A link. ``age`` of the PSK in use, None: there never was one. ``failing``: the last attempt failed.
    ``handshake_age``: since WireGuard's newest handshake on any dimension; None: never. ``closed``: the
    kernel keeps the peer's traffic closed. Seconds."""

    peer: str
    name: str
    age: float | None
    failing: bool = False
    handshake_age: float | None = None
    closed: bool = False


class SignSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A sign that keys may be in other hands; ``age`` in seconds since the last of its kind, None: it has no
    time, and counts from when it is seen first. ``peer`` is empty where it is this node's own identity."""

    peer: str
    name: str
    kind: SignKind
    age: float | None = None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What CIPHER looks at. ``period``: the age of a PSK at which the machinery has begun to make the next;
    ``promise``: the age at which a link is stale; ``random``: that at which its PSK is random.
    ``key_ages`` by dimension, None: not known. ``renewal_late``: seconds past the certificate's renewal time,
    negative before; ``renewal_failing``: the last attempt failed, so that the machinery tries.
    ``group_key_due``: an authority should make one. ``forged``: handshakes with a wrong signature so far."""

    links: tuple[LinkSeen, ...] = ()
    signs: tuple[SignSeen, ...] = ()
    period: float = 145.0
    promise: float = 180.0
    random: float = 300.0
    key_life: float = 86_400.0
    key_ages: tuple[float | None, ...] = ()
    renewal_late: float = float("-inf")
    renewal_failing: bool = False
    group_key_due: bool = False
    forged: int = 0


class Cipher(Agent[Seen]):
    """The agent. ``quarantines``: whether it may close a stale link (`[agents.cipher] quarantine`)."""

    name = "cipher"
    every = EVERY
    wakes = frozenset({"link.alarm", "link.opened", "peer.copied", "health.copied"})

    def __init__(self, *, quarantines: bool = True) -> None:
        self._quarantines = quarantines
        self._since: dict[str, float] = {}  # since when in this run something is overdue
        self._first: dict[str, float] = {}  # when an equivocation was seen first, by peer
        self._asked: dict[str, float] = {}  # when a quarantine was proposed last, by peer
        self._signs = Rates[str](SIGN_RATE, SIGN_BURST)
        self._all: Bucket | None = None
        self._forged: tuple[float, int] | None = None  # the beginning of a minute, and the count then
        self._forging = 0  # wrong signatures in the last whole minute
        # Of the last look: when it was, the links to be closed by peer, the subjects of findings.
        self._now, self._shut, self._told = 0.0, dict[str, LinkSeen](), set[Subject]()

    def observe(self, observation: Observation[Seen]) -> Iterable[Proposal]:
        """Return what should be done, given what is seen."""
        seen, now = observation.seen, observation.at.now
        self._now = now
        self._count(seen, now)
        self._shut = {one.peer: one for one in seen.links if self._shuts(seen, one)}
        found = [_finding(one, now) for one in self._findings(seen)]
        self._told = {one.subject for one in found}
        return [
            *self._quarantine(seen, now),
            *self._rotate(seen, now),
            *self._replace(seen, now),
            *self._renew(seen, now),
            *found,
        ]

    def holds(self, seen: Seen, proposal: Proposal) -> bool:
        """Whether a quarantine, or a finding, is still wanted."""
        match proposal.action:
            case Quarantine(peer):
                return peer in self._shut
            case Raise():
                return proposal.subject in self._told
            case _:
                return True

    def measure(self, seen: Seen, proposal: Proposal) -> float | None:
        """Read what a proposal expects."""
        match proposal.action:
            case Quarantine(peer):
                shut = self._shut.get(peer)
                return None if shut is None else float(shut.closed)
            case Rotate(peer):
                link = _link(seen, peer)
                return None if link is None else link.age
            case ReplaceKey(dimension) if dimension < len(seen.key_ages):
                return seen.key_ages[dimension]
            case Renew():
                return seen.renewal_late
            case _:
                return None

    # Links.

    def _shuts(self, seen: Seen, link: LinkSeen) -> bool:
        """Whether a link is stale, and may still carry something."""
        if not self._quarantines or link.age is None or link.age < seen.promise:
            return False
        carries = link.handshake_age is not None and link.handshake_age < FORGET_OLD_AFTER
        return carries or link.age < seen.random + FORGET_OLD_AFTER

    def _quarantine(self, seen: Seen, now: float) -> Iterator[Proposal]:
        shut = self._shut
        self._asked = {peer: self._asked.get(peer, 0.0) for peer in shut}
        for peer in sorted(shut, key=lambda one: (self._asked[one], one))[:MOST]:
            self._asked[peer] = now
            link = shut[peer]
            assert link.age is not None
            evidence = [Evidence("psk_age_s", link.age, seen.promise, "links")]
            if link.handshake_age is not None:
                evidence.append(Evidence("wireguard_handshake_age_s", link.handshake_age, None, "interfaces"))
            evidence.append(Evidence("attempt_failed", float(link.failing), None, "links"))
            yield Proposal(
                agent="cipher", subject=Subject("peer", peer), action=Quarantine(peer, LASTS),
                evidence=tuple(evidence), expects=Expectation("closed", "at_least", 1.0, 5.0),
                until=now + LASTS, incident=peer,
                why=f"{link.name} has made no new PSK for {link.age:.0f} s: its traffic waits until it does",
            )  # fmt: skip

    def _rotate(self, seen: Seen, now: float) -> Iterator[Proposal]:
        left, signs = MOST_ROTATIONS, self._dated(seen.signs, now)
        for link in seen.links:
            if not left:
                return
            if link.age is None:
                continue
            sign = next(
                (one for one in signs if one[0].peer in ("", link.peer) and _unanswered(one[1], link.age)),
                None,
            )
            if sign is not None and self._may(link.peer, now):
                left -= 1
                what, age = sign
                yield _rotation(
                    link, now, Evidence(f"{what.kind}_age_s", age, SETTLE, "links"),
                    why=f"{what.kind} of {what.name}: no keys from before it stay in use with {link.name}",
                )  # fmt: skip
            elif sign is None and not link.failing and link.age >= seen.period + OVERDUE:
                left -= 1
                yield _rotation(
                    link, now, Evidence("psk_age_s", link.age, seen.period + OVERDUE, "links"),
                    why=f"the PSK with {link.name} is overdue, and nothing tries to make another",
                )  # fmt: skip

    def _dated(self, signs: Iterable[SignSeen], now: float) -> list[tuple[SignSeen, float]]:
        """The signs, each with its age."""
        undated = {one.peer for one in signs if one.age is None}
        self._first = {peer: self._first.get(peer, now) for peer in undated}
        return [(one, now - self._first[one.peer] if one.age is None else one.age) for one in signs]

    def _may(self, peer: str, now: float) -> bool:
        if self._all is None:
            self._all = Bucket(ALL_RATE, ALL_BURST, now)
        return (
            self._signs.of(peer, now).wait(now) == 0.0
            and self._all.take(now)
            and self._signs.allow(peer, now)
        )

    # This node's own keys.

    def _lasting(self, what: str, holds: bool, now: float) -> float:
        """For how long something has held in this run."""
        if not holds:
            self._since.pop(what, None)
            return 0.0
        return now - self._since.setdefault(what, now)

    def _count(self, seen: Seen, now: float) -> None:
        for dimension, age in enumerate(seen.key_ages):
            self._lasting(f"key {dimension}", age is not None and age > seen.key_life, now)
        self._lasting("certificate", seen.renewal_late > 0 and not seen.renewal_failing, now)
        self._lasting("group key", seen.group_key_due, now)
        began, count = self._forged or (now, seen.forged)
        if now - began >= MINUTE:
            self._forging, began, count = seen.forged - count, now, seen.forged
        self._forged = began, count

    def _late(self, what: str, slack: float, now: float) -> bool:
        return now - self._since.get(what, now) >= slack

    def _late_keys(self, seen: Seen, now: float) -> list[tuple[float, int]]:
        """The dimensions whose keys the machinery has not replaced, the oldest first, each with the age."""
        late = [
            (age, dimension)
            for dimension, age in enumerate(seen.key_ages)
            if age is not None and self._late(f"key {dimension}", SLACK, now)
        ]
        return sorted(late, reverse=True)

    def _replace(self, seen: Seen, now: float) -> Iterator[Proposal]:
        for age, dimension in self._late_keys(seen, now)[:1]:  # one at a time: traffic takes the other six
            yield Proposal(
                agent="cipher", subject=Subject("dimension", str(dimension)), action=ReplaceKey(dimension),
                evidence=(Evidence("wireguard_key_age_s", age, seen.key_life, "wireguard keys"),),
                expects=Expectation("wireguard_key_age_s", "at_most", seen.key_life, 120.0),
                until=now + EVERY,
                why=f"the WireGuard key of dimension {dimension} is past its life and was not replaced",
            )  # fmt: skip

    def _renew(self, seen: Seen, now: float) -> Iterator[Proposal]:
        if self._late("certificate", SLACK, now):
            yield Proposal(
                agent="cipher", subject=Subject("node"), action=Renew(),
                evidence=(Evidence("renewal_late_s", seen.renewal_late, SLACK, "certificate"),),
                expects=Expectation("renewal_late_s", "at_most", 0.0, 120.0), until=now + EVERY,
                why="the certificate is past its renewal time, and no attempt to renew it is known",
            )  # fmt: skip

    # Findings.

    def _findings(self, seen: Seen) -> Iterator[tuple[Raise, Evidence]]:
        now = self._now
        if shut := list(self._shut.values()):
            oldest = max(one.age or 0.0 for one in shut)
            yield _raise(
                "cipher-quarantine", "high",
                f"no new PSK could be made with {_names([one.name for one in shut])}: the traffic is closed "
                "until then",
                "see that its node runs and that the control ports of both reach each other "
                "(`phantommesh links`); the traffic opens by itself with the next handshake",
            ), Evidence("psk_age_s", oldest, seen.promise, "links")  # fmt: skip
        if broken := [one for one in seen.signs if one.kind == "chain-reset" and (one.age or 0) >= SETTLE]:
            yield _raise(
                "cipher-chain-reset", "medium",
                f"{_names([one.name for one in broken])} lost the keys that it had with this node, and no "
                "start of it is known: its identity may be in use on another machine",
                "keys are made anew, and `identity-copied` says so if it is; if its machine was only "
                "frozen or cut off, nothing is to be done",
            ), Evidence("chain_resets", float(len(broken)), 0.0, "links")  # fmt: skip
        if late := self._late_keys(seen, now):
            which = ", ".join(str(dimension) for _, dimension in late)
            yield _raise(
                "cipher-wireguard-key", "medium",
                f"WireGuard keys of dimensions {which} are past their life and were not replaced",
                "see the log of wireguard-keys, and that the state directory can be written",
            ), Evidence("wireguard_key_age_s", late[0][0], seen.key_life, "wireguard keys")  # fmt: skip
        if self._late("certificate", SLACK, now):
            yield _raise(
                "cipher-certificate", "high",
                f"the certificate has been due for renewal for {seen.renewal_late / 3600:.1f} h, and no "
                "attempt is known",
                "see the log of certificate; restart the node if it says nothing",
            ), Evidence("renewal_late_s", seen.renewal_late, SLACK, "certificate")  # fmt: skip
        if self._late("group key", GROUP_SLACK, now):
            yield _raise(
                "cipher-group-key", "medium",
                "the mesh's group key is due, and no authority has made another for an hour",
                "see that an authority runs and that this node reaches it",
            ), Evidence("due_s", now - self._since["group key"], GROUP_SLACK, "group keys")  # fmt: skip
        if self._forging >= FORGED:
            yield _raise(
                "cipher-forged-handshakes", "high",
                f"{self._forging} handshakes in a minute had a wrong signature: somebody who knows the "
                "mesh's admission secret speaks in a member's name",
                "look for the sender (`phantommesh threats`); if a machine was lost, revoke it",
            ), Evidence("wrong_signatures", float(self._forging), float(FORGED), "links")  # fmt: skip


def _unanswered(sign: float, age: float) -> bool:
    """Whether the keys in use with a peer, made ``age`` seconds ago, are no newer than a sign of late, which
    is ``sign`` seconds old. The handshake that shows a broken chain makes keys within the same second."""
    return SETTLE <= sign <= SIGN_LIFE and age > sign - 1.0


def _link(seen: Seen, peer: str) -> LinkSeen | None:
    return next((one for one in seen.links if one.peer == peer), None)


def _rotation(link: LinkSeen, now: float, evidence: Evidence, *, why: str) -> Proposal:
    return Proposal(
        agent="cipher", subject=Subject("peer", link.peer), action=Rotate(link.peer), evidence=(evidence,),
        expects=Expectation("psk_age_s", "at_most", REKEYED, Rotate.rests), until=now + EVERY, why=why,
        incident=link.peer,
    )  # fmt: skip


def _raise(rule: str, severity: Literal["low", "medium", "high", "critical"], text: str, fix: str) -> Raise:
    return Raise(rule, severity, text[:MOST_TEXT], fix[:MOST_TEXT])


def _finding(found: tuple[Raise, Evidence], now: float) -> Proposal:
    action, evidence = found
    return Proposal(
        agent="cipher", subject=Subject("rule", action.rule), action=action, evidence=(evidence,),
        expects=None, until=now + RAISED, why=action.text,
    )  # fmt: skip


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(sorted(names)[:NAMED]) + more
