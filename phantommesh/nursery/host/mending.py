# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out the safe fixes of the scan: permissions taken from files of this node's own, settings of its
own interfaces. All block."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

import msgspec

from phantommesh.errors import PhantomMeshError
from phantommesh.hostcheck.finding import Chmod, Mend, SetSysctl, quoted, set_sysctl


class Mended(msgspec.Struct, frozen=True):
    """What was changed, and the line for a shell that takes it back."""

    did: str
    undo: str


class MendError(PhantomMeshError):
    """A safe fix that could not be carried out, or was not safe any more."""


def carry_out(mend: Mend, interfaces: Collection[str]) -> Mended:
    """Carry out a fix, where it is still a safe one: the file is ours and loses rights only, the interface is
    one of ``interfaces``. Raises MendError, and then nothing has changed."""
    match mend:
        case Chmod():
            return _chmod(mend)
        case SetSysctl():
            return _set(mend, interfaces)


def _chmod(mend: Chmod) -> Mended:
    try:
        # O_PATH opens sockets too, and no link is followed.
        descriptor = os.open(mend.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            before = stat.S_IMODE(status.st_mode)
            if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid():
                raise MendError(
                    f"{mend.path} is not this user's own file", fix="see what it is, and mend it by hand"
                )
            if mend.mode & ~before & 0o077:
                raise MendError(f"{mend.path} has changed meanwhile", fix="scan again")
            Path(f"/proc/self/fd/{descriptor}").chmod(mend.mode)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MendError(
            f"cannot mend {mend.path}: {error.strerror}", fix=f"run `{mend.command}` as root"
        ) from error
    return Mended(
        f"the mode of {mend.path} is {mend.mode:04o} instead of {before:04o}",
        f"chmod {before:o} {quoted(mend.path)}",
    )


def _set(mend: SetSysctl, interfaces: Collection[str]) -> Mended:
    parts = mend.name.split("/")
    if len(parts) != 5 or parts[:3] != ["net", "ipv4", "conf"] or parts[3] not in interfaces:
        raise MendError(f"{mend.name} is not a setting of an interface of this node", fix="set it by hand")
    path = Path("/proc/sys", mend.name)
    try:
        before = path.read_text().strip()
        path.write_text(f"{mend.value}\n")
    except OSError as error:
        raise MendError(
            f"cannot write {path}: {error.strerror}", fix=f"run `{mend.command}` as root"
        ) from error
    return Mended(f"{mend.name} is {mend.value} instead of {before}", set_sysctl(mend.name, int(before)))
