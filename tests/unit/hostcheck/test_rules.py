# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules over values, where a real host cannot be made to look so; and the documents."""

import os
import re
import shlex
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import phantommesh
from phantommesh.config.sections import Config, NodeSection
from phantommesh.errors import DecodeError
from phantommesh.hostcheck import versions
from phantommesh.hostcheck.finding import quoted, shown
from phantommesh.hostcheck.scan import RULES, scan
from phantommesh.hostcheck.seen import FileSeen, HostSeen, ProcessSeen, SwapSeen
from phantommesh.hostcheck.versions import KnownFault, has, parse, parse_list, upstream
from tests.unit.management.test_faults import declared

ROOT = Path(phantommesh.__file__).parent.parent
HARDENING = ROOT / "docs" / "hardening.md"
LISTED = parse_list(Path(versions.__file__).with_name("known_faults.toml").read_text())[1]
CONFIG = Config(node=NodeSection(name="a", mesh="m"))
CLEAN = HostSeen(now=1.8e9, uid=0, config=CONFIG, processes=(ProcessSeen(pid=1, name="phantommesh"),))


def found(seen: HostSeen) -> list[str]:
    return [one.rule for one in scan(seen)]


def seen(**changes: object) -> HostSeen:
    return msgspec.structs.replace(CLEAN, **changes)


def test_nothing_is_found_where_nothing_is_seen() -> None:
    assert found(CLEAN) == [] and found(HostSeen(now=0.0, uid=0)) == []


