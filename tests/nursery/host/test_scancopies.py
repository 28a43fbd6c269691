# SPDX-License-Identifier: GPL-3.0-or-later
"""The search for copies of keys, among files that a hostile user made and exchanges meanwhile."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.agents.aegis import Aegis
from phantommesh.agents.council import Council
from phantommesh.hostcheck.scan import scan
from phantommesh.hostcheck.seen import CopySeen
from phantommesh.node.steps import Moment
from phantommesh.nursery.host import scancopies, scanning
from phantommesh.nursery.host.scancopies import find_copies
from phantommesh.nursery.host.scanning import Where

KEY = b"a key of this node, of some length\n"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "node.key").write_bytes(KEY)
    return tmp_path


def archive() -> bytes:
    """A tar archive of a state directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in (("mesh/roster.bin", bytes(3000)), ("mesh/node.key", KEY)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return out.getvalue()


def write(path: Path | bytes, data: bytes) -> None:
    file = Path(os.fsdecode(path))
    file.write_bytes(data)
    file.chmod(0o644)


def within_10_s(work: threading.Thread) -> bool:
    """Whether it has ended; the bound is only there for what would hang for ever."""
    work.start()
    work.join(10.0)
    return not work.is_alive()


def test_a_copy_is_found_where_others_can_read_it(state: Path, place: Path) -> None:
    below = place / "a" / "b"
    below.mkdir(parents=True)
    for path in (place, place / "a", below):
        path.chmod(0o755)
    write(below / "notes.txt", KEY)
    write(place / "backup.tar", archive())
    write(place / "closed.txt", KEY)
    (place / "closed.txt").chmod(0o600)
    assert sorted(find_copies(state, [place]), key=lambda one: one.path) == [
        CopySeen(str(below / "notes.txt"), "this node's node.key", 0o644),
        CopySeen(str(place / "backup.tar"), "a state directory (node.key)", 0o644),
    ]
    (place / "a").chmod(0o700)
    assert [one.path for one in find_copies(state, [place])] == [str(place / "backup.tar")]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["b.tar", "b.tar.old", "b.tar.bz2"])
def test_nothing_is_decompressed(
    compress: Callable[[bytes], bytes], name: str, state: Path, place: Path
) -> None:
    """A bzip2 file of hundred bytes took the memory and the CPU of a whole host."""
    write(place / name, compress(archive()))
    assert find_copies(state, [place]) == []


def test_an_archive_is_read_once_and_within_bounds(
    state: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place / "b.tar", bytes(512) + archive())
    assert find_copies(state, [place]) == []  # what does not begin as an archive is not read on
    write(place / "b.tar", archive())
    monkeypatch.setattr(scancopies, "ARCHIVE_BYTES", 3584)
    assert (
        find_copies(state, [place]) == []
    )  # the key comes after a header and 3000 bytes: in the eighth block
    monkeypatch.setattr(scancopies, "ARCHIVE_BYTES", 4096)
    assert len(find_copies(state, [place])) == 1
    write(place / "c.tar", archive())
    monkeypatch.setattr(scancopies, "MOST_ARCHIVES", 1)
    assert len(find_copies(state, [place])) == 1


