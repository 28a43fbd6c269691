# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a service again when it fails, a bounded number of times, then lets the failure end the node. A
service that has stopped turning is run again on the word of whoever watches its pulse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from phantommesh.errors import PhantomMeshError
from phantommesh.nursery import due
from phantommesh.nursery.due import Pulse

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
    """The services that run now, by name, each with its pulse, so that one can be watched and started again
    from outside."""

    def __init__(self) -> None:
        self.running: dict[str, Pulse] = {}

    def restart(self, name: str) -> None:
        """Have a service start again, though it has not failed. Raises ServiceFailedError where there is no
        such service."""
        if (pulse := self.running.get(name)) is None:
            raise ServiceFailedError(f"no service {name} runs", fix="see the names in the node's log")
        pulse.restart()


async def supervise(
    name: str,
    service: Callable[[], Awaitable[None]],
    *,
    on_restart: Callable[[str], None],
    among: Services | None = None,
) -> None:
    """Run ``service`` until it returns. An exception restarts it after a growing pause; the sixth within a
    minute raises `ServiceFailedError` from it. Cancellation passes through, but for `Services.restart` of the
    services ``among`` which it is: that ends this one alone, restarts it after the first pause, and counts as
    no failure."""
    failures: list[float] = []
    pulse = Pulse()
    due.take(pulse)
    running = {} if among is None else among.running
    running[name] = pulse
    while True:
        scope = trio.CancelScope()
        pulse.begin(scope)
        try:
            with scope:
                await service()
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
            pulse.restarts += 1
            on_restart(name)
            await trio.sleep(pause)
        else:
            if not scope.cancelled_caught:
                del running[name]
                return
            log.warning("service is started again, as was asked for", service=name)
            pulse.restarts += 1
            on_restart(name)
            await trio.sleep(FIRST_PAUSE)
