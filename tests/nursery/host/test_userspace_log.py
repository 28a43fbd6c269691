# SPDX-License-Identifier: GPL-3.0-or-later
"""The log of a WireGuard process, which outlives the node."""

import os
from pathlib import Path

from phantommesh.nursery.host import userspace


def test_a_log_is_cut_to_its_last_lines_while_its_process_writes_on(tmp_path: Path) -> None:
    path = tmp_path / "pm0.log"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0) as process:
        largest = 0
        for i in range(60_000):
            process.write(b"ERROR: %060d failed to send\n" % i)
            if i % 1000 == 0:
                userspace._bound_log(path)
            largest = max(largest, path.stat().st_size)
        userspace._bound_log(path)
        assert largest < userspace._LOG_MOST + 200_000
        process.write(b"last\n")
    lines = path.read_bytes().splitlines()
    assert lines[-1] == b"last"
    assert all(line.startswith(b"ERROR: ") for line in lines[:-1])
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_small_log_and_a_missing_one_stay(tmp_path: Path) -> None:
    path = tmp_path / "pm0.log"
    userspace._bound_log(path)
    assert not path.exists()
    path.write_bytes(b"one line\n")
    userspace._bound_log(path)
    assert path.read_bytes() == b"one line\n"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "pm0.log"
    other.write_bytes(b"x" * 2 * userspace._LOG_MOST)
    path.symlink_to(other)
    userspace._bound_log(path)
    assert other.stat().st_size == 2 * userspace._LOG_MOST


def test_a_hole_that_an_earlier_versions_process_leaves_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "pm0.log"
    with path.open("wb", buffering=0) as process:  # without O_APPEND
        process.write(b"x" * 70 + b"\n" + b"y" * 2 * userspace._LOG_MOST)
        userspace._bound_log(path)
        process.write(b"z\n")
    size = path.stat().st_size
    userspace._bound_log(path)
    assert path.stat().st_size == size


def test_the_want_of_inotify_instances_is_named_with_the_setting() -> None:
    said = "ERROR: (pm3) 2026/11/29 Failed to listen on uapi socket: too many open files\n"
    assert "sysctl -w fs.inotify.max_user_instances=512" in userspace.fix_of(said, 128)
    assert "fs.inotify.max_user_instances=2048" in userspace.fix_of(said, 1024)
    assert "it is 128 now" in userspace.fix_of(said, 128)
    assert userspace.fix_of(said, None)
    assert not userspace.fix_of("ERROR: (pm3) Failed to create TUN device: permission denied\n", 128)
