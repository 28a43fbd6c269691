# SPDX-License-Identifier: GPL-3.0-or-later
"""A look in a thread: what counts as its time, and how it is stopped."""

from __future__ import annotations

import gc
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from phantommesh.agents.council import Look
from phantommesh.nursery.agents.jobs import Job, collections_measured


class Worker:
    """A thread that does one job after the other, as trio's do."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._done.put(job())

    def start(self, job: Callable[[], object]) -> None:
        self._jobs.put(job)

    def wait(self) -> object:
        return self._done.get(timeout=30.0)

    def close(self) -> None:
        self._jobs.put(None)
        self.thread.join(30.0)


def test_a_loop_is_stopped_and_its_thread_is_free_again() -> None:
    def loop() -> Look:
        while True:
            pass

    worker, job = Worker(), Job(loop)
    worker.start(job)
    while job.used() < 0.01:
        time.sleep(0.001)
    job.stop()
    worker.wait()
    assert job.ended and job.look is None
    worker.start(lambda: "fine")
    assert worker.wait() == "fine"
    worker.close()


def test_no_job_is_stopped_in_anothers_stead() -> None:
    """A stop that comes as a job ends hits neither the thread nor the next job."""
    worker = Worker()
    for number in range(2000):
        job = Job(lambda: Look([], {}))
        worker.start(job)
        for _ in range(number % 50):
            pass
        job.stop()
        job.stop()
        worker.wait()
        worker.start(lambda: sum(range(200)))
        assert worker.wait() == 19900
    worker.close()


def test_garbage_of_the_whole_node_is_not_the_agents() -> None:
    heap = [[number] for number in range(100_000)]
    spent: list[float] = []

    def work() -> Look:
        began = time.thread_time()
        gc.collect()
        spent.append(time.thread_time() - began)
        return Look([], {})

    with collections_measured():
        job = Job(work)
        job()
    assert job.look is not None and len(heap) == 100_000
    assert job.seconds < spent[0] / 2


def test_waiting_is_not_work() -> None:
    def work() -> Look:
        time.sleep(0.2)
        return Look([], {})

    job = Job(work)
    job()
    assert job.seconds < 0.1


def test_what_a_look_raises_is_kept() -> None:
    def work() -> Look:
        raise RuntimeError("no")

    job = Job(work)
    job()
    assert isinstance(job.error, RuntimeError) and job.look is None and job.ended


STOPPED = """
import sys, threading
from phantommesh.agents.council import Look
from phantommesh.nursery.agents.jobs import Job

for stops in (0, 1, 2):
    job = Job(lambda: Look([], {}))
    thread = threading.Thread(target=job)
    thread.start()
    for _ in range(stops):
        job.stop()
    thread.join()

sys.settrace(lambda *about: None)
(lambda: None)()
sys.settrace(None)
"""


def test_no_look_leaves_the_interpreter_looking_for_something_to_raise() -> None:
    """Everything would be slower for ever, and what is traced or profiled would hang."""
    subprocess.run([sys.executable, "-c", STOPPED], check=True, timeout=60)
