# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what the scan of this host judges of files: kinds, modes and owners. It opens none. All block."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import phantommesh
from phantommesh.hostcheck.seen import FileSeen, Kind, Role
from phantommesh.state import directory

SECRETS: Final = frozenset(
    {
        directory.ROOT_KEY, directory.AUTHORITY_KEY, directory.NODE_KEY, directory.WIREGUARD_KEYS,
        directory.ADMISSION_KEY, directory.KEYRING, directory.PACTS, directory.SUCCESSION,
    }
)  # fmt: skip
"""Files of the state directory that let others be this node, or read its traffic."""
_SECRET_DIRECTORIES: Final = (directory.INVITES, directory.SUCCESSOR)

# Tuning.
MOST_STATE_FILES: Final = 4096

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
    except (OSError, RuntimeError) as error:  # the latter of links in a circle
        unknown.append(f"the state directory: {getattr(error, 'strerror', error)}; run this as root")
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
    except (OSError, RuntimeError):  # the latter of links in a circle
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
