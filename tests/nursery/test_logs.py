# SPDX-License-Identifier: GPL-3.0-or-later
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import structlog

from phantommesh.nursery import logs
from phantommesh.secret import Secret

HIDDEN = b"hunter2hunter2hunter2"
TEXT = HIDDEN.decode()


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Holder:
    wrapped: Secret


def emit(stream: io.StringIO, style: logs.LogFormat = "auto") -> str:
    logs.configure("info", style, stream=stream)
    log = structlog.get_logger("test")
    log.info(
        "keyed",
        value=Secret(HIDDEN),
        psk=TEXT,
        private_key=HIDDEN,
        adminToken=TEXT,
        raw=HIDDEN,
        nested={"api_key": TEXT, "list": [Secret(HIDDEN), {"token": TEXT}]},
        holder=Holder(Secret(HIDDEN)),
    )
    log.info(f"join pm1_{TEXT}", argv=["join", f"pm1_{TEXT}"])
    logging.getLogger("some.library").warning("token pmt_%s refused", TEXT)
    try:
        local = TEXT  # a traceback that shows locals would show this
        raise RuntimeError(f"bad invite pm1_{local}")
    except RuntimeError:
        log.exception("failed")
    return stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_no_secret_reaches_the_output(stream: type[io.StringIO]) -> None:
    output = emit(stream())
    assert "keyed" in output
    assert "some.library" in output or "refused" in output
    assert "RuntimeError" in output
    assert TEXT not in output
    assert HIDDEN.hex() not in output


def test_without_a_terminal_each_line_is_json() -> None:
    lines = [json.loads(line) for line in emit(io.StringIO()).splitlines()]
    assert lines[0]["event"] == "keyed"
    assert lines[0]["level"] == "info"
    assert lines[0]["timestamp"].endswith("Z")
    assert lines[0]["raw"] == "<21 bytes>"


def test_on_a_terminal_it_is_for_people() -> None:
    first = emit(Terminal()).splitlines()[0]
    assert "keyed" in first
    assert not first.startswith("{")


def test_ages_and_public_keys_are_shown() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    structlog.get_logger().info("x", psk_age_s=3.5, public_key="abc", keys=7, key=None)
    line = json.loads(stream.getvalue())
    assert (line["psk_age_s"], line["public_key"], line["keys"], line["key"]) == (3.5, "abc", 7, None)


def test_records_below_the_level_are_left_out() -> None:
    stream = io.StringIO()
    logs.configure("warning", "json", stream=stream)
    structlog.get_logger().info("quiet")
    logging.getLogger("some.library").info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_a_broken_pipe_does_not_reach_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(logging, "raiseExceptions", False)
    logs.configure("info", "json", stream=Broken())
    structlog.get_logger().info("lost")


# --- what others cause is bounded


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_that_comes_again_and_again_is_counted_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(logs, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    logs.configure("debug", "json", stream=stream)
    log = structlog.get_logger("test")
    for _ in range(1000):
        log.warning("request refused", source=f"192.0.2.1:{_}/tcp", error="x" * 100)
        log.debug("not fetched", peer="beta")
    log.warning("request refused", source="192.0.2.2:1/tcp")  # another host
    log.error("roster not written", error="no space")  # another kind
    found = [(entry["event"], entry.get("source")) for entry in lines(stream)]
    assert len(found) < 20
    assert found[-2:] == [("request refused", "192.0.2.2:1/tcp"), ("roster not written", None)]
    clock[0] += 120.0
    log.warning("request refused", source="192.0.2.1:1/tcp")
    *_, last, summary = lines(stream)
    assert last["left_out"] == 1000 - 6
    assert summary["event"] == "log lines were left out"
    assert summary["level"] == "warning"
    assert summary["lines"] == {"WARNING request refused": 994, "DEBUG not fetched": 994}


def test_a_librarys_lines_have_the_same_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(logs, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    for i in range(100):
        logging.getLogger("some.library").warning("bad frame %d", i)
    clock[0] += 70.0
    logging.getLogger("some.library").warning("bad frame %d", 100)
    texts = [entry["event"] for entry in lines(stream)]
    assert texts[-2:] == ["bad frame 100 (and 94 more)", "log lines were left out"]
    assert len(texts) == 8


def test_a_long_text_is_cut() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    structlog.get_logger("test").info("said", error="x" * 100_000, items=["y" * 100_000])
    assert len(stream.getvalue()) < 10_000
