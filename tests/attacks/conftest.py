# SPDX-License-Identifier: GPL-3.0-or-later
"""Each file here plays one attack and can be run alone. Those in namespaces have a lab of their own, on the
backend that PHANTOMMESH_LAB_BACKEND names. Files that set LEAVES_IT_WHOLE share one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.net import LabSpec
from tests.attacks.rig import Neighbour, neighbour_of
from tests.lab.conftest import BACKEND, DEALT, PATIENCE_S
from tests.lab.standing import STANDING, Standing


@pytest.fixture(scope="module")
def spec(request: pytest.FixtureRequest) -> LabSpec:
    """The file's lab; a file that sets NODES or UPLINKS gets as many."""
    nodes, uplinks = getattr(request.module, "NODES", 2), getattr(request.module, "UPLINKS", 1)
    return LabSpec(f"a{os.getpid()}", nodes, uplinks, BACKEND, scatter=DEALT, patience_s=PATIENCE_S)


@pytest.fixture(scope="session")
def standing() -> Iterator[Standing]:
    """The lab that stands; what is left of it goes with the session."""
    yield STANDING
    STANDING.down()


@pytest.fixture(scope="module")
def mesh(standing: Standing, request: pytest.FixtureRequest, spec: LabSpec) -> Iterator[up.LabResult]:
    """The lab, up and converged, for all tests of the file. Only files that leave it whole take over the
    lab that stands; the others get a new one, which goes with them."""
    shared = getattr(request.module, "LEAVES_IT_WHOLE", False)
    if not shared:
        standing.down()
    yield standing.up(spec)
    if not shared:
        standing.down()


@pytest.fixture(scope="module")
def neighbour(mesh: up.LabResult, spec: LabSpec) -> Iterator[Neighbour]:
    """A machine on the lab's segments that is no member of the mesh."""
    with neighbour_of(spec) as machine:
        yield machine
