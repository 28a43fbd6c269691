# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what the scan of this host judges of files: modes and owners, and copies of keys. All block."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import sys
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import phantommesh
from phantommesh.hostcheck.seen import CopySeen, FileSeen, Kind, Role
from phantommesh.state import directory

SECRETS: Final = frozenset(
    {
        directory.ROOT_KEY, directory.AUTHORITY_KEY, directory.NODE_KEY, directory.WIREGUARD_KEYS,
        directory.ADMISSION_KEY, directory.KEYRING, directory.PACTS, directory.SUCCESSION,
    }
)  # fmt: skip
"""Files of the state directory that let others be this node, or read its traffic."""
_SECRET_DIRECTORIES: Final = (directory.INVITES, directory.SUCCESSOR)
SEARCHED: Final = tuple(
    map(Path, ("/root", "/home", "/tmp", "/var/tmp", "/var/backups", "/srv", "/opt", "/mnt", "/media"))  # noqa: S108
)
"""Where people put copies, beside the directories of the state and the configuration."""

# Tuning: what a search for copies may cost, at most 0.1 s of CPU or so.
MOST_ENTRIES: Final = 20_000
MOST_IN_ONE: Final = 2_000  # entries of one directory; a directory of caches is no place for a backup
DEEPEST: Final = 4  # directories below each other, e.g. /home/USER/backup/phantommesh/node.key
MOST_ARCHIVES: Final = 32
ARCHIVE_BYTES: Final = 4 * 1024 * 1024  # read of each archive: a state directory has less
MOST_STATE_FILES: Final = 4096

_ARCHIVE: Final = re.compile(r".*\.(tar|tgz|tar\.(gz|xz|bz2))(\.[\w-]{1,16})?", re.IGNORECASE)
_NAMED: Final = re.compile(r"(.*[._-])?((node|root|authority)\.key|wireguard\.json)([._~-].*)?")
_ML_DSA_65: Final = bytes.fromhex("0609608648016503040312")  # its OID (RFC 9881), as DER
_MOST_SECRET: Final = 64 * 1024  # bytes of a file that may be a copy; the largest of `SECRETS` has less
_PROGRAMS: Final = ("nft", "ip", "wireguard-go", "boringtun-cli")
_VOLATILE: Final = frozenset(
    {"tmpfs", "ramfs", "overlay", "nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.sshfs"}
)


def read_state(path: Path, unknown: list[str]) -> list[FileSeen]:
    """Read the state directory, what is in it, and the directories above; nothing where there is none."""
    try:
        path = path.resolve()
        if os.access(path, os.R_OK | os.X_OK) and not (path / directory.FORMAT_FILE).exists():
            return []  # it is something else's
        files = [_look(path, "state", volatile=_volatile(path), room=_room(path))]
    except FileNotFoundError:
        return []
    except OSError as error:
        unknown.append(f"the state directory: {error.strerror}; run this as root")
        return []
    try:
        for entry in _entries(path):
            secret = entry.name in SECRETS or entry.parent.name in _SECRET_DIRECTORIES
            files.append(_look(entry, "state-file", secret=secret))
    except OSError as error:
        unknown.append(f"what is in the state directory: {error.strerror}; run this as root")
    return files + read_parents(path, "state-parent")


def read_file(path: Path, role: Role) -> list[FileSeen]:
    """Read one file and the directories above, if it is there. A device, such as /dev/null for a node without
    a configuration, keeps nothing that others could change."""
    above: dict[Role, Role] = {"config": "config-parent", "socket": "socket-parent"}
    try:
        if path.is_char_device():
            return []
        return [_look(path, role)] + (read_parents(path.resolve(), above[role]) if role in above else [])
    except OSError:
        return []


def read_parents(path: Path, role: Role) -> list[FileSeen]:
    """Read the directories above a path."""
    found = []
    for parent in path.parents:
        try:
            found.append(_look(parent, role))
        except OSError:
            continue
    return found


def read_programs() -> list[FileSeen]:
    """Read the programs that a node runs, where its own code is, and the directories of PATH."""
    paths = [Path(sys.executable), Path(phantommesh.__file__).parent]
    paths += [Path(found) for name in _PROGRAMS if (found := shutil.which(name))]
    paths += [Path(part) for part in os.get_exec_path() if part.startswith("/")]
    files = []
    for path in dict.fromkeys(paths):
        try:
            files.append(_look(path, "program", follow=True))
        except OSError:
            continue
    return files


