# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup holds all of a node's state, and is put back whole or not at all."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phantommesh.state import directory
from phantommesh.state.backup import CONFIG, MANIFEST, STATE, manifest_of, names_of, pack, restore, unpack
from phantommesh.state.files import StateError
from phantommesh.state.making import init_mesh
from phantommesh.state.sealing import SealError
from phantommesh.state.start import NodeState, load_node

NOW = 1_800_000_000.0


@pytest.fixture
def node(tmp_path: Path) -> NodeState:
    init_mesh(tmp_path / "s", tmp_path / "pm.toml", mesh="lab", name="a", endpoints=("192.0.2.1",), now=NOW)
    for name in ("decisions/1", "proofs/aa/1", "invites/x.json"):
        (tmp_path / "s" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "s" / name).write_bytes(name.encode())
    for name in ("lock", ".hidden", "successor.invite", "successor/node.key"):
        (tmp_path / "s" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "s" / name).write_bytes(b"not to be kept")
    (tmp_path / "s" / "link").symlink_to("/etc/passwd")
    return load_node(tmp_path / "s", NOW)


def content(node: NodeState, tmp_path: Path) -> bytes:
    return b"".join(pack(manifest_of(node, NOW), tmp_path / "pm.toml", node.state))


def files(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in names_of(path)}


def test_it_comes_back_as_it_was(node: NodeState, tmp_path: Path) -> None:
    read = unpack([content(node, tmp_path)])
    assert (read.manifest.mesh, read.manifest.node, read.manifest.role) == ("lab", "a", "authority")
    back = restore(read, tmp_path / "t", tmp_path / "etc" / "pm.toml", NOW)
    assert back.identity.node_id == node.identity.node_id
    kept = files(node.state.path)
    assert files(tmp_path / "t") == kept
    assert {
        "decisions/1",
        "proofs/aa/1",
        "invites/x.json",
        directory.NODE_KEY,
        directory.ROOT_KEY,
    } <= kept.keys()
    assert not kept.keys() & {"lock", "link", ".hidden", "successor.invite", "successor/node.key"}
    assert (tmp_path / "etc" / "pm.toml").read_bytes() == (tmp_path / "pm.toml").read_bytes()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "t").iterdir() if path.is_file()} == {0o600}


def test_nothing_is_overwritten(node: NodeState, tmp_path: Path) -> None:
    read = unpack([content(node, tmp_path)])
    before = files(node.state.path)
    with pytest.raises(StateError, match="already holds"):
        restore(read, node.state.path, tmp_path / "new.toml", NOW)
    with pytest.raises(StateError, match="is there already"):
        restore(read, tmp_path / "t", tmp_path / "pm.toml", NOW)
    assert files(node.state.path) == before
    assert not (tmp_path / "t").exists() and not (tmp_path / "new.toml").exists()


def test_a_damaged_state_is_not_put_in_place(node: NodeState, tmp_path: Path) -> None:
    (node.state.path / directory.WIREGUARD_KEYS).write_text("{}")
    read = unpack([content(node, tmp_path)])
    with pytest.raises(StateError, match="damaged"):
        restore(read, tmp_path / "t", tmp_path / "new.toml", NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pm.toml", "s"]


def test_a_state_of_another_format_is_refused(node: NodeState, tmp_path: Path) -> None:
    (node.state.path / directory.FORMAT_FILE).write_text("phantommesh state 9\n")
    with pytest.raises(SealError, match="does not read"):
        unpack([content(node, tmp_path)])


def tar_of(*infos: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"no tar" * 1000,
        lambda: tar_of(named("state/../../etc/passwd")),
        lambda: tar_of(named("/etc/passwd")),
        lambda: tar_of(named("state/.lock")),
        lambda: tar_of(named("state/a/../c")),
        lambda: tar_of(named("state/a/b/c/d")),
        lambda: tar_of(named("state/x", tarfile.SYMTYPE, "/etc/passwd")),
        lambda: tar_of(named("state/x", tarfile.LNKTYPE, "/etc/passwd")),
        lambda: tar_of(named("state/x", tarfile.CHRTYPE)),
        lambda: tar_of(named(MANIFEST)),
        lambda: tar_of(named(CONFIG), named(STATE + directory.FORMAT_FILE)),
    ],
)
def test_what_no_backup_holds_is_refused(make: Callable[[], bytes]) -> None:
    with pytest.raises(SealError):
        unpack([make()])


def test_its_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.state.backup.MAX_TOTAL", 1 << 20)
    drawn = 0

    def endless() -> Iterator[bytes]:
        nonlocal drawn
        while True:
            drawn += 1
            yield bytes(1 << 16)

    with pytest.raises(SealError, match="more than"):
        unpack(endless())
    assert drawn <= 17
