# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a path is said to have been as it is."""

from random import Random

from phantommesh.paths.machine import Paths
from phantommesh.paths.state import PathState


def test_a_path_without_keys_is_as_old_as_its_peer_is_known() -> None:
    """And not as old as the clock, which counts from the machine's start."""
    paths = Paths(random=Random(1), interval=1.0)
    paths.set_peers({b"peer": 0b0000001}, now=1_000_000.0)
    views = paths.view(b"peer", now=1_000_012.0)
    assert [view.since for view in views] == [12.0] * 7
    assert [view.state for view in views[1:]] == [PathState.CLOSED] * 6
