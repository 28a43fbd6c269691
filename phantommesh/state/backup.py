# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup holds: a manifest, the configuration, and the files of the state directory, as a tar file.

It may be made while the node runs: each file is replaced at once or grows at its end, and a node that starts
passes over what was added to one and not to another.
"""

import io
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from phantommesh import __version__
from phantommesh.moments import rfc3339
from phantommesh.state import directory
from phantommesh.state.directory import StateDir, check_vacant
from phantommesh.state.files import MAX_FILE_BYTES, StateError, atomic_write, cannot, read_file
from phantommesh.state.lock import LOCK_FILE
from phantommesh.state.sealing import SealError
from phantommesh.state.start import NodeState, load_node
from phantommesh.trust.identity import format_node_id

MANIFEST: Final = "manifest.json"
CONFIG: Final = "config.toml"
STATE: Final = "state/"
# A new identity that is under way belongs to the run that asked for it.
_LEFT_OUT: Final = frozenset({LOCK_FILE, directory.SUCCESSION, directory.SUCCESSOR})
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,2}")

# Tuning.
MAX_TOTAL: Final = 1 << 30  # bytes of a backup's content: what a restore holds in memory at most


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Whose backup it is. ``made``: RFC 3339. ``version``: of the program that made it."""

    mesh: str
    node: str
    node_id: str
    role: str
    made: str
    version: str


def manifest_of(node: NodeState, now: float) -> Manifest:
    """Describe a node's state at ``now`` (s since 1970)."""
    member = node.member_at_issue()
    return Manifest(
        mesh=node.mesh.name, node=member.name, node_id=format_node_id(member.node_id),
        role=member.role.value, made=rfc3339(now), version=__version__,
    )  # fmt: skip


def pack(manifest: Manifest, config: Path, state: StateDir) -> Iterator[bytes]:
    """Yield a backup's content. Raises StateError naming the file that cannot be read."""
    yield from _member(MANIFEST, msgspec.json.encode(manifest))
    if config.exists():
        yield from _member(CONFIG, read_file(config))
    for name in names_of(state.path):
        yield from _member(STATE + name, read_file(state.path / name))
    yield bytes(2 * tarfile.BLOCKSIZE)


def names_of(path: Path) -> Iterator[str]:
    """The files of a state directory that a backup has, relative to it."""
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        kept = _NAME.fullmatch(name) is not None and name.partition("/")[0] not in _LEFT_OUT
        if kept and file.is_file() and not file.is_symlink():
            yield name


def _member(name: str, data: bytes) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    yield info.tobuf(tarfile.USTAR_FORMAT)
    yield data
    yield bytes(-len(data) % tarfile.BLOCKSIZE)


class Content(msgspec.Struct, frozen=True):
    """A backup that was read whole. ``config`` is None where the node's settings were all in its
    environment."""

    manifest: Manifest
    config: bytes | None
    files: dict[str, bytes]


def unpack(parts: Iterable[bytes]) -> Content:
    """Read what `pack` made. Raises SealError for anything else, before anything is written anywhere."""
    whole = bytearray()
    for part in parts:
        whole += part
        if len(whole) > MAX_TOTAL:
            raise SealError(f"the backup holds more than {MAX_TOTAL >> 20} MiB", fix="see what it is")
    try:
        with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as tar:
            found = dict(_read(tar))
        manifest = msgspec.json.decode(found.pop(MANIFEST), type=Manifest)
    except (tarfile.TarError, KeyError, msgspec.MsgspecError, EOFError, ValueError) as error:
        raise SealError(
            "the backup opens, and what it holds is no state", fix="restore another one"
        ) from error
    config = found.pop(CONFIG, None)
    files = {name.removeprefix(STATE): data for name, data in found.items()}
    if files.pop(directory.FORMAT_FILE, None) != directory.FORMAT:
        raise SealError(
            f"the backup is of version {manifest.version}, whose state this program does not read",
            fix="restore it with that version",
        )
    return Content(manifest, config, files)


def _read(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Yield the files that a backup may hold. Raises ValueError for anything else: no path leads out of the
    directory."""
    for info in tar:
        name = info.name.removeprefix(STATE) if info.name.startswith(STATE) else ""
        if not info.isreg() or not (info.name in (MANIFEST, CONFIG) or _NAME.fullmatch(name)):
            raise ValueError(f"no file of a backup: {info.name[:64]!r}")
        if info.size > MAX_FILE_BYTES or (file := tar.extractfile(info)) is None:
            raise ValueError("too large")
        yield info.name, file.read()


def restore(content: Content, state_dir: Path, config: Path, now: float) -> NodeState:
    """Put a backup where nothing is yet, all of it or nothing. Raises StateError: also where something is
    there, or the state is damaged."""
    check_vacant(state_dir)
    if config.exists() and content.config is not None:
        raise StateError(f"{config} is there already", fix="move it away, or give another --config")
    path = state_dir.resolve()
    aside = path.with_name(f".{path.name}.restoring")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # a restore that was cut off left it
        load_node(StateDir.create(aside, content.files).path, now)
        if content.config is not None:
            config.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            atomic_write(config.resolve(), content.config)
        try:
            aside.rename(path)  # rename(2) replaces an empty directory only
        except OSError:
            if content.config is not None:
                config.unlink()
            raise
    except OSError as error:
        raise cannot(f"restore to {path}", error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return load_node(path, now)
