# SPDX-License-Identifier: GPL-3.0-or-later
"""Every error's fix: doing what it says mends it.

Each row of the tables says how an error comes about, what the error and its fix say, and what an operator
does who follows the fix. Afterwards the command that failed succeeds. The rows of `test_fixes_nodes` need
running nodes.
"""

from __future__ import annotations

import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh.cli import cli
from phantommesh.nursery import process
from phantommesh.nursery.host import backend
from phantommesh.nursery.host.fake import FakeBackend
from phantommesh.nursery.host.userspace import UserspaceBackend
from phantommesh.nursery.overlay import taking_down
from phantommesh.state.directory import StateDir
from phantommesh.state.making import begin_join, finish_join, join_config
from phantommesh.state.start import load_node
from phantommesh.trust.certificates import Role
from phantommesh.trust.identity import Identity
from phantommesh.trust.issuing import choose_ip4

INIT = ("init", "--mesh", "lab", "--name", "pm-1", "--endpoint", "192.0.2.1")
CHECK, RUN, INVITE = ("config", "check"), ("run",), ("invite",)


class Machine:
    """One machine: a state directory and a configuration below ``root``, a clock and an environment."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        self.state, self.config = root / "state", root / "pm.toml"
        self.environment: dict[str, str | None] = {}
        self.held = ExitStack()

    def phantommesh(self, *words: str, input: str = "") -> Result:  # noqa: A002  # click's name
        """Run a command of this machine's."""
        options = ["--state-dir", str(self.state), "--config", str(self.config)]
        return CliRunner().invoke(cli, [*options, *words], env=self.environment, input=input)

    def type(self, line: str) -> None:
        """Run a line of a fix, as it stands."""
        words = shlex.split(line)
        assert words.pop(0) == "phantommesh"
        done = CliRunner().invoke(cli, words, env=self.environment)
        assert done.exit_code == 0, done.output

    def set(self, key: str, value: str) -> None:
        """Edit a key of the configuration. ``value`` is TOML."""
        section, _, name = key.partition(".")
        text = self.config.read_text()
        head, title, rest = text.partition(f"[{section}]\n")
        line = re.compile(rf"^(# )?{name} = .*$", re.MULTILINE)
        assert title and line.search(rest), key
        self.config.write_text(head + title + line.sub(lambda _: f"{name} = {value}", rest, count=1))

    def add(self, text: str) -> None:
        """Add lines to the configuration."""
        self.config.write_text(self.config.read_text() + text)

    def cut(self, text: str) -> None:
        """Take lines out of the configuration."""
        assert text in self.config.read_text()
        self.config.write_text(self.config.read_text().replace(text, ""))

    def restore(self, name: str) -> None:
        """Put a file of the state directory back from the backup."""
        target = self.state / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        shutil.copy2(self.root / "backup" / name, target)


@dataclass(frozen=True)
class Row:
    """``trouble`` makes it, ``verb`` then fails and says ``error`` and ``fix``. ``mend`` does what the fix,
    which it is given, says. Where the fix is another command line, ``mend`` returns the words to use in place
    of ``verb``."""

    name: str
    verb: tuple[str, ...]
    trouble: Callable[[Machine], object]
    error: str
    fix: str
    mend: Callable[[Machine, str], object]
    status: int = 1


def key(name: str, bad: str, good: str, fix: str, error: str = "") -> Row:
    """A key of the configuration that has a value it must not have. The fix says what to set it to."""
    before: list[str] = []

    def trouble(machine: Machine) -> None:
        before[:] = [machine.config.read_text()]
        machine.set(name, bad)

    def mend(machine: Machine, _: str) -> None:
        machine.config.write_text(before[0])
        machine.set(name, good)

    return Row(f"{name} = {bad}", CHECK, trouble, error or name, fix, mend)


