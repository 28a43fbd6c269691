# SPDX-License-Identifier: GPL-3.0-or-later
import fcntl
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
import trio
from structlog.testing import capture_logs

from phantommesh.errors import PhantomMeshError
from phantommesh.nursery import process
from phantommesh.records.record import MAX_MEMBERS, MAX_RECORD_BYTES
from phantommesh.state import directory
from phantommesh.state.directory import REQUIRED, StateDir
from phantommesh.state.files import MAX_FILE_BYTES, StateError, atomic_write
from phantommesh.state.lock import LOCK_FILE, StateInUseError

FILES = {**dict.fromkeys(REQUIRED, b"x"), "node.key": b"secret"}


def snapshot(path: Path) -> dict[str, bytes | None]:
    """Everything under a directory: names and contents."""
    return {
        str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))
    }


def test_created_state_opens_and_is_private(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        state = StateDir.create(tmp_path / "deep" / "state", FILES)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    for entry in state.path.iterdir():
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600, entry
    assert StateDir.open(state.path).read_secret("node.key").reveal() == b"secret"
    assert [entry.name for entry in state.path.parent.iterdir()] == ["state"]


def test_an_empty_directory_is_taken_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    StateDir.create(tmp_path / "link", FILES)
    assert StateDir.open(tmp_path / "real").read("node.key") == b"secret"


@pytest.mark.parametrize("foreign", ["precious.txt", "node.key", ".hidden", "subdirectory/"])
def test_a_foreign_directory_is_never_touched(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "state"
    path.mkdir()
    if foreign.endswith("/"):
        (path / foreign).mkdir()
    else:
        (path / foreign).write_bytes(b"mine")
    before = snapshot(tmp_path)
    for create in (True, False):
        with pytest.raises(StateError, match=str(path)) as caught:
            StateDir.create(path, FILES) if create else StateDir.open(path)
        assert "not a PhantomMesh state directory" in str(caught.value)
        assert "not" in caught.value.fix
        assert snapshot(tmp_path) == before


def test_existing_state_is_never_overwritten(tmp_path: Path) -> None:
    state = StateDir.create(tmp_path / "state", FILES)
    before = snapshot(tmp_path)
    with pytest.raises(StateError, match="already holds a node's state"):
        StateDir.create(state.path, dict.fromkeys(FILES, b"other"))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", REQUIRED)
def test_a_half_written_state_names_the_missing_file(tmp_path: Path, name: str) -> None:
    state = StateDir.create(tmp_path / "state", FILES)
    (state.path / name).unlink()
    with pytest.raises(StateError, match=f"incomplete: {name} is missing") as caught:
        StateDir.open(state.path)
    assert "backup" in caught.value.fix


def test_missing_file_and_another_version(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is no state directory") as caught:
        StateDir.open(tmp_path / "none")
    assert "phantommesh init" in caught.value.fix
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError):
        StateDir.open(tmp_path / "file")
    with pytest.raises(StateError):
        StateDir.create(tmp_path / "file", FILES)
    state = StateDir.create(tmp_path / "state", FILES)
    state.write("format", b"phantommesh state 99\n")
    with pytest.raises(StateError, match="another version"):
        StateDir.open(state.path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_readable_secret_is_refused_with_the_chmod(tmp_path: Path, mode: int) -> None:
    state = StateDir.create(tmp_path / "state", FILES)
    key = state.path / "node.key"
    key.chmod(mode)
    with pytest.raises(StateError, match="others can read") as caught:
        state.read_secret("node.key")
    assert caught.value.fix == f"chmod 600 {key}"
    key.chmod(0o400)
    assert state.read_secret("node.key").reveal() == b"secret"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_of_another_user_is_refused(tmp_path: Path) -> None:
    state = StateDir.create(tmp_path / "state", FILES)
    os.chown(state.path / "node.key", 12345, 12345)
    with pytest.raises(StateError, match="belongs to user 12345") as caught:
        state.read_secret("node.key")
    assert caught.value.fix.startswith("chown 0 ")


def test_odd_files_are_state_errors(tmp_path: Path) -> None:
    state = StateDir.create(tmp_path / "state", FILES)
    key = state.path / "node.key"
    key.unlink()
    os.mkfifo(key, 0o600)
    with pytest.raises(StateError, match="not a regular file"):
        state.read_secret("node.key")
    key.unlink()
    key.mkdir()
    with pytest.raises(StateError, match="not a regular file"):
        state.read("node.key")
    with pytest.raises(StateError):
        state.write("node.key", b"over a directory")
    with pytest.raises(StateError, match="nothing-here"):
        state.read("nothing-here")


def test_one_node_at_a_time(tmp_path: Path) -> None:
    state = StateDir.create(tmp_path / "state", FILES)
    with state.lock():
        program = (
            "import sys; from pathlib import Path\n"
            "from phantommesh.state.directory import StateDir\n"
            "from phantommesh.state.files import StateError\n"
            "try:\n  with StateDir.open(Path(sys.argv[1])).lock(): print('held')\n"
            "except StateError as error: print(error)"
        )
        other = subprocess.run(
            [sys.executable, "-c", program, str(state.path)], capture_output=True, text=True, check=True
        )
        assert "another node is running" in other.stdout
    with state.lock():
        pass


def test_a_lock_that_is_removed_is_made_anew_and_another_process_that_has_it_is_noticed(
    tmp_path: Path,
) -> None:
    state = StateDir.create(tmp_path / "state", FILES)
    path = state.path / LOCK_FILE
    with state.lock() as lock:
        assert not lock.check()
        path.unlink()
        assert lock.check() and not lock.check()
        with pytest.raises(StateInUseError, match="another node is running"), state.lock():
            pytest.fail("two nodes hold one state directory")
        path.unlink()
        with state.lock() as second:
            for _ in range(2):
                with pytest.raises(StateInUseError, match="another node is running"):
                    lock.check()
            assert not second.check()
        assert lock.check() and not lock.check()  # the other one has ended
        path.unlink()
        path.mkdir()
        with pytest.raises(StateError, match="lock"):
            lock.check()
        path.rmdir()
        assert lock.check()
    with state.lock():
        assert len(list(Path("/proc/self/fd").iterdir())) < 200


async def test_a_node_ends_when_another_has_taken_its_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LOCK_LOOK", 0.01)
    state = StateDir.create(tmp_path / "state", FILES)
    path = state.path / LOCK_FILE
    with state.lock() as lock, capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_lock, lock, state.path)
            path.unlink()
            while not path.exists():
                await trio.sleep(0.01)
            while not logs:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert [entry["event"] for entry in logs] == [
            "the state directory's lock was removed: it is made and held anew"
        ]
        path.unlink()
        with state.lock(), pytest.raises(StateInUseError, match="this node ends"):
            await process.keep_lock(lock, state.path)


def test_two_creations_exclude_each_other(tmp_path: Path) -> None:
    with directory._staging(tmp_path / ".state.creating"), pytest.raises(StateError, match="at work"):
        StateDir.create(tmp_path / "state", FILES)
    StateDir.create(tmp_path / "state", FILES)  # what a dead one leaves behind is in nobody's way
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_something_else_at_the_staging_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    (tmp_path / ".state.creating").symlink_to("precious")
    with pytest.raises(StateError, match="in the way"):
        StateDir.create(tmp_path / "state", FILES)
    assert (tmp_path / "precious" / "file").read_text() == "mine"


def test_atomic_write_replaces_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o644)
    (tmp_path / ".file.new").write_bytes(b"left by a crash")
    (tmp_path / ".file.new").chmod(0o666)
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_may_hold_the_largest_roster() -> None:
    assert MAX_FILE_BYTES > MAX_MEMBERS * MAX_RECORD_BYTES


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([65 + i]) * 5_000 for i in range(4)]

    def write(data: bytes) -> None:
        for _ in range(60):
            atomic_write(path, data)

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))
    assert path.read_bytes() in contents
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_that_another_writer_took_for_a_left_over_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, taken = fcntl.flock, list[str]()

    def lock(file: IO[bytes], how: int) -> None:
        (made,) = tmp_path.iterdir()
        if not taken:
            made.unlink()
        taken.append(made.name)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    atomic_write(tmp_path / "file", b"new")
    assert len(set(taken)) == 2
    assert snapshot(tmp_path) == {"file": b"new"}


def test_a_write_clears_what_dead_writers_left_and_nothing_else(tmp_path: Path) -> None:
    dead, alive = f".file.{'0a' * 8}.new", f".file.{'0b' * 8}.new"
    others = [".file.conf.new", f".file.{'0a' * 8}.new.old", f".file2.{'0a' * 8}.new", "file.new"]
    for name in (dead, alive, ".file.new", *others):
        (tmp_path / name).write_bytes(b"something")
    with (tmp_path / alive).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a process does that is writing it
        atomic_write(tmp_path / "file", b"new")
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", alive, *others}
    atomic_write(tmp_path / "file", b"newer")
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", *others}


@pytest.mark.parametrize("step", ["open", "fchmod", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    state = StateDir.create(tmp_path / "state", FILES)

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(PhantomMeshError, match=r"roster.bin.*No space left"):
            state.write("roster.bin", b"new")
    assert state.read("roster.bin") == b"x"
    assert not [entry for entry in state.path.iterdir() if entry.name.startswith(".")]
