# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens and the audit trail on disk."""

from pathlib import Path

import pytest
import trio

from phantommesh.management.audit import Write
from phantommesh.management.events import EventLog, Filter
from phantommesh.management.scopes import Scope
from phantommesh.management.tokens import TokenRequest
from phantommesh.nursery.keeping import audit, ledger
from phantommesh.nursery.keeping.audit import DENIED_BURST, Audit
from phantommesh.nursery.keeping.tokens import TokenKeeper
from phantommesh.state.directory import TOKENS, StateDir
from phantommesh.state.files import StateError


async def test_a_token_outlives_the_node_and_its_text_is_on_no_disk(tmp_path: Path) -> None:
    keeper = TokenKeeper(StateDir(tmp_path))
    await keeper.begin()
    made = await keeper.make(TokenRequest(Scope.READ, 60.0, "ci"), by="uid 0")
    text = made.text.reveal().decode()
    file = tmp_path / TOKENS
    assert file.stat().st_mode & 0o777 == 0o600
    assert text not in file.read_text() and text[4:] not in file.read_text()
    again = TokenKeeper(StateDir(tmp_path))
    await again.begin()
    assert again.book.look(text, made.token.made).standing == "good"
    await again.revoke(made.token.id)
    third = TokenKeeper(StateDir(tmp_path))
    await third.begin()
    assert third.book.look(text, made.token.made).standing == "revoked"


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("{"), lambda path: path.chmod(0o644)])
async def test_a_file_that_cannot_be_trusted_shuts_tokens_out_and_is_kept(
    tmp_path: Path, spoil: "object"
) -> None:
    keeper = TokenKeeper(StateDir(tmp_path))
    made = await keeper.make(TokenRequest(Scope.ADMIN, 60.0, "ci"), by="uid 0")
    file = tmp_path / TOKENS
    spoil(file)  # type: ignore[operator]
    spoiled = file.read_bytes()
    again = TokenKeeper(StateDir(tmp_path))
    await again.begin()
    assert again.book.look(made.text.reveal().decode(), made.token.made).standing == "unknown"
    with pytest.raises(StateError) as refused:
        await again.make(TokenRequest(Scope.READ), by="uid 0")
    assert refused.value.fix and file.read_bytes() == spoiled


async def test_a_token_that_is_not_on_disk_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = TokenKeeper(StateDir(tmp_path))
    made = await keeper.make(TokenRequest(Scope.READ), by="uid 0")

    def refuse(self: StateDir, name: str, data: bytes) -> None:
        raise StateError("the disk is full")

    monkeypatch.setattr(StateDir, "write", refuse)
    with pytest.raises(StateError):
        await keeper.make(TokenRequest(Scope.READ), by="uid 0")
    with pytest.raises(StateError):
        await keeper.revoke(made.token.id)
    assert keeper.book.tokens == (made.token,)


def write(status: int = 200, path: str = "/v1/rotations") -> Write:
    return Write(who="uid 0", address=None, method="POST", path=path, asked={"peer": "pm-1"}, status=status)


def trail(directory: Path) -> Audit:
    return Audit(directory, EventLog(run="run", clock=lambda: 1.0))


async def test_what_was_asked_is_on_disk_before_it_is_answered(tmp_path: Path, nursery: trio.Nursery) -> None:
    first = trail(tmp_path / "audit")
    nursery.start_soon(first.keep)
    for number in range(3):
        await first.wrote(write(path=f"/v1/{number}"))
        kept = [line for line in ledger.latest(tmp_path / "audit", 9) if hasattr(line, "path")]
        assert [line.path for line in kept] == [f"/v1/{n}" for n in range(number + 1)]
    checked = ledger.check(tmp_path / "audit")
    assert (checked.lines, checked.problem) == (4, "")
    (file,) = ledger.files(tmp_path / "audit")
    assert file.name == "audit-00000001.jsonl" and file.stat().st_mode & 0o777 == 0o600
    # The next run of the node goes on with its numbers.
    second = trail(tmp_path / "audit")
    await second.begin()
    assert [entry.seq for entry in second.read(0, 9)] == [1, 2, 3]
    nursery.start_soon(second.keep)
    await second.wrote(write())
    assert [entry.seq for entry in second.read(2, 9)] == [3, 4]
    file.write_bytes(file.read_bytes().replace(b"/v1/1", b"/v1/9"))
    assert "does not follow" in ledger.check(tmp_path / "audit").problem


async def test_no_token_is_on_disk_nor_among_the_events_nor_read_back(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    token, events = "pmt_" + "Zm9v" * 10 + "Zm9", EventLog(run="run", clock=lambda: 1.0)
    kept = Audit(tmp_path / "audit", events)
    nursery.start_soon(kept.keep)
    await kept.wrote(write(path=f"/v1/tokens?access_token={token}"))
    (file,) = ledger.files(tmp_path / "audit")
    shown = f"{file.read_text()}{kept.read(0, 9)}{events.read(0, Filter(), 9)}"
    assert "access_token" in shown and "Zm9v" not in shown
    # A line that an older version wrote is not told either.
    file.write_bytes(file.read_bytes().replace(b"pmt_***", token.encode()))
    again = Audit(tmp_path / "audit", events)
    await again.begin()
    assert [entry.path for entry in again.read(0, 9)] == ["/v1/tokens?access_token=pmt_***"]


async def test_a_disk_that_refuses_holds_up_an_answer_for_a_moment_only(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    (tmp_path / "audit").write_text("in the way")
    kept = trail(tmp_path / "audit")
    nursery.start_soon(kept.keep)
    began = trio.current_time()
    with trio.fail_after(60):
        await kept.wrote(write())
    assert trio.current_time() - began == pytest.approx(audit.PATIENCE)
    assert len(kept.read(0, 9)) == 1
    with trio.fail_after(60):
        while kept.disk.problem is None:  # the writing thread may be slower than a clock that jumps
            await trio.sleep(0.01)


async def test_whoever_may_do_nothing_does_not_fill_the_record(tmp_path: Path) -> None:
    kept = trail(tmp_path / "audit")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.keep)
        for _ in range(int(DENIED_BURST) + 50):
            await kept.wrote(write(401))
        await kept.wrote(write())
        nursery.cancel_scope.cancel()
    entries = kept.read(0, 1000)
    assert DENIED_BURST + 1 <= len(entries) <= DENIED_BURST + 10 and entries[-1].status == 200
    assert kept.dropped["audit-unwritten"] >= 40
    assert any(getattr(line, "lines", 0) for line in ledger.latest(tmp_path / "audit", 1000))
