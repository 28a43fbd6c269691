# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules about processes and memory: where keys may end up, who may look, and what more than needed the node
may do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from phantommesh.hostcheck.finding import Finding, Rule, quoted
from phantommesh.hostcheck.seen import HostSeen, ProcessSeen

SWAP_CLEAR = Rule("swap-clear", "low", "Keys may be written to swap in clear")
CORE_DUMPS = Rule("core-dumps", "medium", "A crash would write the node's keys to disk")
TRACED = Rule("traced", "high", "A debugger holds a process of the node")
KEY_LOG = Rule("tls-key-log", "high", "TLS keys are written to a file")
PRELOADED = Rule("preloaded", "medium", "Foreign code is loaded into the node")
PYTHON_DEBUG = Rule("python-debug", "low", "Python runs in a debug mode")
CHILD_DEBUG = Rule("wireguard-go-debug", "low", "wireguard-go logs every handshake")
KERNEL_DEBUG = Rule("wireguard-kernel-debug", "medium", "The kernel's WireGuard logs peers and addresses")
LOG_DEBUG = Rule("log-debug", "low", "The node logs at level debug")
TOO_CAPABLE = Rule("container-too-capable", "medium", "The container may do more than a node needs")
ENGINE_SOCKET = Rule("container-engine-socket", "high", "The container engine's socket is in the container")
RULES: Final = (
    SWAP_CLEAR, CORE_DUMPS, TRACED, KEY_LOG, PRELOADED, PYTHON_DEBUG, CHILD_DEBUG, KERNEL_DEBUG, LOG_DEBUG,
    TOO_CAPABLE, ENGINE_SOCKET,
)  # fmt: skip

_PYTHON: Final = (
    "PYTHONDEVMODE", "PYTHONINSPECT", "PYTHONASYNCIODEBUG", "PYTHONTRACEMALLOC", "PYTHONVERBOSE",
    "PYTHONDEBUG", "PYTHONSTARTUP", "PYTHONFAULTHANDLER", "PYTHONMALLOCSTATS", "PYTHONPROFILEIMPORTTIME",
)  # fmt: skip
_PRELOADS: Final = ("LD_PRELOAD", "LD_AUDIT")
WATCHED: Final = (*_PYTHON, *_PRELOADS, "SSLKEYLOGFILE", "LOG_LEVEL")
"""The environment variables that are read of a process; no others are, as they may hold secrets."""

# linux/capability.h: what lets a process out of its container, or look into others.
_DANGEROUS: Final = {
    2: "CAP_DAC_READ_SEARCH", 16: "CAP_SYS_MODULE", 17: "CAP_SYS_RAWIO", 19: "CAP_SYS_PTRACE",
    21: "CAP_SYS_ADMIN", 22: "CAP_SYS_BOOT", 39: "CAP_BPF",
}  # fmt: skip
# linux/fs/coredump.c: a limit of 1 byte forbids a dump to a program, too; one below a page forbids a file.
_NO_PIPE, _LEAST_FILE = 1, 4096


def findings(seen: HostSeen) -> Iterator[Finding]:
    """Judge the node's processes (this one, where no node runs) and what the host does with memory."""
    yield from _memory(seen)
    for process in seen.processes:
        yield from _process(process)
    if seen.wireguard_debug:
        yield KERNEL_DEBUG.found(
            "dynamic debug is on for the module wireguard: the kernel's log has peers' addresses and when "
            "they speak",
            "run `echo 'module wireguard -p' > /proc/dynamic_debug/control`",
            subject="wireguard",
        )
    if seen.config is not None and seen.config.log.level == "debug":
        yield LOG_DEBUG.found(
            'log.level is "debug": the log grows with every event and names who speaks with whom',
            'set log.level = "info" and send the node SIGHUP',
            subject="log.level",
        )
    if seen.container:
        yield from _container(seen)


def _memory(seen: HostSeen) -> Iterator[Finding]:
    clear = [swap.path for swap in seen.swaps if not swap.encrypted]
    if clear and any(process.swappable for process in seen.processes):
        yield SWAP_CLEAR.found(
            f"{clear[0]} is in use as swap and is not encrypted: what the node holds in memory may stay "
            "there after its end",
            f"run `swapoff {quoted(clear[0])}`, encrypt it (a random key in /etc/crypttab will do), "
            "or keep the node out of it (MemorySwapMax=0 in its unit)",
            subject=clear[0],
        )
    if not seen.running:
        return  # a node forbids dumps as it starts
    for process in seen.processes:
        limit = process.core_limit
        if limit is None or not seen.core_pattern:
            continue
        piped = seen.core_pattern.startswith("|")
        if limit != _NO_PIPE if piped else limit < 0 or limit >= _LEAST_FILE:
            where = seen.core_pattern.split()[0].lstrip("|") if piped else "a file"
            yield CORE_DUMPS.found(
                f"{process.name} (process {process.pid}) may dump its memory to {where} when it crashes, "
                "with the keys in it",
                f"run `prlimit --pid {process.pid} --core=1:1`, and find out what raised the limit: the node "
                "lowers it as it starts",
                subject=f"process {process.pid}",
            )


def _process(process: ProcessSeen) -> Iterator[Finding]:
    who, environment = f"{process.name} (process {process.pid})", process.environment
    if process.tracer:
        yield TRACED.found(
            f"process {process.tracer} traces {who}: it can read every key and change what the node does",
            f"find out what it is (`ps -p {process.tracer}`), and end it",
            subject=f"process {process.pid}",
        )
    if path := environment.get("SSLKEYLOGFILE"):
        yield KEY_LOG.found(
            f"{who} runs with SSLKEYLOGFILE={path}: who reads that file can decrypt the API's connections",
            f"run the node without that variable, and delete the file: `shred -u {quoted(path)}`",
            subject="SSLKEYLOGFILE",
        )
    for name in _PRELOADS:
        if environment.get(name):
            yield PRELOADED.found(
                f"{who} runs with {name}={environment[name]}",
                "run the node without that variable",
                subject=name,
            )
    debug = [name for name in _PYTHON if environment.get(name)]
    if debug:
        yield PYTHON_DEBUG.found(
            f"{who} runs with {', '.join(debug)}: it is slower, and shows more of what it holds",
            "run the node without these variables",
            subject=debug[0],
        )
    if environment.get("LOG_LEVEL") in ("debug", "verbose"):
        yield CHILD_DEBUG.found(
            f"{who} runs with LOG_LEVEL={environment['LOG_LEVEL']}, which wireguard-go heeds: its log names "
            "peers and handshakes",
            "run the node without that variable",
            subject="LOG_LEVEL",
        )


def _container(seen: HostSeen) -> Iterator[Finding]:
    for process in seen.processes[:1]:
        held = [name for bit, name in _DANGEROUS.items() if process.capabilities >> bit & 1]
        if held:
            yield TOO_CAPABLE.found(
                f"{process.name} has {', '.join(held)} in a container ({seen.container}): whoever takes it "
                "over is root on the host",
                "start the container with --cap-drop ALL --cap-add NET_ADMIN --cap-add NET_RAW, without "
                "--privileged",
                subject=f"process {process.pid}",
            )
    for path in seen.container_sockets:
        yield ENGINE_SOCKET.found(
            f"{path} is in the container: whoever may write to it is root on the host",
            "start the container without that volume",
            subject=path,
        )
