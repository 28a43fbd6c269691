# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab of three nodes for all files here, on the backend that PHANTOMMESH_LAB_BACKEND names."""

import os
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from phantommesh.config.sections import ScatterSection
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.net import LabSpec
from tests.lab.standing import STANDING, Standing

BACKEND = os.environ.get("PHANTOMMESH_LAB_BACKEND", "userspace")
PATIENCE_S = 600.0 if BACKEND == "kernel" else 120.0  # a guard only; an emulated machine is slow
NAME = f"t{os.getpid()}"


# Some pings are one flow, which has one path under the default goal. Dealt, they show all paths.
DEALT = ScatterSection(goal="throughput")


def make_spec(suffix: str, nodes: int, uplinks: int) -> LabSpec:
    return LabSpec(f"{NAME}{suffix}", nodes, uplinks, BACKEND, scatter=DEALT, patience_s=PATIENCE_S)


@pytest.fixture(scope="session")
def spec() -> LabSpec:
    return make_spec("", nodes=3, uplinks=3)


@pytest.fixture(scope="session")
def standing() -> Iterator[Standing]:
    """The lab that stands; what is left of it goes with the session."""
    yield STANDING
    STANDING.down()


@pytest.fixture(scope="module")
def mesh(standing: Standing, spec: LabSpec) -> up.LabResult:
    """The lab of all files here, up and converged. A test that cuts it must leave it whole."""
    return standing.up(spec)


@pytest.fixture
def other() -> Iterator[LabSpec]:
    """The plan of a second, smaller lab; the lab is taken down after the test if it was made."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    spec = make_spec("b", nodes=2, uplinks=1)
    yield spec
    trio.run(partial(up.down, spec.name))
