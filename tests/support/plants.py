# SPDX-License-Identifier: GPL-3.0-or-later
"""Misconfigurations, planted one at a time on this host for real, and mended as the finding says.

Each case has a process, a mount namespace and a network namespace of its own, so the host keeps nothing of
it. ``python -m tests.support.plants STATE CONFIG`` as root runs all cases on copies of a state directory and
a configuration, and prints a line of JSON a case: the rules that were found before, planted and mended.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from phantommesh.hostcheck.finding import Finding
from phantommesh.hostcheck.scan import scan
from phantommesh.nursery.host import scanning, scanprocess
from phantommesh.nursery.host.mending import carry_out
from phantommesh.nursery.host.scanning import Where, look

UPLINK: Final = "up0"
STRANGER: Final = 4321  # a user and a group that own nothing here
_NEWNS, _NEWNET, _NEWCGROUP = 0x0002_0000, 0x4000_0000, 0x0200_0000  # linux/sched.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_SEIZE, _DETACH = 0x4206, 17  # linux/ptrace.h
_SETUP: Final = f"""
mount --make-rprivate /
mount -t sysfs sysfs /sys
ip link set lo up
ip link add {UPLINK} type veth peer name peer0
ip link set {UPLINK} up; ip link set peer0 up
ip addr add 192.0.2.1/24 dev {UPLINK}
ip route add default via 192.0.2.2
"""


@dataclass
class Host:
    """One case's host: its namespaces, and a state directory and a configuration of its own."""

    base: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)
    replaced: list[Callable[[], None]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.base / "lib" / "phantommesh"

    @property
    def config(self) -> Path:
        return self.base / "etc" / "phantommesh.toml"

    @property
    def api(self) -> Path:
        return self.base / "run" / "api.sock"

    def findings(self) -> tuple[Finding, ...]:
        """What the scan finds now."""
        return scan(look(Where(self.state, self.config, self.api, searched=(self.base,))))

    def sh(self, script: str) -> None:
        """Run a script here; S, C, B are the state directory, the configuration and the base."""
        env = {**os.environ, "S": str(self.state), "C": str(self.config), "B": str(self.base)}
        subprocess.run(["sh", "-euc", script], check=True, env=env, capture_output=True)

    def configure(self, key: str, value: str) -> None:
        """Change a setting, ``section.key``, in the configuration that `init` wrote, which has them all."""
        section, _, name = key.partition(".")
        before, title, after = self.config.read_text().partition(f"[{section}]\n")
        assert title
        changed, count = re.subn(
            rf"^(# )?{name} = .*$", f"{name} = {value}", after, count=1, flags=re.MULTILINE
        )
        assert count
        self.config.write_text(before + title + changed)

    def over(self, path: str, text: str) -> None:
        """Have another file in place of one of the host's."""
        fake = self.base / f"fake-{path.replace('/', '-')}"
        fake.write_text(text)
        self.sh(f"mount --bind {shlex.quote(str(fake))} {shlex.quote(path)}")

    def node(self, *, core: int = 1, **environment: str) -> subprocess.Popen[bytes]:
        """A process that holds the state directory as a node does."""
        lock = str(self.state / "lock")
        script = (
            f"import fcntl, time; held = open({lock!r}, 'w'); fcntl.flock(held, fcntl.LOCK_EX); "
            "print(1, flush=True); time.sleep(600)"
        )
        most = resource.RLIM_INFINITY
        limits = (core, max(core, 1)) if core == 1 else (most if core < 0 else core, most)
        started = subprocess.Popen(
            [sys.executable, "-c", script],
            env={"PATH": os.environ["PATH"], **environment},
            stdout=subprocess.PIPE,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, limits),
        )
        assert started.stdout is not None and started.stdout.readline()
        self.nodes.append(started)
        return started

    def end_node(self) -> None:
        started = self.nodes.pop()
        started.kill()
        started.wait()

    def listen(self, address: str, port: int, kind: socket.SocketKind) -> None:
        opened = socket.socket(socket.AF_INET, kind)
        opened.bind((address, port))
        if kind is socket.SOCK_STREAM:
            opened.listen()
        self.sockets.append(opened)

    def unix(self, path: Path, mode: int) -> None:
        path.parent.mkdir(exist_ok=True)
        opened = socket.socket(socket.AF_UNIX)
        opened.bind(str(path))
        opened.listen()
        path.chmod(mode)
        self.sockets.append(opened)

    def close(self) -> None:
        self.sockets.pop().close()

    def shift_clock(self, seconds: float) -> None:
        real = time.time
        scanning.time = lambda: real() + seconds  # type: ignore[attr-defined]

    def clock_right(self) -> None:
        scanning.time = time.time  # type: ignore[attr-defined]

    def interface(self, name: str, strict: int = 2) -> None:
        setting = f"/proc/sys/net/ipv4/conf/{name}/rp_filter"
        self.sh(f"ip link add {name} type veth peer name {name}x; echo {strict} > {setting}")

    def nft(self, script: str) -> None:
        subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True, capture_output=True)


