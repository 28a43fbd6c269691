# SPDX-License-Identifier: GPL-3.0-or-later
"""The weights of one peer's dimensions: how much of its traffic each of its paths should carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from phantommesh.dimensions import DIMENSIONS, has
from phantommesh.paths.state import SHARE_FLOOR, Path, PathState

FULL: Final = (1.0,) * DIMENSIONS
NO_FACTORS: Final[Mapping[int, float]] = {}

# Tuning.
STEPS: Final = 8  # a weight is a multiple of one in so many, so that it seldom changes


def weights(
    paths: Sequence[Path], leaving: int, factors: Mapping[int, float] = NO_FACTORS
) -> tuple[float, ...]:
    """Return the weights of a peer's paths, 0.0 to 1.0, by capacity and loss; delay does not count. There is
    always one that is not zero: where no path is up, the likeliest carry the traffic. ``leaving``: the
    dimensions, a bitmap, that this node takes out of use. ``factors``: what the weights of some dimensions
    are multiplied by, on an agent's or the operator's word. They do not count where nothing would be left."""
    own = tuple(_weight(path, leaving) for path in paths)
    found = tuple(weight * factors.get(i, 1.0) for i, weight in enumerate(own))
    return found if any(found) else own if any(own) else _last_resort(paths, leaving)


def leaves(path: Path, leaving: int) -> bool:
    """Whether one end takes a path out of use, or both have set it aside."""
    return path.peer_leaving or path.aside or has(leaving, path.dimension)


def weigh(paths: Sequence[Path]) -> None:
    """Move the shares of a peer's paths by what each has lost, compared with the best of them."""
    up = [path for path in paths if path.state is PathState.UP]
    probes = min((path.quality.bounds[1] for path in up), default=0.0)
    counted = min((path.quality.counted.bounds[1] for path in up), default=0.0)
    for path in up:
        path.weigh(probes, counted)


def _weight(path: Path, leaving: int) -> float:
    if path.state is not PathState.UP or leaves(path, leaving) or path.share < SHARE_FLOOR or path.narrow:
        return 0.0
    return max(1, round(path.share * STEPS)) / STEPS


def _last_resort(paths: Sequence[Path], leaving: int) -> tuple[float, ...]:
    stays = [path for path in paths if path.state is not PathState.CLOSED and not leaves(path, leaving)]
    for chosen in (
        [path for path in stays if path.state is PathState.UP and not path.narrow],  # all of them shed
        [path for path in stays if path.state is PathState.UP],
        [path for path in stays if path.state is PathState.PROVING],
        stays,
        [path for path in paths if path.state is not PathState.CLOSED],
    ):
        if chosen:
            return tuple(float(path in chosen) for path in paths)
    return FULL