def _look(
    path: Path,
    role: Role,
    *,
    secret: bool = False,
    volatile: str = "",
    room: int | None = None,
    follow: bool = False,
) -> FileSeen:
    status = path.stat() if follow else path.lstat()
    return FileSeen(
        path=str(path),
        role=role,
        kind=_kind(status.st_mode),
        mode=status.st_mode & 0o1777,
        uid=status.st_uid,
        gid=status.st_gid,
        links=status.st_nlink,
        modified=status.st_mtime,
        secret=secret,
        volatile=volatile,
        room=room,
    )


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISLNK(mode):
        return "link"
    return "socket" if stat.S_ISSOCK(mode) else "other"


def _entries(path: Path) -> Iterator[Path]:
    """What is in the state directory, two levels deep."""
    count = 0
    for entry in sorted(path.iterdir()):
        yield entry
        if entry.is_dir() and not entry.is_symlink():
            for below in entry.iterdir():
                count += 1
                if count > MOST_STATE_FILES:
                    return
                yield below


def _volatile(path: Path) -> str:
    """The kind of file system that a path is on, where it is one of `_VOLATILE` (proc_pid_mountinfo(5))."""
    best, kind = -1, ""
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > 4 and after:
            point = fields[4].replace(r"\040", " ")
            if (point == "/" or str(path).startswith((point + "/",)) or str(path) == point) and len(
                point
            ) >= best:
                best, kind = len(point), after.split()[0]
    return kind if kind in _VOLATILE else ""


def _room(path: Path) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


# ---- copies of keys ----


def find_copies(state: Path, places: Iterable[Path]) -> list[CopySeen]:
    """Look for copies of keys that every user can read, in and below ``places``: files of the same bytes as
    a key of ours, other nodes' keys by name and content, and archives that have one."""
    known = _known(state)
    found: list[CopySeen] = []
    archives = 0
    for path, status in _reachable(state, places):
        if _ARCHIVE.fullmatch(path.name):
            archives += 1
            of = _in_archive(path) if archives <= MOST_ARCHIVES else ""
        else:
            of = _copy_of(path, status.st_size, known)
        if of:
            found.append(CopySeen(str(path), of, status.st_mode & 0o7777))
    return found


def _known(state: Path) -> dict[int, list[tuple[str, bytes]]]:
    """The keys of ours by their size; none where they may not be read."""
    known: dict[int, list[tuple[str, bytes]]] = {}
    for name in SECRETS:
        try:
            data = (state / name).read_bytes()
        except OSError:
            continue
        if 16 <= len(data) <= _MOST_SECRET:
            known.setdefault(len(data), []).append((name, data))
    return known


def _reachable(state: Path, places: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the regular files that every user can read, the nearest first, within bounds."""
    own = state.resolve()
    todo = deque((place, 0) for place in dict.fromkeys(places) if _open_above(place))
    seen, left = set[tuple[int, int]](), MOST_ENTRIES
    while todo and left > 0:
        place, depth = todo.popleft()
        try:
            status = place.lstat()
            if not stat.S_ISDIR(status.st_mode) or not status.st_mode & stat.S_IXOTH or place == own:
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                for count, entry in enumerate(entries):
                    left -= 1
                    if left <= 0 or count >= MOST_IN_ONE:
                        break
                    if entry.is_dir(follow_symlinks=False):
                        if depth < DEEPEST:
                            todo.append((Path(entry.path), depth + 1))
                    elif entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        if status.st_mode & stat.S_IROTH:
                            yield Path(entry.path), status
        except OSError:
            continue


def _open_above(path: Path) -> bool:
    try:
        return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)
    except OSError:
        return False


def _copy_of(path: Path, size: int, known: dict[int, list[tuple[str, bytes]]]) -> str:
    named = _NAMED.fullmatch(path.name)
    if size > _MOST_SECRET or not (size in known or named):
        return ""
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    for name, own in known.get(size, ()):
        if data == own:
            return f"this node's {name}"
    if named and _is_secret(named[2], data):
        return f"a node's {named[2]}"
    return ""


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


def _in_archive(path: Path) -> str:
    """Which key an archive has; empty where its beginning has none."""
    try:
        with path.open("rb") as file:
            head = io.BytesIO(file.read(ARCHIVE_BYTES))
        with tarfile.open(fileobj=head, mode="r|*") as archive:
            for member in archive:
                if member.isfile() and Path(member.name).name in SECRETS:
                    return f"a state directory ({member.name})"
    except (OSError, EOFError, tarfile.TarError, ValueError):
        return ""
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma", "_lzma"):  # a damaged archive
            return ""
        raise
    return ""
