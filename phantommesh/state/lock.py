# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a state directory: one node at a time. The kernel drops it with the process, however that
ends."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from phantommesh.state.files import StateError, cannot

LOCK_FILE: Final = "lock"


class StateInUseError(StateError):
    """Another process holds the state directory."""


class StateLock:
    """The lock of a state directory, in the hands of one node. It is a lock of the file ``lock``: where that
    is removed, another process could make and lock another one."""

    def __init__(self, path: Path) -> None:
        self._path = path / LOCK_FILE
        self._held = self._take()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._held)

    def check(self) -> bool:
        """Take the lock of the file that is there now, if it is not the one that is held; say whether it was
        another one, or none. Raises StateInUseError where another process has taken it: then this one is to
        end. Raises StateError where the file cannot be read or made."""
        if self._is_there(self._held):
            return False
        before, self._held = self._held, self._take()
        os.close(before)
        return True

    def _is_there(self, descriptor: int) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise cannot(f"look at {self._path}", error) from error
        held = os.fstat(descriptor)
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)

    def _take(self) -> int:
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise cannot(f"open {self._path}", error) from error
            try:
                flock(descriptor, f"another node is running on {self._path.parent}")
                if self._is_there(descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # it was removed between our open and our lock


def flock(descriptor: int, busy: str) -> None:
    """Lock an open file. Raises StateInUseError, which says ``busy``, where another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateInUseError(busy, fix="stop the other process first, or give another --state-dir") from None


@contextmanager
def holder(lock: Path) -> Iterator[int | None]:
    """The process that has the lock of this file, as a handle that no other process can come to stand
    behind; None where there is none that this process may look into."""
    try:
        wanted = lock.stat()
    except OSError:
        yield None
        return
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            handle = os.pidfd_open(int(entry.name))
        except OSError:
            continue
        try:
            if _holds(entry, (wanted.st_dev, wanted.st_ino)):
                yield handle
                return
        finally:
            os.close(handle)
    yield None


def _holds(process: Path, wanted: tuple[int, int]) -> bool:
    try:
        for entry in (process / "fd").iterdir():
            try:
                if not str(entry.readlink()).endswith(f"/{LOCK_FILE}"):
                    continue  # stat(2) of some others' would wait
                status = entry.stat()
                if (status.st_dev, status.st_ino) == wanted:
                    return "FLOCK" in (process / "fdinfo" / entry.name).read_text()
            except FileNotFoundError:
                continue
    except OSError:
        pass  # it has ended, or is not ours to look into
    return False


def process_of(state_dir: Path) -> int | None:
    """The process id of the node that has a state directory, whether it answers or not; None where there is
    none, or none that this process may look into."""
    with holder(state_dir.resolve() / LOCK_FILE) as handle:
        if handle is None:
            return None
        said = Path(f"/proc/self/fdinfo/{handle}").read_text("ascii")  # pidfd_open(2): -1 once it has ended
        pid = next((int(line[4:]) for line in said.splitlines() if line.startswith("Pid:")), -1)
        return pid if pid > 0 else None


def hang_up(state_dir: Path) -> bool:
    """Send SIGHUP to the node that runs on a state directory; say whether one does. Raises StateError where
    this process may not."""
    with holder(state_dir.resolve() / LOCK_FILE) as handle:
        if handle is None:
            return False
        try:
            signal.pidfd_send_signal(handle, signal.SIGHUP)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise cannot("have the node read its configuration", error) from error
    return True
