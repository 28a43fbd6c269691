# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's machines: a network namespace each, joined by bridges that live in one more namespace.

Nothing appears in the host's own namespace, so two labs never meet and may use the same addresses. Node N
reaches segment U by its interface ``upU`` with the address 10.201.U.N/24. A router between a node and the
segments has a namespace of its own (`lab/routers.py`).
"""

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from phantommesh.config.sections import GuardSection, LinkSection, ScatterSection
from phantommesh.errors import first_of
from phantommesh.nursery.host.userspace import INSTANCES
from phantommesh.nursery.lab.delay import LIMIT
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.routers import (
    Router,
    cables,
    node_addresses,
    port_name,
    routers_of,
    rules,
    settings,
)
from phantommesh.nursery.lab.underlay import PLAIN, PLAIN_MTU, Underlay

STATE: Final = Path("/var/lib/phantommesh/lab")
RUN: Final = Path("/run/phantommesh/lab")
NAMESPACES: Final = Path("/run/netns")
WIREGUARD_SOCKETS: Final = "/var/run/wireguard"  # compiled into wireguard-go and wg

MAX_NODES: Final = 200
MAX_UPLINKS: Final = 8
SPARE_INSTANCES: Final = 384  # inotify instances for all that runs beside a lab, other labs among it

# `ip netns exec` gives its command a mount namespace of its own, so this mount is seen by nobody else.
_PRIVATE_SOCKETS: Final = f'mount --bind "$1" {WIREGUARD_SOCKETS} && shift && exec "$@"'
RESERVED: Final = "51800-51999,52800-52999"  # the second are those of a second mesh in tests
_DOWN: Final = "run `phantommesh lab down`; in a container, give it NET_ADMIN and SYS_ADMIN"
_NO_DELAYS: Final = "run `modprobe sch_netem`, or leave out --regions"
_DELAY: Final = (sys.executable, "-m", "phantommesh.nursery.lab.delay")
# The shell ends at once, so the node is no child of the lab command and outlives it.
_IN_BACKGROUND: Final = 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'


@contextmanager
def one_error() -> Iterator[None]:
    """Raise the first LabError of a group of nothing else: nodes that fail together fail for one reason."""
    try:
        yield
    except ExceptionGroup as group:
        mine, rest = group.split(LabError)
        if mine is None or rest is not None:
            raise
        raise first_of(mine) from None


@dataclass(frozen=True, slots=True)
class LabSpec:
    """The lab to build. ``link``, ``scatter`` and ``guard`` replace these sections of the nodes'
    configurations; ``patience_s`` bounds each wait. ``underlay`` says what stands between the nodes. With
    ``named`` the nodes are told their addresses; else they find them. ``tags`` are the nodes', in order."""

    name: str = "pm"
    nodes: int = 3
    uplinks: int = 3
    backend: str = "auto"
    link: LinkSection | None = None
    scatter: ScatterSection | None = None
    guard: GuardSection | None = None
    patience_s: float = 120.0
    underlay: Underlay = PLAIN
    named: bool = True
    tags: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 2 <= self.nodes <= MAX_NODES:
            raise LabError(f"a lab of {self.nodes} nodes", fix=f"give --nodes from 2 to {MAX_NODES}")
        if not 1 <= self.uplinks <= MAX_UPLINKS:
            raise LabError(
                f"a lab with {self.uplinks} uplinks", fix=f"give --uplinks from 1 to {MAX_UPLINKS}"
            )
        if self.backend not in ("auto", "kernel", "userspace"):
            raise LabError(f"no backend {self.backend!r}", fix="give --backend auto, kernel or userspace")
        self.underlay.check(self.nodes)

    def tag_options(self, numbers: Iterable[int]) -> list[str]:
        """The options that name the tags of these nodes, each once."""
        given = [self.tags[number - 1] for number in numbers if number <= len(self.tags)]
        return [word for tag in sorted({tag for tags in given for tag in tags}) for word in ("--tag", tag)]

    @property
    def routers(self) -> list[Router]:
        """The routers, an outer one before its inner one."""
        return routers_of(self.name, self.nodes, self.underlay)

    @property
    def namespaces(self) -> list[str]:
        """The names of all that are made: the segments', the routers', the nodes'."""
        nodes = [node.name for node in nodes_of(self)]
        return [f"{self.name}-net", *(router.namespace for router in self.routers), *nodes]


