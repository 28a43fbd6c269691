# SPDX-License-Identifier: GPL-3.0-or-later
"""The block in a hosts file: ours alone is touched, whoever else writes there meanwhile."""

import errno
import os
import stat
import threading
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.names import hosts
from phantommesh.names.hosts import HostsError, Written, with_block, without_block, write

LINES = ["100.64.1.2\talpha.pm.internal", "fd00::1\talpha.pm.internal"]
BLOCK = "# BEGIN phantommesh pm\n" + "\n".join(LINES) + "\n# END phantommesh pm\n"
PLAIN = b"127.0.0.1\tlocalhost\n\n# mine\n10.0.0.1 db\n"

pieces = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [b"\n", b"\r\n", b"127.0.0.1 localhost\n", b"# BEGIN phantommesh other\n", b"\x0b\x85\xff"]
    ),
)
files = st.lists(pieces, max_size=8).map(b"".join)
blocks = st.lists(st.sampled_from(LINES), max_size=3)

install = partial(with_block, mesh="pm", lines=LINES)
remove = partial(without_block, mesh="pm")


@given(files, blocks, blocks)
def test_every_other_byte_stays(data: bytes, first: list[str], second: list[str]) -> None:
    once = with_block(data, "pm", first)
    assert once.startswith(data)
    assert without_block(once, "pm") == data
    twice = with_block(once, "pm", second)
    assert twice == with_block(data, "pm", second)
    assert with_block(twice, "pm", second) == twice
    assert without_block(data, "pm") == data


@given(files, st.binary(min_size=1, max_size=20), blocks)
def test_what_somebody_adds_stays_on_lines_of_its_own(data: bytes, added: bytes, lines: list[str]) -> None:
    once = with_block(data, "pm", LINES) + added
    assert with_block(once, "pm", lines).endswith(b"# END phantommesh pm\n" + added)
    left = without_block(once, "pm")
    assert left == (data + b"\n" if data and not data.endswith(b"\n") else data) + added


@given(files, blocks, blocks)
def test_two_meshes_keep_out_of_each_others_blocks(data: bytes, one: list[str], two: list[str]) -> None:
    both = with_block(with_block(data, "pm", one), "pm2", two)
    assert without_block(both, "pm2") == with_block(data, "pm", one)
    assert without_block(without_block(both, "pm2"), "pm") == data


def test_stays_where_it_was_moved_to() -> None:
    moved = BLOCK.encode() + PLAIN
    assert with_block(moved, "pm", LINES[:1]).endswith(PLAIN)
    assert with_block(moved, "pm", LINES) == moved
    assert without_block(moved, "pm") == PLAIN


@pytest.mark.parametrize(
    "damaged",
    [
        "# BEGIN phantommesh pm\n10.0.0.1 db\n",
        "10.0.0.1 db\n# END phantommesh pm\n",
        "# END phantommesh pm\n# BEGIN phantommesh pm\n",
        BLOCK + BLOCK,
        "# BEGIN phantommesh pm\n" + BLOCK,
    ],
)
def test_a_damaged_block_is_left_to_the_operator(damaged: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(damaged)
    for change in (install, remove):
        with pytest.raises(HostsError) as caught:
            write(path, change)
        assert "by hand" in caught.value.fix
    assert path.read_text() == damaged


def test_write_keeps_mode_owner_and_link(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / "hosts"
    path.write_bytes(PLAIN)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12, 34)
    owner = (path.stat().st_uid, path.stat().st_gid)
    link.symlink_to("real")
    assert write(link, install) is Written.REPLACED
    assert link.is_symlink()
    assert path.read_bytes() == PLAIN + BLOCK.encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (path.stat().st_uid, path.stat().st_gid) == owner
    before = path.stat()
    assert write(link, install) is Written.UNCHANGED
    assert path.stat() == before
    assert write(link, remove) is Written.REPLACED
    assert path.read_bytes() == PLAIN
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hosts", "real"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    assert write(path, install) is Written.REPLACED
    assert path.read_text() == BLOCK
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_leaves_the_old_file_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(PLAIN)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, crash)
        with pytest.raises(KeyboardInterrupt):
            write(path, install)
    assert path.read_bytes() == PLAIN
    (tmp_path / ".hosts.phantommesh").write_bytes(b"half of a file that a real crash would leave")
    assert write(path, install) is Written.REPLACED
    assert path.read_bytes() == PLAIN + BLOCK.encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["hosts"]


def test_an_editor_that_saves_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(PLAIN)
    saves = [b"10.0.0.2 new\n", b"10.0.0.3 newer\n"]

    def change(data: bytes) -> bytes:
        if saves:  # an editor's own rename, after we have read
            (tmp_path / "saved").write_bytes(PLAIN + saves.pop(0))
            (tmp_path / "saved").replace(path)
        return install(data)

    assert write(path, change) is Written.REPLACED
    assert path.read_bytes() == PLAIN + b"10.0.0.3 newer\n" + BLOCK.encode()


def test_gives_up_on_a_file_that_never_rests(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(PLAIN)

    def change(data: bytes) -> bytes:
        path.write_bytes(data + b"#\n")
        return install(data)

    with pytest.raises(HostsError, match="keeps changing"):
        write(path, change)
    assert b"BEGIN" not in path.read_bytes()


def test_a_mount_is_rewritten_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(PLAIN)

    def busy(self: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(Path, "replace", busy)
    inode = path.stat().st_ino
    assert write(path, install) is Written.IN_PLACE
    assert path.read_bytes() == PLAIN + BLOCK.encode()
    assert write(path, remove) is Written.IN_PLACE
    assert path.read_bytes() == PLAIN
    assert path.stat().st_ino == inode
    assert [entry.name for entry in tmp_path.iterdir()] == ["hosts"]


def test_names_the_file_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(HostsError, match="no/hosts"):
        write(tmp_path / "no" / "hosts", install)
    with pytest.raises(HostsError, match="not a file"):
        write(tmp_path, install)


def test_a_file_too_long_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "MAX_HOSTS_BYTES", 10)
    path = tmp_path / "hosts"
    path.write_bytes(PLAIN)
    with pytest.raises(HostsError, match="longer"):
        write(path, install)
    assert path.read_bytes() == PLAIN


def test_nodes_of_several_meshes_write_one_file(tmp_path: Path) -> None:
    """At once, and none loses what another has written."""
    path = tmp_path / "hosts"
    path.write_bytes(PLAIN)
    meshes, failed = ("one", "two", "three"), list[HostsError]()

    def node(mesh: str) -> None:
        try:
            for number in range(40):
                lines = [f"10.0.0.{number} {mesh}"]
                write(path, partial(hosts.with_block, mesh=mesh, lines=lines))
        except HostsError as error:
            failed.append(error)

    threads = [threading.Thread(target=node, args=[mesh]) for mesh in meshes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    data = path.read_bytes()
    for mesh in meshes:
        assert f"10.0.0.39 {mesh}\n".encode() in data
        data = hosts.without_block(data, mesh)
    assert data == PLAIN
    assert [entry.name for entry in tmp_path.iterdir()] == ["hosts"]
