# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what the scan of this host judges of processes, memory, clock and versions. All block."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from phantommesh.hostcheck import versions
from phantommesh.hostcheck.process import WATCHED
from phantommesh.hostcheck.seen import ProcessSeen, SwapSeen
from phantommesh.nursery.host.userspace import PROGRAMS
from phantommesh.nursery.host.whose import MOST_PROCESSES
from phantommesh.state.lock import LOCK_FILE

# Tuning.
DEEPEST_STACK: Final = 8  # block devices on each other: partition, RAID, LVM, encryption
_CHILD_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 1.0

_CONTROLS: Final = (Path("/proc/dynamic_debug/control"), Path("/sys/kernel/debug/dynamic_debug/control"))
_DEBUGGED: Final = re.compile(r"\[wireguard\]\S* =[a-z]*p")
_CONTAINERS: Final = (("/run/.containerenv", "podman"), ("/.dockerenv", "docker"))
# The numbers of the namespaces that a machine starts with: PROC_PID_INIT_INO and PROC_CGROUP_INIT_INO,
# linux/proc_ns.h.
_FIRST: Final = {"pid": "pid:[4026531836]", "cgroup": "cgroup:[4026531835]"}
_ENGINE_SOCKETS: Final = (
    "/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
)  # fmt: skip
_STA_UNSYNC: Final = 0x0040  # linux/timex.h
_TIMEX: Final = struct.Struct("@I 4l i")  # struct timex up to its field status: modes, offset, freq, ...
_TIMEX_BYTES: Final = 256  # more than all of it


def find_node(state: Path, api_socket: Path | None) -> int | None:
    """The process that runs a node on this state directory: who locks it (proc_locks(5)), else who listens on
    its socket (unix(7), SO_PEERCRED). None where there is none."""
    with suppress(OSError, ValueError):
        status = (state / LOCK_FILE).stat()
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == place:
                return int(fields[4])
    if api_socket is not None:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(_CONNECT_SECONDS)
            asking.connect(str(api_socket))
            said = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", said)[0]) or None
    return None


def read_processes(node: int | None, interfaces: Collection[str]) -> list[ProcessSeen]:
    """Read the node's process and those that serve its interfaces; this process where no node runs."""
    if node is None:
        return [_process(os.getpid())]
    return [_process(pid) for pid in (node, *_serving(node, interfaces))]


def _serving(node: int, interfaces: Collection[str]) -> Iterator[int]:
    """The processes of a userspace WireGuard for these interfaces, in the node's network namespace. They
    outlive a node, so they are not its children."""
    space, user = _text_of_link(f"/proc/{node}/ns/net"), _user(f"/proc/{node}")
    for process in list(Path("/proc").glob("[0-9]*"))[:MOST_PROCESSES]:
        if _user(str(process)) != user:
            continue  # its arguments are in its memory: a hostile user can have their reader wait for ever
        words = _text(f"{process}/cmdline").rstrip("\0").split("\0")
        serves = Path(words[0]).name in PROGRAMS and words[-1] in interfaces
        if serves and _text_of_link(f"{process}/ns/net") == space:
            yield int(process.name)


def _user(process: str) -> str:
    """The user whom a process acts for, by a directory of /proc; empty where there is none."""
    found = re.search(r"^Uid:\s+\d+\s+(\d+)", _text(f"{process}/status"), re.MULTILINE)
    return "" if found is None else found[1]


def _process(pid: int) -> ProcessSeen:
    status = _text(f"/proc/{pid}/status")
    limit = re.search(r"^Max core file size +(\S+)", _text(f"/proc/{pid}/limits"), re.MULTILINE)
    held = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    tracer = re.search(r"^TracerPid:\s*(\d+)$", status, re.MULTILINE)
    pairs = (part.partition("=") for part in _text(f"/proc/{pid}/environ").split("\0"))
    return ProcessSeen(
        pid=pid,
        name=_text(f"/proc/{pid}/comm").strip() or "the node",
        core_limit=None if limit is None else -1 if limit[1] == "unlimited" else int(limit[1]),
        environment={name: value for name, _, value in pairs if name in WATCHED},
        tracer=0 if tracer is None else int(tracer[1]),
        capabilities=0 if held is None else int(held[1], 16),
        swappable=_swappable(pid),
    )


