# SPDX-License-Identifier: GPL-3.0-or-later
from functools import partial
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from phantommesh.nursery import supervisor
from phantommesh.nursery.due import MOST_DELAYS, REMEMBERED, Due, Pulse, alive
from phantommesh.nursery.host.vitals import VitalSigns
from phantommesh.nursery.supervisor import RESTARTS, WINDOW, ServiceFailedError, Services, supervise


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


async def test_one_service_is_started_again_from_outside_and_that_is_no_failure(
    autojump_clock: MockClock,
) -> None:
    services, restarted = Services(), list[str]()
    wedged, well = Service(0, lasting=1e6), Service(0, lasting=1e6)
    with capture_logs():
        async with trio.open_nursery() as nursery:
            for name, service in (("wedged", wedged), ("well", well)):
                run = partial(supervise, name, service, on_restart=restarted.append, among=services)
                nursery.start_soon(run)
            for _ in range(2 * RESTARTS):
                await trio.sleep(1.0)
                services.restart("wedged")
            await trio.sleep(1.0)
            assert len(well.began) == 1 and len(wedged.began) == 2 * RESTARTS + 1
            assert services.running["wedged"].restarts == 2 * RESTARTS
            nursery.cancel_scope.cancel()
    assert set(restarted) == {"wedged"}
    with pytest.raises(ServiceFailedError, match="no service nobody"):
        services.restart("nobody")


async def test_a_service_says_when_it_turns_next_and_its_children_are_silent(
    autojump_clock: MockClock,
) -> None:
    services = Services()

    async def service() -> None:
        for wait, work in ((1.0, 0.0), (1.0, 2.5), (1.0, 0.0), (1e6, 0.0)):
            alive(wait)
            await trio.sleep(wait + work)

    async with trio.open_nursery() as nursery:
        alive(0.5)  # nobody's
        nursery.start_soon(partial(supervise, "it", service, on_restart=lambda name: None, among=services))
        await trio.sleep(0.5)
        pulse = services.running["it"]
        assert pulse.due - trio.current_time() == pytest.approx(0.5)
        await trio.sleep(10.0)
        assert pulse.slowest(()) == pytest.approx(2.5) and pulse.turns == 4
        nursery.cancel_scope.cancel()


async def test_a_protocol_is_due_when_its_deadline_has_come(autojump_clock: MockClock) -> None:
    services, deadline = Services(), [5.0]

    async def service() -> None:
        due = Due(lambda: deadline[0], turns=True)
        while True:
            await due.sleep()
            deadline[0] = float("inf")

    start = trio.current_time()
    deadline[0] += start
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(supervise, "it", service, on_restart=lambda name: None, among=services))
        await trio.sleep(1.0)
        assert services.running["it"].due == start + 5.0
        await trio.sleep(5.0)
        assert services.running["it"].due == float("inf")
        nursery.cancel_scope.cancel()


async def test_a_late_turn_speaks_for_its_service_for_ten_minutes_and_a_pause_of_all_does_not(
    autojump_clock: MockClock,
) -> None:
    pulse = Pulse()
    began = trio.current_time()
    pulse.turn(1.0)
    await trio.sleep(48.0)
    pulse.turn(1.0)
    assert pulse.slowest(()) == pytest.approx(47.0)
    assert pulse.slowest([(began + 0.5, began + 48.0)]) == pytest.approx(0.0)
    assert pulse.slowest([(began - 5.0, began + 11.0), (began + 40.0, began + 90.0)]) == pytest.approx(29.0)
    await trio.sleep(3.0)
    pulse.turn(REMEMBERED)
    await trio.sleep(REMEMBERED - 4.0)
    assert pulse.slowest(()) == pytest.approx(47.0)
    await trio.sleep(2.0)
    assert pulse.slowest(()) == pytest.approx(2.0)
    for _ in range(MOST_DELAYS + 1):
        pulse.turn(0.0)
        await trio.sleep(0.75)
    assert pulse.slowest(()) == pytest.approx(0.75)


async def test_a_pause_of_the_whole_process_makes_no_service_look_slow(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The process stops for 47 s (SIGSTOP, a suspended machine): all deadlines pass meanwhile."""
    signs, services = VitalSigns(tmp_path, lambda lag: None), Services()

    async def service() -> None:
        while True:
            alive(0.5)
            await trio.sleep(0.5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(signs.run)
        nursery.start_soon(partial(supervise, "it", service, on_restart=lambda name: None, among=services))
        await trio.sleep(10.2)
        autojump_clock.jump(47.0)
        await trio.sleep(3.0)
        pulse = services.running["it"]
        assert pulse.slowest(()) > 45.0
        assert pulse.slowest(signs.held()) < 0.1
        await trio.sleep(REMEMBERED)
        assert not signs.held()
        nursery.cancel_scope.cancel()
