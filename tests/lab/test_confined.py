# SPDX-License-Identifier: GPL-3.0-or-later
"""Classes of traffic that may not go by just any relay, by the real kernel: what arrives, and what not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from benchmarks.relayed import apart, over
from phantommesh.client.http import NodeClient
from phantommesh.config.sections import IntentSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import kill
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import Flow, open_traffic
from tests.attacks.rig import status_of
from tests.lab.conftest import make_spec
from tests.lab.test_intents import BULK, DUMPS, FLOW, PACKETS, SSH, flows, seen, shown, ways, witness
from tests.lab.test_lab import run_in, until
from tests.lab.test_node import COMMAND, configured
from tests.lab.test_relayed import goes
from tests.lab.test_scatter import addresses, scattered

pytestmark = pytest.mark.lab


@pytest.fixture
def four() -> Iterator[LabSpec]:
    spec = make_spec("c", nodes=4, uplinks=1)
    yield spec
    trio.run(partial(up.down, spec.name))


def dropped(node: LabNode) -> int:
    """How many packets of closed classes a node has dropped."""
    metrics = NodeClient(node.socket).request("GET", "/metrics").decode()
    name = 'phantommesh_dropped_total{reason="scatter-closed"} '
    return sum(int(float(line.removeprefix(name))) for line in metrics.splitlines() if line.startswith(name))


def faults(node: LabNode) -> list[tuple[str, str | None]]:
    return [(one.code, one.subject) for one in NodeClient(node.socket).status().faults]


async def test_a_class_goes_by_the_relays_that_it_allows_and_by_no_other(four: LabSpec) -> None:
    await up.up(four)
    first, second, one, two = nodes_of(four)
    intents = (
        IntentSection("ssh", "order", protocol="udp", ports=(SSH,), direct_only=True),
        IntentSection("backup", "throughput", ports=(BULK,), never_relays=(first.name,)),
        IntentSection("dumps", "throughput", ports=(DUMPS,), hands=2),
    )
    host = addresses(two)[0]
    await scattered([first, second, one, two])
    witness(two)
    with configured(one, intent=intents):
        kill(one, signal.SIGHUP)
        await until(lambda: len(shown(one, two)) == len(intents) + 1)
        # A lab that comes up slowly goes by the relays at first.
        for node, peer in ((one, two), (two, one)):
            await goes(node, peer, (first, second), [(0, 0)])
        await until(lambda: shown(one, two)["dumps"].closed and not shown(one, two)["ssh"].closed)
        came = await flows(one, two, host, (SSH, 0), (BULK, 0), (DUMPS, 0))
        assert (ways(came[SSH]), ways(came[BULK])) == (1, DIMENSIONS), came
        assert not sum(came[DUMPS]), "all goes by one hand, the direct way"
        await until(lambda: dropped(one) >= PACKETS)
        assert ("no-way-allowed", "dumps") in faults(one)

        flow = Flow(one.name, two.name, status_of(two).ip4)
        command = ["python3", "-c", FLOW, host, str(SSH), "1000000", "0"]
        async with open_traffic([flow], 0.01), trio.open_nursery() as nursery:
            # An ssh-like flow goes on while the direct way ends, and the relays take over.
            nursery.start_soon(partial(trio.run_process, one.inside(command), check=False))
            await until(lambda: sum(seen(two)[SSH]) > PACKETS + 100)
            with apart(one, two):
                before = sum(seen(two)[SSH])
                for node, peer in ((one, two), (two, one)):
                    await goes(node, peer, (first, second), [(3, 4), (4, 3)])
                await until(lambda: ("no-way-allowed", "ssh") in faults(one))
                await until(lambda: shown(one, two)["ssh"].closed)
                await until(lambda: not shown(one, two)["dumps"].closed)
                closed = dropped(one)
                came = await flows(one, two, host, (BULK, 0), (DUMPS, 0))
                assert sum(came[BULK]) >= 0.9 * PACKETS and 3 <= ways(came[BULK]) <= 4, came
                assert sum(came[DUMPS]) >= 0.9 * PACKETS and ways(came[DUMPS]) == DIMENSIONS, came
                assert sum(seen(two)[SSH]) == before, "none of it has gone by a relay"
                await until(lambda: dropped(one) > closed + 100)
                told = await trio.to_thread.run_sync(
                    partial(run_in, one, *COMMAND, "route", "explain", two.name)
                )
                print(told)
                assert "intent.ssh.direct_only = true" in told
                assert f"intent.backup.never_relays = {first.name}" in told
                assert f"pass packets of class backup on: {first.name}" in told
                assert "class ssh: no dimension of now" in told
            await until(lambda: sum(seen(two)[SSH]) > before + 100)
            for relay in (first, second):
                await until(lambda relay=relay: not over(one, two, relay))  # type: ignore[misc]
            nursery.cancel_scope.cancel()
        await until(lambda: ("no-way-allowed", "ssh") not in faults(one))