@dataclass(frozen=True, slots=True)
class LabNode:
    """One node's name, which is its namespace's too, and its places on the host."""

    lab: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.lab}-{self.number}"

    @property
    def state_dir(self) -> Path:
        return STATE / self.name

    @property
    def config(self) -> Path:
        return STATE / f"{self.name}.toml"

    @property
    def log(self) -> Path:
        return STATE / f"{self.name}.log"

    @property
    def socket(self) -> Path:
        return RUN / f"{self.name}.sock"

    @property
    def wireguard_sockets(self) -> Path:
        return RUN / f"{self.name}.wireguard"

    def address(self, uplink: int) -> str:
        return f"10.201.{uplink}.{self.number}"

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the argv that runs a command in this node's namespace, with its own WireGuard sockets."""
        entry = ["ip", "netns", "exec", self.name, "sh", "-c", _PRIVATE_SOCKETS, "sh"]
        return [*entry, str(self.wireguard_sockets), *command]

    def environment(self) -> dict[str, str]:
        """Return the environment in which every ``phantommesh`` command means this node."""
        return {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PHANTOMMESH_STATE_DIR": str(self.state_dir),
            "PHANTOMMESH_SOCKET": str(self.socket),
            "PHANTOMMESH_CONFIG": str(self.config),
        }


def nodes_of(spec: LabSpec) -> list[LabNode]:
    """Return the lab's nodes; the first one is the mesh's authority."""
    return [LabNode(spec.name, number) for number in range(1, spec.nodes + 1)]


def check_name(name: str) -> None:
    """Raise LabError unless a name makes good namespaces, files and node names."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", name):
        raise LabError(f"no lab can be called {name!r}", fix="use a letter and up to 31 of a-z, 0-9, '-'")


def check_able() -> None:
    """Raise LabError, saying what to do, where this process cannot make namespaces."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root, to make network namespaces", fix="run the same command with sudo")
    if shutil.which("ip") is None:
        raise LabError("the command ip is missing", fix="install iproute2, or run `make setup` in a clone")


def allow_instances(processes: int) -> bool:
    """Let root have inotify instances for so many more processes of userspace WireGuard; say whether that
    took a change. The kernel's default is 128 for all of a user's processes, and a lab of 19 nodes has 133.
    The limit stays raised: it costs nothing. Where it may not be changed, a node says what is missing."""
    try:
        now = int(INSTANCES.read_text())
        if now >= SPARE_INSTANCES + processes:
            return False
        INSTANCES.write_text(f"{SPARE_INSTANCES + processes}\n")
    except (OSError, ValueError):
        return False
    return True


def bridge_commands(spec: LabSpec, *, netem: bool = True) -> list[str]:
    """Return ``ip -batch`` lines for the namespace of the segments: each with a cable to each node or its
    router. Without ``netem`` the cables between regions are TAPs, for `lab/delay.py`."""
    lines = []
    underlay, routers = spec.underlay, spec.routers
    ends = {router.first: router.namespace for router in reversed(routers)}  # of two in a row, the outer one
    behind = {number for router in routers for number in router.nodes}
    ports = [node.number for node in nodes_of(spec) if node.number in ends or node.number not in behind]
    size = f"mtu {underlay.mtu} " if underlay.mtu != PLAIN_MTU else ""
    for uplink in range(spec.uplinks):
        lines += [f"link add seg{uplink} type bridge", f"link set seg{uplink} up"]
        for region in range(underlay.regions.count if underlay.regions else 0):
            lines += [
                f"link add {region_name(region, uplink)} type bridge",
                f"link set {region_name(region, uplink)} up",
                *_cable_between(core_cable(region, uplink), far_end(region, uplink), netem=netem),
                f"link set {far_end(region, uplink)} master seg{uplink} up",
                f"link set {core_cable(region, uplink)} master {region_name(region, uplink)} up",
            ]
        for number in ports:
            port = port_name(number, uplink)
            there, name = (ends[number], "w") if number in ends else (f"{spec.name}-{number}", "up")
            segment = f"seg{uplink}"
            if underlay.regions is not None:
                segment = region_name(underlay.regions.of(number, spec.nodes), uplink)
            lines += [
                f"link add {port} type veth peer name {name}{uplink} netns {there}",
                f"link set {port} {size}master {segment} up",
            ]
    return lines


