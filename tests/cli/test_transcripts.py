# SPDX-License-Identifier: GPL-3.0-or-later
"""Every verb on terminals of 50, 80 and 120 columns, UTF-8 and not, as root, a member of the socket's group,
and nobody; held against `transcripts/`, a file a verb.

``python -m tests.cli.test_transcripts [VERB]...`` as root writes the files anew, all or these: read what
changed.
"""

import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click
import msgspec
import pytest
import trio
from click.testing import CliRunner
from rich.cells import cell_len

from phantommesh.cli import cli
from phantommesh.cli.tables import RECORDS
from phantommesh.nursery.api.server import serve_api
from tests.support.longnames import LONGEST, NAMES, NOW, Alone, LongNames
from tests.support.makeproofs import World
from tests.support.terminals import Job, Run, Shown

HERE: Final = Path(__file__).parent / "transcripts"
ROOT: Final = Path(__file__).parents[2]
WIDTHS: Final = (50, 80, 120)
ENCODINGS: Final = ("UTF-8", "ASCII")
GROUP: Final = "users"  # of the socket; it has the same number on every Debian
GROUP_ID: Final = 100
NOBODY: Final = 65_534
# By name: the user, and his groups besides his own. Root is the user that runs the tests.
PEOPLE: Final[dict[str, tuple[int | None, list[int]]]] = {
    "root": (None, []),
    "member": (NOBODY, [GROUP_ID]),
    "nobody": (NOBODY, []),
}
ENVIRONMENT: Final = {
    "PHANTOMMESH_STATE_DIR": "state",
    "PHANTOMMESH_CONFIG": "pm.toml",
    "PHANTOMMESH_SOCKET": "api.sock",
    "HOME": "/nonexistent",
    "TERM": "dumb",  # else a slow machine would show that a verb waits
    "NO_COLOR": "",
}


@dataclass(frozen=True, slots=True)
class Case:
    """``words`` after ``phantommesh``. ``until``: text on which it is interrupted. Not ``kept``: what it
    prints is drawn by chance, so only its form is looked at. ``roots``: the group may not."""

    words: str
    until: str = ""
    kept: bool = True
    roots: bool = False

    def run(self, columns: int, encoding: str) -> Run:
        return Run(self.words.split(), columns, encoding.lower(), self.until)