Act = Callable[[Host], object]


@dataclass(frozen=True)
class Plant:
    """``rule`` is what is to be found. ``mend``: what a person does who follows the fix; None: the lines for
    a shell in the fix are run, the first of them or the one with that ``number``."""

    rule: str
    plant: Act
    mend: Act | None = None
    number: int = 0
    ready: Act = lambda host: None
    """What is as it should be, and only makes the plant matter."""
    always: frozenset[str] = frozenset()
    """Rules that the case breaks from the start: a small disk can only be had in memory here."""
    also: frozenset[str] = frozenset()
    """Rules that the same plant breaks as well."""


def sh(script: str) -> Act:
    return lambda host: host.sh(script)


def sysctl(name: str, value: int) -> Act:
    return sh(f"echo {value} > /proc/sys/net/ipv4/{name}")


def configure(key: str, value: str) -> Act:
    return lambda host: host.configure(key, value)


def both(*acts: Act) -> Act:
    return lambda host: [act(host) for act in acts]


def nft(script: str) -> Act:
    return lambda host: host.nft(script)


def node(core: int = 1, **environment: str) -> Act:
    return lambda host: host.node(core=core, **environment)


def end_node(host: Host) -> None:
    host.end_node()


def node_anew(host: Host) -> None:
    host.end_node()
    host.node()


FLUSH: Final = nft("flush ruleset")
READ_ONLY: Final = sh("mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys")


def chain(hook: str, rules: str, kind: str = "filter", policy: str = "accept") -> Act:
    priority = {"prerouting": -100 if kind == "nat" else -300}.get(hook, 0)
    return nft(
        f"table inet others {{\n chain c {{\n type {kind} hook {hook} priority {priority}; policy {policy};\n"
        f" {rules}\n }}\n}}"
    )


def traced(host: Host) -> None:
    assert _LIBC.ptrace(_SEIZE, host.node().pid, None, None) == 0


def untraced(host: Host) -> None:
    pid = host.nodes[-1].pid
    os.kill(pid, signal.SIGSTOP)  # only a stopped process can be detached from
    os.waitpid(pid, 0x40000000)  # __WALL
    assert _LIBC.ptrace(_DETACH, pid, None, None) == 0


def container(host: Host) -> None:
    """Be in a container as far as can be seen: namespaces of our own, and an engine's mark."""
    assert _LIBC.unshare(_NEWCGROUP) == 0
    host.sh("mount -t tmpfs tmpfs /run; touch /run/.containerenv")


def drop_capabilities(host: Host) -> None:
    """Keep CAP_NET_ADMIN and CAP_NET_RAW alone (capset(2), version 3)."""
    keep = 1 << 12 | 1 << 13
    data = struct.pack("6I", keep, keep, 0, 0, 0, 0)
    assert _LIBC.capset(struct.pack("Ii", 0x20080522, 0), data) == 0


