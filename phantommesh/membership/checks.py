# SPDX-License-Identifier: GPL-3.0-or-later
"""Members that wait to be asked out of turn, at a pace: after a mass restart that is everybody.

One member waits once, whatever is said of it, and takes no turn if there is no reason to ask it any more. The
accused and the others take turns: whoever says that everybody is dead does not put off those who may be back,
nor the other way round.
"""

from __future__ import annotations

from collections.abc import Callable

from phantommesh.membership.core import Core


class Checks:
    """Asks who waits, ``Params.checks_per_second`` at most. ``ask(node)`` says whether it asked: not if there
    is no reason left."""

    def __init__(self, core: Core, ask: Callable[[bytes], bool]) -> None:
        self._core = core
        self._ask = ask
        self._accused: dict[bytes, None] = {}  # a dictionary for its order
        self._others: dict[bytes, None] = {}
        self._queues = self._accused, self._others
        self._turn = True  # that of the accused
        self._next = core.clock
        self._armed = False

    def __len__(self) -> int:
        return len(self._accused) + len(self._others)

    def put(self, node: bytes, *, accused: bool) -> None:
        """Have a member asked, now or when its turn comes."""
        if accused:
            self._others.pop(node, None)
            self._accused.setdefault(node)
        elif node not in self._accused:
            self._others.setdefault(node)
        if not self._armed:
            self._serve(None)

    def drop(self, node: bytes) -> None:
        """Forget a member."""
        self._accused.pop(node, None)
        self._others.pop(node, None)

    def _serve(self, _: None) -> None:
        core = self._core
        self._armed = True  # so that a member that is put while another is asked waits
        while core.clock >= self._next - 1e-9 and len(self):
            first, second = self._queues if self._turn else self._queues[::-1]
            queue = first or second
            node = next(iter(queue))
            del queue[node]
            if self._ask(node):
                self._next = core.clock + 1 / core.params.checks_per_second
                self._turn = queue is self._others
        self._armed = len(self) > 0
        if self._armed:
            core.at(self._next, self._serve)