ALONE: Final = "--socket alone.sock"
# By verb; a verb that is not here fails `test_every_verb_is_shown`.
CASES: Final[dict[str, list[Case]]] = {
    "init": [Case("init --mesh lab --name pm-1")],
    "invite": [Case("invite", kept=False)],
    "invite list": [Case("invite list"), Case("invite list --json"), Case(f"invite list {ALONE}")],
    "invite withdraw": [
        Case("invite withdraw 3f9a10c2"),
        Case("invite withdraw 00ff"),
        Case("invite withdraw nothing"),
        Case("invite withdraw"),
    ],
    "up": [
        Case("up --socket none.sock"),
        Case("up --socket none.sock --config none --state-dir none"),
        Case("up --foreground --config none.toml"),
    ],
    "service install": [Case("service install --dry-run", kept=False)],
    "service uninstall": [Case("service uninstall")],
    "backup": [Case("backup b.file", until="Passphrase", kept=False), Case("backup pm.toml")],
    "restore": [Case("restore proofs.file"), Case("restore none --check")],
    "bugreport": [Case("bugreport --output pm.toml")],
    "upgrade-check": [Case("upgrade-check", kept=False)],
    "wait": [
        Case("wait --ready"),
        Case("wait --socket none.sock --timeout 1s", kept=False),
        Case("wait --timeout soon"),
    ],
    "join": [Case("join junk --name pm-2"), Case("join")],
    "run": [Case("run --config none.toml"), Case("--json run"), Case("run --json")],
    "down": [Case("down"), Case("down --config none.toml")],
    "leave": [Case("leave", kept=False)],
    "status": [
        Case("status"),
        Case("status --socket none.sock"),
        Case("status --socket none.sock --state-dir none --config none"),
        Case(f"status {ALONE}"),
        Case("status --socket root.sock", roots=True),
        Case("status --socket closed/api.sock", roots=True),
        Case("statuss"),
    ],
    "ip": [
        Case("ip"),
        Case(f"ip {LONGEST} -4"),
        Case("ip nas.example-corporation.internal --json"),
        Case("ip nas.other.internal"),
        Case("ip -4 -6"),
    ],
    "whois": [
        Case("whois 198.51.100.200"),
        Case("whois nas"),
        Case("whois 203.0.113.17:51820"),
        Case("whois 192.0.2.99"),
    ],
    "peers": [Case("peers"), Case(f"peers {ALONE}"), Case("peers --no-such-option")],
    "links": [Case("links"), Case(f"links {ALONE}")],
    "paths": [Case("paths"), Case(f"paths {ALONE}")],
    "ping": [
        Case(f"ping {NAMES[1]}"),
        Case("ping berlin-gw-1 -c 2 --size 1400"),
        Case(f"ping {LONGEST}"),
        Case("ping no-such-peer"),
        Case("ping nas --count 51"),
    ],
    # Without a node it shows this machine's own interfaces.
    "topology": [Case("topology"), Case("topology --dot"), Case("topology --dot --json")],
    "doctor": [Case("doctor --list"), Case("doctor", kept=False)],
    "netcheck": [Case("netcheck"), Case("netcheck --socket none.sock", kept=False)],
    "threats": [Case("threats"), Case(f"threats {ALONE}"), Case("threats --json")],
    "ban": [
        Case("ban 192.0.2.9 --for 1h"),
        Case("ban 192.0.2.9 --for 0s"),
        Case("ban"),
        Case("ban 192.0.2.9 --dry-run --json"),
        Case(f"ban 192.0.2.9 {ALONE}"),
    ],
    "unban": [
        Case("unban 192.0.2.250/32"),
        Case("unban"),
        Case("unban --all hinted"),
        Case("unban --all hinted --dry-run"),
        Case("unban --all me"),
    ],
    "route list": [Case("route list"), Case(f"route list {ALONE}")],
    "route explain": [
        Case("route explain nas"),
        Case("route explain 10.1.2.3"),
        Case("route explain 192.0.2.1"),
        Case(f"route explain nas {ALONE}"),
    ],
    "route approve": [Case("route approve nas 10.1.0.0/16"), Case("route approve nas")],
    "route revoke": [Case("route revoke nas 10.1.0.0/16 2001:db8:1234:5678::/64")],
    "acl show": [Case("acl show"), Case(f"acl show {ALONE}"), Case("acl show --json")],
    "acl set-policy": [
        Case("acl set-policy none.toml"),
        Case("acl set-policy proofs.file"),
        Case("acl set-policy policy.toml --dry-run"),
        Case(f"acl set-policy policy.toml {ALONE}"),
    ],
    "acl check": [
        Case("acl check nas berlin-gw-1 80"),
        Case("acl check nas berlin-gw-1 53/udp --exit-code"),
        Case("acl check nas no-such-peer 80"),
        Case("acl check nas berlin-gw-1 99999"),
        Case("acl check nas"),
        Case(f"acl check nas nas 22 {ALONE}"),
    ],
    "federation list": [Case("federation list"), Case(f"federation list {ALONE}")],
    "federation invite": [
        Case("federation invite --service db:tcp/5432:web"),
        Case("federation invite --life soon"),
    ],
    "federation accept": [Case("federation accept pmf1_line --member web"), Case("federation accept")],
    "federation end": [Case("federation end 0011"), Case("federation end")],
    "scatter": [Case("scatter"), Case(f"scatter {ALONE}")],
    "proofs": [
        Case("proofs"),
        Case("proofs --peer nas"),
        Case(f"proofs {ALONE}"),
        Case("proofs --max-loss 3"),
        Case("proofs --verify none"),
        Case("proofs --verify proofs.file", kept=False),
        Case("proofs --verify proofs.file --unpinned", kept=False),
        Case("proofs --export /proc/nothing/here"),
    ],
    "agents": [
        Case("agents"),
        Case("agents cipher"),
        Case("agents no-such-agent"),
        Case("agents pause apex"),
        Case("agents pause cipher --dry-run"),
        Case("agents cipher --dry-run"),
        Case("agents stop cipher"),
        Case("agents --socket none.sock"),
    ],
    "decisions": [
        Case("decisions"),
        Case("decisions --accepted --agent cipher"),
        Case("decisions --follow", until="as expected"),
        Case(f"decisions {ALONE}"),
        Case("decisions --verify none"),
        Case("decisions --verify bad.toml"),
        Case("decisions --verify none --follow"),
    ],
    "incidents": [Case("incidents"), Case(f"incidents {ALONE}")],
    "memory": [Case("memory"), Case("memory --socket none.sock")],
    "events": [
        Case("events"),
        Case("events --type link.*"),
        Case("events --since 4"),
        Case("events --type pear.*"),
        Case("events --follow", until="total=2"),
        Case(f"events {ALONE}"),
    ],
    "rotate": [
        Case("rotate"),
        Case("rotate --dry-run nas"),
        Case("rotate no-such-peer"),
        Case(f"rotate {ALONE}"),
    ],
    "revoke": [
        Case(f"revoke {LONGEST}"),
        Case(f"revoke {LONGEST} --dry-run"),
        Case("revoke nas --undo"),
        Case("revoke nas --undo-all"),
        Case("revoke nas --undo --force"),
    ],
    "rename": [Case("rename new --config copy.toml", kept=False), Case("rename new --socket none.sock")],
    "drain": [
        Case("drain"),
        Case("drain --wait"),
        Case("drain --for soon"),
        Case(f"drain {ALONE}", kept=False),
    ],
    "undrain": [Case("undrain"), Case("undrain --dry-run"), Case("undrain --wait")],
    # The group may not make tokens: it would have more rights by one than it has.
    "token create": [
        Case("token create --scope read --name grafana"),
        Case("token create"),
        Case(f"token create --scope admin {ALONE}", kept=False),
        Case("token create --scope read --ttl soon"),
    ],
    "token list": [Case("token list"), Case(f"token list {ALONE}")],
    "token revoke": [Case("token revoke 000000000000")],
    "audit": [Case("audit"), Case(f"audit {ALONE}", kept=False)],
    "config write": [Case("config write"), Case("config write --state-dir none", kept=False)],
    "set": [
        Case("set log.level=debug --config copy.toml --dry-run"),
        Case("set log.level=loud --config copy.toml"),
        Case("set log.levle=info"),
        Case("set log.level"),
        Case("set"),
    ],
    "completion": [Case("completion bash", kept=False), Case("completion tcsh")],
    "identity new": [Case("identity new")],
    "config check": [
        Case("config check"),
        Case("config check bad.toml"),
        Case("config check none.toml"),
    ],
    "config get": [Case("config get"), Case(f"config get {ALONE}")],
    "config apply": [
        Case("config apply pm.toml --dry-run"),
        Case("config apply none.toml"),
        Case("config apply pm.toml --api http://vpn.example.net"),
    ],
    "config show": [Case("config show", kept=False)],
    "lab up": [Case("lab up")],
    "lab down": [Case("lab down --name nolab")],
    "lab status": [Case("lab status --name nolab")],
    "lab exec": [Case("lab exec --name nolab 1 true"), Case("--json lab exec 1 true")],
    "lab run": [Case("lab run")],
}
HELP: Final = "help"


