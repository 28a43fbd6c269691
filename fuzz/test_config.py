# SPDX-License-Identifier: GPL-3.0-or-later
"""Any text is a configuration or a ConfigError, and any accepted configuration renders and reads back."""

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.config.reading import parse
from phantommesh.config.sections import SECTIONS, Config, ConfigError, NodeSection
from phantommesh.config.writing import redacted, render
from phantommesh.endpoint import format_endpoint, parse_endpoint

KEYS = {
    section: [field.name for field in msgspec.structs.fields(settings)]
    for section, settings in SECTIONS.items()
}
LINES = render(Config(NodeSection("alpha", "pm", ("192.0.2.1:5",)))).splitlines()

scalars = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(0, 70_000),
    st.floats(),
    st.booleans(),
    st.text(max_size=30),
    st.sampled_from(["auto", "100.64.0.0/10", "[::1]:80", "/run/x", "pm1_abc", "a", "127.0.0.1:1"]),
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


def toml(value: Any) -> str:
    if isinstance(value, float):
        return {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}.get(json.dumps(value), repr(value))
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return "'" + "".join(c for c in value if c.isprintable() and c != "'") + "'"
    return json.dumps(value)


def check(text: str) -> None:
    refused: ConfigError | None = None
    config = None
    try:
        config = parse(text)
    except ConfigError as error:
        refused = error
    if config is None:
        assert refused is not None
        assert "\n" not in str(refused)
        assert refused.fix
        return
    assert parse(render(config)) == config
    json.dumps(redacted(config))


@settings(max_examples=300)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    check(text)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from([(s, k) for s, keys in KEYS.items() for k in keys]).flatmap(
            lambda key: st.tuples(st.just(key), values)
        ),
        max_size=6,
        unique_by=lambda item: item[0],
    )
)
def test_any_values(items: list[tuple[tuple[str, str], Any]]) -> None:
    given_keys = {key for key, _ in items}
    lines = [f"{section}.{key} = {toml(value)}" for (section, key), value in items]
    lines += [f'node.{key} = "a"' for key in ("name", "mesh") if ("node", key) not in given_keys]
    check("\n".join(lines))


@settings(max_examples=200)
@given(st.integers(0, len(LINES) - 1), st.text(max_size=12), st.integers(0, 30))
def test_an_edited_file(line: int, insert: str, at: int) -> None:
    edited = list(LINES)
    edited[line] = edited[line][:at] + insert + edited[line][at + 1 :]
    check("\n".join(edited))


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=40), st.text("0123456789abcdef.:[]%-", max_size=40)))
def test_any_endpoint(text: str) -> None:
    try:
        parts = parse_endpoint(text)
    except ValueError:
        return
    assert parse_endpoint(format_endpoint(*parts)) == parts
    assert text.isprintable()
