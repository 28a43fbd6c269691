# SPDX-License-Identifier: GPL-3.0-or-later
"""Listening sockets of the API, made so that nobody connects who may not and nobody's file is lost.

Blocking file and socket calls: run them in a worker thread.
"""

import contextlib
import fcntl
import grp
import ipaddress
import os
import secrets
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from phantommesh.client.http import NodeClient
from phantommesh.errors import PhantomMeshError

BACKLOG = 128
# sun_path is 108 bytes with its terminator (unix(7)), and the name is bound under a temporary one first.
MAX_PATH = 107
_TEMPORARY = len(".01234567.sock")
_PROBE_TIMEOUT_S = 1.0


class ApiSocketError(PhantomMeshError):
    """The API cannot listen where the config says."""


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A listening Unix socket, and device and inode of its file, by which its owner knows it again."""

    listener: socket.socket
    path: Path
    inode: tuple[int, int]

    def is_there(self) -> bool:
        """Whether its file is still at the path, so that clients can connect."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.inode

    def remove(self) -> None:
        """Close it and delete its file, unless the path is another node's by now.

        Device and inode alone do not tell: a file that was removed leaves its inode to the next one. So
        nobody may listen there, either.
        """
        self.listener.close()
        with contextlib.suppress(OSError), _locked(self.path.parent):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self.inode and _listener(self.path) is None:
                self.path.unlink()


def listen_unix(path: Path, *, group: str) -> UnixSocket:
    """Listen on ``path``: 0660 root:``group`` where the group exists, else 0600.

    A socket that nothing answers on is replaced. Raises ApiSocketError when another node answers, when
    something that is no socket stands there, and when the system refuses.
    """
    check_path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.sock")
    try:
        _make_directory(path.parent)
        with _locked(path.parent):
            _check_free(path)
            return _bind(path, temporary, group)
    except OSError as error:
        raise ApiSocketError(
            f"cannot listen on {path}: {error.strerror or error}",
            fix="run as root, or choose another api.socket",
        ) from None


def _make_directory(directory: Path) -> None:
    """Make the socket's directory where it is not there: the socket's group has to get through it."""
    with contextlib.suppress(FileExistsError):
        directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory.mkdir()
        directory.chmod(0o755)  # whatever the umask says


def check_path(path: Path) -> None:
    """Raise ApiSocketError where the path is too long for `listen_unix`."""
    room = MAX_PATH - len(os.fsencode(path.parent)) - 1
    if max(len(os.fsencode(path.name)), _TEMPORARY) > room:
        raise ApiSocketError(
            f"{path} is too long for a Unix socket ({MAX_PATH} bytes, of which {_TEMPORARY} are for the "
            "file's name)",
            fix="choose a shorter api.socket",
        )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    # Two nodes that start at once must not both find the path free.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_free(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ApiSocketError(
            f"{path} exists and is not a socket", fix="move it away, or choose another api.socket"
        )
    if (pid := _listener(path)) is None:
        return  # what a killed node left behind
    try:
        status = NodeClient(path, timeout=_PROBE_TIMEOUT_S).status()
        who = f"node {status.node} of mesh {status.mesh}"
    except PhantomMeshError:
        who = "another process"
    raise ApiSocketError(
        f"{who}{f' (pid {pid})' if pid else ''} already answers on {path}",
        fix="stop it first, or give this node another api.socket",
    )


def _listener(path: Path) -> int | None:
    """Return the process that listens at a Unix socket, 0 for one that is too busy to tell; None for
    nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except (BlockingIOError, TimeoutError):
            return 0  # its backlog is full: busy, but alive
        return _credentials(probe)[0]


def _credentials(connection: socket.socket | trio.socket.SocketType) -> tuple[int, int, int]:
    # struct ucred of unix(7): pid, uid, gid
    pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def peer_uid(connection: socket.socket | trio.socket.SocketType) -> int | None:
    """Return the user that connected over a Unix socket; None where that is another kind of socket."""
    return _credentials(connection)[1] if connection.family == socket.AF_UNIX else None


def _bind(path: Path, temporary: Path, group: str) -> UnixSocket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody can connect before listen(), and the file gets its name last: so there is no moment
        # at which a process may connect that should not, and none without a socket at the path.
        listener.bind(str(temporary))
        try:
            temporary.chmod(0o600)
            gid = _gid(group)
            if gid is not None:
                os.chown(temporary, -1, gid)
                temporary.chmod(0o660)
            listener.listen(BACKLOG)
            found = os.lstat(temporary)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except BaseException:
        listener.close()
        raise
    return UnixSocket(listener, path, (found.st_dev, found.st_ino))


def _gid(group: str) -> int | None:
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        return None
    return gid if os.geteuid() == 0 or gid in os.getgroups() else None


def listen_tcp(listen: str, *, encrypted: bool = False) -> socket.socket:
    """Listen on ``HOST:PORT``, in clear on loopback only. Raises ApiSocketError."""
    host, _, port = listen.rpartition(":")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError
    except ValueError:
        raise ApiSocketError(
            f"api.listen {listen!r} is not an address and a port", fix='write "127.0.0.1:PORT"'
        ) from None
    if not (address.is_loopback or encrypted):
        raise ApiSocketError(
            f"api.listen {listen} is not a loopback address, and off loopback the API needs TLS",
            fix='set api.tls to "auto", write "127.0.0.1:PORT", or remove api.listen and use the Unix socket',
        )
    listener = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.version == 6:  # [::] takes IPv4, too, whatever the host's default is
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not address.is_unspecified))
        listener.bind((str(address), int(port)))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ApiSocketError(
            f"cannot listen on {listen}: {error.strerror or error}", fix="choose another api.listen"
        ) from None
    return listener
