# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules about files: who can read this node's keys, and who can change what it reads or runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from phantommesh.hostcheck.finding import Chmod, Finding, Rule, quoted
from phantommesh.hostcheck.seen import FileSeen, HostSeen
from phantommesh.moments import span

STATE_OPEN = Rule("state-open", "high", "The state directory lets other users in")
STATE_OWNER = Rule("state-owner", "high", "The state belongs to another user than runs the node")
KEY_OPEN = Rule("key-open", "critical", "A key can be read by other users")
STATE_WRITABLE = Rule("state-writable", "high", "A file of the state can be written by other users")
STATE_LINKED = Rule("state-linked", "medium", "A file of the state has a second name, or is a link")
PARENT_WRITABLE = Rule("parent-writable", "high", "Other users can replace a directory above")
STATE_VOLATILE = Rule("state-volatile", "medium", "The state does not outlive a reboot, or lies elsewhere")
STATE_FULL = Rule("state-disk-full", "medium", "There is little room for the state")
STATE_AHEAD = Rule("clock-behind-files", "high", "Files of the state are of the future")
CONFIG_WRITABLE = Rule("config-writable", "high", "Other users can change the configuration")
SOCKET_OPEN = Rule("socket-open", "high", "The API's socket is open to users who may not ask the node")
HOSTS_WRITABLE = Rule("hosts-writable", "high", "Other users can change the hosts file")
PROGRAM_WRITABLE = Rule(
    "program-writable", "critical", "Other users can replace a program that the node runs"
)
COPY_OPEN = Rule("key-copy-open", "critical", "A copy of a key can be read by other users")
RULES: Final = (
    STATE_OPEN, STATE_OWNER, KEY_OPEN, STATE_WRITABLE, STATE_LINKED, PARENT_WRITABLE, STATE_VOLATILE,
    STATE_FULL, STATE_AHEAD, CONFIG_WRITABLE, SOCKET_OPEN, HOSTS_WRITABLE, PROGRAM_WRITABLE, COPY_OPEN,
)  # fmt: skip

# Tuning.
LITTLE_ROOM: Final = 16 * 1024 * 1024  # bytes: a roster of ten thousand members, written twice
AHEAD: Final = 86_400.0  # s; less is a clock that was set, or a time zone's mistake on a shared file system

_MOST_TOUCHED: Final = 4  # files that a line for a shell names
_OTHERS, _GROUP = 0o007, 0o070
_OTHERS_WRITE, _GROUP_WRITE, _STICKY = 0o002, 0o020, 0o1000
_ROOT: Final = 0


def findings(seen: HostSeen) -> Iterator[Finding]:
    """Go through all files."""
    for file in seen.files:
        match file.role:
            case "state":
                yield from _state(seen, file)
            case "state-file":
                yield from _state_file(seen, file)
            case "state-parent" | "config-parent" | "socket-parent":
                yield from _parent(file)
            case "config":
                yield from _config(seen, file)
            case "socket":
                yield from _socket(seen, file)
            case "hosts":
                yield from _written_by_others(HOSTS_WRITABLE, file, "names of members can be led elsewhere")
            case "program":
                if file.mode & _OTHERS_WRITE and not file.mode & _STICKY:
                    yield _writable(PROGRAM_WRITABLE, file, "whoever changes it is root when the node runs")
    yield from _ahead(seen)
    for copy in seen.copies:
        yield COPY_OPEN.found(
            f"{copy.path} is a copy of {copy.of}, and every user of this machine can read it "
            f"(mode {copy.mode:04o})",
            f"run `chmod 600 {quoted(copy.path)}`, or delete it; if others had time to read it, take a "
            "new identity (`phantommesh identity new` for a node's key)",
            subject=copy.path,
        )


def _state(seen: HostSeen, file: FileSeen) -> Iterator[Finding]:
    if file.mode & (_OTHERS | _GROUP):
        mend = Chmod(file.path, 0o700)
        yield STATE_OPEN.found(
            f"{file.path} has mode {file.mode:04o}: other users see what is in it",
            f"run `{mend.command}`",
            subject=file.path,
            mend=mend if file.uid == seen.uid else None,
        )
    yield from _owner(seen, file)
    if file.volatile:
        yield STATE_VOLATILE.found(
            f"{file.path} is on {file.volatile}: {_lost(file.volatile)}",
            "stop the node and move the state directory to a disk of this machine (in a container: a volume)",
            subject=file.path,
        )
    if file.room is not None and file.room < LITTLE_ROOM:
        yield STATE_FULL.found(
            f"{file.room // 1024} KiB are free where {file.path} is: what the node should remember is not "
            "written then",
            "free some space on that file system, or make it larger",
            subject=file.path,
        )


def _lost(kind: str) -> str:
    if kind in ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"):
        return "the keys cross the network, and whoever runs the file server has them"
    return "identity and keys are lost at a reboot, or with the container"


