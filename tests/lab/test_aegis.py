# SPDX-License-Identifier: GPL-3.0-or-later
"""AEGIS's scan on this host: silent on a clean one, and it names each of the misconfigurations of
`tests/support/plants.py`, until what its finding says has been done."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phantommesh.hostcheck.scan import RULES
from tests.support.plants import PLANTS

pytestmark = pytest.mark.lab

# Rules whose plant this host cannot hold. tests/unit/hostcheck has them over values.
NOT_PLANTED = frozenset[str]()


class Timex(ctypes.Structure):
    """struct timex (adjtimex(2)), as far as its status."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("before", ctypes.c_long * 4),
        ("status", ctypes.c_int),
        ("after", ctypes.c_byte * 200),
    ]


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Path, Path]]:
    """A state directory and a configuration as `init` makes them, where every user could look."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces and owners")
    with tempfile.TemporaryDirectory(prefix="pm-aegis-", dir="/var/tmp") as base:
        Path(base).chmod(0o755)
        state, config = Path(base, "state"), Path(base, "pm.toml")
        doctor("init", "--mesh", "m", "--name", "a", state=state, config=config)
        yield state, config


@pytest.fixture(scope="module")
def told(made: tuple[Path, Path]) -> dict[str, dict[str, Any]]:
    """What came of each plant."""
    command = [sys.executable, "-m", "tests.support.plants", *map(str, made)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


def doctor(*words: str, state: Path, config: Path) -> subprocess.CompletedProcess[str]:
    given = ["--state-dir", str(state), "--config", str(config), "--socket", str(state.parent / "api.sock")]
    return subprocess.run(
        [sys.executable, "-m", "phantommesh", *given, *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("case", PLANTS)
def test_a_planted_misconfiguration_is_named_and_its_fix_mends_it(
    case: str, told: dict[str, dict[str, Any]]
) -> None:
    plant, line = PLANTS[case], told[case]
    assert "error" not in line, line
    assert set(line["before"]) == plant.always
    assert set(line["planted"]) == {plant.rule} | plant.also | plant.always
    assert set(line["mended"]) == plant.always
    if line["safely_mended"]:
        mended, undone = line["safely_mended"]
        assert set(mended) == plant.always and plant.rule in undone


def test_at_least_thirty_are_planted_and_each_rule_is_among_them() -> None:
    planted = {plant.rule for plant in PLANTS.values()}
    assert len(PLANTS) >= 30 and RULES.keys() - planted == NOT_PLANTED


def test_a_host_that_was_just_set_up_is_clean(made: tuple[Path, Path]) -> None:
    """This very host, after `init`: all that is found is what the kernel itself says of its clock."""
    state, config = made
    done = doctor("--json", "doctor", state=state, config=config)
    found = {one["rule"] for one in json.loads(done.stdout)["findings"]}
    clock = Timex()
    loose = ctypes.CDLL(None).adjtimex(ctypes.byref(clock)) >= 0 and clock.status & 0x40
    assert found == ({"clock-unsynchronised"} if loose else set())
    assert done.returncode == 0 and json.loads(done.stdout)["unknown"] == []


RUNNING = """
mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run
ip link set lo up; ip link add up0 type veth peer name peer0; ip link set up0 up; ip link set peer0 up
ip addr add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.2
{node} run 2> {log} & node=$!
for i in $(seq 300); do {node} status --exit-code > /dev/null 2>&1 && break; sleep 0.1; done
{node} --json doctor || true
for pid in $node $(pgrep -x wireguard-go); do
  [ "$(readlink /proc/$pid/ns/net)" = "$(readlink /proc/$node/ns/net)" ] && grep 'Max core' /proc/$pid/limits
done >&2
kill $node; wait $node
"""


# Waits for the finding among the faults, or for the fix.
TOLD = """
mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run
ip link set lo up; ip link add up0 type veth peer name peer0; ip link set up0 up; ip link set peer0 up
ip addr add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.2
{node} run 2> {log} & node=$!
for i in $(seq 150); do
  {node} --json status 2> /dev/null | grep -q config-writable && break
  [ $(stat -c %a {config}) = 644 ] && break
  sleep 0.1
