# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from phantommesh.nursery import supervisor
from phantommesh.nursery.supervisor import RESTARTS, WINDOW, ServiceFailedError, supervise


class Service:
    """Fails ``times`` times, each after ``lasting`` seconds, then returns."""

    def __init__(self, times: float, lasting: float = 0.0, error: type[Exception] = OSError) -> None:
        self.times, self.lasting, self.error = times, lasting, error
        self.began: list[float] = []

    async def __call__(self) -> None:
        self.began.append(trio.current_time())
        await trio.sleep(self.lasting)
        if len(self.began) <= self.times:
            raise self.error("broken")


async def test_a_service_that_returns_is_not_started_again(autojump_clock: MockClock) -> None:
    service = Service(0)
    await supervise("it", service, on_restart=pytest.fail)
    assert len(service.began) == 1


async def test_failures_restart_it_after_growing_pauses(autojump_clock: MockClock) -> None:
    service, restarted = Service(RESTARTS), list[str]()
    with capture_logs() as logs:
        await supervise("it", service, on_restart=restarted.append)
    assert restarted == ["it"] * RESTARTS
    gaps = [b - a for a, b in zip(service.began, service.began[1:], strict=False)]
    assert gaps == sorted(gaps) and gaps[0] < gaps[-1] <= supervisor.LONGEST_PAUSE
    assert [entry["service"] for entry in logs] == ["it"] * RESTARTS


async def test_too_many_failures_escalate_as_an_operators_error(autojump_clock: MockClock) -> None:
    service = Service(float("inf"))
    with capture_logs(), pytest.raises(ServiceFailedError, match=r"it failed 6 times .*broken") as raised:
        await supervise("it", service, on_restart=lambda name: None)
    assert len(service.began) == RESTARTS + 1
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.fix


async def test_failures_far_apart_never_escalate(autojump_clock: MockClock) -> None:
    service = Service(100, lasting=WINDOW / RESTARTS)
    with capture_logs():
        await supervise("it", service, on_restart=lambda name: None)
    assert len(service.began) == 101


async def test_a_group_of_failures_is_a_failure(autojump_clock: MockClock) -> None:
    began = 0

    async def service() -> None:
        nonlocal began
        began += 1
        if began == 1:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Service(1))

    with capture_logs():
        await supervise("it", service, on_restart=lambda name: None)
    assert began == 2


@pytest.mark.parametrize("lasting", [1000.0, 0.0], ids=["running", "pausing"])
async def test_cancellation_passes_through(autojump_clock: MockClock, lasting: float) -> None:
    service, restarted = Service(float("inf"), lasting), list[str]()
    with capture_logs(), trio.move_on_after(0.05) as scope:
        await supervise("it", service, on_restart=restarted.append)
    assert scope.cancelled_caught
    assert len(restarted) == (lasting == 0)  # being cancelled is no failure
    assert len(service.began) == 1