def every_verb(group: click.Group = cli, prefix: tuple[str, ...] = ()) -> Iterator[str]:
    for name, command in group.commands.items():
        path = (*prefix, name)
        if isinstance(command, click.Group):
            yield from every_verb(command, path)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield " ".join(path)


def test_every_verb_is_shown() -> None:
    assert CASES.keys() == set(every_verb()), "give each verb a case in CASES, then write its transcript"


# --- what a run of all of it shows ---


@dataclass(frozen=True, slots=True)
class Seen:
    """One run: who, on what, and what came."""

    verb: str
    case: Case
    person: str
    columns: int
    encoding: str
    shown: Shown

    @property
    def text(self) -> str:
        return self.shown.output.decode(self.encoding)

    def __str__(self) -> str:
        return f"{self.person}, {self.columns} columns, {self.encoding}: phantommesh {self.case.words}"


def planned(verbs: Collection[str] = CASES) -> list[tuple[str, Case, int, str]]:
    found = [
        (verb, case, columns, encoding)
        for verb in verbs
        for case, columns, encoding in itertools.product(CASES[verb], WIDTHS, ENCODINGS)
    ]
    helps = [Case("--help"), Case("")] + [Case(f"{verb} --help") for verb in verbs]
    return found + [(HELP, case, columns, "UTF-8") for case in helps for columns in WIDTHS]


