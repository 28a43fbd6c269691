# SPDX-License-Identifier: GPL-3.0-or-later
"""Structured logs on stderr: for people on a terminal, one JSON object a line elsewhere.

Nothing secret gets out: a processor redacts ``Secret`` values, raw bytes, whatever is named like a key, and
tokens inside text (tracebacks included). The standard library's loggers, which dependencies use, take the
same way out.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

from phantommesh.secret import Secret

LogFormat = Literal["auto", "json", "console"]

REDACTED = "***"
_SECRET_WORDS = frozenset(
    {"psk", "psks", "key", "keys", "token", "tokens", "secret", "secrets", "password", "seed", "invite"}
)
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
# Invites (pm1_) and API tokens (pmt_) wherever they stand in text.
_TOKEN = re.compile(r"\b(pm[0-9t]_)[A-Za-z0-9_=-]{8,}")
# Dependencies that log every connection or message at INFO.
_NOISY = ("hypercorn", "quart", "quart_trio", "pyroute2")


def _names_a_secret(name: str) -> bool:
    words = {word.lower() for word in _WORD.findall(name)}
    return not words.isdisjoint(_SECRET_WORDS) and "public" not in words


def _redact_value(value: object) -> object:
    match value:
        case str():
            return _TOKEN.sub(r"\1" + REDACTED, value)
        case None | bool() | int() | float():
            return value
        case Secret():
            return REDACTED
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
        return REDACTED
    return _redact_value(value)


def redact(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """The structlog processor that removes secrets; it belongs after the ones that format exceptions."""
    return {
        name: _redact_value(value) if name == "event" else _redact_item(name, value)
        for name, value in event.items()
    }


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
    handler = logging.StreamHandler(stream)
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
