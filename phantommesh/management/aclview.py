# SPDX-License-Identifier: GPL-3.0-or-later
"""The answers to GET /v1/acl and GET /v1/acl/check."""

from __future__ import annotations

from typing import Literal

import msgspec

Action = Literal["allow", "deny"]
Whose = Literal["mesh", "node"]


class AclRuleView(msgspec.Struct, frozen=True, kw_only=True, rename={"source": "from", "target": "to"}):
    """One rule, in the order in which they are tried. ``whose``: the mesh's policy or the node's
    configuration. ``protocol`` is a name or a number, empty for any; ``ports`` are ports and ranges, none for
    any. ``builtin``: no configuration says it. ``packets``: how many came by it since the node started,
    answers not counted; None where the kernel's counters are not known. ``nobody``: the names and tags in it
    that no member has."""

    name: str
    whose: Whose
    action: Action
    source: list[str]
    target: list[str]
    protocol: str
    ports: list[str]
    builtin: bool
    packets: int | None
    nobody: list[str]


class AclMemberView(msgspec.Struct, frozen=True, kw_only=True):
    """A member as rules see it, by its certificate."""

    name: str
    node_id: str
    tags: list[str]
    ip4: str
    ip6: str


class MeshPolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """The mesh's policy. ``number`` is greater than of each before it; ``signed_by`` the authority, by node
    id; ``rules`` and ``tests`` how many of either it has."""

    number: int
    signed_by: str
    rules: int
    tests: int


class PolicyResult(MeshPolicyView, frozen=True, kw_only=True):
    """The answer of POST /v1/acl/policy: the policy as it was signed."""

    dry_run: bool = False


class AclView(msgspec.Struct, frozen=True, kw_only=True):
    """What may come to this node out of the mesh. ``held``: the kernel has these rules. ``filtered``: some
    rule denies something, so that the kernel has rules at all. ``denied``: packets, since the node
    started. ``policy``: the mesh's, if there is one, beside which the node's own rules only deny more."""

    default: Action
    held: bool
    filtered: bool
    denied: int | None
    rules: list[AclRuleView]
    members: list[AclMemberView]
    policy: MeshPolicyView | None = None


class AclCheckView(msgspec.Struct, frozen=True, kw_only=True, rename={"source": "from", "target": "to"}):
    """Whether a new connection passes, and by which rule. ``family``: 4 or 6. ``here``: this node is who
    decides; else it is the target, by its own configuration, and the answer is what this node's rules would
    say in its place."""

    source: str
    target: str
    source_address: str
    target_address: str
    family: Literal[4, 6]
    protocol: str
    port: int | None
    allowed: bool
    rule: str
    whose: Whose
    why: str
    here: bool