def prepare(directory: Path) -> None:
    """What the verbs find: the state of a mesh that only root reads, a configuration, a file of proofs."""
    directory.chmod(0o755)
    made = ["--state-dir", f"{directory}/state", "--config", f"{directory}/pm.toml"]
    made += ["init", "--mesh", "example-corporation", "--name", "amsterdam", "--endpoint", "192.0.2.1"]
    assert CliRunner().invoke(cli, made).exit_code == 0
    (directory / "bad.toml").write_text('[node]\nname = "x"\nmesh = "y"\n[wireguard]\nmtuu = 3\n')
    world = World()
    world.run(2)
    (directory / "proofs.file").write_bytes(world.archive().encode())
    (directory / "copy.toml").write_bytes((directory / "pm.toml").read_bytes())
    (directory / "policy.toml").write_text('[[rule]]\nname = "ssh"\nports = [22]\n')
    (directory / "closed").mkdir(mode=0o700)
    for name in ("bad.toml", "proofs.file", "policy.toml"):
        (directory / name).chmod(0o644)


def of_person(person: str, directory: Path, verbs: Collection[str]) -> list[Seen]:
    plan = [each for each in planned(verbs) if person == "root" or each[0] != HELP]
    user, groups = PEOPLE[person]
    runs = [case.run(columns, encoding) for _, case, columns, encoding in plan]
    job = Job(str(directory), ENVIRONMENT, NOW, runs, user, groups)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PHANTOMMESH_")},
        "PYTHONPATH": str(ROOT),
        "LC_ALL": "C.UTF-8",
    }
    environment.pop("COLUMNS", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.terminals"],
        input=msgspec.json.encode(job),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
        check=True,
    )
    shown = msgspec.json.decode(done.stdout, type=list[Shown])
    return [Seen(*each[:2], person, *each[2:], output) for each, output in zip(plan, shown, strict=True)]


async def see(people: Sequence[str], verbs: Collection[str] = CASES) -> list[Seen]:
    """Run all that is planned of these verbs against two nodes."""
    found: list[Seen] = []

    async def add(person: str, directory: Path) -> None:
        found.extend(await trio.to_thread.run_sync(of_person, person, directory, verbs))

    with tempfile.TemporaryDirectory(prefix="pm-") as name:
        directory = Path(name)
        await trio.to_thread.run_sync(prepare, directory)
        async with trio.open_nursery() as nursery:
            for node, socket, group in (
                (LongNames(), "api.sock", GROUP),
                (Alone(), "alone.sock", GROUP),
                (Alone(), "root.sock", "no-such-group-here"),
            ):
                await nursery.start(partial(serve_api, node, socket_path=directory / socket, group=group))
            async with trio.open_nursery() as runs:
                for person in people:
                    runs.start_soon(add, person, directory)
            nursery.cancel_scope.cancel()
    return sorted(found, key=lambda each: list(PEOPLE).index(each.person))


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    return trio.run(see, list(PEOPLE))


# --- the files ---


def transcript(verb: str, seen: Sequence[Seen]) -> str:
    """The runs of a verb as text: each output once, under who got it and where."""
    parts = []
    for case in CASES[verb]:
        if not case.kept:
            continue
        outputs: dict[tuple[str, int], list[tuple[str, int, str]]] = {}
        for each in seen:
            if each.case is case:
                key = (each.text, each.shown.status)
                outputs.setdefault(key, []).append((each.person, each.columns, each.encoding))
        for (text, status), where in outputs.items():
            head = f"=== {_places(where)}; exit {status}"
            parts.append(f"{head}\n$ phantommesh {case.words}\n{text}")
    return "\n".join(parts)


def _places(where: Sequence[tuple[str, int, str]]) -> str:
    people, widths, encodings = (list(dict.fromkeys(each)) for each in zip(*where, strict=True))
    people.sort(key=list(PEOPLE).index)
    if len(where) == len(people) * len(widths) * len(encodings):
        shown = ", ".join(map(str, sorted(widths)))
        return f"{', '.join(people)}; {shown} columns; {', '.join(encodings)}"
    return "; ".join(f"{person} {columns} {encoding}" for person, columns, encoding in sorted(where))


def path_of(verb: str) -> Path:
    return HERE / f"{verb.replace(' ', '-')}.txt"


KEPT: Final = [verb for verb, cases in CASES.items() if any(case.kept for case in cases)]


@pytest.mark.parametrize("verb", KEPT)
def test_a_verb_shows_what_is_written(verb: str, seen: list[Seen]) -> None:
    assert transcript(verb, seen) == path_of(verb).read_text("utf-8"), (
        "if this is how it should be, run `python -m tests.cli.test_transcripts` as root and read the change"
    )