def option(verb: tuple[str, ...], bad: tuple[str, ...], good: tuple[str, ...], error: str, fix: str) -> Row:
    """An option with a value that it must not have. Without ``good`` the fix is to leave it out."""
    return Row(" ".join(bad), (*verb, *bad), lambda _: None, error, fix, lambda *_: (*verb, *good))


def fresh(bad: tuple[str, ...], good: tuple[str, ...], error: str, fix: str) -> Row:
    """An option of `init` on a machine that has nothing yet."""
    return Row(
        "init " + " ".join(bad),
        ("init", *bad),
        lambda machine: empty(machine),
        error,
        fix,
        lambda *_: ("init", *good),
    )


def empty(machine: Machine) -> None:
    """Take all of it off the machine."""
    shutil.rmtree(machine.state)
    machine.config.unlink()


def variable(name: str, value: str, error: str, fix: str, good: str | None) -> Row:
    """A variable of the environment. The fix names it, not the file."""

    def mend(machine: Machine, said: str) -> None:
        assert name in said
        machine.environment[name] = good

    return Row(f"{name}={value}", CHECK, lambda m: m.environment.update({name: value}), error, fix, mend)


def write(name: str, data: bytes) -> Callable[[Machine], object]:
    """Damage a file of the state directory."""
    return lambda machine: (machine.state / name).write_bytes(data)


def damaged(name: str, data: bytes, error: str = "is damaged") -> Row:
    """A file of the state directory that is no longer what it was. The fix is to restore it."""
    return Row(
        f"{name} is damaged",
        RUN,
        write(name, data),
        error,
        "restore the file from a backup",
        lambda m, _: m.restore(name),
    )


def runs(machine: Machine, fix: str) -> None:
    """Run the command that the fix ends with."""
    machine.type(fix[fix.index("phantommesh ") :])


def nowhere(machine: Machine) -> None:
    machine.set("node.endpoints", "[]")
    machine.set("nat.discover", "false")


def rename_away(machine: Machine, path: Path) -> None:
    """Move something away."""
    path.rename(machine.root / f"{path.name}.away")


def old_clock(machine: Machine) -> None:
    """The clock is at the beginning of the epoch, as after a power cut without a battery."""
    machine.monkeypatch.setattr(process, "time", lambda: 86_400.0)


def right_clock(machine: Machine, _: str) -> None:
    """Set the clock."""
    machine.monkeypatch.setattr(process, "time", time.time)


def plain_node(machine: Machine) -> None:
    """Have this machine be a member that is no authority."""
    authority = load_node(machine.state, time.time())
    assert authority.authority is not None
    invite = authority.invites.create(
        root_hash=authority.mesh.root_hash, authority=authority.identity.node_id, mesh="lab",
        endpoints=("192.0.2.1:51800",), expires=int(time.time()) + 60,
    )  # fmt: skip
    shutil.move(machine.state, machine.root / "authority")
    machine.config.unlink()
    settings = join_config(invite, name="pm-2", endpoints=("192.0.2.2",))
    draft = begin_join(machine.state, machine.config, invite, settings)
    ip4 = choose_ip4(authority.mesh, draft.identity.node_id, ())
    finish_join(
        machine.state, machine.config, draft=draft, config=settings, invite=invite,
        root_cert=authority.root.public_bytes(Encoding.DER), authority_cert=authority.authority_cert,
        node_cert=authority.authority.issue(draft.identity.spki, "pm-2", Role.NODE, ip4, time.time()),
        admission_key=authority.admission.newest, roster=authority.roster.encode(),
        revocations=authority.revocations.encode(), now=time.time(),
    )  # fmt: skip


def on_the_authority(machine: Machine, _: str) -> None:
    """Go to the authority."""
    shutil.rmtree(machine.state)
    shutil.move(machine.root / "authority", machine.state)
    machine.set("node.name", '"pm-1"')


