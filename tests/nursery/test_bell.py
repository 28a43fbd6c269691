# SPDX-License-Identifier: GPL-3.0-or-later
import trio
import trio.testing

from phantommesh.nursery.bell import Bell


async def test_a_ring_wakes_all_who_wait_and_nobody_later() -> None:
    bell, woken = Bell(), list[int]()

    async def wait(number: int) -> None:
        await bell.wait()
        woken.append(number)

    async with trio.open_nursery() as nursery:
        bell.ring()  # nobody waits yet
        for number in range(3):
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        assert woken == []
        bell.ring()
        nursery.start_soon(wait, 3)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == [0, 1, 2]
        bell.ring()
    assert woken[3:] == [3]
