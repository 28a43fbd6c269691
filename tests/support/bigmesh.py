# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that answers from memory, of a mesh of any size in three regions, where some things are wrong."""

from __future__ import annotations

from random import Random
from typing import Final

import msgspec

from phantommesh.faults import FaultKind
from phantommesh.management.threatsview import BansView, ThreatsView, ThreatView
from phantommesh.management.topoview import MeasuredLink, StationView, TopologyView
from phantommesh.management.views import LinkView, PathView, PeerView, Status
from tests.support.fakenode import FakeNode, ban_view, link_view, path_view, peer_view

REGIONS: Final = ("eu-north", "us-east", "ap-south")
SITES: Final = (
    "amsterdam",
    "berlin",
    "boston",
    "mumbai",
    "osaka",
    "oslo",
    "quito",
    "rome",
    "sydney",
    "turin",
)
# Round trips between regions in seconds, by place in REGIONS.
APART: Final = ((0.008, 0.085, 0.14), (0.085, 0.012, 0.21), (0.14, 0.21, 0.02))
LINKS: Final = 2_000  # the most that GET /v1/topology has
DARK: Final = FaultKind("peer-dark", "high")
DISK: Final = FaultKind("state-not-written", "critical")


class BigMesh(FakeNode):
    """The same each time. Of ten peers one is dark, one is relayed, and one loses packets."""

    def __init__(self, peers: int, *, seed: int = 1) -> None:
        super().__init__(peers=peers)
        self.chance = Random(seed)
        self.spread = [self.chance.random() for _ in range(peers + 10)]
        dark = [n for n in range(1, peers + 1) if self.kind(n) == 7]
        self.faults = [
            DARK.fault(
                f"no traffic flows with peer {self.called(n)}: no probe comes back",
                "let UDP through on the WireGuard ports, here, on the way and at the other end",
                subject=self.called(n),
            )
            for n in dark
        ]
        self.phases = dict.fromkeys(("apex", "phantom", "cipher", "velocity", "fortress"), "running") | {
            "stream": "benched"
        }
        self.decided_on = 200
        self.banned = {
            f"203.0.113.{n}/32": ban_view(f"203.0.113.{n}/32", "operator" if n % 2 else "own", 597.0 - n)
            for n in range(1, min(peers, 50))
        }

    def kind(self, number: int) -> int:
        return number % 10

    def region(self, number: int) -> str:
        return REGIONS[number % 3]

    def called(self, number: int) -> str:
        return f"{SITES[number % len(SITES)]}-{number:03}"

    def rtt(self, one: int, two: int) -> float:
        base = APART[one % 3][two % 3]
        return round(base * (0.7 + 0.3 * self.spread[one] + 0.3 * self.spread[two]), 6)

    def status(self) -> Status:
        return msgspec.structs.replace(
            super().status(),
            node="gateway-000",
            region=REGIONS[0],
            peers_up=self.count - len(self.faults),
            advice=[],
        )

    def peers(self) -> list[PeerView]:
        return [
            msgspec.structs.replace(
                peer_view(number),
                name=self.called(number),
                ip4=f"100.64.{number // 256}.{number % 256}",
                region=self.region(number),
                traffic="dark" if self.kind(number) == 7 else "up",
                membership="suspect" if self.kind(number) == 7 else "alive",
                through=[],
            )
            for number in range(1, self.count + 1)
        ]

    def links(self) -> list[LinkView]:
        return [
            msgspec.structs.replace(
                link_view(number),
                peer=self.called(number),
                dimensions=0 if self.kind(number) == 7 else 7,
                psk_age_s=float(number * 7 % 90),
                rotates_in_s=float(90 - number * 7 % 90),
            )
            for number in range(1, self.count + 1)
        ]

    def paths(self) -> list[PathView]:
        return [self.path(number, i) for number in range(1, self.count + 1) for i in range(7)]

    def path(self, number: int, dimension: int) -> PathView:
        up, relayed = self.kind(number) != 7, self.kind(number) == 3
        return msgspec.structs.replace(
            path_view(number, 1),
            peer=self.called(number),
            dimension=dimension,
            interface=f"pm{dimension}",
            endpoint=f"192.0.2.{number % 250 + 1}:{51820 + dimension}",
            state="up" if up else "dark",
            rtt_s=self.rtt(0, number) * (1 + dimension / 20) if up else None,
            loss=(0.08 if self.kind(number) == 5 else 0.001) if up else 1.0,
            weight=1.0 if up else 0.0,
            way="relayed" if up and relayed else "direct" if up else "none",
            via=self.called(1) if up and relayed else None,
            mtu=1376 if relayed else 1420,
        )

    def surveyed(self) -> TopologyView:
        pairs = [(one, two) for one in range(1, self.count + 1) for two in range(1, one)]
        chosen = sorted(Random(7).sample(pairs, min(LINKS, len(pairs))))
        return TopologyView(
            age_s=42.0,
            asked=self.count,
            heard=self.count - len(self.faults),
            members=[
                StationView(
                    name=self.called(number),
                    node_id=f"id{number:03}",
                    region=self.region(number),
                    relay=self.kind(number) == 1,
                    nat=self.kind(number) == 3,
                    links=24,
                    between=0.1,
                )
                for number in range(1, self.count + 1)
            ],
            links=[
                MeasuredLink(
                    one=self.called(one),
                    two=self.called(two),
                    way="relayed" if self.kind(one) == 3 else "direct",
                    rtt_s=self.rtt(one, two),
                    jitter_s=0.001,
                    loss=0.0,
                    capacity=0,
                )
                for one, two in chosen
            ],
            links_total=len(pairs),
            advice=(super().surveyed()).advice,
        )

    async def threats(self) -> ThreatsView:
        return msgspec.structs.replace(
            await super().threats(),
            threats=[
                ThreatView(
                    kind="flood",
                    severity="high" if number % 5 == 0 else "low",
                    source=f"203.0.113.{number}/32",
                    proved=["cookie"],
                    count=float(number),
                    first="2026-07-01T12:00:00Z",
                    last="2026-07-01T12:00:03Z",
                    banned=True,
                )
                for number in range(1, min(self.count, 50))
            ],
        )

    async def bans(self) -> BansView:
        return BansView(bans=list(self.banned.values()))
