# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a service again when it fails, a bounded number of times, then lets the failure end the node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from phantommesh.errors import PhantomMeshError

# Tuning.
RESTARTS, WINDOW = 5, 60.0  # more restarts than this in so many seconds, and the failure escalates
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # s before a restart

log = structlog.get_logger("phantommesh.supervisor")


class ServiceFailedError(PhantomMeshError):
    """A service failed more often than its supervisor allows."""


def _said(error: Exception) -> str:
    """An operator's error says what happened; of any other the type matters, too."""
    return str(error) if isinstance(error, PhantomMeshError) else repr(error)


class Services:
    """The services that run now, by name, so that one can be started again from outside."""

    def __init__(self) -> None:
        self.running: dict[str, trio.CancelScope] = {}

    def restart(self, name: str) -> None:
        """Have a service start again, though it has not failed. Raises ServiceFailedError where there is no
        such service."""
        if (scope := self.running.get(name)) is None:
            raise ServiceFailedError(f"no service {name} runs", fix="see the names in the node's log")
        scope.cancel()


async def supervise(
    name: str,
    service: Callable[[], Awaitable[None]],
    *,
    on_restart: Callable[[str], None],
    among: Services | None = None,
) -> None:
    """Run ``service`` until it returns. An exception restarts it after a growing pause; the sixth within a
    minute raises `ServiceFailedError` from it. Cancellation passes through, but for `Services.restart` of the
    services ``among`` which it is: that restarts it at once."""
    failures: list[float] = []
    running = {} if among is None else among.running
    while True:
        try:
            with trio.CancelScope() as running[name]:
                await service()
            if running.pop(name).cancelled_caught:
                log.warning("service is started again, as was asked for", service=name)
                on_restart(name)
                continue
        except Exception as error:
            now = trio.current_time()
            failures = [moment for moment in failures if now - moment < WINDOW] + [now]
            if len(failures) > RESTARTS:
                raise ServiceFailedError(
                    f"the service {name} failed {len(failures)} times in {WINDOW:.0f} s: {_said(error)}",
                    fix=getattr(error, "fix", "")
                    or "start the node again; if this comes back, it is a bug: report it with the traceback "
                    "in the log",
                ) from error
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (len(failures) - 1))
            log.error("service failed; it is started again", service=name, pause_s=pause, exc_info=error)
            on_restart(name)
            await trio.sleep(pause)
        else:
            return
