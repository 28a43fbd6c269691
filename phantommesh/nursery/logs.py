# SPDX-License-Identifier: GPL-3.0-or-later
"""Structured logs on stderr: for people on a terminal, one JSON object a line elsewhere.

Nothing secret gets out: a processor redacts ``Secret`` values, raw bytes, whatever is named like a key, and
tokens inside text (tracebacks included). The standard library's loggers, which dependencies use, take the
same way out. So does the budget: what members and strangers make a node write is bounded (`LogBudget`).
"""

import logging
import re
import sys
from collections.abc import Mapping
from time import monotonic
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

from phantommesh.management.logbudget import MAX_LINE, LogBudget
from phantommesh.node.steps import Told
from phantommesh.secret import HIDDEN, Secret, starred

LogFormat = Literal["auto", "json", "console"]

_SECRET_WORDS = frozenset(
    {"psk", "psks", "key", "keys", "token", "tokens", "secret", "secrets", "password", "seed", "invite"}
)
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_PORT = re.compile(r":[0-9]+(/[a-z]+)?$")
# Dependencies that log every connection or message at INFO.
_NOISY = ("hypercorn", "quart", "quart_trio", "pyroute2")
# Fields that say what a line is about, the most telling first.
_SUBJECTS = ("peer", "node_id", "source", "host", "interface", "service", "name", "dimension", "file")


def _names_a_secret(name: str) -> bool:
    words = {word.lower() for word in _WORD.findall(name)}
    return not words.isdisjoint(_SECRET_WORDS) and "public" not in words


def _redact_value(value: object) -> object:
    match value:
        case str():
            text = starred(value)
            return text if len(text) <= MAX_LINE else text[:MAX_LINE] + " (cut)"
        case None | bool() | int() | float():
            return value
        case Secret():
            return HIDDEN
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"  # a caller that means to show bytes formats them
        case Mapping():
            return {str(name): _redact_item(str(name), item) for name, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redact_value(item) for item in value]
        case _:
            return _redact_value(str(value))


def _redact_item(name: str, value: object) -> object:
    # Ages and counts of keys are wanted and no number is a secret here.
    if _names_a_secret(name) and not isinstance(value, (type(None), bool, int, float)):
        return HIDDEN
    return _redact_value(value)


def redact(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """The structlog processor that removes secrets; it belongs after the ones that format exceptions."""
    return {
        name: _redact_value(value) if name == "event" else _redact_item(name, value)
        for name, value in event.items()
    }


class _Budgeted(logging.StreamHandler[TextIO]):
    """Writes what the budget allows, and says what it does not. At every level: a member can cause lines at
    any of them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._budget = LogBudget(monotonic())

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or count it."""
        now = monotonic()
        kind, subject = _what(record)
        before = self._budget.admit(kind, subject, now)
        if before is not None:
            if before:
                _say_left_out(record, before)
            self._write(record, now)
        if missing := self._budget.summary(now):
            event = {"event": "log lines were left out", "level": "warning", "lines": missing}
            record = logging.makeLogRecord(
                {"levelno": logging.WARNING, "msg": _stamped(event), "_logger": None, "_name": "warning"}
            )
            self._write(record, now)

    def _write(self, record: logging.LogRecord, now: float) -> None:
        try:
            text = self.format(record) + self.terminator
            self.stream.write(text)
            self.flush()
            self._budget.wrote(len(text.encode("utf-8", "replace")), now)
        except RecursionError:
            raise
        except Exception:  # as the class that this extends does
            self.handleError(record)


def _stamped(event: EventDict) -> EventDict:
    return dict(structlog.processors.TimeStamper(fmt="iso", utc=True)(None, "warning", event))


def _what(record: logging.LogRecord) -> tuple[str, str]:
    """The kind of a line, which our code or a library's chose, and what the line is about."""
    if not isinstance(record.msg, dict):
        return f"{record.name}: {record.msg}"[:256], ""
    event = record.msg
    subject = next((str(event[name]) for name in _SUBJECTS if event.get(name) is not None), "")
    # The port of an address is its owner's to choose, and so is none of what tells members apart.
    subject = _PORT.sub("", subject)[:64]
    return f"{record.levelname} {event.get('event')}"[:256], subject


def _say_left_out(record: logging.LogRecord, lines: int) -> None:
    if isinstance(record.msg, dict):
        record.msg = record.msg | {"left_out": lines}
    else:
        record.msg = f"{record.getMessage()} (and {lines} more)"
        record.args = None


def configure(level: str = "info", style: LogFormat = "auto", *, stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's records of ``level`` and above to ``stream`` (stderr).

    ``auto`` is console on a terminal and JSON elsewhere. A broken pipe loses records, never the process.
    """
    stream = sys.stderr if stream is None else stream
    if style == "auto":
        style = "console" if stream.isatty() else "json"
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Never structlog's rich tracebacks: they print local variables.
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if style == "console"
        else structlog.processors.JSONRenderer()
    )
    handler = _Budgeted(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(threshold)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def tell(told: Told) -> None:
    """Write a line of the log."""
    getattr(structlog.get_logger(f"phantommesh.{told.part}"), told.level)(told.event, **told.fields)