def other_directories(machine: Machine, fix: str) -> tuple[str, ...]:
    """Give another --state-dir and another --config."""
    assert "--state-dir" in fix or "--config" in fix
    other = str(machine.root / "other")
    return ("--state-dir", f"{other}/state", "--config", f"{other}/pm.toml", *INIT)


def no_wireguard(machine: Machine) -> None:
    """A kernel without WireGuard, and a userspace one."""
    machine.set("wireguard.backend", '"kernel"')
    machine.monkeypatch.setattr(process, "choose", backend.choose)
    machine.monkeypatch.setattr(backend, "kernel_has_wireguard", lambda: False)
    machine.monkeypatch.setattr(UserspaceBackend, "find", FakeBackend)


def directory_for_config(machine: Machine) -> None:
    """A container engine makes a directory where a file to mount is missing."""
    rename_away(machine, machine.config)
    machine.config.mkdir()


def config_for_directory(machine: Machine, _: str) -> None:
    """Give the path of a file."""
    machine.config.rmdir()
    (machine.root / "pm.toml.away").rename(machine.config)


def resolved_without_server(machine: Machine) -> None:
    """resolved is told of a name server that is turned off."""
    machine.set("dns.mode", '"resolved"')
    machine.set("dns.serve", "false")


def tokens_in_clear(machine: Machine) -> None:
    """The API listens beyond loopback, and TLS is turned off."""
    machine.set("api.listen", '"192.0.2.1:8480"')
    machine.set("api.tls", '"off"')


def foreign_state(machine: Machine) -> None:
    """--state-dir is another program's directory; the state is elsewhere."""
    rename_away(machine, machine.state)
    machine.state.mkdir()
    (machine.state / "x").touch()


def foreign_directory(machine: Machine) -> None:
    """--state-dir is another program's directory, and there is no node yet."""
    empty(machine)
    machine.state.mkdir()
    (machine.state / "x").touch()


def directory_for_certificate(machine: Machine) -> None:
    """A directory has the name of a file of the state."""
    (machine.state / "node.crt").unlink()
    (machine.state / "node.crt").mkdir()


def edited_and_stateless(machine: Machine) -> None:
    """A configuration that somebody edited is left, and its state is not."""
    lose_state(machine)
    machine.set("log.level", '"debug"')


def no_liboqs(machine: Machine) -> None:
    """liboqs is asked for, and not there."""
    machine.set("link.provider", '"liboqs"')
    machine.monkeypatch.setattr("phantommesh.kem.liboqs_present", lambda: False)


def lose_state(machine: Machine) -> None:
    """The disk with the state is lost."""
    shutil.rmtree(machine.state)


def begin_again(machine: Machine, fix: str) -> None:
    """Move the configuration away, and begin again."""
    assert f"move {machine.config} away" in fix
    rename_away(machine, machine.config)
    assert machine.phantommesh(*INIT).exit_code == 0


def hold(machine: Machine) -> None:
    """A node runs on the state directory."""
    machine.held.enter_context(StateDir.open(machine.state).lock())


def other_root_key(machine: Machine) -> None:
    """The root key of another mesh lies here."""
    (machine.state / "root.key").write_bytes(Identity.generate().to_pem().reveal())


def host_name(machine: Machine) -> None:
    """A machine whose name makes no node's."""
    empty(machine)
    machine.monkeypatch.setattr("platform.node", lambda: "")


def lines(text: str) -> Callable[[Machine, str], object]:
    """Take these lines out again."""
    return lambda machine, _: machine.cut(text)


def pasted_keys_moved(machine: Machine, _: str) -> None:
    """Move the keys of a pasted section to the section that was there."""
    machine.cut(SECOND)
    machine.set("routes.accept", '["10.0.0.0/8"]')


