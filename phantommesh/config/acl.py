# SPDX-License-Identifier: GPL-3.0-or-later
"""The section `[acl]` and its rules: what may come to this node out of the mesh.

TOML lets a name be a table or a list of tables, not both. So the rules stand as `[[acl.rule]]` below `[acl]`;
a file that has no more to say than rules may write `[[acl]]` instead (docs/decisions/0087-access-rules.md).
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

MAX_RULES: Final = 20_000
MAX_SELECTORS: Final = 1024  # of one end of one rule
ANY: Final = "any"

Selectors = Annotated[
    tuple[str, ...],
    Meta(
        min_length=1,
        max_length=MAX_SELECTORS,
        description='a list of names, node ids, tags and networks, e.g. ["db", "tag:web", "10.1.0.0/16"], '
        'or ["any"]',
    ),
]
Action = Annotated[Literal["allow", "deny"], Meta(description='"allow" or "deny"')]


class RuleSection(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """One rule. The first that matches a connection decides on it; where none does, `acl.default`.

    It matches what comes from one of ``from`` and is for one of ``to``, of ``protocol``, at one of ``ports``
    of the target. A name, a node id and a tag (``tag:web``) mean members' overlay addresses, as their
    certificates say; a network means addresses, also beyond the mesh. ``protocol`` is a name ("icmp" is both
    families') or a number; without it a rule with ports is for TCP and UDP, one without for everything.
    """

    name: Annotated[
        str, Meta(description="1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end")
    ]
    action: Action = "allow"
    source: Selectors = (ANY,)
    target: Selectors = (ANY,)
    protocol: Annotated[
        int | str | None, Meta(description='a protocol\'s name, e.g. "udp", or its number from 0 to 255')
    ] = None
    ports: Annotated[
        tuple[int | str, ...],
        Meta(max_length=64, description='at most 64 ports and ranges of ports, e.g. [22, "8000-8010"]'),
    ] = ()


class AclSection(msgspec.Struct, frozen=True):
    """What may come to this node out of the mesh, to the node itself and to what it forwards to. `default`:
    what becomes of what no rule matches; with "deny" ICMP passes all the same, unless a rule denies it.
    Answers to what this node's side began always pass, and so does the mesh's own measuring."""

    default: Action = "allow"
    rule: tuple[RuleSection, ...] = ()
