# SPDX-License-Identifier: GPL-3.0-or-later
"""Three whole nodes, one of which relays: what a node says of a class that may not go by it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from msgspec import structs
from structlog.testing import capture_logs

from phantommesh.config.sections import IntentSection, ScatterSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.management.explainview import Refused
from phantommesh.routing.ways import Kind, Way
from phantommesh.scatter.epochs import ClassCounts, EpochCounts
from phantommesh.scatter.maps import Epoch
from phantommesh.scatter.peermap import Hits
from phantommesh.scatter.transactions import Snapshot
from phantommesh.wireguard.device import Endpoint
from tests.nursery.reporting.test_explaining import edited, still
from tests.support.loopback import join, make_authority, make_invite, serving, until

FULL, NONE = (10,) * DIMENSIONS, (0,) * DIMENSIONS


def snapshot(*, closed: bool) -> Snapshot:
    """As if the kernel had a map of two classes, one of which is closed or not."""
    part = partial(ClassCounts, scheduler="flow", hits=Hits())
    classes = (
        part("ssh", "order", cards=NONE if closed else FULL, closed=closed),
        part("rest", None, cards=FULL),
    )
    return Snapshot(EpochCounts(Epoch(1, 0), "flow", FULL, FULL, Hits(), 0.0, classes=classes), None)


async def test_a_closed_class_is_named_with_the_key_that_closes_it(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a", still) as alpha:
        await join(tmp_path / "b", make_invite(state), "beta")
        await join(tmp_path / "c", make_invite(state), "gamma")
        async with serving(tmp_path / "b", still) as beta, serving(tmp_path / "c", still) as gamma:
            with capture_logs():
                await until(lambda: len(alpha.parts.peers.entries) == 2)
                peer, relay = (one.parts.state.identity.node_id for one in (beta, gamma))
                intent = IntentSection("ssh", "order", ports=(22,), never_relays=("gamma",))
                # Nothing is scattered here, and constraints would wait for that.
                alpha.parts.settings.config = structs.replace(alpha.parts.config, scatter=ScatterSection())
                edited(alpha, intent=(intent,))
                way = Way(Kind.RELAYED, Endpoint("192.0.2.9", 51810), relay=relay)
                for i in range(1, DIMENSIONS):
                    alpha.parts.ways.offer(peer, i, way)
                scattering = alpha.parts.scattering
                scattering.snapshot = {peer: snapshot(closed=False)}.get  # type: ignore[method-assign,assignment]
                ssh, rest = alpha.reporter.explain("beta").classes
                assert ssh.constraints == ["intent.ssh.never_relays = gamma"] and ssh.allowed == [0]
                assert ssh.refused == [Refused(name="gamma", key="intent.ssh.never_relays")]
                assert not (ssh.closed or rest.closed or rest.constraints or rest.refused)

                alpha.parts.ways.offer(peer, 0, way)
                scattering.snapshot = {peer: snapshot(closed=True)}.get  # type: ignore[method-assign,assignment]
                scattering.closed = lambda: {"ssh": [peer, b"gone" * 4]}  # type: ignore[method-assign]
                ssh, rest = alpha.reporter.explain("beta").classes
                assert ssh.closed and ssh.allowed == [] and "nothing of it is sent" in ssh.choice
                assert not rest.closed
                (view,) = [one for one in alpha.reporter.scatter() if one.peer == "beta"]
                assert [one.closed for one in view.classes] == [True, False]
                [fault] = [one for one in alpha.reporter.status().faults if one.code == "no-way-allowed"]
                assert fault.subject == "ssh" and "sent to beta: intent.ssh.never_relays allows" in fault.text
                assert "route explain beta" in (fault.fix or "")
