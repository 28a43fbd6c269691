# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages about the mesh's policies of access."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from phantommesh.acl.signedpolicy import MAX_HELD, MAX_SIGNED_BYTES


class AskPolicies(msgspec.Struct, frozen=True, tag="ask-policies"):
    """Ask a member for the policies that it holds. The answer is `PoliciesAre`."""


Told = Annotated[
    tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNED_BYTES)], ...], msgspec.Meta(max_length=MAX_HELD)
]
"""`SignedPolicy.encode` of each."""

MAX_TOLD_BYTES: Final = MAX_HELD * (MAX_SIGNED_BYTES + 8)  # with the length before each


class PoliciesAre(msgspec.Struct, frozen=True, tag="policies"):
    """The policies that a member holds."""

    policies: Told
