# SPDX-License-Identifier: GPL-3.0-or-later
"""What agents did, in plain sentences: for `decisions`, for incidents, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias, assert_never

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
from phantommesh.agents.base import Evidence, Expectation, Outcome, Verdict
from phantommesh.moments import span

Name: TypeAlias = Callable[[str], str]
"""Gives the name of a member for its node id, or the node id where nobody knows the name."""

# Tuning.
MOST_EVIDENCE = 4  # values that one sentence gives


def deed(action: Action, name: Name) -> tuple[str, str, str]:
    """An action as a verb, its past, and what follows the verb."""
    match action:
        case Ban(network, seconds):
            return "ban", "banned", f"{network} for {span(seconds)}"
        case Shed(rate):
            return "limit", "limited", f"handshakes of unproven sources to {number(rate)}/s"
        case Throttle(address, rate):
            return "limit", "limited", f"DNS answers to {address} to {number(rate)}/s"
        case Raise(rule, severity, text):
            return "report", "reported", f"{rule} ({severity}): {text}"
        case Mend(rule):
            return "mend", "mended", f"what {rule} says"
        case Rotate(peer):
            return "rotate", "rotated", f"the PSK with {name(peer)}"
        case ReplaceKey(dimension):
            return "replace", "replaced", f"the WireGuard key of dimension {dimension}"
        case Renew():
            return "renew", "renewed", "this node's certificate"
        case Quarantine(peer, seconds):
            return "quarantine", "quarantined", f"the link with {name(peer)} for {span(seconds)}"
        case Weigh(peer, dimension, factor):
            way = f"dimension {dimension} to {name(peer)}"
            return (
                ("leave", "left", way)
                if factor == 0
                else ("weigh", "weighed", f"{way} {number(factor)}-fold")
            )
        case Deal(flow, peer, dealt):
            kept = f"flow {flow} with {name(peer)}"
            return (
                ("deal", "dealt", f"{kept} over dimensions")
                if dealt
                else ("keep", "kept", f"{kept} in order")
            )
        case Pin(flow, peer, dimension):
            return "pin", "pinned", f"flow {flow} with {name(peer)} to dimension {dimension}"
        case Cover(peer, rate):
            return "send", "sent", f"cover traffic to {name(peer)}, at most {number(rate)} bytes/s"
        case Tune(parameter, value):
            return "set", "set", f"{parameter} to {number(value)}"
        case Drain():
            return "drain", "drained", "this node"
        case Restart(service):
            return "restart", "restarted", f"the service {service}"
        case _:
            assert_never(action)


def told(verdict: Verdict, name: Name) -> str:
    """A decision as a sentence without its end: who did, or wanted to do, what, and why or why not."""
    proposal = verdict.proposal
    verb, past, rest = deed(proposal.action, name)
    why = evidence(proposal.evidence)
    if verdict.accepted:
        return f"{proposal.agent} {past} {rest}" + (f": {why}" if why else "")
    return f"{proposal.agent} would {verb} {rest}" + (f", as {why}" if why else "") + f": {_refused(verdict)}"


def _refused(verdict: Verdict) -> str:
    by = verdict.by or "another"
    match verdict.reason:
        case "accepted" | "renewed":
            return "this stands already"
        case "dry-run":
            return "this is a dry run"
        case "paused":
            return "the agent was paused meanwhile"
        case "frozen":
            return "the operator has frozen what stands"
        case "no-evidence":
            return "refused, there is no evidence"
        case "expired":
            return "refused, its time is over"
        case "not-its-action":
            return "refused, that is not for this agent to do"
        case "not-its-subject":
            return "refused, it names another subject than the action has"
        case "out-of-bounds":
            return "refused, that is outside the bounds of what agents may do"
        case "held":
            return f"refused, {by} has the subject"
        case "outranked" if by == verdict.proposal.agent:
            return "refused, the agent wants something else of the same subject as well"
        case "outranked":
            return f"refused, {by} goes first"
        case "cooling-down":
            return "refused, the agent has acted there just now"
        case "too-many":
            return "refused, the agent has done too much lately"
        case _:
            assert_never(verdict.reason)


def evidence(given: Iterable[Evidence]) -> str:
    """Measured values, and the bounds that they crossed."""
    values = [_value(one) for one in given]
    more = len(values) - MOST_EVIDENCE
    return ", ".join(values[:MOST_EVIDENCE]) + (f" and {more} more" if more > 0 else "")


def _value(one: Evidence) -> str:
    shown = f"{one.what} {number(one.value)}"
    if one.bound is None:
        return shown
    where = "over" if one.value > one.bound else "under" if one.value < one.bound else "at"
    return f"{shown} {where} {number(one.bound)}"


def came(outcome: Outcome) -> str:
    """What an action came to, as the end of a sentence."""
    if outcome.error:
        return outcome.error if outcome.error.startswith("not measured") else f"failed: {outcome.error}"
    expects = outcome.proposal.expects
    if expects is None:
        return "nothing was expected"
    if outcome.measured is None:
        return f"{expects.what} could not be read"
    ending = "as expected" if outcome.met else f"which was expected to be {expected(expects)}"
    return f"{expects.what} {number(outcome.measured)}, {ending}"


def expected(one: Expectation) -> str:
    """The bound of an expected effect."""
    return f"{one.relation.replace('_', ' ')} {number(one.value)}"


def number(value: float) -> str:
    """A value with three digits that count, and without an exponent where it is not tiny."""
    if value != value:
        return "nan"
    return f"{value:.0f}" if 100 <= abs(value) < 1e15 else f"{value:.3g}"
