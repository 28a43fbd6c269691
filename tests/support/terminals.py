# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the command on terminals of a given width and encoding, where asked as a user without rights.

``python -m tests.support.terminals`` reads one `Job` as JSON from stdin and prints what each of its runs
showed, a list of `Shown`. It imports the command once, gives its rights away, and forks for each run: a
process from the start takes twenty times as long. So what verbs import late is imported before; what a start
does with the streams is done in each run, by the command's own `main`.
"""

import fcntl
import gc
import importlib
import io
import os
import pkgutil
import pty
import select
import signal
import struct
import sys
import termios
import time
import tty
from typing import NoReturn

import msgspec

PATIENCE_S = 60.0
AGAIN_S = 3.0


class Run(msgspec.Struct, frozen=True):
    """``until``: text on which the command gets SIGINT, as by ^C."""

    words: list[str]
    columns: int
    encoding: str
    until: str = ""


class Job(msgspec.Struct, frozen=True):
    """``user`` None: as this process's. ``groups`` besides the user's own, which is the group ``nogroup``."""

    directory: str
    environment: dict[str, str]
    now: float
    runs: list[Run]
    user: int | None = None
    groups: list[int] = []


class Shown(msgspec.Struct, frozen=True):
    """What a terminal got, as bytes, and the exit status."""

    output: bytes
    status: int


NOGROUP = 65_534


def preload() -> None:
    """Import all that verbs import late."""
    import phantommesh

    for module in pkgutil.walk_packages(phantommesh.__path__, "phantommesh."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("rich.console")
    importlib.import_module("encodings.ascii")
    importlib.import_module("encodings.latin_1")


def replace_what_is_real() -> None:
    """Stand-ins for what would look at, or change, the interfaces of this machine."""
    service = importlib.import_module("phantommesh.cli.service")  # the package has its group by that name
    from phantommesh.nursery.lab import run as labrun
    from phantommesh.nursery.lab import up as labs
    from phantommesh.nursery.lab.mesh import LabLink
    from phantommesh.nursery.overlay import taking_down

    async def clear(*_: object) -> taking_down.Down:
        return taking_down.Down(
            mesh=None, node="not-running", interfaces=[], prefixes=[], tables=[], marks=False, running=[]
        )

    link = LabLink(a="pm-1", b="pm-2", epoch=3, dimensions=7, handshake_age_s=12.0, state="fresh")
    joins = {"pm-2": 1.0}

    async def up(*_: object) -> labs.LabResult:
        return labs.LabResult(
            name="pm", nodes=2, backend="userspace", converged_s=1.9, joins=joins, links=[link]
        )

    async def run(*_: object) -> labrun.RunReport:
        return labrun.RunReport(
            nodes=2,
            backend="userspace",
            converged_s=1.9,
            links=[link],
            ping=labrun.Pings(sent=600, received=600),
            failover_s=1.2,
            down_s=1.0,
            return_s=2.0,
            joins=joins,
        )

    service.systemd_runs = lambda: False  # type: ignore[attr-defined]
    taking_down._clear = clear  # type: ignore[assignment]
    labs.up = up  # type: ignore[assignment]
    labrun.run = run  # type: ignore[assignment]


def give_up_rights(job: Job) -> None:
    if job.user is not None:
        os.setgroups(job.groups)
        os.setresgid(NOGROUP, NOGROUP, NOGROUP)
        os.setresuid(job.user, job.user, job.user)


def show(run: Run, now: float) -> Shown:
    """Fork, and return what the command wrote to its terminal."""
    master, slave = pty.openpty()
    # lines, columns, and no size in pixels: struct winsize of ioctl_tty(2)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, run.columns, 0, 0))
    tty.setraw(slave)  # else the terminal writes a carriage return before each newline
    if (child := os.fork()) == 0:
        os.close(master)
        _be(run, slave, now)
    os.close(slave)
    output, interrupted, end = b"", False, time.monotonic() + PATIENCE_S
    while True:
        if not select.select([master], [], [], AGAIN_S)[0]:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                output += b"\nTraceback: it did not end\n"
                break
            if interrupted:  # a signal just before a system call that blocks waits for the next one
                os.kill(child, signal.SIGINT)
            continue
        try:
            data = os.read(master, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not data:
            break
        output += data
        if run.until and not interrupted and run.until.encode() in output:
            interrupted = True
            os.kill(child, signal.SIGINT)
    os.close(master)
    return Shown(output, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _be(run: Run, slave: int, now: float) -> NoReturn:
    status = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in (0, 1, 2):
            os.dup2(slave, descriptor)
        for name, descriptor in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            raw = io.FileIO(descriptor, "r" if descriptor == 0 else "w", closefd=False)
            buffered = io.BufferedReader(raw) if descriptor == 0 else io.BufferedWriter(raw)
            setattr(sys, name, io.TextIOWrapper(buffered, run.encoding, line_buffering=True))
        sys.argv = ["phantommesh", *run.words]
        time.time = lambda: now
        from phantommesh.cli import main

        try:
            main()
        except SystemExit as ending:
            status = ending.code if isinstance(ending.code, int) else 0
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    os._exit(status)


if __name__ == "__main__":
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    preload()
    replace_what_is_real()
    os.environ.update(job.environment)
    os.chdir(job.directory)
    give_up_rights(job)
    gc.collect()
    gc.freeze()  # else each fork's collector would copy all that was imported
    gc.disable()
    sys.stdout.buffer.write(msgspec.json.encode([show(run, job.now) for run in job.runs]))