def test_there_is_no_transcript_of_what_is_gone() -> None:
    assert {path.name for path in HERE.iterdir()} == {path_of(verb).name for verb in KEPT}


# --- what holds of all of them ---


def too_wide(each: Seen) -> list[str]:
    """Lines wider than the terminal, other than a single word: that one is for a copy, an invite."""
    return [
        line for line in each.text.splitlines() if cell_len(line) > each.columns and len(line.split()) > 1
    ]


FILES: Final = ("config show", "service install", "completion")  # what they print is a file's text


def test_no_line_is_wider_than_the_terminal(seen: list[Seen]) -> None:
    # Folding would change the text of a file or a script, and JSON, which is for programs.
    wide = {
        str(each): lines
        for each in seen
        if (lines := too_wide(each)) and each.verb not in FILES and "--json" not in each.case.words
    }
    assert wide == {}


def test_nothing_is_a_traceback_or_steers_the_terminal(seen: list[Seen]) -> None:
    for each in seen:
        assert "Traceback" not in each.text, each
        assert "Exception ignored" not in each.text, each
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", each.text), each


def test_a_failure_says_how_to_mend_it(seen: list[Seen]) -> None:
    for each in seen:
        if each.shown.status == 4 and "--exit-code" in each.case.words:
            # The status is the answer, and no failure.
            assert each.verb == "acl check" and each.text.startswith("denied: "), each
        elif each.shown.status in (1, 3, 4):
            # What `doctor` finds is no error of the command: each finding has its own fix.
            mended = r"^\w+ +[\w-]+: .*?^  fix " if each.verb == "doctor" else r"^error: .*?^fix: "
            assert re.search(mended, each.text, re.DOTALL | re.MULTILINE), each
        elif each.shown.status == 2:
            assert "Usage: phantommesh" in each.text, each
        else:
            assert each.shown.status in (0, 130), each


SIGNS: Final = ("…", "...")  # of something that was left out
ASKING: Final = (
    "status",
    "ip",
    "whois",
    "peers",
    "links",
    "paths",
    "ping",
    "netcheck",
    "topology",
    "route explain",
    "acl show",
    "acl check",
    "federation list",
    "scatter",
    "proofs",
    "agents",
    "decisions",
    "incidents",
    "memory",
    "events",
    "rotate",
)


@pytest.mark.parametrize("verb", ASKING)
def test_nothing_is_left_out_on_a_narrow_terminal(verb: str, seen: list[Seen]) -> None:
    """All that the widest terminal shows is there on the narrower ones, unless a sign says that it is not."""
    for case in CASES[verb]:
        of = [each for each in seen if each.case is case and each.person == "root"]
        (widest,) = (each for each in of if (each.columns, each.encoding) == (120, "UTF-8"))
        for each in of:
            if each.encoding == "UTF-8" and not any(sign in each.text for sign in SIGNS):
                whole = "".join(each.text.split())
                missing = [word for word in words_of(widest.text) if word not in whole]
                if each.columns < RECORDS:  # a record an item has no titles of what none of the items has
                    missing = [word for word in missing if not word.isupper()]
                assert missing == [], each


def words_of(text: str) -> set[str]:
    return {word for word in text.split() if word != "-"}


def test_the_group_sees_what_root_sees(seen: list[Seen]) -> None:
    """Also where a verb would need the state directory for nothing."""
    for verb in ASKING:
        for case in (case for case in CASES[verb] if not case.roots):
            shown = {
                (each.person, each.columns, each.encoding): each.shown
                for each in seen
                if each.case is case and each.case.kept
            }
            for columns, encoding in itertools.product(WIDTHS, ENCODINGS) if shown else ():
                assert shown["member", columns, encoding] == shown["root", columns, encoding], case


def test_nobody_is_told_which_group_may_and_how_to_get_into_it(seen: list[Seen]) -> None:
    for each in seen:
        if each.person == "nobody" and each.case.words in ASKING:
            told = " ".join(each.text.split())
            assert each.shown.status == 1, each
            assert f"for root and the group {GROUP}" in told, each
            assert f"usermod -aG {GROUP} nobody" in told, each


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(CASES)
    runs = trio.run(see, list(PEOPLE), chosen)
    for file in set(HERE.iterdir()) - {path_of(each) for each in KEPT}:
        file.unlink()
    for each in set(chosen) & set(KEPT):
        path_of(each).write_text(transcript(each, runs), "utf-8")