def test_each_rule_has_its_section_in_the_hardening_guide_and_no_fault_has_its_name() -> None:
    sections = re.findall(r"^### `(.+)`\nSeverity: (\w+)\. \S", HARDENING.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted((rule.id, rule.severity) for rule in RULES.values())
    assert len(sections) == len(re.findall(r"^### ", HARDENING.read_text(), re.MULTILINE))
    assert not RULES.keys() & {kind.code for kind in declared()}


def test_the_worst_comes_first() -> None:
    files = (
        FileSeen(path="/s", role="state", kind="directory", mode=0o755, uid=0, gid=0),
        FileSeen(path="/s/k", role="state-file", kind="file", mode=0o644, uid=0, gid=0, secret=True),
    )
    assert found(seen(files=files, swaps=(SwapSeen("/swap", encrypted=False),))) == [
        "key-open", "state-open", "swap-clear",
    ]  # fmt: skip


def test_encrypted_swap_and_a_group_without_swap_are_fine() -> None:
    assert found(seen(swaps=(SwapSeen("/dev/dm-1", encrypted=True),))) == []
    held = (ProcessSeen(pid=1, name="n", swappable=False),)
    assert found(seen(swaps=(SwapSeen("/swap", encrypted=False),), processes=held)) == []


@pytest.mark.parametrize(
    ("pattern", "limit", "dumps"),
    [
        ("core", 0, False), ("core", 1, False), ("core", 4095, False), ("core", 4096, True),
        ("core", -1, True),
        ("|/bin/handler %p", 0, True), ("|/bin/handler %p", 1, False), ("|/bin/handler %p", -1, True),
        ("", -1, False), ("core", None, False),
    ],
)  # fmt: skip
def test_core_dumps_by_pattern_and_limit(pattern: str, limit: int | None, dumps: bool) -> None:
    process = ProcessSeen(pid=7, name="n", core_limit=limit)
    host = seen(running=True, core_pattern=pattern, processes=(process,))
    assert found(host) == (["core-dumps"] if dumps else [])
    assert found(msgspec.structs.replace(host, running=False)) == []


def test_a_group_of_root_and_a_sticky_directory_are_no_strangers() -> None:
    parent = FileSeen(path="/tmp", role="state-parent", kind="directory", mode=0o1777, uid=0, gid=0)
    assert found(seen(files=(parent,))) == []
    own = msgspec.structs.replace(parent, mode=0o775)
    assert found(seen(files=(own,))) == []
    assert found(seen(files=(msgspec.structs.replace(own, gid=7),))) == ["parent-writable"]


def test_a_file_of_somebody_else_has_no_safe_fix() -> None:
    file = FileSeen(path="/s", role="state", kind="directory", mode=0o755, uid=9, gid=9)
    assert {one.rule: one.mend for one in scan(seen(files=(file,)))} == {
        "state-open": None,
        "state-owner": None,
    }


def test_a_path_cannot_break_out_of_a_line_for_a_shell() -> None:
    file = FileSeen(path="/s; rm -rf $HOME", role="state", kind="directory", mode=0o755, uid=0, gid=0)
    [one] = scan(seen(files=(file,)))
    assert one.fix == "run `chmod 700 '/s; rm -rf $HOME'`"


# ---- versions ----

FAULT = KnownFault("nf_tables", "CVE-1", "high", "it", "5.6", ("5.15.149", "6.1.76", "6.7.3"), "https://x")


@pytest.mark.parametrize(
    ("version", "faulty"),
    [
        ("5.5.9", False), ("5.6.0", True), ("5.15.148", True), ("5.15.149", False), ("6.1.75", True),
        ("6.1.76", False), ("6.2.1", True), ("6.7.3", False), ("6.8.0", False), ("6.12.30", False),
    ],
)  # fmt: skip
def test_a_series_is_judged_by_its_own_mended_release(version: str, faulty: bool) -> None:
    assert has(FAULT, parse(version) or ()) is faulty


@pytest.mark.parametrize(
    ("proc", "ubuntu", "release"),
    [
        ("Linux version 6.1.0-17-amd64 (x) #1 SMP Debian 6.1.69-1 (2023-12-30)", "", "6.1.69"),
        ("Linux version 5.15.0-105-generic (x)", "Ubuntu 5.15.0-105.115-generic 5.15.148", "5.15.148"),
        ("Linux version 6.12.4 (me@here) #1 SMP", "", "6.12.4"),
        ("Linux version 5.14.0-427.el9.x86_64 (mockbuild@x) #1 SMP", "", ""),
        ("Linux version 6.18.44-fc-v657 (builder@x) #1 SMP", "", ""),
    ],
)  # fmt: skip
def test_the_upstream_release_is_known_where_it_is_said(proc: str, ubuntu: str, release: str) -> None:
    assert upstream(proc, ubuntu) == release


def test_the_list_is_dated_whole_and_cites_where_each_fault_is_described() -> None:
    dated, faults = parse_list(Path(versions.__file__).with_name("known_faults.toml").read_text())
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", dated) and len(faults) >= 8
    for fault in faults:
        assert fault.source.startswith("https://") and parse(fault.since) is not None
        numbers = [parse(one) or () for one in fault.fixed]
        assert all(numbers) and numbers == sorted(numbers)
        assert not any(has(fault, parse(one) or ()) for one in fault.fixed)


def test_every_component_of_the_list_can_be_found_faulty() -> None:
    for fault in LISTED:
        old = fault.since if fault.since != "0" else "0.0.1"
        host = seen(versions={fault.component: old}, known_faults=LISTED)
        assert [one.subject for one in scan(host)] == [fault.component]


@given(st.text(max_size=40))
def test_no_version_is_an_error(text: str) -> None:
    parsed = parse(text)
    assert parsed is None or all(isinstance(part, int) for part in parsed)
    upstream(text, text)
    scan(seen(versions={"h2": text}, known_faults=LISTED))


def test_a_damaged_list_is_told() -> None:
    with pytest.raises(DecodeError, match="known faults"):
        parse_list('dated = "2026-01-01"\n[[fault]]\ncomponent = 3')


@given(st.binary(max_size=20).filter(lambda name: b"\0" not in name))
@example(b"\xff'\\\n%s$HOME`id`")
def test_any_name_can_be_shown_and_comes_back_from_a_shell(name: bytes) -> None:
    path = os.fsdecode(name)
    word = quoted(path)
    assert shown(path).isprintable() and shown(word) == word
    if word.startswith("$'"):
        body = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), word[2:-1].encode())
        assert body == name and b"'" not in word[2:-1].encode()
    else:
        assert shlex.split(word) == [path]


@given(st.text(max_size=20))
def test_any_text_can_be_shown(text: str) -> None:
    assert shown(text).isprintable() and quoted(text).isprintable()
