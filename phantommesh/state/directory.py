# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's state directory: which files there are, and how it is made all at once or not at all.

It is made as a hidden sibling, ``.NAME.creating``, and renamed into place when every byte is on disk, so a
crash leaves either no state directory or a whole one. A left-over sibling is nobody's state: the next
creation clears it.
"""

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from phantommesh.secret import Secret
from phantommesh.state.files import (
    Place,
    StateError,
    append_to,
    atomic_write,
    cannot,
    fill,
    open_new,
    place_of,
    read_file,
    sync_directory,
)
from phantommesh.state.lock import LOCK_FILE, StateLock, flock

FORMAT: Final = b"phantommesh state 1\n"

FORMAT_FILE: Final = "format"
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
NETWORKS: Final = "networks.json"  # what was measured of NATs; no loss if it is lost
BANS: Final = "bans.json"  # there from the first one on; no loss but of bans if it is lost
MEMORY: Final = "memory.bin"  # of threat patterns; no loss but of that if it is lost
TOPOLOGY: Final = "topology.bin"  # what members' links were like yesterday; no loss but of that if it is lost
TUNED: Final = "tuned.json"  # values that GENESIS found better than the configured; no loss if it is lost
INVITES: Final = "invites"
APPROVALS: Final = "routes.json"  # an authority's: which member may route what; there from the first one on
DRAIN: Final = "drain.json"  # there while this node drains; the node is back at work if it is lost
PACTS: Final = "pacts.bin"  # with other meshes, their secrets among them; there from the first one on
POLICIES: Final = "policies.bin"  # of access, as authorities signed them; there from the first one on
SUCCESSION: Final = "successor.invite"  # what a new identity is got by; there while one is under way
SUCCESSOR: Final = "successor"  # a directory: the whole state of the new identity, until it is put in place
DECISIONS: Final = "decisions"  # a directory: what agents did and why; no loss but of that if it is lost
AUDIT: Final = (
    "audit"  # a directory: what was asked of the API, and by whom; no loss but of that if it is lost
)
TOKENS: Final = "tokens.json"  # the API's, as hashes; there from the first one on; no loss but of them
API_CERT: Final = "api.crt"  # the API's own where no other is configured; another is made if it is lost
API_KEY: Final = "api.key"
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
    "`phantommesh invite --replace NAME` for this node on an authority, and join by that invite"
)
"""The fix for a state directory that lacks something."""

JOIN_ANEW: Final = (
    "run `phantommesh leave` here, which moves state and configuration aside, then `phantommesh join` with a "
    "new invite; `phantommesh invite --replace NAME` on an authority makes one that keeps the name and the "
    "IPv4 address"
)
"""The fix where a node's identity is of no more use."""


class StateDir:
    """An existing state directory of this format. `path` is absolute, without symbolic links."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, files: Mapping[str, bytes]) -> Self:
        """Make the state directory `path` with `files` (a name is relative, two levels deep at most).

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
                    for above in reversed(target.relative_to(staging).parents):
                        (staging / above).mkdir(exist_ok=True, mode=0o700)
                    with open_new(target) as file:
                        fill(file, data, 0o600)
                for directory in {staging / above for name in files for above in Path(name).parents} | {
                    staging
                }:
                    sync_directory(directory)
                # rename(2) replaces an empty directory only, so nobody's files can be lost here
                staging.rename(path)
        except OSError as error:
            raise cannot(f"make the state directory {path}", error) from error
        try:
            sync_directory(path.parent)
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
        marker = state.read(FORMAT_FILE) if FORMAT_FILE in entries else None
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
        return read_file(self.path / name)

    def read_secret(self, name: str) -> Secret:
        """Return a key file's bytes. Raises StateError unless it is ours and closed to everybody else."""
        return Secret(read_file(self.path / name, secret=True))

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
        return place_of(self.path / name)

    def append(self, name: str, place: Place, data: bytes) -> Place:
        """Add bytes to a file that ends at `place`; return its new end. The bytes are on disk then. Hold the
        directory's lock.

        Raises StateError where they could not be written: then `place` holds still. Raises PlaceError where
        it does not: then the file is to be replaced (`write`).
        """
        return append_to(self.path / name, place, data)

    def lock(self) -> "StateLock":
        """Hold the directory for one node, as a context. The kernel drops the lock with the process, however
        it ends.

        Raises StateInUseError when another process holds it.
        """
        return StateLock(self.path)


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
            fix="start it with `phantommesh run`; for a second node on this machine give another --state-dir "
            "and another --config",
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
        flock(descriptor, busy)
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
