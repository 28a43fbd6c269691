# SPDX-License-Identifier: GPL-3.0-or-later
"""Access rules as an operator is told of them, and what they would say of a connection."""

from __future__ import annotations

from typing import Any

from phantommesh.acl.compiled import Compiled
from phantommesh.acl.policy import decode_untrusted, parse
from phantommesh.acl.rules import (
    EVERY_PORT,
    TCP,
    UDP,
    Anybody,
    IpAddress,
    Party,
    Rule,
    Selector,
    Within,
    parse_address,
    protocol_name,
    selects,
    word_of,
)
from phantommesh.acl.signedpolicy import Verified
from phantommesh.errors import PhantomMeshError
from phantommesh.management.aclview import (
    AclCheckView,
    AclMemberView,
    AclRuleView,
    AclView,
    MeshPolicyView,
    PolicyResult,
)
from phantommesh.management.finding import find
from phantommesh.node.access import Situation
from phantommesh.nursery.dataplane.access import Access
from phantommesh.nursery.host.nft import NftError
from phantommesh.nursery.parts import Parts
from phantommesh.trust.identity import format_node_id


class AclCheckError(PhantomMeshError):
    """A connection that there cannot be."""


async def view(parts: Parts) -> AclView:
    """All rules, in the order in which they are tried."""
    access = parts.access
    now, compiled = _held(access)
    try:
        counts = await access.counts()
    except NftError:
        counts = None
    rules = [
        AclRuleView(
            name=placed.rule.name,
            whose=placed.whose,
            action="allow" if placed.rule.allow else "deny",
            source=list(map(word_of, placed.rule.sources)),
            target=list(map(word_of, placed.rule.targets)),
            protocol=_protocols(placed.rule),
            ports=[] if placed.rule.ports == EVERY_PORT else [_range(*one) for one in placed.rule.ports],
            builtin=placed.rule.builtin,
            packets=None if counts is None else counts[placed.whose, placed.rule.name],
            nobody=_nobody(placed.rule, now),
        )
        for placed in compiled.rules
    ]
    return AclView(
        default=now.section.default,
        held=access.problem is None,
        filtered=not compiled.idle,
        denied=None if counts is None else access.dropped["acl-denied"],
        rules=rules,
        members=[
            AclMemberView(
                name=one.name, node_id=format_node_id(one.node_id), tags=sorted(one.tags),
                ip4=str(one.addresses[0]), ip6=str(one.addresses[1]),
            )
            for one in (now.me, *now.others)
        ],
        policy=None if (signed := parts.policing.verified()) is None else MeshPolicyView(**_told(signed)),
    )  # fmt: skip


async def set_policy(parts: Parts, text: str, *, dry_run: bool) -> PolicyResult:
    """Sign an access policy, in TOML, for the whole mesh. Raises PolicyError or TrustError."""
    made = await parts.policing.set(parse(text), dry_run=dry_run)
    return PolicyResult(**_told(made), dry_run=dry_run)


def _told(signed: Verified) -> dict[str, Any]:
    section = decode_untrusted(signed.signed.policy)
    return {
        "number": signed.signed.number, "signed_by": format_node_id(signed.signer),
        "rules": len(section.rule), "tests": len(section.test),
    }  # fmt: skip


def check(parts: Parts, source: str, target: str, protocol: int, port: int, family: int) -> AclCheckView:
    """Whether a new connection from ``source`` to ``target`` passes, each a member's name, node id or
    address, or another address. Raises PhantomMeshError."""
    now, compiled = _held(parts.access)
    (sender, come), (holder, gone) = _end(now, source, family), _end(now, target, family)
    if come.version != gone.version:
        raise AclCheckError(
            f"{come} and {gone} are of two families", fix="give two addresses of one family, or names"
        )
    here = holder is None or holder.node_id == now.me.node_id
    if not here and holder is not None:
        compiled = now.seen_by(holder)
    found = compiled.decide(come, gone, protocol, port)
    return AclCheckView(
        source=sender.name or str(come) if sender is not None else str(come),
        target=holder.name or str(gone) if holder is not None else str(gone),
        source_address=str(come),
        target_address=str(gone),
        family=come.version,
        protocol=protocol_name(protocol),
        port=port if protocol in (TCP, UDP) else None,
        allowed=found.allowed,
        rule=found.rule.name,
        whose=found.whose,
        why=found.why,
        here=here,
    )


def _held(access: Access) -> tuple[Situation, Compiled]:
    """What the kernel has; before that, what it is to have."""
    now = access.situation
    if now is None or access.compiled is None:
        raise AclCheckError("the access rules are not in place yet", fix="ask again in a second")
    return now, access.compiled


def _end(now: Situation, wanted: str, family: int) -> tuple[Party | None, IpAddress]:
    everybody = (now.me, *now.others)
    if (address := parse_address(wanted)) is not None:
        return next((one for one in everybody if address in one.addresses), None), address
    party = find(everybody, wanted, lambda one: (one.name, format_node_id(one.node_id)))
    return party, party.addresses[family == 6]


def _nobody(rule: Rule, now: Situation) -> list[str]:
    """The words of a rule that mean members and no member of now."""

    def means_nobody(selector: Selector) -> bool:
        if isinstance(selector, Anybody | Within):
            return False
        return not any(selects(selector, one.addresses[0], one) for one in (now.me, *now.others))

    return sorted({word_of(one) for one in (*rule.sources, *rule.targets) if means_nobody(one)})


def _protocols(rule: Rule) -> str:
    if rule.protocols is None:
        return ""
    return ", ".join(dict.fromkeys(protocol_name(one) for one in sorted(rule.protocols)))


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
