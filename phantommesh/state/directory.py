# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's state directory: made all at once or not at all, read with suspicion, written atomically.

It is made as a hidden sibling, ``.NAME.creating``, and renamed into place when every byte is on disk, so a
crash leaves either no state directory or a whole one. A left-over sibling is nobody's state: the next
creation clears it.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Final, Self

from phantommesh.errors import PhantomMeshError
from phantommesh.secret import Secret

FORMAT: Final = b"phantommesh state 1\n"

FORMAT_FILE: Final = "format"
LOCK_FILE: Final = "lock"
ROOT_CERT: Final = "root.crt"
ROOT_KEY: Final = "root.key"
AUTHORITY_CERT: Final = "authority.crt"
AUTHORITY_KEY: Final = "authority.key"
NODE_CERT: Final = "node.crt"
NODE_KEY: Final = "node.key"
RENEWAL: Final = "renewal.bin"  # both certificates of the last renewal, written before each by itself
WIREGUARD_KEYS: Final = "wireguard.json"
ADMISSION_KEY: Final = "admission.key"
ROSTER: Final = "roster.bin"
REVOCATIONS: Final = "revocations.bin"
KEYRING: Final = "groupkeys.bin"  # there from the first key on; an authority makes it when it first runs
GENERATION: Final = "generation"  # the number of the last start
LEAP: Final = "leap"  # how far past it our claims are, if at all; no loss if it is lost
MEMBERS: Final = "members.bin"  # what up to 256 members last said of themselves; no loss if it is lost
LAST_ADDRESSES: Final = "lastaddresses.bin"  # of members that were forgotten; no loss where seeds are set
INVITES: Final = "invites"
SUCCESSION: Final = "successor.invite"  # what a new identity is got by; there while one is under way
SUCCESSOR: Final = "successor"  # a directory: the whole state of the new identity, until it is put in place
PROOFS: Final = "proofs"  # a directory; no loss but of evidence if it is lost

# Files that every node has from its first moment.
REQUIRED: Final = (
    ROOT_CERT,
    AUTHORITY_CERT,
    NODE_CERT,
    NODE_KEY,
    WIREGUARD_KEYS,
    ADMISSION_KEY,
    ROSTER,
    REVOCATIONS,
)

RESTORE: Final = (
    "restore the file from a backup; or move the state directory and the configuration away, run "
    "`phantommesh revoke NAME` for this node on an authority, and join again"
)
"""The fix for a state directory that lacks something."""
_TAIL_BYTES: Final = 64  # of a file's end by which it is known again: a record's signature is in them
MAX_FILE_BYTES: Final = 384 * 1024 * 1024  # the largest roster that records/roster.py allows


class StateError(PhantomMeshError):
    """A state directory that is missing, foreign, half-written, in use or too open; names the file."""


class StateInUseError(StateError):
    """Another process holds the state directory."""


class PlaceError(StateError):
    """A file is not as it was written last, or nobody knows how much of it is on disk."""


@dataclass(frozen=True, slots=True)
class Place:
    """The end of a file that grows: which file it is, how many bytes it has, and the last of these."""

    inode: int
    end: int
    tail: bytes


