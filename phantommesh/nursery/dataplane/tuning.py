# SPDX-License-Identifier: GPL-3.0-or-later
"""The parameters that GENESIS tunes while the node runs, and those of its values that outlast the run."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import structlog
import trio

from phantommesh.errors import PhantomMeshError
from phantommesh.paths.machine import Paths
from phantommesh.state import directory
from phantommesh.state.directory import StateDir
from phantommesh.state.files import StateError

PROBES = "paths.probe_seconds"

log = structlog.get_logger("phantommesh.tuning")


class UnknownParameterError(PhantomMeshError):
    """A parameter that nothing here can change."""


class Tuning:
    """The values in force. ``configured``: the file's; ``taken``: those that an earlier run, or this one,
    found better."""

    def __init__(self, state: StateDir, paths: Paths, probe_seconds: float) -> None:
        self._state, self._paths = state, paths
        self.configured: Mapping[str, float] = {PROBES: probe_seconds}
        self.taken = self._read()

    async def tune(self, parameter: str, value: float, *, taken: bool) -> None:
        """Put a value in force, ``taken`` for good. Raises UnknownParameterError or StateError: then the
        value is in force, and not for good."""
        if parameter not in self.configured:
            raise UnknownParameterError(f"nothing here changes {parameter}")
        self._paths.probe_every(value)
        kept = {key: one for key, one in self.taken.items() if key != parameter}
        if taken:
            kept[parameter] = value
        if kept != self.taken:
            self.taken = kept
            await trio.to_thread.run_sync(self._state.write, directory.TUNED, msgspec.json.encode(kept))

    def restore(self, parameter: str) -> None:
        """Put the configured value in force."""
        if parameter in self.configured:
            self._paths.probe_every(self.configured[parameter])

    def _read(self) -> dict[str, float]:
        """What an earlier run found. Damage costs only that; `Genesis` holds the bounds."""
        if not self._state.has(directory.TUNED):
            return {}
        try:
            return msgspec.json.decode(self._state.read(directory.TUNED), type=dict[str, float])
        except (msgspec.DecodeError, StateError) as error:
            log.warning("tuned values cannot be read, and are found anew", error=str(error))
            return {}
