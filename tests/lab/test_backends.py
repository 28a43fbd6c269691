# SPDX-License-Identifier: GPL-3.0-or-later
"""Each WireGuard backend against a real WireGuard, in a network namespace of its own. Needs root.

Each scenario runs in a process of its own that has entered the namespace, with a private directory over
/var/run/wireguard, so that nothing of the host is touched and the namespace's end takes everything along.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from phantommesh.nursery.host.kernel import kernel_has_wireguard
from tests.lab.backend_scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]
NUMBERS = count()
OF_PROCESSES = {"killed", "socket_lost", "elsewhere"}  # scenarios about a userspace WireGuard's processes
UNBATCHED = {"batches"}  # boringtun takes one operation a peer

pytestmark = pytest.mark.lab


@pytest.fixture
def namespace() -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    name = f"pmtest-{os.getpid()}-{next(NUMBERS)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield name
    left = subprocess.run(["ip", "netns", "pids", name], check=True, capture_output=True, text=True)
    for pid in left.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def userspace() -> None:
    if os.environ.get("PHANTOMMESH_LAB_BACKEND") == "kernel":
        pytest.skip("PHANTOMMESH_LAB_BACKEND asks for the kernel's WireGuard only")


class Runner:
    """The process that runs scenarios; see ``backend_scenarios.serve``."""

    def __init__(self) -> None:
        Path("/var/run/wireguard").mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.lab.backend_scenarios"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, namespace: str, directory: Path, backend: str, scenario: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([namespace, str(directory), backend, scenario]) + "\n")
        self._process.stdin.flush()
        status = self._process.stdout.readline().strip()
        output = (directory / "output").read_text()
        assert status == "0", f"{scenario} over {backend}: status {status}\n{output}"

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


@pytest.mark.kernel
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name not in OF_PROCESSES])
def test_kernel(scenario: str, namespace: str, tmp_path: Path, runner: Runner) -> None:
    if not kernel_has_wireguard():
        pytest.skip("this kernel has no WireGuard")
    runner.run(namespace, tmp_path, "kernel", scenario)


@pytest.mark.usefixtures("userspace")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_wireguard_go(scenario: str, namespace: str, tmp_path: Path, runner: Runner) -> None:
    program = shutil.which("wireguard-go")
    if program is None:
        pytest.skip("wireguard-go is not installed")
    runner.run(namespace, tmp_path, program, scenario)


@pytest.mark.usefixtures("userspace")
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name not in UNBATCHED])
def test_boringtun(scenario: str, namespace: str, tmp_path: Path, runner: Runner) -> None:
    program = shutil.which("boringtun-cli")
    if program is None:
        pytest.skip("boringtun-cli is not installed")
    runner.run(namespace, tmp_path, program, scenario)