def _swappable(pid: int) -> bool:
    """Whether a process may be swapped out: none of its control groups (version 2) forbids it."""
    found = re.search(r"^0::(/.*)$", _text(f"/proc/{pid}/cgroup"), re.MULTILINE)
    if found is None:
        return True
    group = Path("/sys/fs/cgroup") / found[1].lstrip("/")
    return all(_text(f"{each}/memory.swap.max").strip() != "0" for each in (group, *group.parents))


def read_swaps() -> list[SwapSeen]:
    """Read the swap areas (proc_swaps(5))."""
    found = []
    for line in _text("/proc/swaps").splitlines()[1:]:
        if fields := line.split():
            path = fields[0].replace(r"\040", " ")
            found.append(SwapSeen(path, _encrypted(Path(path))))
    return found


def _encrypted(path: Path) -> bool:
    """Whether what is written to a swap area is encrypted, or stays in memory."""
    try:
        status = path.stat()
    except OSError:
        return False
    device = status.st_rdev or status.st_dev
    return _device_encrypted(Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"), 0)


def _device_encrypted(device: Path, depth: int) -> bool:
    name = device.resolve().name
    if name.startswith("zram") or _text(f"{device}/dm/uuid").startswith("CRYPT-"):
        return True
    try:
        below = list((device / "slaves").iterdir())
    except OSError:
        return False
    return bool(below) and depth < DEEPEST_STACK and all(_device_encrypted(one, depth + 1) for one in below)


def debugs_wireguard() -> bool:
    """Whether the kernel's dynamic debug is on for WireGuard; False where that cannot be read."""
    return any(_DEBUGGED.search(_text(str(path))) for path in _CONTROLS)


def read_container() -> str:
    """What kind of container this is; empty outside one. A machine's disk may be made of a container's image
    and have its marks: a container has namespaces of its own."""
    if all(_text_of_link(f"/proc/self/ns/{kind}") in ("", first) for kind, first in _FIRST.items()):
        return ""
    for path, kind in _CONTAINERS:
        if Path(path).exists():
            return kind
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    return _text("/run/systemd/container").strip() or _text("/run/host/container-manager").strip()


def engine_sockets() -> list[str]:
    """Sockets of container engines that are there, each once."""
    found = {str(Path(path).resolve()): path for path in _ENGINE_SOCKETS if Path(path).is_socket()}
    return sorted(found.values())


def clock_synchronised() -> bool | None:
    """Whether the kernel's clock is kept by something (adjtimex(2)); None where that cannot be told."""
    import ctypes

    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes = 0: only read
    try:
        if ctypes.CDLL(None, use_errno=True).adjtimex(buffer) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not _TIMEX.unpack_from(buffer)[5] & _STA_UNSYNC


def read_versions(components: Iterable[str], *, userspace: bool) -> dict[str, str]:
    """Read the versions of these components, as far as they are here. ``userspace``: of wireguard-go, too."""
    found = {}
    for name in components:
        with suppress(importlib.metadata.PackageNotFoundError):
            if name.isidentifier():
                found[name] = importlib.metadata.version(name)
    with suppress(ImportError):
        from cryptography.hazmat.backends.openssl.backend import backend

        if said := re.match(r"OpenSSL (\S+)", backend.openssl_version_text()):
            found["openssl"] = said[1]
    kernel = versions.upstream(_text("/proc/version"), _text("/proc/version_signature"))
    if kernel:
        found["nf_tables"] = kernel
        if Path("/sys/module/wireguard").exists():
            found["kernel WireGuard"] = kernel
    if userspace and shutil.which("wireguard-go"):
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                ["wireguard-go", "--version"],
                capture_output=True,
                timeout=_CHILD_SECONDS,
                check=False,
                encoding="utf-8",
                errors="replace",
            )
            if said := re.match(r"wireguard-go v?(\S+)", done.stdout):
                found["wireguard-go"] = said[1]
    return found


def _text_of_link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _text(path: str) -> str:
    """A file's text; empty where it may not be read or is not there."""
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""
