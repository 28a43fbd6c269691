# SPDX-License-Identifier: GPL-3.0-or-later
"""The numbers of the protocol, and sets of them for kinds of network.

Sources: SWIM (Das, Gupta, Motivala 2002), Lifeguard (Dadgar, Phillips, Currey 2018), memberlist's
``DefaultLANConfig`` and Serf's reconnect rule for what they share with ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

#: A dead member stays known for three days at least: a longer partition than that needs an operator anyway.
MIN_PURGE: Final = 72 * 3600.0


@dataclass(frozen=True, slots=True)
class Params:
    """How membership behaves. Times in seconds.

    ``probe_timeout`` is how long a first answer may take; with ``adaptive`` it is the ceiling, and the
    measured round-trip time rules. ``suspicion_mult`` times log10 of the members (``suspicion_floor`` at
    least: small meshes must not bury who is stalled for 2 s) times ``probe_interval`` is the shortest time
    from suspicion to death, ``suspicion_max`` times that the longest; ``confirmations``
    accusers after the first make it the shortest. ``verify`` is ours: nobody is dead before this node has
    asked it in vain, and ``accusers`` other members, asked by this node, have said the same; without it a
    rumour kills, as in memberlist. ``lifeguard`` is awareness of one's own
    health, suspicion that shortens with confirmations, nacks, and the buddy system; without it plain SWIM.
    """

    probe_interval: float = 0.5
    probe_timeout: float = 0.15
    adaptive: bool = True
    indirect: int = 3
    gossip_interval: float = 0.2
    gossip_nodes: int = 3
    retransmit_mult: int = 4
    suspicion_mult: int = 3
    suspicion_floor: float = 2.2
    suspicion_max: int = 4
    confirmations: int = 1
    awareness_max: int = 8
    lifeguard: bool = True
    verify: bool = True
    accusers: int = 2
    query_nodes: int = 4
    checks_per_second: float = 100.0
    veto: float = 15.0
    sync_interval: float = 10.0
    retry_interval: float = 5.0
    seed_interval: float = 15.0
    purge: float = MIN_PURGE

    def __post_init__(self) -> None:
        """Refuse what would forget members too early."""
        if self.purge < MIN_PURGE:
            raise ValueError("dead members are kept for 72 hours at least")


LAN: Final = Params()
WAN: Final = replace(
    LAN, probe_interval=1.0, probe_timeout=0.5, gossip_interval=0.3, gossip_nodes=4, suspicion_mult=4,
    sync_interval=20.0,
)  # fmt: skip
LOCAL: Final = replace(LAN, probe_interval=0.25, probe_timeout=0.05, gossip_interval=0.1)
#: memberlist's DefaultLANConfig (its docs, config.go). Its TCP fallback ping is left out: see the benchmark.
MEMBERLIST_LAN: Final = Params(
    probe_interval=1.0, probe_timeout=0.5, adaptive=False, indirect=3, gossip_interval=0.2, gossip_nodes=3,
    retransmit_mult=4, suspicion_mult=4, suspicion_floor=1.0, suspicion_max=6, confirmations=2,
    awareness_max=8, verify=False, sync_interval=30.0, retry_interval=30.0,
)  # fmt: skip

PRESETS: Final[Mapping[str, Params]] = {
    "lan": LAN,
    "wan": WAN,
    "local": LOCAL,
    "memberlist-lan": MEMBERLIST_LAN,
}