def _state_file(seen: HostSeen, file: FileSeen) -> Iterator[Finding]:
    if file.kind == "link" or (file.kind == "file" and file.links > 1):
        how = "is a symbolic link" if file.kind == "link" else f"has {file.links} names on its file system"
        name = quoted(file.path)
        yield STATE_LINKED.found(
            f"{file.path} {how}: the same bytes can be read or changed elsewhere, whatever its mode is",
            f"stop the node, make it a file of its own: `cp -p {name} {name}.own && mv {name}.own {name}`; "
            "and see who has the other",
            subject=file.path,
        )
    if file.kind == "link":
        return  # it has no mode of its own
    if file.secret and file.mode & (_OTHERS | _GROUP) and file.kind == "file":
        mend = Chmod(file.path, 0o600)
        yield KEY_OPEN.found(
            f"{file.path} is a key and has mode {file.mode:04o}",
            f"run `{mend.command}`; if others had time to read it, take a new identity",
            subject=file.path,
            mend=mend if file.uid == seen.uid else None,
        )
    elif file.mode & (_OTHERS_WRITE | _GROUP_WRITE):
        mend = Chmod(file.path, 0o700 if file.kind == "directory" else 0o600)
        yield STATE_WRITABLE.found(
            f"{file.path} has mode {file.mode:04o}: others can change what the node believes",
            f"run `{mend.command}`",
            subject=file.path,
            mend=mend if file.uid == seen.uid else None,
        )
    yield from _owner(seen, file)


def _ahead(seen: HostSeen) -> Iterator[Finding]:
    state = [file for file in seen.files if file.role == "state-file" and file.kind != "link"]
    ahead = sorted(
        (file for file in state if file.modified > seen.now + AHEAD), key=lambda file: -file.modified
    )
    if ahead:
        first, more = ahead[0], f" and {len(ahead) - 1} more files" if ahead[1:] else ""
        yield STATE_AHEAD.found(
            f"{first.path}{more} will have been written in {span(first.modified - seen.now)}, by this "
            "machine's clock: certificates do not hold by a clock that is behind",
            "set the clock, and have it kept right (NTP); where the clock is right, run "
            f"`touch {' '.join(quoted(file.path) for file in ahead[:_MOST_TOUCHED])}`",
            subject=first.path,
        )


def _owner(seen: HostSeen, file: FileSeen) -> Iterator[Finding]:
    if file.uid != seen.uid:
        yield STATE_OWNER.found(
            f"{file.path} belongs to user {file.uid}, not to user {seen.uid} who runs the node: that user "
            "can change it, and the node refuses keys that are not its own",
            f"run `chown {seen.uid} {quoted(file.path)}`",
            subject=file.path,
        )


def _parent(file: FileSeen) -> Iterator[Finding]:
    """Somebody who may write a directory can rename what is in it, unless it is sticky."""
    loose = file.mode & _OTHERS_WRITE or (file.mode & _GROUP_WRITE and file.gid != _ROOT)
    if loose and not file.mode & _STICKY:
        yield PARENT_WRITABLE.found(
            f"{file.path} has mode {file.mode:04o}: others can put a directory of their own in place of the "
            "node's",
            f"run `chmod go-w {quoted(file.path)}`",
            subject=file.path,
        )


def _config(seen: HostSeen, file: FileSeen) -> Iterator[Finding]:
    if file.uid not in (_ROOT, seen.uid):
        yield CONFIG_WRITABLE.found(
            f"{file.path} belongs to user {file.uid}, who can change what the node does",
            f"run `chown root {quoted(file.path)}`",
            subject=file.path,
        )
    if file.mode & _OTHERS_WRITE or (file.mode & _GROUP_WRITE and file.gid != _ROOT):
        mend = Chmod(file.path, file.mode & ~(_OTHERS_WRITE | _GROUP_WRITE))
        yield CONFIG_WRITABLE.found(
            f"{file.path} has mode {file.mode:04o}: others can change what the node does",
            f"run `{mend.command}`",
            subject=file.path,
            mend=mend if file.uid == seen.uid else None,
        )


def _socket(seen: HostSeen, file: FileSeen) -> Iterator[Finding]:
    """Connecting to a socket takes the right to write it (unix(7))."""
    if file.mode & _OTHERS:
        mend = Chmod(file.path, file.mode & ~_OTHERS)
        yield SOCKET_OPEN.found(
            f"{file.path} has mode {file.mode:04o}: every user of this machine can connect to the node",
            f"run `{mend.command}`",
            subject=file.path,
            mend=mend if file.uid == seen.uid else None,
        )
    if file.mode & _GROUP_WRITE and file.gid not in (_ROOT, seen.socket_group):
        group = "root" if seen.socket_group is None else str(seen.socket_group)
        yield SOCKET_OPEN.found(
            f"{file.path} is open to the group {file.gid}, which is not the node's",
            f"run `chgrp {group} {quoted(file.path)}`",
            subject=file.path,
        )


def _written_by_others(rule: Rule, file: FileSeen, why: str) -> Iterator[Finding]:
    if file.mode & _OTHERS_WRITE:
        yield _writable(rule, file, why)


def _writable(rule: Rule, file: FileSeen, why: str) -> Finding:
    return rule.found(
        f"{file.path} has mode {file.mode:04o}: {why}",
        f"run `chmod o-w {quoted(file.path)}`",
        subject=file.path,
    )