SECOND = '[routes]\naccept = ["10.0.0.0/8"]\n'
NO_TABLE = "[nodes]\nx = 1\n"
ROWS: list[Row] = [
    # --- there is no configuration, or none that can be read
    Row(
        "nothing is there",
        RUN,
        empty,
        "there is no configuration",
        "`phantommesh init`",
        lambda m, fix: m.phantommesh(*INIT),
    ),
    Row("the configuration is lost", RUN, lambda m: m.config.unlink(), "though", "config write", runs),
    Row(
        "the configuration is lost, config check",
        CHECK,
        lambda m: m.config.unlink(),
        "though",
        "config write",
        runs,
    ),
    Row(
        "the configuration is lost, invite",
        INVITE,
        lambda m: m.config.unlink(),
        "though",
        "config write",
        runs,
    ),
    Row(
        "a directory in its place",
        CHECK,
        directory_for_config,
        "Is a directory",
        "give the path of a readable file",
        config_for_directory,
    ),
    Row(
        "not UTF-8",
        CHECK,
        lambda m: m.config.write_bytes(m.config.read_bytes() + b"# caf\xe9\n"),
        "is not UTF-8",
        "save the file as UTF-8",
        lambda m, _: m.config.write_text(m.config.read_bytes().decode("latin-1"), "utf-8"),
    ),
    Row(
        "not TOML",
        CHECK,
        lambda m: m.add("level is high\n"),
        "not TOML",
        "correct that line",
        lines("level is high\n"),
    ),
    # --- keys
    Row(
        "a mistyped key",
        CHECK,
        lambda m: m.config.write_text(m.config.read_text().replace("mtu =", "mtuu =")),
        "unknown key wireguard.mtuu",
        "did you mean wireguard.mtu?",
        lambda m, _: m.config.write_text(m.config.read_text().replace("mtuu =", "mtu =")),
    ),
    Row(
        "an unknown section",
        CHECK,
        lambda m: m.add(NO_TABLE),
        "unknown key nodes",
        "did you mean node?",
        lines(NO_TABLE),
    ),
    Row(
        "a missing key",
        CHECK,
        lambda m: m.cut('name = "pm-1"\n'),
        "node.name is missing",
        "set node.name to",
        lambda m, _: m.config.write_text(m.config.read_text().replace("[node]\n", '[node]\nname = "pm-1"\n')),
    ),
    Row(
        "a value for a section",
        CHECK,
        lambda m: m.config.write_text(
            'log = "debug"\n'
            + m.config.read_text()
            .replace("[log]", "")
            .replace('level = "info"', "")
            .replace('format = "auto"', "")
        ),
        "is not a section",
        "write [log] on a line of its own",
        lambda m, _: m.config.write_text(
            m.config.read_text().replace('log = "debug"', "") + '[log]\nlevel = "debug"\n'
        ),
    ),
    key("wireguard.mtu", "100", "1280", "from 1280 to 9000"),
    key("wireguard.prefix", '"9x"', '"x9"', "starting with a letter"),
    key("wireguard.base_port", "65529", "51820", "lower wireguard.base_port"),
    key("wireguard.key_seconds", "nan", "10.0", "seconds from 10"),
    key("control.port", "51821", "51799", "set control.port or wireguard.base_port to another port"),
    key("control.tcp", '"yes"', "true", "true or false"),
    key("routes.accept", '["all", "10.0.0.0/8"]', '["all"]', 'set routes.accept to ["all"]'),
    key("routes.advertise", '["100.64.0.0/12"]', "[]", "take it out"),
    key("routes.accept", '["100.96.0.0/16"]', "[]", "take it out"),
    key("routes.probe", '{ "10.1.0.0/16" = "10.1.0.1" }', "{}", "or take it out of routes.probe"),
    Row(
        "a section that was pasted a second time",
        CHECK,
        lambda m: m.add(SECOND),
        "Cannot declare ('routes',) twice",
        "the file has [routes] further up: move the keys there",
        pasted_keys_moved,
    ),
    key("log.level", '"loud"', '"debug"', '"debug"'),
    key("node.endpoints", '["http://x"]', '["vpn.example.net:51800"]', 'write each as "HOST" or "HOST:PORT"'),
    key("node.endpoints", '["127.0.0.1", "192.0.2.1"]', '["192.0.2.1"]', "take it out"),
    key("node.endpoints", '["224.0.0.1"]', '["192.0.2.1"]', "give the address of a network"),
    key("node.endpoints", '["100.64.1.1"]', '["192.0.2.1"]', "an address of the network beneath the mesh"),
    key("gossip.seeds", '["0.0.0.0"]', "[]", "give the address of a network"),
    key("scatter.peers", '{"No Name" = "throughput"}', "{}", "see `phantommesh peers`"),
    key("scatter.epoch_seconds", "0", "0.05", "seconds from 0.05"),
    key("guard.forward", '["eth 0"]', '["eth0"]', "see `ip link`"),
    key("guard.forward", '["pm0"]', '["docker0"]', "name the interfaces of the machines or containers"),
    key("dns.port", "51800", "53", "set dns.port to 53"),
    Row(
        "resolved without a name server",
        CHECK,
        resolved_without_server,
        "needs the name server",
        "set dns.serve to true",
        lambda m, _: m.set("dns.serve", "true"),
    ),
    key("dns.hosts", '"hosts"', '"/etc/hosts"', "an absolute path"),
    key("paths.port", "51800", "51899", "set paths.port to another port"),
    key("overlay.cidr4", '"10.0.0.1/8"', '"100.64.0.0/10"', '"100.64.0.0/10"'),
    key("overlay.cidr4", '"127.0.0.0/8"', '"100.64.0.0/10"', '"100.64.0.0/10"'),
    key("link.rotate_seconds", "4", "90", "raise link.rotate_seconds"),
    key("api.socket", '"api.sock"', '"/run/api.sock"', "an absolute path"),
    key(
        "api.socket",
        f'"/{"d" * 95}/x.sock"',
        '"/run/api.sock"',
        "choose a shorter api.socket",
        error="too long",
    ),
    key("api.listen", '"vpn.example.net:8480"', '"127.0.0.1:8480"', '"127.0.0.1:8480"'),
    Row(
        "tokens in clear",
        CHECK,
        tokens_in_clear,
        "tokens would cross the network in clear",
        'set api.tls to "auto"',
        lambda m, _: m.set("api.tls", '"auto"'),
    ),
    # --- what the certificates decide is not edited
    key("node.mesh", '"other"', '"lab"', 'set node.mesh to "lab" again'),
    key(
        "node.name",
        '"other"',
        '"pm-1"',
        'set node.name to "pm-1" again; while the node runs, `phantommesh rename other`',
    ),
    key("overlay.cidr4", '"10.99.0.0/16"', '"100.64.0.0/10"', 'set overlay.cidr4 = "100.64.0.0/10" again'),
    # --- what this machine does not have
    Row(
        "no WireGuard in the kernel",
        CHECK,
        no_wireguard,
        "this kernel has no WireGuard",
        "'userspace'",
        lambda m, _: m.set("wireguard.backend", '"userspace"'),
    ),
    Row(
        "no liboqs",
        CHECK,
        no_liboqs,
        'link.provider is "liboqs"',
        'link.provider to "cryptography"',
        lambda m, _: m.set("link.provider", '"cryptography"'),
    ),
    # --- variables
    variable(
        "PHANTOMMESH_CONTROL_PROT",
        "1",
        "PHANTOMMESH_CONTROL_PROT is no key",
        "PHANTOMMESH_CONTROL_PORT",
        None,
    ),
    variable(
        "PHANTOMMESH_CONTROL_PORT",
        "high",
        "is from PHANTOMMESH_CONTROL_PORT",
        "a port from 1 to 65535",
        "4000",
    ),
    variable("PHANTOMMESH_CONTROL_TCP", "yes", "is from PHANTOMMESH_CONTROL_TCP", "true or false", "true"),
    variable("PHANTOMMESH_LOG_LEVEL", "loud", "is from PHANTOMMESH_LOG_LEVEL", '"debug"', "debug"),
    variable(
        "PHANTOMMESH_NODE_ENDPOINTS", "a b", "is from PHANTOMMESH_NODE_ENDPOINTS", "HOST:PORT", "a,b:4000"
    ),
    variable("PHANTOMMESH_NODE_NAME", "other", "is from PHANTOMMESH_NODE_NAME", 'to "pm-1" again', "pm-1"),
    variable(
        "PHANTOMMESH_OVERLAY_CIDR4", "10.9.0.0/16", "is from", "PHANTOMMESH_OVERLAY_CIDR4", "100.64.0.0/10"
    ),
    # --- the state directory
    Row("the state is lost", RUN, lose_state, "though the configuration", "move", begin_again),
    Row("the state is lost, invite", INVITE, lose_state, "though the configuration", "move", begin_again),
    Row(
        "the state is elsewhere",
        RUN,
        lambda m: rename_away(m, m.state),
        "there is no state directory",
        "the right --state-dir",
        lambda m, _: ("--state-dir", str(m.root / "state.away"), *RUN),
    ),
    Row(
        "another's directory",
        RUN,
        foreign_state,
        "is not a PhantomMesh state directory",
        "give another --state-dir",
        lambda m, _: ("--state-dir", str(m.root / "state.away"), *RUN),
    ),
    Row(
        "state of another version",
        RUN,
        write("format", b"phantommesh state 9\n"),
        "of another version",
        "run the version that wrote it",
        lambda m, _: m.restore("format"),
    ),
    Row(
        "a file is missing",
        RUN,
        lambda m: (m.state / "node.crt").unlink(),
        "node.crt is missing",
        "restore the file from a backup",
        lambda m, _: m.restore("node.crt"),
    ),
    Row(
        "a directory for a file",
        RUN,
        directory_for_certificate,
        "is not a regular file",
        "move it away and restore a backup",
        lambda m, _: m.restore("node.crt"),
    ),
    damaged("node.crt", b"junk"),
    damaged("node.key", b"junk"),
    damaged("root.crt", b"junk"),
    damaged("authority.key", b"junk"),
    damaged("wireguard.json", b"{}"),
    damaged("admission.key", b""),
    Row(
        "another authority's key",
        RUN,
        write("authority.key", Identity.generate().to_pem().reveal()),
        "authority.key is not the key of authority.crt",
        "restore the file from a backup",
        lambda m, _: m.restore("authority.key"),
    ),
    Row(
        "a key that others can read",
        RUN,
        lambda m: (m.state / "node.key").chmod(0o644),
        "others can read",
        "chmod 600",
        lambda m, fix: Path(fix.split()[2]).chmod(int(fix.split()[1], 8)),
    ),
    Row(
        "a generation that is none",
        RUN,
        write("generation", b"junk"),
        "generation is damaged",
        "restore the file from a backup",
        lambda m, _: (m.state / "generation").unlink(),
    ),
    Row(
        "a generation from the far future",
        RUN,
        write("generation", b"4294967295"),
        "no number of a start",
        "delete the file",
        lambda m, _: (m.state / "generation").unlink(),
    ),
    Row("the clock is wrong", RUN, old_clock, "clock is wrong", "set the clock", right_clock),
    Row(
        "a node runs on it",
        RUN,
        hold,
        "another node is running",
        "stop the other process",
        lambda m, _: m.held.close(),
    ),
    # --- init
    Row(
        "init twice",
        INIT,
        lambda _: None,
        "already holds a node's state",
        "`phantommesh run`",
        lambda *_: RUN,
    ),
    Row(
        "a second node",
        INIT,
        lambda _: None,
        "already holds a node's state",
        "another --config",
        other_directories,
    ),
    Row(
        "a configuration is in the way",
        INIT,
        edited_and_stateless,
        "is another configuration",
        "move",
        lambda m, _: rename_away(m, m.config),
    ),
    Row(
        "a directory is in the way",
        INIT,
        foreign_directory,
        "is not empty",
        "another --state-dir",
        lambda m, _: ("--state-dir", str(m.root / "new"), *INIT),
    ),
    Row(
        "init without a host name",
        ("init", "--mesh", "lab"),
        host_name,
        "makes no node name",
        "give --name",
        lambda *_: ("init", "--mesh", "lab", "--name", "pm-1"),
    ),
    fresh(("--mesh", "The Lab"), ("--mesh", "the-lab"), "--mesh", "a-z"),
    fresh(("--mesh", "lab", "--name", "PM_1"), ("--mesh", "lab", "--name", "pm-1"), "--name", "a-z"),
    fresh(
        ("--mesh", "lab", "--cidr", "10.0.0.0/31"),
        ("--mesh", "lab", "--cidr", "10.0.0.0/30"),
        "--cidr",
        "/8 to /30",
    ),
    fresh(
        ("--mesh", "lab", "--cidr", "127.0.0.0/8"),
        ("--mesh", "lab", "--cidr", "10.99.0.0/16"),
        "--cidr",
        "10.99.0.0",
    ),
    fresh(
        ("--mesh", "lab", "--endpoint", "::::"),
        ("--mesh", "lab", "--endpoint", "[2001:db8::1]:1"),
        "--endpoint",
        "[ADDRESS]",
    ),
    fresh(
        ("--mesh", "lab", "--endpoint", "127.0.0.1"),
        ("--mesh", "lab", "--endpoint", "127.0.0.1", "--one-machine"),
        "loopback",
        "--one-machine",
    ),
    fresh(
        ("--mesh", "lab", "--endpoint", "169.254.1.1"),
        ("--mesh", "lab", "--endpoint", "192.0.2.1"),
        "--endpoint",
        "by which other machines reach it",
    ),
    fresh(
        ("--mesh", "lab", "--endpoint", "100.64.1.1"),
        ("--mesh", "lab", "--endpoint", "192.0.2.1"),
        "--endpoint",
        "beneath the mesh",
    ),
    # --- invite
    Row(
        "an invite of no authority",
        INVITE,
        plain_node,
        "is no authority",
        "on an authority",
        on_the_authority,
    ),
    option(INVITE, ("--ttl", "9999d"), ("--ttl", "30d"), "30 d at most", "--ttl 30d"),
    option(
        INVITE, ("--uses", "2", "--name", "x"), ("--uses", "2"), "has one use", "leave out --uses or --name"
    ),
    option(INVITE, ("--uses", "20000"), ("--uses", "10000"), "1 to 10000 uses", "another --uses"),
    option(INVITE, ("--name", "No Name"), ("--name", "no-name"), "node name", "a-z"),
    Row(
        "an invite to nowhere",
        INVITE,
        nowhere,
        "1 to 3 endpoints",
        'set node.endpoints in the config, e.g. ["vpn.example.net:51800"]',
        lambda m, _: m.set("node.endpoints", '["vpn.example.net:51800"]'),
    ),
    Row(
        "no root key",
        (*INVITE, "--role", "authority"),
        lambda m: (m.state / "root.key").unlink(),
        "root key",
        "put its root.key back",
        lambda m, _: m.restore("root.key"),
    ),
    Row(
        "another mesh's root key",
        (*INVITE, "--role", "authority"),
        other_root_key,
        "another mesh's root key",
        "restore the file from a backup",
        lambda m, _: m.restore("root.key"),
    ),
    # --- what needs no node
    Row(
        "a last authority leaves",
        ("leave",),
        lambda _: None,
        "the last authority",
        "`phantommesh leave --force`",
        lambda *_: ("leave", "--force"),
    ),
    Row(
        "leave without state",
        ("leave", "--force"),
        lose_state,
        "though the configuration",
        "move",
        begin_again,
    ),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine on which `init` was run. Keys take a while to make, so each row gets a copy."""
    root = tmp_path_factory.mktemp("made")
    options = ["--state-dir", f"{root}/state", "--config", f"{root}/pm.toml"]
    assert CliRunner().invoke(cli, [*options, *INIT]).exit_code == 0
    shutil.copytree(root / "state", root / "backup")
    return root


@pytest.fixture
def machine(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    root = tmp_path / "m"
    shutil.copytree(made, root)

    async def run_to_the_line(state_dir: Path, config_path: Path, **_: object) -> None:
        """All that `run` does before it changes anything outside the state directory."""
        async with process.prepared(state_dir, config_path):
            pass

    async def fake(_kind: str) -> FakeBackend:
        return FakeBackend()

    async def clear(*_: object) -> taking_down.Down:
        """A host without anything of ours. The real one looks at, and changes, this machine."""
        return taking_down.Down(
            mesh=None, node="not-running", interfaces=[], prefixes=[], tables=[], marks=False, running=[]
        )

    monkeypatch.setattr(process, "run", run_to_the_line)
    monkeypatch.setattr(process, "choose", fake)
    monkeypatch.setattr(taking_down, "_clear", clear)
    monkeypatch.setattr("phantommesh.nursery.logs.configure", lambda *_: None)
    found = Machine(root, monkeypatch)
    with found.held:
        yield found


def test_there_are_enough() -> None:
    assert len(ROWS) >= 60
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name[:60])
def test_doing_what_the_fix_says_mends_it(machine: Machine, row: Row) -> None:
    row.trouble(machine)
    failed = machine.phantommesh(*row.verb)
    assert failed.exit_code == row.status, failed.output
    error, fix = failed.stderr.splitlines()[-2:]
    assert error.startswith("error: ") and row.error in error, error
    assert fix.startswith("fix: ") and row.fix in fix, fix
    instead = row.mend(machine, fix.removeprefix("fix: "))
    words = map(str, instead) if isinstance(instead, tuple) else row.verb
    mended = machine.phantommesh(*words)
    assert mended.exit_code == 0, mended.output


# What `run` refuses and `config check` does not, as it is no matter of the configuration.
OF_THE_STATE = {
    "nothing is there", "the state is lost", "the state is elsewhere", "another's directory",
    "a generation that is none", "a generation from the far future", "a node runs on it",
}  # fmt: skip
# The sockets are the API's: `run` meets this when it makes them.
OF_THE_API = {row.name for row in ROWS if row.name.startswith("api.socket") and row.error == "too long"}


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.verb in (CHECK, RUN) and row.name not in OF_THE_STATE | OF_THE_API],
    ids=lambda row: row.name[:60],
)
def test_config_check_refuses_what_run_refuses(machine: Machine, row: Row) -> None:
    row.trouble(machine)
    checked, run = machine.phantommesh(*CHECK), machine.phantommesh(*RUN)
    assert checked.exit_code == run.exit_code == 1
    assert checked.stderr == run.stderr


def test_variables_do_without_a_file(machine: Machine) -> None:
    variables = {
        "PHANTOMMESH_NODE_NAME": "pm-1",
        "PHANTOMMESH_NODE_MESH": "lab",
        "PHANTOMMESH_CONTROL_PORT": "4000",
    }
    machine.environment.update(variables)
    machine.config.unlink()
    assert machine.phantommesh(*CHECK).exit_code == 0
    assert "port = 4000" in machine.phantommesh("config", "show").stdout
    assert machine.phantommesh(*RUN).exit_code == 0
    left = machine.phantommesh("leave", "--force")
    assert left.exit_code == 0 and str(machine.config) not in left.stdout
    # And none is needed to begin.
    done = machine.phantommesh("init")
    assert done.exit_code == 0, done.output
    assert "port = 4000" in machine.config.read_text() and 'mesh = "lab"' in machine.config.read_text()
