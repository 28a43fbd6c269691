# SPDX-License-Identifier: GPL-3.0-or-later
"""Every type of event, and what it says: docs/reference/events.md is made of this."""

from typing import Final

EVENT_KINDS: Final = {
    "peer.*": "a member's state changed; the type's second word is the new one: `peer.alive`, "
    "`peer.suspect`, `peer.dead`, `peer.left`, `peer.revoked` and so on",
    "peer.copied": "another run of a member's identity was seen: its disk may be copied",
    "link.opened": "a handshake gave a peer new keys",
    "link.alarm": "a link has had no handshake for `link.stale_alarm_seconds`",
    "path.*": "a dimension of a peer changed its state; the second word is the new one: `path.up`, "
    "`path.dark`, `path.closed`",
    "path.moved": "a dimension of a peer goes another way now: direct, relayed, or over TCP",
    "path.mtu": "a dimension of a peer carries packets of another size now",
    "nat.changed": "this node is behind another kind of NAT than before, or behind none",
    "route.*": "what carries a prefix beyond the mesh changed",
    "pact.*": "a pact with another mesh came into force, rests, or was ended: `pact.in-force`, `pact.rests`, "
    "`pact.ended`",
    "topology.advice": "what is weak about the mesh changed",
    "agent.*": "an agent's phase changed; the second word says to what: `agent.paused`, "
    "`agent.benched` and so on",
    "agent.decided": "what an agent proposed was accepted or refused, and why",
    "agent.outcome": "what came of a decision, beside what was expected",
    "threat.*": "an attack was seen; the second word is its kind",
    "threat.banned": "a network is banned",
    "threat.unbanned": "a ban is over, or was lifted",
    "threat.pattern": "a pattern of traffic looks like an attack",
    "config.taken": "the node took over its edited configuration; `restart` names the keys that wait",
    "config.refused": "the edited configuration does not hold: the node goes on with the one that it has",
    "health.degraded": "what is wrong with the node changed; `codes` are those of the runbook",
    "health.well": "nothing is wrong any more",
    "health.copied": "another run of this node's own identity was seen",
    "health.restarted": "a service of the node failed and was started again",
    "health.drain-*": "this node drains, or does not any more",
    "audit.written": "somebody asked the API for a change, and what came of it; told to scope `admin` alone",
    "audit.denied": "the API refused somebody a change; told to scope `admin` alone",
    "gap": "to a slow reader alone: so many events were dropped before the next one",
}
