# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's names in a real mesh: every node's, asked of every other node over the overlay."""

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest
import trio

from phantommesh.client.http import NodeClient
from phantommesh.management.views import Status
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.up import MESH
from tests.lab.conftest import PATIENCE_S

pytestmark = pytest.mark.lab

# Runs inside a node's namespace. Asks until each server answers, and prints what they all say.
ASK = """
import json, sys, time
import dns.exception, dns.message, dns.query, dns.rcode
given = json.loads(sys.argv[1])
said = []
deadline = time.monotonic() + given["patience"]
for server in given["servers"]:
    for over in (dns.query.udp, dns.query.tcp):
        for name, kind in given["questions"]:
            query = dns.message.make_query(name, kind)
            while True:
                try:
                    answer = over(query, server, timeout=2)
                    break
                except (OSError, dns.exception.Timeout, EOFError):
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            records = [rr.to_text() for rrset in answer.answer for rr in rrset]
            said.append([server, name, kind, dns.rcode.to_text(answer.rcode()), records])
print(json.dumps(said))
"""

# Asks once from a given address, and says what came back.
PROBE = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(1)
    sock.bind((sys.argv[1], 0))
    sock.sendto(bytes.fromhex("abcd01000001000000000000" "036c616208696e7465726e616c00" "00060001"),
                (sys.argv[2], 53))
    try:
        print(sock.recv(2000))
    except TimeoutError:
        print("silence")
"""


def ask(node: LabNode, servers: Sequence[str], questions: Sequence[tuple[str, str]]) -> list[list[object]]:
    given = json.dumps({"servers": servers, "questions": questions, "patience": PATIENCE_S})
    done = subprocess.run(
        node.inside([sys.executable, "-c", ASK, given]), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said: list[list[object]] = json.loads(done.stdout)
    return said


def statuses(spec: LabSpec) -> dict[str, Status]:
    return {node.name: NodeClient(node.socket).status() for node in nodes_of(spec)}


def test_every_node_serves_every_name(mesh: up.LabResult, spec: LabSpec) -> None:
    found = statuses(spec)
    wanted: dict[tuple[str, str], str] = {}
    for name, status in found.items():
        wanted[f"{name}.{MESH}.internal.", "A"] = status.ip4
        wanted[f"{name}.{MESH}.internal.", "AAAA"] = status.ip6
        wanted[reverse4(status.ip4), "PTR"] = f"{name}.{MESH}.internal."
    servers = [ip for status in found.values() for ip in (status.ip4, status.ip6)]
    for node in nodes_of(spec):
        said = ask(node, servers, list(wanted))
        assert len(said) == 2 * len(servers) * len(wanted)
        for _, asked, kind, rcode, records in said:
            assert (rcode, records) == ("NOERROR", [wanted[str(asked), str(kind)]])


def reverse4(ip: str) -> str:
    return ".".join(reversed(ip.split("."))) + ".in-addr.arpa."


def test_is_no_open_resolver(mesh: up.LabResult, spec: LabSpec) -> None:
    first, second = nodes_of(spec)[:2]
    server = statuses(spec)[first.name].ip4
    questions = [("example.com.", "A"), (f"nobody.{MESH}.internal.", "A")]
    for _, asked, _, rcode, records in ask(second, [server], questions):
        assert (rcode, records) == ("REFUSED" if asked == "example.com." else "NXDOMAIN", [])
    # from the underlay, the way to the overlay address leads through the same machine, but not this source
    done = subprocess.run(
        first.inside([sys.executable, "-c", PROBE, first.address(0), server]),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "silence\n"
    done = subprocess.run(
        first.inside([sys.executable, "-c", PROBE, server, server]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("b")  # as Python shows bytes


def test_answers_again_after_its_interfaces_were_made_anew(mesh: up.LabResult, spec: LabSpec) -> None:
    first, second = nodes_of(spec)[:2]
    server = statuses(spec)[first.name]
    for index in range(7):
        done = subprocess.run(
            first.inside(["ip", "link", "delete", f"pm{index}"]), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
    name = f"{second.name}.{MESH}.internal."
    for said in ask(second, [server.ip4, server.ip6], [(name, "A")]):
        assert said[3] == "NOERROR"
    trio.run(converged, nodes_of(spec), PATIENCE_S)
