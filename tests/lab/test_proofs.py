# SPDX-License-Identifier: GPL-3.0-or-later
"""Scatter proofs of real nodes: what the kernel's and WireGuard's counters say is signed by both ends."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from phantommesh.config.sections import ScatterSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import flows_between, phantommesh, proved, view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import open_traffic
from phantommesh.proofs.archive import Archive
from phantommesh.proofs.statement import Receipt, Statement, decode_leaf_untrusted
from phantommesh.trust.certificates import describe_mesh, load_root
from tests.lab.conftest import PATIENCE_S, make_spec

pytestmark = pytest.mark.lab

EPOCH_S = 3.0
SINK = """
import socket
listener = socket.create_server(("0.0.0.0", 5555))
print("up", flush=True)
while True:
    connection, _ = listener.accept()
    while connection.recv(1 << 20):
        pass
"""
SOURCE = """
import random, socket, sys, time
draw, end = random.Random(1), time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    with socket.create_connection((sys.argv[1], 5555)) as connection:
        stop = time.monotonic() + draw.uniform(0.01, 1.0)
        while time.monotonic() < stop:
            connection.sendall(bytes(32768))
            time.sleep(0.01)  # no more than a busy machine's userspace WireGuard carries without loss
    time.sleep(draw.uniform(0.0, 0.8))
"""


@pytest.fixture
def proving() -> LabSpec:
    spec = make_spec("p", nodes=3, uplinks=2)
    return LabSpec(
        spec.name,
        3,
        2,
        spec.backend,
        scatter=ScatterSection(goal="throughput", epoch_seconds=EPOCH_S),
        patience_s=PATIENCE_S,
    )


def statements(exported: bytes) -> list[tuple[Statement, Receipt | None]]:
    found = []
    for proof in Archive.decode_untrusted(exported).proofs:
        statement = decode_leaf_untrusted(proof.statement.leaf)
        receipt = None if proof.receipt is None else decode_leaf_untrusted(proof.receipt.leaf)
        assert isinstance(statement, Statement) and not isinstance(receipt, Statement)
        found.append((statement, receipt))
    return found


def verify(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """With no node, and nothing of the lab but the file."""
    command = [
        sys.executable,
        "-m",
        "phantommesh",
        "--state-dir",
        "/nonexistent",
        "proofs",
        "--verify",
        str(path),
    ]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


async def test_proofs_of_all_links_are_exported_and_verify(proving: LabSpec, tmp_path: Path) -> None:
    async with up.running(proving):
        nodes = nodes_of(proving)
        names = {node.name for node in nodes}
        async with open_traffic(await flows_between(nodes), 0.02):
            await load(nodes[0], nodes[1], seconds=4 * EPOCH_S)
            found = await proved(nodes, PATIENCE_S)
        assert found.keys() == {(a, b) for a in names for b in names if a != b}
        for node in nodes:
            file = tmp_path / node.name
            await phantommesh(node, "proofs", "--export", str(file))
            assert verify(file, "--json").returncode == 1  # nothing says which mesh it should be of
            root = describe_mesh(load_root((node.state_dir / "root.crt").read_bytes())).root_hash.hex()
            shown = verify(file, "--json", "--root", root)
            assert shown.returncode == 0, shown.stderr
            links = json.loads(shown.stdout)["links"]
            assert {(link["sender"], link["receiver"]) for link in links} >= {
                (node.name, other) for other in names - {node.name}
            }
            # The default scheduler tells, wherever there was a choice: while paths come up there may be none.
            plans = [statement.plan.cards for statement, _ in statements(file.read_bytes())]
            assert sum(link["tested"] for link in links) == sum(
                len(plan) - plan.count(0) > 1 for plan in plans
            )
            assert all(link["tested"] for link in links)
        exported = (tmp_path / nodes[0].name).read_bytes()
        heavy = max(statements(exported), key=lambda pair: sum(pair[0].octets))
        statement, receipt = heavy
        assert sum(statement.octets) > 1_000_000 and statement.shannon > 2_700_000
        assert len([count for count in statement.packets if count]) == DIMENSIONS
        assert receipt is None or sum(receipt.received) > 1_000_000
        root = describe_mesh(load_root(Archive.decode_untrusted(exported).root)).root_hash.hex()
        assert verify(tmp_path / nodes[0].name, "--root", root).returncode == 0

    draw = random.Random(2)
    for _ in range(10):
        at = draw.randrange(len(exported) // 2, len(exported))  # behind the certificates
        tampered = tmp_path / "tampered"
        tampered.write_bytes(
            exported[:at] + bytes([exported[at] ^ draw.randrange(1, 256)]) + exported[at + 1 :]
        )
        refused = verify(tampered, "--root", root)
        assert refused.returncode == 1 and refused.stdout == ""
        assert refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr


async def load(source: LabNode, sink: LabNode, seconds: float) -> None:
    """Send TCP in bursts over the overlay."""
    address = (await view_of(sink)).status.ip4
    with subprocess.Popen(sink.inside([sys.executable, "-c", SINK]), stdout=subprocess.PIPE) as listener:
        try:
            assert listener.stdout is not None and listener.stdout.readline() == b"up\n"
            command = [sys.executable, "-c", SOURCE, address, str(seconds)]
            await trio.run_process(source.inside(command))
        finally:
            listener.kill()
