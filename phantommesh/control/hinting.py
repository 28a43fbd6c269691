# SPDX-License-Identifier: GPL-3.0-or-later
"""The message by which members tell each other of attackers."""

from __future__ import annotations

from typing import Annotated

import msgspec

from phantommesh.mnemonic.hints import MOST_HOPS
from phantommesh.mnemonic.saying import MAX_HINTS_BYTES


class TellHints(msgspec.Struct, frozen=True, tag="tell-hints"):
    """A member's list of hints, signed by it (`saying.SignedHints`), and how many members passed it on, the
    asker among them. The answer is `Done`, whatever becomes of the list."""

    hints: Annotated[bytes, msgspec.Meta(max_length=MAX_HINTS_BYTES)]
    hops: Annotated[int, msgspec.Meta(ge=0, le=MOST_HOPS)]
