# SPDX-License-Identifier: GPL-3.0-or-later
"""One lab that several files use in turn.

A lab takes seconds to build, and far longer in an emulated machine. Its nodes take processor time from every
test that runs beside them. So no more than one stands at a time.
"""

from __future__ import annotations

import os

import pytest
import trio

from phantommesh.nursery.lab import up as lab
from phantommesh.nursery.lab.net import LabSpec


class Standing:
    """The lab that is up, if one is."""

    def __init__(self) -> None:
        self._up: tuple[LabSpec, lab.LabResult] | None = None

    def up(self, spec: LabSpec) -> lab.LabResult:
        """The lab of this spec, up and converged: the one that stands if it is the same, else a new one.

        Raises LabError when it does not come up. Skips the test without root.
        """
        if self._up is not None and self._up[0] == spec:
            return self._up[1]
        if os.geteuid() != 0:
            pytest.skip("needs root, for network namespaces")
        self.down()
        result = trio.run(lab.up, spec)  # a lab that does not come up takes itself down
        self._up = spec, result
        return result

    def down(self) -> None:
        """Take the lab down, if one stands. The next ``up`` makes a new one."""
        if self._up is not None:
            (spec, _), self._up = self._up, None
            trio.run(lab.down, spec.name)


STANDING = Standing()