def distribution(name: str, version: str) -> Act:
    """Have this version of a Python package installed, where Python looks first."""

    def act(host: Host) -> None:
        place = host.base / "site"
        shutil.rmtree(place, ignore_errors=True)
        info = place / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))

    return act


def program(name: str, says: str, mode: int = 0o755) -> Act:
    def act(host: Host) -> None:
        place = host.base / "bin"
        place.mkdir(exist_ok=True)
        (place / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (place / name).chmod(mode)
        os.environ["PATH"] = f"{place}:{os.environ['PATH']}"

    return act


def proc_version(text: str) -> Act:
    return lambda host: host.over("/proc/version", text)


def synchronised(value: bool) -> Act:
    def act(host: Host) -> None:
        scanprocess.clock_synchronised = lambda: value

    return act


def old_keys(days: float) -> Act:
    def act(host: Host) -> None:
        path = host.state / "wireguard.json"
        found = json.loads(path.read_text())
        found["made"] = [time.time() - days * 86_400.0] * 7
        path.write_text(json.dumps(found))

    return act


DEBIAN: Final = (
    "Linux version 6.1.0-17-amd64 (debian-kernel@lists.debian.org) #1 SMP Debian {}-1 (2023-12-30)\n"
)
HOUR, DAY = 3600.0, 86_400.0

PLANTS: Final[dict[str, Plant]] = {
    # files
    "state-open": Plant("state-open", sh("chmod 755 $S")),
    "state-group": Plant("state-open", sh("chmod 750 $S")),
    "state-owner": Plant("state-owner", sh(f"chown {STRANGER} $S/roster.bin")),
    "node-key-open": Plant("key-open", sh("chmod 644 $S/node.key")),
    "wireguard-keys-group": Plant("key-open", sh("chmod 640 $S/wireguard.json")),
    "roster-writable": Plant("state-writable", sh("chmod 666 $S/roster.bin")),
    "key-hard-link": Plant("state-linked", sh("ln $S/node.key $B/second")),
    "state-soft-link": Plant("state-linked", sh("mv $S/roster.bin $B/roster; ln -s $B/roster $S/roster.bin")),
    "state-parent-writable": Plant("parent-writable", sh("chmod 777 $B/lib")),
    "config-parent-writable": Plant("parent-writable", sh("chmod 777 $B/etc")),
    "socket-parent-writable": Plant(
        "parent-writable", sh("chmod 777 $B/run"), ready=lambda host: host.unix(host.api, 0o600)
    ),
    "state-volatile": Plant(
        "state-volatile",
        sh("cp -a $S $B/kept; mount -t tmpfs -o mode=0700 tmpfs $S; cp -a $B/kept/. $S"),
        sh("umount $S"),
    ),
    "state-disk-full": Plant(
        "state-disk-full",
        sh("mount -o remount,size=4m $S"),
        sh("mount -o remount,size=64m $S"),
        ready=sh("cp -a $S $B/kept; mount -t tmpfs -o mode=0700,size=64m tmpfs $S; cp -a $B/kept/. $S"),
        always=frozenset({"state-volatile"}),
    ),
    "file-of-the-future": Plant("clock-behind-files", sh("touch -d '+3 days' $S/roster.bin")),
    "config-writable": Plant("config-writable", sh("chmod 666 $C")),
    "config-owner": Plant("config-writable", sh(f"chown {STRANGER} $C")),
    "socket-open": Plant("socket-open", lambda host: host.unix(host.api, 0o666)),
    "socket-group": Plant(
        "socket-open", both(lambda host: host.unix(host.api, 0o660), sh(f"chgrp {STRANGER} $B/run/api.sock"))
    ),
    "hosts-writable": Plant(
        "hosts-writable",
        both(lambda host: host.over("/etc/hosts", "127.0.0.1 localhost\n"), sh("chmod 666 /etc/hosts")),
    ),
    "program-writable": Plant("program-writable", program("nft", "nothing", 0o777)),
    "path-writable": Plant("program-writable", both(program("else", "nothing"), sh("chmod 777 $B/bin"))),
    "key-copied": Plant(
        "key-copy-open", sh("mkdir $B/old; cp $S/node.key $B/old/node.key.bak; chmod 644 $B/old/*")
    ),
    "key-renamed": Plant("key-copy-open", sh("cp $S/root.key $B/notes.txt; chmod 644 $B/notes.txt")),
    "old-wireguard-keys": Plant(
        "key-copy-open",
        sh("sed 's/1/2/' $S/wireguard.json > $B/wireguard.json.1; chmod 644 $B/wireguard.json.1"),
    ),
    "state-archived": Plant(
        "key-copy-open", sh("tar -C $B/lib -cf $B/mesh.tar phantommesh; chmod 644 $B/mesh.tar")
    ),
    # settings of the kernel
    "strict": Plant(
        "reverse-path-strict", sysctl("conf/pm0/rp_filter", 1), ready=lambda host: host.interface("pm0")
    ),
    "strict-read-only": Plant(
        "reverse-path-read-only",
        READ_ONLY,
        sh("umount /proc/sys; echo 2 > /proc/sys/net/ipv4/conf/default/rp_filter"),
        ready=both(sysctl("conf/all/rp_filter", 0), sysctl("conf/default/rp_filter", 1)),
    ),
    "marks-unheeded": Plant(
        "marks-unheeded",
        sysctl("conf/all/src_valid_mark", 0),
        ready=both(
            configure("routes.exit", '["gate"]'),
            lambda host: host.interface("pm"),
            sysctl("conf/all/rp_filter", 1),
            sysctl("conf/all/src_valid_mark", 1),
        ),
    ),
    "redirects": Plant(
        "redirects-accepted",
        sysctl("conf/all/accept_redirects", 1),
        ready=both(sysctl("ip_forward", 1), sysctl(f"conf/{UPLINK}/accept_redirects", 1)),
    ),
    "source-routes": Plant(
        "source-routes-accepted",
        both(sysctl("conf/all/accept_source_route", 1), sysctl(f"conf/{UPLINK}/accept_source_route", 1)),
    ),
    "proxy-arp": Plant("proxy-arp", sysctl("conf/all/proxy_arp", 1)),
    "loopback-routed": Plant(
        "loopback-routed",
        sysctl("conf/all/route_localnet", 1),
        ready=configure("api.listen", '"127.0.0.1:8480"'),
    ),
    "forwarding-off": Plant(
        "forwarding-off",
        READ_ONLY,
        sh("umount /proc/sys; echo 1 > /proc/sys/net/ipv4/ip_forward"),
        ready=both(
            sysctl("conf/default/rp_filter", 0),
            sysctl("conf/all/rp_filter", 0),
            configure("routes.advertise", '["10.1.0.0/16"]'),
        ),
    ),
    "forwarding-open": Plant(
        "forwarding-open",
        sysctl("ip_forward", 1),
        ready=sh("ip addr add 198.51.100.1/24 dev peer0"),
    ),
    # ports and packet filters
    "config-refused": Plant(
        "config-refused", configure("control.port", "99999"), configure("control.port", "51800")
    ),
    "api-proxied": Plant(
        "api-exposed",
        lambda host: host.listen("0.0.0.0", 8480, socket.SOCK_STREAM),
        Host.close,
        ready=configure("api.listen", '"127.0.0.1:8480"'),
    ),
    "port-dropped": Plant("port-dropped", chain("input", "udp dport 51820-51826 drop"), FLUSH),
    "control-rejected": Plant(
        "port-dropped", chain("input", "meta l4proto { tcp, udp } th dport 51800 reject"), FLUSH
    ),
    "input-closed": Plant(
        "port-dropped",
        chain(
            "input",
            "ct state established,related accept\n iifname lo accept\n tcp dport 22 accept",
            policy="drop",
        ),
        nft(
            "insert rule inet others c udp dport { 51800, 51820-51833 } accept\n"
            "insert rule inet others c tcp dport 51800 accept"
        ),
    ),
    "raw-dropped": Plant(
        "port-dropped", chain("prerouting", f'iifname "{UPLINK}" udp dport 51800 drop'), FLUSH
    ),
    "port-forwarded": Plant(
        "port-redirected", chain("prerouting", "udp dport 51800 dnat ip to 10.0.0.2", "nat"), FLUSH
    ),
    "port-redirected": Plant(
        "port-redirected", chain("prerouting", "tcp dport 51800 redirect to :80", "nat"), FLUSH
    ),
    "sending-dropped": Plant("sending-dropped", chain("output", "udp sport 51820 drop"), FLUSH),
    "sending-closed": Plant(
        "sending-dropped", chain("output", "tcp dport { 80, 443 } accept", policy="drop"), FLUSH
    ),
    "mesh-dropped": Plant(
        "mesh-dropped", chain("input", 'iifname "pm*" drop'), FLUSH, ready=lambda host: host.interface("pm0")
    ),
    "forwarding-dropped": Plant(
        "forwarding-dropped",
        chain("forward", 'iifname "docker0" accept', policy="drop"),
        FLUSH,
        ready=configure("guard.forward", '["br-apps"]'),
    ),
    "port-taken": Plant(
        "port-taken", lambda host: host.listen("0.0.0.0", 51822, socket.SOCK_DGRAM), Host.close
    ),
    # processes and memory
    "swap": Plant(
        "swap-clear",
        lambda host: host.over(
            "/proc/swaps", f"Filename Type Size Used Priority\n{host.state}/lock file 9 0 -2\n"
        ),
        sh("umount /proc/swaps"),
    ),
    "core-file": Plant(
        "core-dumps", both(lambda host: host.over("/proc/sys/kernel/core_pattern", "core\n"), node(core=-1))
    ),
    "core-piped": Plant(
        "core-dumps",
        both(
            lambda host: host.over("/proc/sys/kernel/core_pattern", "|/usr/share/apport/apport %p\n"),
            node(core=0),
        ),
    ),
    "traced": Plant("traced", traced, untraced),
    "tls-key-log": Plant("tls-key-log", node(SSLKEYLOGFILE="/tmp/keys"), node_anew),
    "preloaded": Plant("preloaded", node(LD_PRELOAD="libc.so.6"), node_anew),
    "python-debug": Plant("python-debug", node(PYTHONASYNCIODEBUG="1"), node_anew),
    "wireguard-go-debug": Plant("wireguard-go-debug", node(LOG_LEVEL="verbose"), node_anew),
    "wireguard-kernel-debug": Plant(
        "wireguard-kernel-debug",
        sh(
            "mount -t tmpfs tmpfs /sys/kernel/debug; cd /sys/kernel/debug; mkdir dynamic_debug; echo "
            "'drivers/net/wireguard/send.c:43 [wireguard]wg_send =p \"x\"' > dynamic_debug/control"
        ),
        sh("sed -i 's/=p/=_/' /sys/kernel/debug/dynamic_debug/control"),
    ),
    "log-debug": Plant("log-debug", configure("log.level", '"debug"'), configure("log.level", '"info"')),
    "container-too-capable": Plant("container-too-capable", container, drop_capabilities),
    "container-engine-socket": Plant(
        "container-engine-socket",
        lambda host: host.unix(Path("/run/docker.sock"), 0o660),
        sh("rm /run/docker.sock"),
        ready=both(container, drop_capabilities),
    ),
    # time
    "clock-unsynchronised": Plant("clock-unsynchronised", synchronised(False), synchronised(True)),
    "certificate-over": Plant("certificate-over", lambda host: host.shift_clock(8 * DAY), Host.clock_right),
    "clock-behind": Plant(
        "certificate-over",
        lambda host: host.shift_clock(-30 * HOUR),
        Host.clock_right,
        also=frozenset({"clock-behind-files"}),
    ),
    "certificate-ending": Plant(
        "certificate-ending", lambda host: host.shift_clock(7 * DAY - 12 * HOUR), Host.clock_right
    ),
    "mesh-ending": Plant(
        "mesh-ending",
        lambda host: host.shift_clock(9.8 * 365 * DAY),
        Host.clock_right,
        also=frozenset({"certificate-over"}),
    ),
    "wireguard-keys-old": Plant("wireguard-keys-old", old_keys(3), old_keys(0.5), ready=node()),
    # versions
    "library-faulty": Plant("library-faulty", distribution("h11", "0.14.0"), distribution("h11", "0.16.0")),
    "wireguard-go-faulty": Plant(
        "wireguard-faulty",
        program("wireguard-go", "wireguard-go v0.0.20210212"),
        program("wireguard-go", "wireguard-go v0.0.20250522"),
    ),
    "packet-filter-faulty": Plant(
        "packet-filter-faulty", proc_version(DEBIAN.format("6.1.69")), proc_version(DEBIAN.format("6.1.174"))
    ),
}


@contextmanager
def host(state: Path, config: Path) -> Iterator[Host]:
    """A host in namespaces of its own, in this process, which is good for nothing else then."""
    base = Path(tempfile.mkdtemp(prefix="pm-plants-", dir="/var/tmp"))
    base.chmod(0o755)
    made = Host(base)
    try:
        if _LIBC.unshare(_NEWNS | _NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        for parent in (made.state.parent, made.config.parent, made.api.parent):
            parent.mkdir()
        shutil.copytree(state, made.state)
        shutil.copy2(config, made.config)
        made.config.chmod(0o644)
        made.sh(_SETUP)
        scanprocess.clock_synchronised = lambda: True
        yield made
    finally:
        for started in made.nodes:
            started.kill()
            started.wait()
        shutil.rmtree(base, ignore_errors=True)


def run(plant: Plant, made: Host) -> dict[str, Any]:
    """Plant and mend; return the rules that were found before, planted and mended."""
    plant.ready(made)
    before = made.findings()
    plant.plant(made)
    planted = made.findings()
    found = next((one for one in planted if one.rule == plant.rule), None)
    safely: list[list[str]] = []
    if found is not None and found.mend is not None:
        did = carry_out(found.mend, ("pm0",))
        safely.append([one.rule for one in made.findings()])
        made.sh(did.undo)
        safely.append([one.rule for one in made.findings()])
    if plant.mend is not None:
        plant.mend(made)
    elif found is not None:
        made.sh(re.findall(r"`([^`]+)`", found.fix)[plant.number])
    mended = made.findings()
    return {
        "before": [one.rule for one in before],
        "planted": [one.rule for one in planted],
        "safely_mended": safely,
        "mended": [one.rule for one in mended],
        "text": [] if found is None else [found.text, found.fix],
    }


def in_child(state: Path, config: Path, plant: Plant) -> dict[str, Any]:
    """Run a case in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            with host(state, config) as made:
                answer = run(plant, made)
        except BaseException as error:
            answer = {"error": [f"{type(error).__name__}: {error}", str(getattr(error, "stderr", ""))]}
        with os.fdopen(writing, "w") as out:
            json.dump(answer, out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        told_of: dict[str, Any] = json.load(told)
    os.waitpid(child, 0)
    return told_of


def main() -> None:
    state, config = map(Path, sys.argv[1:3])
    chosen = sys.argv[3:] or PLANTS
    for name in chosen:
        print(json.dumps({"case": name, **in_child(state, config, PLANTS[name])}), flush=True)


if __name__ == "__main__":
    main()