def atomic_write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the file `path` by `data`: readers and crashes see the old bytes or the new, never a mixture.

    The bytes and the rename are on disk when this returns. Raises OSError, and then `path` is as it was. If
    several write at once, threads or processes, the last one's stay.
    """
    _clear_left_overs(path)
    temporary, file = _open_temporary(path)
    try:
        with file:
            _fill(file, data, mode)
            temporary.replace(path)  # while the lock holds: it is closed with the file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


class StateDir:
    """An existing state directory of this format. `path` is absolute, without symbolic links."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, files: Mapping[str, bytes]) -> Self:
        """Make the state directory `path` with `files` (a name is relative, one level deep at most).

        An existing empty directory is taken; anything else is left untouched. Raises StateError; when
        it raises anything, `path` is as it was.
        """
        path = path.resolve()
        check_vacant(path)
        staging = path.with_name(f".{path.name}.creating")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            with _staging(staging):
                for name, data in {**files, FORMAT_FILE: FORMAT}.items():
                    target = staging / name
                    target.parent.mkdir(exist_ok=True, mode=0o700)
                    with _open_new(target) as file:
                        _fill(file, data, 0o600)
                for directory in {(staging / name).parent for name in files} | {staging}:
                    _sync_directory(directory)
                # rename(2) replaces an empty directory only, so nobody's files can be lost here
                staging.rename(path)
        except OSError as error:
            raise cannot(f"make the state directory {path}", error) from error
        try:
            _sync_directory(path.parent)
        except OSError:
            pass  # the directory is whole and in place; only a power cut this second could still undo it
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing state directory. Raises StateError naming the file that is wrong and the fix."""
        path = path.resolve()
        try:
            entries = {entry.name for entry in path.iterdir()}
        except FileNotFoundError:
            raise StateError(
                f"there is no state directory {path}",
                fix="run `phantommesh init` or `phantommesh join`, or give the right --state-dir",
            ) from None
        except OSError as error:
            raise cannot(f"read the state directory {path}", error) from error
        state = cls(path)
        marker = state._read(FORMAT_FILE) if FORMAT_FILE in entries else None
        if marker is None:
            found = ", ".join(sorted(entries)[:3]) or "it is empty"
            raise StateError(
                f"{path} is not a PhantomMesh state directory ({found}; no file {FORMAT_FILE!r})",
                fix="give another --state-dir; nothing in it was touched",
            )
        if marker != FORMAT:
            raise StateError(
                f"{path / FORMAT_FILE} is of another version of PhantomMesh",
                fix="run the version that wrote it",
            )
        for name in REQUIRED:
            if name not in entries:
                raise StateError(
                    f"{path} is incomplete: {name} is missing",
                    fix=RESTORE,
                )
        return state

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises StateError naming the file."""
        return self._read(name)

    def read_secret(self, name: str) -> Secret:
        """Return a key file's bytes. Raises StateError unless it is ours and closed to everybody else."""
        return Secret(self._read(name, secret=True))

    def has(self, name: str) -> bool:
        """Say whether the file exists."""
        return (self.path / name).is_file()

    def write(self, name: str, data: bytes) -> None:
        """Replace a file's bytes atomically, mode 0600. Raises StateError; then the old bytes stand."""
        try:
            atomic_write(self.path / name, data)
        except OSError as error:
            raise cannot(f"write {self.path / name}", error) from error

    def place(self, name: str) -> Place:
        """Return where a file ends now. Raises StateError."""
        try:
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                return _place(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise cannot(f"read {self.path / name}", error) from error

    def append(self, name: str, place: Place, data: bytes) -> Place:
        """Add bytes to a file that ends at `place`; return its new end. The bytes are on disk then. Hold the
        directory's lock.

        Raises StateError where they could not be written: then `place` holds still. Raises PlaceError where
        it does not: then the file is to be replaced (`write`).
        """
        path = self.path / name
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

    def lock(self) -> "StateLock":
        """Hold the directory for one node, as a context. The kernel drops the lock with the process, however
        it ends.

        Raises StateInUseError when another process holds it.
        """
        return StateLock(self.path)

    def _read(self, name: str, *, secret: bool = False) -> bytes:
        path = self.path / name
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
                _flock(descriptor, f"another node is running on {self._path.parent}")
                if self._is_there(descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # it was removed between our open and our lock


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


def check_vacant(path: Path) -> None:
    """Raise StateError unless `path` does not exist or is an empty directory."""
    try:
        entries = sorted(entry.name for entry in path.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot(f"use {path} as a state directory", error) from error
    if FORMAT_FILE in entries:
        raise StateError(
            f"{path} already holds a node's state",
            fix="start it with `phantommesh run`, or give another --state-dir",
        )
    if entries:
        raise StateError(
            f"{path} is not empty ({', '.join(entries[:3])}) and is not a PhantomMesh state directory",
            fix="give another --state-dir; nothing in it was touched",
        )


@contextmanager
def _staging(path: Path) -> Iterator[None]:
    """Hold an empty directory `path` of ours; two creations at once exclude each other by its lock."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise StateError(f"{path} is in the way", fix=f"move {path} away")
    descriptor = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        busy = f"another init or join is at work on {path}"
        _flock(descriptor, busy)
        here = (path / LOCK_FILE).stat() if (path / LOCK_FILE).exists() else None
        if here is None or here.st_ino != os.fstat(descriptor).st_ino:
            raise StateError(busy, fix="wait for it to end")  # it finished between our open and our lock
        for entry in path.iterdir():
            if entry.name == LOCK_FILE:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        try:
            yield
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _flock(descriptor: int, busy: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateInUseError(busy, fix="stop the other process first, or give another --state-dir") from None


def _open_temporary(path: Path) -> tuple[Path, BufferedWriter]:
    """Make a file beside `path` that is no other writer's, locked for as long as it is open."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
        file = _open_new(temporary)
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


def _open_new(path: Path) -> BufferedWriter:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def _fill(file: BufferedWriter, data: bytes, mode: int) -> None:
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


def _sync_directory(path: Path) -> None:
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
        errno.ENOSPC: "free some space on that file system",
        errno.EROFS: "give a path on a file system that can be written",
        errno.ENOTDIR: "give a path whose parents are directories",
    }.get(error.errno or 0, "")
    return StateError(f"cannot {what}: {reason}", fix=fix)
