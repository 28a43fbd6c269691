# SPDX-License-Identifier: GPL-3.0-or-later
"""The floods of `test_half_open` at real nodes. A machine on the underlay has what a revoked node keeps, the
admission secret, and claims to be a member, from 240 addresses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from phantommesh.client.http import NodeClient
from phantommesh.link import keys
from phantommesh.management.views import LinkView
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged, kill, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.secret import Secret
from phantommesh.trust.meshsecret import MeshSecrets
from tests.attacks.rig import Neighbour, insider
from tests.lab.conftest import PATIENCE_S

pytestmark = pytest.mark.lab

NODES = 3
PACE = 400.0  # INITs a second: what a machine in emulation keeps up with, too
ADDRESSES = [f"10.201.0.{i}" for i in range(10, 250)]


@contextmanager
def flooding(
    neighbour: Neighbour, victim: LabNode, claimed: bytes, secret: Secret, pace: float, seconds: float
) -> Iterator[None]:
    """``pace`` INITs a second to a node in another's name while the block runs. Fails where none flowed."""
    for address in ADDRESSES:
        neighbour.run("ip", "address", "replace", f"{address}/24", "dev", "up0")
    target = insider(victim)[1].identity.node_id
    flood = [sys.executable, "-m", "tests.attacks.flooding"]
    words = [target.hex(), claimed.hex(), victim.address(0), "51800", str(pace), str(seconds)]
    started = subprocess.Popen(
        ["ip", "netns", "exec", neighbour.name, *flood, *words, *ADDRESSES],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert started.stdin is not None and started.stdout is not None
    started.stdin.write(secret.reveal().hex() + "\n")
    started.stdin.close()
    try:
        yield
        sent = json.loads(started.stdout.read())
        started.stdout.close()
        assert started.wait() == 0 and sent["got CookieReply"] and sent["init"] > 0.5 * pace * seconds, sent
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


def links(node: LabNode) -> list[LinkView]:
    found: list[LinkView] = NodeClient(node.socket, timeout=30.0).get_all("/v1/links", LinkView)
    return found


@pytest.mark.parametrize(
    ("pace", "seconds"), [(PACE, 50.0), pytest.param(1000.0, 120.0, marks=pytest.mark.slow)]
)
def test_no_link_leaves_fresh_and_every_rotation_succeeds(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour, pace: float, seconds: float
) -> None:
    victim, honest, other = nodes_of(spec)
    _, state = insider(honest)
    with flooding(neighbour, victim, state.identity.node_id, state.admission.newest, pace, seconds):
        end, rotated = time.monotonic() + seconds - 5.0, 0
        while time.monotonic() < end:
            before = {link.peer: link.epoch for link in links(honest)}
            NodeClient(honest.socket).rotate(None, dry_run=False, idempotency_key=uuid.uuid4().hex)
            done = time.monotonic() + 8.0
            while time.monotonic() < done:
                for node in (victim, honest, other):
                    assert {link.state for link in links(node)} == {"fresh"}, node.name
                if all(link.epoch > before[link.peer] for link in links(honest)):
                    rotated += 1
                    break
                time.sleep(0.2)
            else:
                pytest.fail("a rotation was not through after 8 s")
            time.sleep(1.0)
        assert rotated >= 3


def test_a_revocation_shuts_the_old_secret_out_and_lets_a_sleeper_in(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour
) -> None:
    """The third node is revoked while the second is off. The old secret brings a stranger no cookie in the
    revoked node's name; the second node, which has no other secret, is back in the mesh soon."""
    authority, sleeper, revoked = nodes_of(spec)
    _, gone = insider(revoked)
    old = gone.admission.newest
    kill(sleeper)
    kill(revoked)
    time.sleep(1.0)
    NodeClient(authority.socket, timeout=30.0).revoke(
        gone.name, force=False, dry_run=False, idempotency_key=uuid.uuid4().hex
    )
    deadline = time.monotonic() + PATIENCE_S
    held = authority.state_dir / "admission.key"
    while old in MeshSecrets.decode(held.read_bytes()).current and time.monotonic() < deadline:
        time.sleep(0.5)
    secrets = MeshSecrets.decode(held.read_bytes())
    assert old not in secrets.current and old in secrets.replaced
    script = (
        "import socket, sys; from phantommesh.link import wire;"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2);"
        "key, name, host = bytes.fromhex(sys.stdin.readline()), bytes.fromhex(sys.argv[1]), sys.argv[2];"
        "s.sendto(wire.CookieRequest(wire.Mode.MEMBER, bytes(8), name).encode(key), (host, 51800));"
        "print(len(s.recv(2048)))"
    )
    key = keys.member_mac_key(old, insider(authority)[1].identity.node_id)
    ask = [sys.executable, "-c", script]
    for name, answered in ((gone.identity.node_id, False), (insider(sleeper)[1].identity.node_id, True)):
        asked = subprocess.run(
            ["ip", "netns", "exec", neighbour.name, *ask, name.hex(), authority.address(0)],
            input=key.hex() + "\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (asked.returncode == 0) is answered, asked.stderr
    trio.run(start, sleeper)
    trio.run(converged, [authority, sleeper], PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        one, other = (insider(node)[1].admission for node in (authority, sleeper))
        if one.newest == other.newest != old:
            return
        time.sleep(0.5)
    pytest.fail("the sleeper has not got the new secret")
