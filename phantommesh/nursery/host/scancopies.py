# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks for copies of keys that every user of this host can read. All block.

Whatever lies in the places searched was put there by some user, maybe a hostile one, who may also exchange it
at any moment. So no link is followed below a place, each file is opened without waiting for anything and
judged by its descriptor, and what is read of it is bounded. Nothing is decompressed: a compressed archive of
hundred bytes can take gigabytes and minutes.
"""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from phantommesh.errors import PhantomMeshError
from phantommesh.hostcheck.seen import CopySeen
from phantommesh.nursery.host.scanfiles import SECRETS
from phantommesh.state import directory
from phantommesh.state.files import read_file

SEARCHED: Final = tuple(
    map(Path, ("/root", "/home", "/tmp", "/var/tmp", "/var/backups", "/srv", "/opt", "/mnt", "/media"))  # noqa: S108
)
"""Where people put copies, beside the directories of the state and the configuration."""

# Tuning: what a search for copies may cost, at most 0.1 s of CPU or so, and 4 MiB.
MOST_ENTRIES: Final = 20_000
MOST_IN_ONE: Final = 2_000  # entries of one directory; a directory of caches is no place for a backup
DEEPEST: Final = 4  # directories below each other, e.g. /home/USER/backup/phantommesh/node.key
MOST_ARCHIVES: Final = 32
ARCHIVE_BYTES: Final = 4 * 1024 * 1024  # read of each archive: a state directory has less

_ARCHIVE: Final = re.compile(r".*\.tar(\.[\w-]{1,16})?", re.IGNORECASE | re.DOTALL)
# A name may have any bytes but 0 and "/", line breaks too.
_NAMED: Final = re.compile(r"(.*[._-])?((node|root|authority)\.key|wireguard\.json)([._~-].*)?", re.DOTALL)
_ML_DSA_65: Final = bytes.fromhex("0609608648016503040312")  # its OID (RFC 9881), as DER
_LEAST_SECRET: Final = 16  # bytes
_MOST_SECRET: Final = 64 * 1024  # bytes of a file that may be a copy; the largest of `SECRETS` has less

# tar(5), "POSIX ustar Archives"; the magic of GNU tar and of pax begins alike.
_BLOCK: Final = 512
_NAME, _TYPE, _MAGIC = slice(0, 100), slice(156, 157), slice(257, 262)
_USTAR: Final = b"ustar"
_REGULAR_MEMBERS: Final = (b"0", b"\0")
_SECRET_NAMES: Final = frozenset(map(os.fsencode, SECRETS))

# O_NONBLOCK: an open waits for no other end of a FIFO, and for no holder of a lease (fcntl(2), F_SETLEASE).
_CAREFUL: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class _Place(NamedTuple):
    """A directory, ``below`` one of the places that are searched."""

    top: Path
    below: tuple[str, ...] = ()


class _Reached(NamedTuple):
    """A regular file that every user can read, as its directory tells; it may be another by now."""

    above: Path
    name: str
    directory: int  # its directory's descriptor, good until the next file
    size: int


def find_copies(state: Path, places: Iterable[Path]) -> list[CopySeen]:
    """Look for copies of keys that every user can read, in and below ``places``: files of the same bytes as
    a key of ours, other nodes' keys by name and content, and uncompressed tar archives that have one. What
    cannot be read is passed over."""
    known = _known(state)
    found: list[CopySeen] = []
    archives = 0
    for reached in _reachable(state, places):
        archive = _ARCHIVE.fullmatch(reached.name) is not None
        named = _NAMED.fullmatch(reached.name)
        if not archive and (reached.size > _MOST_SECRET or not (named or reached.size in known)):
            continue
        try:
            with _opened(reached.name, reached.directory) as (file, status):
                if not stat.S_ISREG(status.st_mode) or not status.st_mode & stat.S_IROTH:
                    continue
                if not archive:
                    of = _copy_of(os.read(file, _MOST_SECRET + 1), "" if named is None else named[2], known)
                elif archives < MOST_ARCHIVES and (head := os.read(file, _BLOCK))[_MAGIC] == _USTAR:
                    archives += 1
                    of = _in_archive(head + os.read(file, ARCHIVE_BYTES - _BLOCK))
                else:
                    of = ""
        except OSError:
            continue
        if of:
            found.append(CopySeen(str(reached.above / reached.name), of, stat.S_IMODE(status.st_mode)))
    return found


def _known(state: Path) -> dict[int, list[tuple[str, bytes]]]:
    """The keys of ours by their size; none where they may not be read."""
    known: dict[int, list[tuple[str, bytes]]] = {}
    for name in SECRETS:
        try:
            data = read_file(state / name)
        except PhantomMeshError:
            continue
        if _LEAST_SECRET <= len(data) <= _MOST_SECRET:
            known.setdefault(len(data), []).append((name, data))
    return known


@contextmanager
def _opened(
    name: str | Path, within: int | None = None, flags: int = 0
) -> Iterator[tuple[int, os.stat_result]]:
    """Open a file by its name in a directory, without waiting or following a link. Raises OSError."""
    descriptor = os.open(name, _CAREFUL | flags, dir_fd=within)
    try:
        yield descriptor, os.fstat(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _entered(place: _Place) -> Iterator[tuple[int, os.stat_result]]:
    """Open a directory, one step at a time from its top, so that nobody can lead the way elsewhere. Raises
    OSError."""
    if not place.below:
        with _opened(place.top, flags=os.O_DIRECTORY) as opened:
            yield opened
        return
    with (
        _entered(_Place(place.top, place.below[:-1])) as (above, _),
        _opened(place.below[-1], above, os.O_DIRECTORY) as opened,
    ):
        yield opened


def _reachable(state: Path, places: Iterable[Path]) -> Iterator[_Reached]:
    """Yield the regular files that every user can read, the nearest first, within bounds."""
    todo = deque(_Place(place) for place in dict.fromkeys(places) if _open_above(place))
    seen, left = _identity(state), MOST_ENTRIES
    while todo and left > 0:
        place = todo.popleft()
        path = place.top.joinpath(*place.below)
        try:
            with _entered(place) as (descriptor, status):
                if not status.st_mode & stat.S_IXOTH or (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(descriptor) as entries:
                    for count, entry in enumerate(entries):
                        left -= 1
                        if left <= 0 or count >= MOST_IN_ONE:
                            break
                        if entry.is_dir(follow_symlinks=False):
                            if len(place.below) < DEEPEST:
                                todo.append(_Place(place.top, (*place.below, entry.name)))
                        elif (size := _readable(entry)) is not None:
                            yield _Reached(path, entry.name, descriptor, size)
        except OSError:
            continue


def _readable(entry: os.DirEntry[str]) -> int | None:
    """The size of a regular file that every user can read; None of anything else, and of what is gone."""
    try:
        if not entry.is_file(follow_symlinks=False):
            return None
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return status.st_size if status.st_mode & stat.S_IROTH else None


def _identity(path: Path) -> set[tuple[int, int]]:
    try:
        status = path.stat()
    except OSError:
        return set()
    return {(status.st_dev, status.st_ino)}


def _open_above(path: Path) -> bool:
    try:
        return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)
    except (OSError, RuntimeError):  # the latter of links in a circle
        return False


def _copy_of(data: bytes, named: str, known: dict[int, list[tuple[str, bytes]]]) -> str:
    """Which key this is a copy of; empty where it is none. ``named``: the key that the file's name says."""
    for name, own in known.get(len(data), ()):
        if data == own:
            return f"this node's {name}"
    return f"a node's {named}" if named and _is_secret(named, data) else ""


def _is_secret(name: str, data: bytes) -> bool:
    if name == directory.WIREGUARD_KEYS:
        return b'"seeds"' in data or b'"keys"' in data
    if not data.startswith(b"-----BEGIN PRIVATE KEY-----"):
        return False
    import base64

    body = b"".join(data.splitlines()[1:3])
    try:
        return _ML_DSA_65 in base64.b64decode(body[: len(body) // 4 * 4])
    except ValueError:
        return False


def _in_archive(data: bytes) -> str:
    """Which key the beginning of a tar archive has; empty where it has none.

    Each block is looked at for itself, whatever the blocks before it say, so that the bytes bound the work
    alone (that of the standard library's `tarfile` is not: CVE-2024-6232), and an archive in the archive
    counts too. A path of more than 100 bytes is passed over.
    """
    for at in range(0, len(data) - _BLOCK + 1, _BLOCK):
        block = data[at : at + _BLOCK]
        if block[_MAGIC] == _USTAR and block[_TYPE] in _REGULAR_MEMBERS:
            name = block[_NAME].split(b"\0", 1)[0].rsplit(b"/", 1)[-1]
            if name in _SECRET_NAMES:
                return f"a state directory ({os.fsdecode(name)})"
    return ""