def region_name(region: int, uplink: int) -> str:
    """Return the name of a region's own bridge."""
    return f"reg{region}u{uplink}"


def core_cable(region: int, uplink: int) -> str:
    """Return the name of the interface by which packets leave a region."""
    return f"x{region}u{uplink}"


def far_end(region: int, uplink: int) -> str:
    """Return the name of the other end of `core_cable`, in the segment's bridge."""
    return f"c{region}u{uplink}"


def _cable_between(near: str, far: str, *, netem: bool) -> list[str]:
    if netem:
        return [f"link add {near} type veth peer name {far}"]
    return [
        line for end in (near, far)
        for line in (f"tuntap add dev {end} mode tap", f"link set {end} txqueuelen {LIMIT}")
    ]  # fmt: skip


def delay_command(spec: LabSpec) -> list[str]:
    """Return the arguments of the program that delays in place of netem. Empty without regions."""
    regions = spec.underlay.regions
    if regions is None:
        return []
    cables = [(region, uplink) for uplink in range(spec.uplinks) for region in range(regions.count)]
    return [*_DELAY, f"{regions.delay_ms / 2000:g}", *(f"{core_cable(*at)}:{far_end(*at)}" for at in cables)]


def delay_log(name: str) -> Path:
    """Where the program that delays says what is wrong."""
    return STATE / f"{name}-net.log"


def delay_commands(spec: LabSpec) -> list[str]:
    """Return ``tc -batch`` lines for the namespace of the segments: half of a round trip on the way out of
    each region."""
    if spec.underlay.regions is None:
        return []
    half = spec.underlay.regions.delay_ms / 2
    return [
        f"qdisc add dev {core_cable(region, uplink)} root netem delay {half:g}ms limit {LIMIT}"
        for uplink in range(spec.uplinks)
        for region in range(spec.underlay.regions.count)
    ]


def uplink_commands(spec: LabSpec, node: LabNode) -> list[str]:
    """Return ``ip -batch`` lines for a node's namespace."""
    lines = ["link set lo up"]
    behind = [router for router in spec.routers if node.number in router.nodes]
    hidden = any(router.nat for router in behind)
    mtu = PLAIN_MTU if spec.underlay.silent or behind else spec.underlay.mtu
    for uplink in range(spec.uplinks):
        lines += node_addresses(node.number, uplink, hidden=hidden)
        if mtu != PLAIN_MTU:
            lines.append(f"link set up{uplink} mtu {mtu}")
    return lines


async def build(spec: LabSpec) -> None:
    """Make the namespaces and the cables. Raises LabError; what was made until then stays for ``destroy``."""
    segments = f"{spec.name}-net"
    for name in spec.namespaces:
        await _ip(["netns", "add", name])
    delays = delay_commands(spec)
    netem = not delays or await _has_netem(segments)
    await _ip(["-n", segments, "-batch", "-"], bridge_commands(spec, netem=netem))
    if delays and netem:
        await _tool(["tc", "-n", segments, "-batch", "-"], delays, fix=_NO_DELAYS)
    elif delays:
        await _in_background(["ip", "netns", "exec", segments, *delay_command(spec)], delay_log(spec.name))
    for router in spec.routers:
        await _set_up(router, spec)
    async with trio.open_nursery() as nursery:
        for node in nodes_of(spec):
            nursery.start_soon(_ip, ["-n", node.name, "-batch", "-"], uplink_commands(spec, node))
            nursery.start_soon(_reserve, node.name)
    await trio.to_thread.run_sync(Path(WIREGUARD_SOCKETS).mkdir, 0o755, True, True)
    for node in nodes_of(spec):
        await trio.to_thread.run_sync(node.wireguard_sockets.mkdir, 0o700, True, True)


