# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the configuration's file is in force."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from phantommesh.config.reading import load
from phantommesh.config.sections import GossipSection, LogSection, RelaySection
from phantommesh.config.writing import render
from phantommesh.nursery.keeping.configfile import ConfigFile
from tests.support.loopback import make_authority


async def test_what_the_file_says_otherwise_is_named_until_it_is_taken_over(tmp_path: Path) -> None:
    make_authority(tmp_path)
    path = tmp_path / "pm.toml"
    running, file = load(path), ConfigFile(tmp_path / "state")
    await file.look(running, ())
    assert drift(file) == ()  # it was started from no file
    file.path = path
    await file.look(running, ())
    assert drift(file) == () and not unusable(file)
    edited = msgspec.structs.replace(
        running,
        gossip=GossipSection(preset="wan"),
        log=LogSection(level="debug"),
        relay=RelaySection(offer=False),
    )
    path.write_text(render(edited), "ascii")
    await file.look(running, ())
    assert set(drift(file)) == {"gossip.preset", "log.level", "relay.offer"}
    await file.look(running, ("gossip.preset", "relay.offer"))
    assert drift(file) == ("log.level",)  # a reload has met the others
    await file.look(edited, ())
    assert drift(file) == ()


def drift(file: ConfigFile) -> tuple[str, ...]:
    return file.drift


def unusable(file: ConfigFile) -> bool:
    return bool(file.unusable)


async def test_a_file_that_does_not_hold_or_is_gone_is_told_and_is_read_once(tmp_path: Path) -> None:
    make_authority(tmp_path)
    path = tmp_path / "pm.toml"
    running, file = load(path), ConfigFile(tmp_path / "state")
    good, file.path = path.read_bytes(), path
    path.write_text("nonsense = [")
    await file.look(running, ())
    assert unusable(file) and drift(file) == ()
    path.write_bytes(good)
    await file.look(running, ())
    assert not unusable(file)
    stat = path.stat()
    path.write_bytes(b"#" * len(good))  # as old, as long, the same inode: nobody edits so
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    await file.look(running, ())
    assert not unusable(file)
    path.unlink()
    await file.look(running, ())
    assert unusable(file)
