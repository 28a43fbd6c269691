# SPDX-License-Identifier: GPL-3.0-or-later
"""An open question about a member: an accusation that is not yet a verdict, or a claim to be back."""

from __future__ import annotations

from phantommesh.membership.health import suspicion_time
from phantommesh.membership.messages import State
from phantommesh.membership.presets import Params


class Case:
    """One member's open question. ``kind`` is what the rumour says: suspect, left, or alive (again).

    ``accusers`` are named by rumours and only shorten the wait. ``failed`` is when this node's own question
    went unanswered, ``checked`` that it was asked within this case, ``due`` that it is to be asked when its
    turn comes. ``witnesses`` are members that this node asked with a fresh nonce, at the address in their
    signed records, and that said the same at first hand: one member is one voice, whatever it forges.
    ``contrary`` are those that last said otherwise.
    """

    __slots__ = (
        "accusers", "asking", "checked", "contrary", "deadline", "due", "failed", "key", "kind", "least",
        "most", "next_query", "node", "queries", "recalled", "started", "visible", "vouchers", "witnesses",
    )  # fmt: skip

    def __init__(self, node: bytes, key: bytes, kind: State, now: float) -> None:
        self.node = node
        self.key = key
        self.kind = kind
        self.started = now
        self.deadline = now
        self.least = self.most = 0.0
        self.accusers: set[bytes] = set()
        self.failed: float | None = None
        self.checked = False
        self.asking = False
        self.due = False
        self.visible = False
        self.witnesses: dict[bytes, bytes] = {}  # and the key of which each says it
        self.contrary: set[bytes] = set()
        self.recalled: set[bytes] = set()  # of those, asked once more since a rumour says they accuse it now
        self.vouchers: dict[bytes, bytes] = {}
        self.queries = 0
        self.next_query = now

    def restart(self, key: bytes, now: float) -> None:
        """Have it asked again: the member, or someone in its name, has answered the accusation.

        Findings of ours and of the witnesses stand until the member itself answers. Else one forger could
        keep a dead member alive by answering for it again and again.
        """
        self.key = key
        self.deadline = max(self.deadline, now)
        self.checked = False

    def lasts(self, wanted: int, params: Params) -> None:
        """Set the deadline by how many accusers there are: the first, and ``wanted`` more at best."""
        if params.lifeguard:
            self.deadline = self.started + suspicion_time(
                self.least, self.most, max(0, len(self.accusers) - 1), wanted
            )
        else:
            self.deadline = self.started + self.least

    @property
    def accuses(self) -> bool:
        """Whether this node itself vouches for the accusation."""
        return self.kind is not State.ALIVE and self.failed is not None