async def _reserve(namespace: str) -> None:
    """Keep outgoing connections off the ports at which nodes are to listen: docs/operations.md. A container
    whose /proc/sys is read-only has to live with one that takes such a port, once in thousands."""
    setting = f"net.ipv4.ip_local_reserved_ports={RESERVED}"
    with suppress(LabError):
        await _tool(["ip", "netns", "exec", namespace, "sysctl", "-q", "-w", setting], fix=_DOWN)


async def _set_up(router: Router, spec: LabSpec) -> None:
    inside = ["ip", "netns", "exec", router.namespace]
    mtu = PLAIN_MTU if spec.underlay.silent else spec.underlay.mtu
    await _tool([*inside, "nft", "-f", "-"], rules(router).splitlines(), fix="install nftables")
    await _ip(["-n", router.namespace, "-batch", "-"], cables(router, spec.name, spec.uplinks, mtu))
    await _tool([*inside, "sysctl", "-q", "-w", *settings(router, spec.uplinks)], fix=_DOWN)


async def destroy(names: Iterable[str]) -> None:
    """End every process in these namespaces and delete those that exist."""
    names = [name for name in names if namespace_exists(name)]
    await kill(names)
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(_ip, ["netns", "delete", name])


async def kill(names: Sequence[str]) -> None:
    """Kill every process in these namespaces, and return when none is left."""
    while handles := await trio.to_thread.run_sync(_open_processes, names):
        try:
            for handle in handles:
                try:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it ended by itself
            for handle in handles:
                await trio.lowlevel.wait_readable(handle)
        finally:
            for handle in handles:
                os.close(handle)


async def start(node: LabNode, command: Sequence[str]) -> int:
    """Run a command in a node's namespace that outlives this process, and return its process id.

    Its output is appended to the node's log.
    """
    return await _in_background(node.inside(command), node.log, node.environment())


async def _in_background(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> int:
    script = ["sh", "-c", _IN_BACKGROUND, "sh", str(log), *command]
    shell = await trio.run_process(script, capture_stdout=True, env=environment, start_new_session=True)
    return int(shell.stdout)


async def _has_netem(namespace: str) -> bool:
    """Whether the kernel has netem, or loads it: an interface that delays nothing else tries it."""
    tried = ["tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    done = await trio.run_process(tried, capture_stdout=True, capture_stderr=True, check=False)
    return done.returncode == 0


def namespace_exists(name: str) -> bool:
    """Say whether a named network namespace exists."""
    return (NAMESPACES / name).exists()


def processes_in(names: Iterable[str]) -> list[int]:
    """Return the ids of the processes in these namespaces, zombies left out."""
    wanted = set()
    for name in names:
        try:
            wanted.add((NAMESPACES / name).stat().st_ino)
        except FileNotFoundError:
            continue
    found = []
    for entry in Path("/proc").iterdir() if wanted else ():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "ns/net").stat().st_ino in wanted:
                found.append(int(entry.name))
        except OSError:
            continue  # it ended, or is a zombie, which has no namespace
    return found


def _open_processes(names: Iterable[str]) -> list[int]:
    handles = []
    for pid in processes_in(names):
        try:
            handles.append(os.pidfd_open(pid))
        except ProcessLookupError:
            continue
    return handles


async def _ip(arguments: Sequence[str], batch: Sequence[str] = ()) -> None:
    await _tool(["ip", *arguments], batch, fix=_DOWN)


async def _tool(command: Sequence[str], lines: Sequence[str] = (), *, fix: str) -> None:
    done = await trio.run_process(
        command,
        stdin="\n".join(lines).encode("ascii"),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().replace("\n", "; ")
        raise LabError(f"{' '.join(command)}: {said}", fix=fix)