@pytest.mark.parametrize("what", ["fifo", "full fifo", "link", "directory", "closed"])
def test_what_is_exchanged_between_the_listing_and_the_opening_is_passed_over(
    what: str, state: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO in place of a file held the node's thread for ever, and a link led to any file or device."""
    write(place / "node.key.1", KEY)
    write(place / "other.txt", KEY)
    elsewhere = state / "elsewhere"
    write(elsewhere, KEY)
    listed, opened = scancopies._readable, list[int]()

    def exchange(entry: os.DirEntry[str]) -> int | None:
        size = listed(entry)
        if entry.name == "node.key.1" and size is not None:
            (place / entry.name).unlink()
            match what:
                case "fifo" | "full fifo":
                    os.mkfifo(place / entry.name, 0o644)
                    if what == "full fifo":
                        opened.append(os.open(place / entry.name, os.O_RDWR))
                        os.write(opened[0], KEY)
                case "link":
                    (place / entry.name).symlink_to(elsewhere)
                case "directory":
                    (place / entry.name).mkdir()
                case _:
                    write(place / entry.name, KEY)
                    (place / entry.name).chmod(0o600)
        return size

    monkeypatch.setattr(scancopies, "_readable", exchange)
    found: list[CopySeen] = []
    looking = threading.Thread(target=lambda: found.extend(find_copies(state, [place])), daemon=True)
    assert within_10_s(looking)
    for descriptor in opened:
        os.close(descriptor)
    assert [Path(one.path).name for one in found] == ["other.txt"]


def test_a_directory_exchanged_for_a_link_is_not_entered(
    state: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "a" / "b").mkdir(parents=True)
    (place / "elsewhere" / "b").mkdir(parents=True)
    for path in place.rglob("*"):
        path.chmod(0o755)
    write(place / "elsewhere" / "b" / "key", KEY)
    entered = scancopies._entered

    def exchange(where: scancopies._Place) -> object:
        if where.below == ("a", "b"):
            (place / "a").rename(place / "away")
            (place / "a").symlink_to(place / "elsewhere")
        return entered(where)

    monkeypatch.setattr(scancopies, "_entered", exchange)
    assert [Path(one.path).parts[-3:] for one in find_copies(state, [place])] == [("elsewhere", "b", "key")]


# Holds a lease on a file: whoever opens it waits for the lease's end, 45 s, or goes away.
LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_file_under_a_lease_is_not_waited_for(state: Path, place: Path) -> None:
    write(place / "node.key.1", KEY)
    with subprocess.Popen(
        [sys.executable, "-c", LEASE, str(place / "node.key.1")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"held\n":
            pytest.skip("no leases on this file system")
        looking = threading.Thread(target=find_copies, args=(state, [place]), daemon=True)
        ended = within_10_s(looking)
        holder.kill()
    assert ended


@pytest.mark.parametrize(
    "name", [b"\xff.tar", b"a\n\x1b[2J.tar", "\u202e.tar".encode(), "\U0001f600".encode() * 62 + b".tar"]
)
def test_no_name_costs_the_other_rules(name: bytes, tmp_path: Path, place: Path) -> None:
    """A name that is no UTF-8 ended each look of AEGIS, so that no rule's finding reached anybody."""
    deep = place.joinpath(*["\U0001f600" * 62] * 4)
    deep.mkdir(parents=True)
    for path in (deep, *deep.parents[:4]):
        path.chmod(0o755)
    write(os.fsencode(deep) + b"/" + name, archive())
    seen = scanning.look(Where(tmp_path / "none", tmp_path / "none.toml", searched=(place,)))
    council = Council([Aegis()], trace=lambda: "t", now=0.0)
    proposals = council.look("aegis", seen, (), Moment(1.0, 1e9))().proposals
    assert "key-copy-open" in [one.subject.name for one in proposals]
    [found] = [one for one in scan(seen) if one.rule == "key-copy-open"]
    assert (found.text + found.fix + found.subject).isprintable()
    [said] = [one.partition("`")[0] for one in found.fix.split("`chmod 600 ")[1:]]
    named = subprocess.run(["bash", "-c", f"printf %s {said}"], capture_output=True, check=True).stdout
    assert named == os.fsencode(deep) + b"/" + name


def test_nothing_is_looked_for_beside_a_device_as_configuration(tmp_path: Path) -> None:
    written = tmp_path / "pm.toml"
    written.write_text("")
    state = tmp_path / "lib" / "state"
    assert scanning._places(Where(state, written, searched=())) == (state.parent, tmp_path)
    assert scanning._places(Where(state, Path(os.devnull), searched=())) == (state.parent,)


@given(st.binary(max_size=3000))
def test_any_bytes_are_an_archive_without_a_key(data: bytes) -> None:
    assert scancopies._in_archive(data) == ""
