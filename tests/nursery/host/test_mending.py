# SPDX-License-Identifier: GPL-3.0-or-later
import os
import socket
import subprocess
from pathlib import Path

import pytest

from phantommesh.hostcheck.finding import Chmod, SetSysctl
from phantommesh.nursery.host.mending import MendError, carry_out


def test_permissions_are_taken_and_can_be_given_back(tmp_path: Path) -> None:
    path = tmp_path / "a key"
    path.write_text("secret")
    path.chmod(0o644)
    done = carry_out(Chmod(str(path), 0o600), ())
    assert path.stat().st_mode & 0o777 == 0o600 and "0644" in done.did
    subprocess.run(done.undo, shell=True, check=True)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_socket_is_mended_too(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        carry_out(Chmod(str(path), 0o660), ())
        assert path.stat().st_mode & 0o777 == 0o660


def test_a_link_and_what_has_changed_are_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("")
    target.chmod(0o644)
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(MendError):
        carry_out(Chmod(str(link), 0o600), ())
    assert target.stat().st_mode & 0o777 == 0o644
    target.chmod(0o600)
    with pytest.raises(MendError, match="changed meanwhile"):
        carry_out(Chmod(str(target), 0o644), ())
    with pytest.raises(MendError, match="No such file"):
        carry_out(Chmod(str(tmp_path / "gone"), 0o600), ())


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give a file away")
def test_a_file_of_another_user_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    os.chown(path, 4321, -1)
    path.chmod(0o644)
    with pytest.raises(MendError, match="own file"):
        carry_out(Chmod(str(path), 0o600), ())


@pytest.mark.parametrize(
    "name",
    ["net/ipv4/conf/lo/rp_filter", "net/ipv4/ip_forward", "net/ipv4/conf/../x/y", "kernel/core_pattern"],
)
def test_settings_of_others_are_left_alone(name: str) -> None:
    with pytest.raises(MendError, match="is not a setting"):
        carry_out(SetSysctl(name, 2), ("pm0",))
