# SPDX-License-Identifier: GPL-3.0-or-later
"""One file of a node's: read with suspicion, written atomically or at its end, closed to everybody else."""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Final

from phantommesh.errors import PhantomMeshError

_TAIL_BYTES: Final = 64  # of a file's end by which it is known again: a record's signature is in them
# What file systems without hard links say: the kernel's own, and those of others by FUSE or a network.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_NO_SYNC: Final = frozenset(
    {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
)  # of a directory, by some of those
MAX_FILE_BYTES: Final = 384 * 1024 * 1024  # the largest roster that records/roster.py allows


class StateError(PhantomMeshError):
    """A state directory that is missing, foreign, half-written, in use or too open; names the file."""


class PlaceError(StateError):
    """A file is not as it was written last, or nobody knows how much of it is on disk."""


@dataclass(frozen=True, slots=True)
class Place:
    """The end of a file that grows: which file it is, how many bytes it has, and the last of these."""

    inode: int
    end: int
    tail: bytes


def read_file(path: Path, *, secret: bool = False) -> bytes:
    """Return a file's bytes. Raises StateError naming the file, of a ``secret`` too unless it is ours and
    closed to everybody else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise cannot(f"read {path}", error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StateError(f"{path} is not a regular file", fix="move it away and restore a backup")
        if secret:
            check_private(path, status)
        if status.st_size > MAX_FILE_BYTES:
            raise StateError(f"{path} is {status.st_size} bytes long", fix="restore it from a backup")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise cannot(f"read {path}", error) from error
    finally:
        os.close(descriptor)


def check_private(path: Path, status: os.stat_result) -> None:
    """Raise StateError unless the file is ours and closed to everybody else."""
    if status.st_uid != os.geteuid():
        raise StateError(
            f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()} who runs this",
            fix=f"chown {os.geteuid()} {path}",
        )
    if status.st_mode & 0o077:
        raise StateError(
            f"{path} is a secret that others can read (mode {stat.S_IMODE(status.st_mode):04o})",
            fix=f"chmod 600 {path}",
        )


def atomic_write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the file `path` by `data`: readers and crashes see the old bytes or the new, never a mixture.

    The bytes and the rename are on disk when this returns. Raises OSError, and then `path` is as it was. If
    several write at once, threads or processes, the last one's stay.
    """
    _clear_left_overs(path)
    temporary, file = _open_temporary(path)
    try:
        with file:
            fill(file, data, mode)
            temporary.replace(path)  # while the lock holds: it is closed with the file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def rewrite(path: Path, text: str) -> None:
    """Have a file that people edit say ``text``; its mode stays, and a link to it too. Raises StateError."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
        atomic_write(path.resolve(), text.encode("utf-8"), mode=mode)
    except OSError as error:
        raise cannot(f"write {path}", error) from error


def place_of(path: Path) -> Place:
    """Return where a file ends now. Raises StateError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return _place(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise cannot(f"read {path}", error) from error


def append_to(path: Path, place: Place, data: bytes) -> Place:
    """Add bytes to a file that ends at `place`; return its new end. The bytes are on disk then. Hold the
    directory's lock.

    Raises StateError where they could not be written: then `place` holds still. Raises PlaceError where
    it does not: then the file is to be replaced (`atomic_write`).
    """
    foreign = PlaceError(
        f"{path} is not as this node wrote it last: something else has written to it, or replaced it",
        fix="find out what it was; to put a backup back, stop the node first",
    )
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise foreign from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or _place(descriptor) != place:
            raise foreign
        try:
            _write_at(descriptor, data, place.end)
        except OSError as error:
            _take_back(descriptor, path, place.end)
            raise cannot(f"write {path}", error) from error
        _settle(descriptor, path)
    except OSError as error:
        raise cannot(f"write {path}", error) from error
    finally:
        os.close(descriptor)
    return Place(place.inode, place.end + len(data), (place.tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:])


def _open_temporary(path: Path) -> tuple[Path, BufferedWriter]:
    """Make a file beside `path` that is no other writer's, locked for as long as it is open."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
        file = open_new(temporary)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return temporary, file
        except BaseException:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        file.close()  # another writer took it for a left-over in the instant before the lock


def _clear_left_overs(path: Path) -> None:
    """Remove what writers of `path` left that died: the kernel drops their locks."""
    temporary = re.compile(re.escape(f".{path.name}") + r"(\.[0-9a-f]{16})?\.new")
    for entry in path.parent.iterdir():
        if not temporary.fullmatch(entry.name):
            continue
        with suppress(OSError):  # its writer is at work, or just done; or it is not ours, nor in the way
            descriptor = os.open(entry, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                entry.unlink()
            finally:
                os.close(descriptor)


def open_new(path: Path) -> BufferedWriter:
    """Make a file that is not there yet, mode 0600. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def place_new(written: Path, path: Path) -> None:
    """Have a file that is written whole stand at ``path`` too, where nothing may be yet; it is on disk then.
    ``written`` is the caller's to remove. Raises OSError, and then there is nothing of it at ``path``.

    On a file system without hard links, as of most USB sticks (FAT, exFAT), the bytes are copied: while that
    lasts a crash leaves a part of them, at a name that only this made.
    """
    try:
        os.link(written, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with written.open("rb") as source, open_new(path) as copy:
            try:
                shutil.copyfileobj(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    try:
        sync_directory(path.parent)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def fill(file: BufferedWriter, data: bytes, mode: int) -> None:
    """Write a new file; its bytes are on disk then. Raises OSError."""
    os.fchmod(file.fileno(), mode)  # whatever the umask says
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _write_at(descriptor: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, at)
        left, at = left[count:], at + count


def _place(descriptor: int) -> Place:
    status = os.fstat(descriptor)
    start = max(0, status.st_size - _TAIL_BYTES)
    return Place(status.st_ino, status.st_size, os.pread(descriptor, _TAIL_BYTES, start))


def _take_back(descriptor: int, path: Path, end: int) -> None:
    """Cut off what was written in part: it gives the space back, and could come back behind what is written
    next. Raises PlaceError."""
    try:
        os.ftruncate(descriptor, end)
    except OSError as error:
        raise PlaceError(f"cannot write {path}: {error.strerror}") from error
    _settle(descriptor, path)


def _settle(descriptor: int, path: Path) -> None:
    """Wait until a file is on disk. After a failure the kernel may forget what it could not write and let the
    next attempt succeed: nothing that is in the file may be believed any more. Raises PlaceError."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise PlaceError(f"cannot write {path}: {error.strerror}") from error


def sync_directory(path: Path) -> None:
    """Wait until a directory's entries are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot(what: str, error: OSError) -> StateError:
    """The StateError for a file operation that failed."""
    reason = error.strerror or type(error).__name__
    fix = {
        errno.EACCES: "run as root, or give a path you may write",
        errno.EPERM: "run as root, or give a path you may write",
        errno.EBUSY: "a mount point cannot be the state directory itself: give a directory inside it",
        errno.EEXIST: "give another name, or move away what is there",
        errno.EISDIR: "give the path of a file, not of a directory",
        errno.ENOSPC: "free some space on that file system",
        errno.EROFS: "give a path on a file system that can be written",
        errno.ENOTDIR: "give a path whose parents are directories",
        errno.ENOENT: "restore it from a backup, or give the right path",
        errno.EIO: "the disk fails: restore the state directory from a backup to another one",
        errno.EDQUOT: "raise the quota on that file system, or free some of it",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
        errno.ENFILE: "raise the system's limit of open files (fs.file-max)",
        errno.ELOOP: "give a path without a loop of symbolic links",
        errno.ENAMETOOLONG: "give a shorter path",
    }.get(error.errno or 0, f"see why the system says so: errno {error.errno}")
    return StateError(f"cannot {what}: {reason}", fix=fix)
