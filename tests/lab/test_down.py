# SPDX-License-Identifier: GPL-3.0-or-later
"""`down` and `leave` on a real node: one that runs, one that was killed, one that is gone for good."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
import trio

from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged, kill, pid_file, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of, processes_in
from tests.lab.conftest import PATIENCE_S
from tests.lab.test_lab import INTERFACES, until
from tests.lab.test_node import interfaces

pytestmark = pytest.mark.lab


def ask(node: LabNode, *arguments: str, status: int = 0) -> Any:
    form = () if arguments[0] == "run" else ("--json",)  # `run` has no document to print
    done = subprocess.run(
        node.inside([sys.executable, "-m", "phantommesh", *form, *arguments]),
        env=node.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if status == 0 else done.stderr


def left_over(node: LabNode) -> str:
    """All that a node puts on its host, as the host's own tools show it."""
    shown = ""
    for command in (
        ("ip", "route", "show", "table", "all", "proto", "112"),
        ("ip", "-6", "route", "show", "table", "all", "proto", "112"),
        ("nft", "list", "tables"),
    ):
        inside = ["ip", "netns", "exec", node.name, *command]
        shown += subprocess.run(inside, capture_output=True, text=True, check=False).stdout
    for family in ("-4", "-6"):
        rules = subprocess.run(
            ["ip", "-n", node.name, family, "rule"], capture_output=True, text=True, check=True
        )
        shown += "".join(line for line in rules.stdout.splitlines() if "proto 112" in line)
    return shown


def runs(node: LabNode) -> bool:
    return int(pid_file(node).read_text(encoding="ascii")) in processes_in([node.name])


async def test_down_takes_all_away_and_leave_moves_the_keys_aside(other: LabSpec) -> None:
    await up.up(other)
    first, node = nodes_of(other)
    name = ask(node, "status")["node"]
    assert left_over(node)

    done = await trio.to_thread.run_sync(ask, node, "down")
    assert (done["node"], done["interfaces"]) == ("stopped", sorted(["pm", *INTERFACES]))
    assert done["prefixes"][0] == "100.64.0.0/10"
    assert not runs(node)
    assert (interfaces(node), left_over(node), processes_in([node.name])) == ([], "", [])
    again = ask(node, "down")
    assert (again["node"], again["interfaces"], again["prefixes"]) == ("not-running", [], [])

    await start(node)
    await converged(nodes_of(other), PATIENCE_S)
    kill(node, signal.SIGKILL)
    await until(lambda: not runs(node))
    assert left_over(node)
    done = ask(node, "down")
    assert (done["node"], len(done["interfaces"])) == ("not-running", 8)
    assert (interfaces(node), left_over(node), processes_in([node.name])) == ([], "", [])

    said = ask(first, "leave", status=1)
    assert "root key" in said
    assert runs(first)
    await start(node)
    await converged(nodes_of(other), PATIENCE_S)
    left = await trio.to_thread.run_sync(ask, node, "leave")
    assert left["told"] is True
    assert (interfaces(node), left_over(node), processes_in([node.name])) == ([], "", [])
    assert not node.state_dir.exists()
    assert not node.config.exists()
    await until(lambda: ask(first, "peers")["items"][0]["membership"] == "left")
    said = ask(node, "run", status=1)
    assert "there is no configuration" in said

    subprocess.run(["mv", left["state_dir"], str(node.state_dir)], check=True)
    subprocess.run(["mv", left["config"], str(node.config)], check=True)
    await start(node)
    await converged(nodes_of(other), PATIENCE_S)
    assert ask(node, "status")["node"] == name