done
{node} --json status
kill $node; wait $node
"""


def test_a_node_that_runs_is_clean_and_its_processes_dump_no_memory(made: tuple[Path, Path]) -> None:
    state, config = made
    node = f"{sys.executable} -m phantommesh --state-dir {state} --config {config}"
    script = RUNNING.format(node=node, log=state.parent / "log")
    command = ["unshare", "--mount", "--net", "sh", "-euc", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    document = json.loads(done.stdout)
    assert document["running"], done.stderr
    assert {one["rule"] for one in document["findings"]} <= {"clock-unsynchronised"}, document["findings"]
    limits = [line.split()[4] for line in done.stderr.splitlines() if line.startswith("Max core")]
    assert len(limits) >= 8 and set(limits) == {"1"}, done.stderr


@pytest.mark.parametrize("mends", [False, True])
def test_a_node_that_runs_tells_what_it_finds_and_mends_it_where_allowed(
    mends: bool, made: tuple[Path, Path]
) -> None:
    state, config = made
    before = config.read_text()
    config.write_text(before.replace("mend = false", f"mend = {str(mends).lower()}"))
    config.chmod(0o666)
    node = f"{sys.executable} -m phantommesh --state-dir {state} --config {config}"
    script = TOLD.format(node=node, log=state.parent / "log", config=config)
    command = ["unshare", "--mount", "--net", "sh", "-euc", script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        mode = config.stat().st_mode & 0o777
    finally:
        config.write_text(before)
        config.chmod(0o644)
    found = {
        one["subject"]: one for one in json.loads(done.stdout)["faults"] if one["code"] == "agent-finding"
    }
    if mends:
        assert mode == 0o644 and "config-writable" not in found
    else:
        assert mode == 0o666 and found["config-writable"]["severity"] == "high"
        assert f"chmod 644 {config}" in found["config-writable"]["fix"]


def test_doctor_exits_1_mends_what_is_safe_and_says_how_to_undo_it(made: tuple[Path, Path]) -> None:
    state, config = made
    (state / "node.key").chmod(0o644)
    config.chmod(0o666)
    found = doctor("doctor", state=state, config=config)
    assert found.returncode == 1 and "key-open" in found.stdout and "config-writable" in found.stdout
    mended = doctor("--json", "doctor", "--fix", state=state, config=config)
    document = json.loads(mended.stdout)
    assert mended.returncode == 0 and document["not_mended"] == []
    assert {one["rule"] for one in document["findings"]} <= {"clock-unsynchronised"}
    assert (state / "node.key").stat().st_mode & 0o777 == 0o600
    for one in document["mended"]:
        subprocess.run(one["undo"], shell=True, check=True)
    assert (state / "node.key").stat().st_mode & 0o777 == 0o644
    assert doctor("doctor", "--fix", state=state, config=config).returncode == 0


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_iptables_of_either_kind_is_read(kind: str, made: tuple[Path, Path]) -> None:
    state, config = made
    if shutil.which(f"iptables-{kind}") is None:
        pytest.skip(f"needs iptables-{kind}")
    script = (
        f"iptables-{kind} -A INPUT -p udp -m multiport --dports 22,51820 -j REJECT; "
        f"exec {sys.executable} -m phantommesh --state-dir {state} --config {config} --json doctor"
    )
    done = subprocess.run(
        ["unshare", "--net", "sh", "-euc", script], capture_output=True, text=True, check=False
    )
    told = {one["rule"]: one["text"] for one in json.loads(done.stdout)["findings"]}
    assert "udp 51820" in told["port-dropped"] and "(iptables)" in told["port-dropped"]


def test_doctor_tells_nobody_in_particular_what_it_could_not_read(made: tuple[Path, Path]) -> None:
    state, config = made
    # A first scan as root loads all modules: this Python may lie where nobody else may read.
    code = """
import contextlib, io, os
from phantommesh.cli import cli
with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())), contextlib.suppress(SystemExit):
    cli()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
cli()
"""
    words = ["--state-dir", str(state), "--config", str(config), "--json", "doctor"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    document = json.loads(done.stdout)
    assert any("root" in text for text in document["unknown"])
    assert not {one["rule"] for one in document["findings"]} - {"clock-unsynchronised"}
