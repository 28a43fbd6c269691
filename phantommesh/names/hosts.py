# SPDX-License-Identifier: GPL-3.0-or-later
"""A marked block in a hosts file (hosts(5)): ours to write and to remove, every other byte left as it is.

The new file takes the old one's place by a rename, so that readers and crashes see one or the other. A file
that is a mount of its own (a container's /etc/hosts) cannot be renamed over and is rewritten in place.

Nodes of several meshes on one host have a block each in one file. They write one after the other: the new
file is locked while it is made.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from phantommesh.errors import PhantomMeshError

MAX_HOSTS_BYTES: Final = 16 * 1024 * 1024  # block lists of some MB are in use
_ATTEMPTS: Final = 5  # at a file that somebody else keeps writing


class HostsError(PhantomMeshError):
    """A hosts file that cannot be read, understood or written; names it."""


class Written(enum.Enum):
    """How a hosts file was changed."""

    UNCHANGED = enum.auto()
    REPLACED = enum.auto()
    IN_PLACE = enum.auto()


def with_block(data: bytes, mesh: str, lines: Sequence[str]) -> bytes:
    """Return the file's bytes with the mesh's block holding these lines, where it was or else at the end.

    Raises HostsError for a block without an end: what follows it may not be ours.
    """
    before, after, joined = _split(data, mesh)
    begin, end = _marks(mesh)
    if joined is None:
        joined = bool(before) and not before.endswith(b"\n")
    block = [begin + (_JOINED if joined else b""), *(line.encode("ascii") for line in lines), end]
    return before + (b"\n" if joined else b"") + b"\n".join(block) + b"\n" + after


def without_block(data: bytes, mesh: str) -> bytes:
    """Return the bytes without the mesh's block: what they were before `with_block`. Raises HostsError."""
    before, after, joined = _split(data, mesh)
    # the newline we had to add stays where somebody has written on after our block
    return before + b"\n" + after if joined and after else before + after


def write(path: Path, change: Callable[[bytes], bytes]) -> Written:
    """Change a hosts file; one that is not there counts as empty. Raises HostsError.

    Mode, owner and extended attributes stay. Text that somebody else writes meanwhile is read again, not
    lost.
    """
    try:
        target = path.resolve()  # a symbolic link stays one
        for _ in range(_ATTEMPTS):
            _, data = _look(target)
            if change(data) == data:
                return Written.UNCHANGED
            with _alone(target) as (temporary, descriptor):
                before, data = _look(target)  # another node may have been faster
                changed = change(data)
                if changed == data:
                    return Written.UNCHANGED
                if (written := _replace(target, before, changed, temporary, descriptor)) is not None:
                    return written
    except OSError as error:
        raise HostsError(
            f"cannot write {path}: {error.strerror}", fix='make it writable, or set dns.mode = "off"'
        ) from error
    raise HostsError(f"{path} keeps changing", fix="stop what rewrites it; it is tried again")


_JOINED: Final = b" (after a line without an end)"


def _marks(mesh: str) -> tuple[bytes, bytes]:
    return f"# BEGIN phantommesh {mesh}".encode(), f"# END phantommesh {mesh}".encode()


def _split(data: bytes, mesh: str) -> tuple[bytes, bytes, bool | None]:
    """Return what stands before the block and after it, and whether the newline before it was added with it
    (then `before` lacks it); None where there is no block."""
    begin, end = _marks(mesh)
    lines = _lines(data)
    begins = [i for i, line in enumerate(lines) if line.rstrip(b"\r\n") in (begin, begin + _JOINED)]
    ends = [i for i, line in enumerate(lines) if line.rstrip(b"\r\n") == end]
    if not begins and not ends:
        return data, b"", None
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        raise HostsError(
            f"the hosts file has a damaged block of mesh {mesh}",
            fix=f'remove its lines from "{begin.decode()}" to "{end.decode()}" by hand',
        )
    at = begins[0]
    before, after = b"".join(lines[:at]), b"".join(lines[ends[0] + 1 :])
    joined = bool(before) and lines[at].rstrip(b"\r\n") != begin
    return before.removesuffix(b"\n") if joined else before, after, joined


def _lines(data: bytes) -> list[bytes]:
    """Split at newlines alone, keeping them."""
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _look(path: Path) -> tuple[os.stat_result | None, bytes]:
    found = _stat(path)
    return found, b"" if found is None else _read(path)


def _stat(path: Path) -> os.stat_result | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise HostsError(f"{path} is not a file", fix="set dns.hosts to a hosts file")
    return found


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_HOSTS_BYTES + 1)
    if len(data) > MAX_HOSTS_BYTES:
        raise HostsError(f"{path} is longer than 16 MiB", fix='set dns.mode = "off"')
    return data


def _same(before: os.stat_result | None, now: os.stat_result | None) -> bool:
    if before is None or now is None:
        return before is now
    return all(
        getattr(before, field) == getattr(now, field)
        for field in ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    )


@contextmanager
def _alone(path: Path) -> Iterator[tuple[Path, int]]:
    """Make the file that is to take the place of ``path``, empty, as the only node that does so now. Nobody
    else can open the file, so nobody else can hold its lock."""
    temporary = path.with_name(f".{path.name}.phantommesh")
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            held = os.fstat(descriptor)
            if _same_file(held, temporary):  # else the node before has put it in place, or removed it
                if not held.st_size and held.st_nlink == 1 and held.st_uid == os.geteuid():
                    try:
                        yield temporary, descriptor
                    finally:
                        if _same_file(os.fstat(descriptor), temporary):
                            temporary.unlink()
                    return
                temporary.unlink()  # a crash's left-over
        finally:
            os.close(descriptor)


def _same_file(held: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(held, path.lstat())
    except FileNotFoundError:
        return False


def _replace(
    path: Path, before: os.stat_result | None, data: bytes, temporary: Path, descriptor: int
) -> Written | None:
    """Put the bytes in place, or return None where the file is no longer the one that was read."""
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(data)
        file.flush()
        if before is not None:
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
            shutil.copystat(path, temporary)  # the mode, and SELinux's label with it
            os.utime(file.fileno())
        else:
            os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    if not _same(before, _stat(path)):
        return None
    try:
        temporary.replace(path)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        _overwrite(path, data)
        return Written.IN_PLACE
    _sync(path.parent)
    return Written.REPLACED


def _overwrite(path: Path, data: bytes) -> None:
    """Write over the file itself, and cut it only then: a crash in between leaves no shorter file."""
    with path.open("r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        file.truncate(len(data))


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
