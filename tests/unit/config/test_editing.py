# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys are set in a configuration's text, and nothing else of it changes."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.config import reading
from phantommesh.config.editing import UNSET, assignment, edited
from phantommesh.config.sections import SECTIONS, Config, ConfigError, NodeSection, keys
from phantommesh.config.writing import render

TEXT = """\
# Ours.
[node]
name = "a"  # the "first" # one
mesh = 'lab'
endpoints = [
    "192.0.2.1",  # here
    "192.0.2.2:1",
]  # behind

[log]
# not much
level = "info"

# DNS
[dns]
port = 53
"""


def test_a_value_changes_and_its_comments_stay() -> None:
    assert edited(TEXT, {("node", "name"): "b"}) == TEXT.replace('"a"  #', '"b"  #')
    assert edited(TEXT, {("log", "level"): "debug"}) == TEXT.replace("info", "debug")
    whole = TEXT[TEXT.index("endpoints") : TEXT.index("\n\n[log]")]
    assert edited(TEXT, {("node", "endpoints"): ["x"]}) == TEXT.replace(whole, 'endpoints = ["x"]  # behind')


def test_a_key_that_is_not_there_comes_into_its_section() -> None:
    new = edited(TEXT, {("log", "format"): "json", ("api", "listen"): "127.0.0.1:1"})
    assert new == TEXT.replace('"info"\n', '"info"\nformat = "json"\n') + '\n[api]\nlisten = "127.0.0.1:1"\n'


def test_a_key_that_is_said_to_be_unset_is_set_there() -> None:
    text = render(Config(NodeSection("a", "lab")))
    assert edited(text, {("api", "listen"): "x"}) == text.replace("# listen = not set", 'listen = "x"')


def test_a_key_is_taken_out() -> None:
    assert edited(TEXT, {("log", "level"): UNSET}) == TEXT.replace('level = "info"\n', "")
    assert edited(TEXT, {("log", "format"): UNSET, ("api", "listen"): UNSET}) == TEXT


@pytest.mark.parametrize(
    "text", ['node = {name = "a"}\n', 'node.name = "a"\n', '"node"."name" = "a"\n[log]\n', "[[node]]\n"]
)
def test_what_cannot_be_edited_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"node\.name"):
        edited(text, {("node", "name"): "b"})
    with pytest.raises(ConfigError, match="TOML"):
        edited("[node\n", {("node", "name"): "b"})


ALL = [(section, key) for section in SECTIONS for key in keys(section)]
VALUES = st.one_of(
    st.text(st.characters(codec="ascii", exclude_characters="\x7f"), max_size=12),
    st.integers(-5, 99_999),
    st.booleans(),
    st.lists(st.text("ab#\"'\\]=,", max_size=4), max_size=3),
    st.dictionaries(st.text("ab.#", min_size=1, max_size=3), st.text("xy", max_size=2), max_size=2),
    st.just(UNSET),
)


@given(
    st.dictionaries(st.sampled_from(ALL), VALUES, max_size=4), st.dictionaries(st.sampled_from(ALL), VALUES)
)
def test_any_edit_says_what_was_wanted_and_nothing_else(
    first: dict[tuple[str, str], Any], then: dict[tuple[str, str], Any]
) -> None:
    text = render(Config(NodeSection("a", "lab"))).replace("\n[", "\n# kept\n[")
    new = edited(edited(text, first), then)
    document = tomllib.loads(new)
    for (section, key), value in (first | then).items():
        within = document
        for name in section.split("."):
            within = within.get(name, {})
        assert within.get(key, UNSET) == value
    assert new.count("# kept") == text.count("# kept")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("log.level=debug", ("log", "level", "debug")),
        (
            "routes.advertise=10.1.0.0/16, 10.2.0.0/16",
            ("routes", "advertise", ["10.1.0.0/16", "10.2.0.0/16"]),
        ),
        ("wireguard.mtu = 1400", ("wireguard", "mtu", 1400)),
        ("relay.offer=true", ("relay", "offer", True)),
        ("relay.offer=auto", ("relay", "offer", "auto")),
        ("scatter.peers=nas=latency", ("scatter", "peers", {"nas": "latency"})),
        ("api.listen=", ("api", "listen", UNSET)),
        ("node.endpoints=", ("node", "endpoints", [])),
        ("node.region=", ("node", "region", "")),
    ],
)
def test_an_assignment_is_read(text: str, meant: tuple[str, str, Any]) -> None:
    assert assignment(text) == meant


@pytest.mark.parametrize(
    "text", ["log.level", "log=x", "log.levle=debug", "=", "scatter.mode=off", "intent=x"]
)
def test_an_assignment_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        assignment(text)
    assert refused.value.fix


def test_every_key_can_be_set() -> None:
    """A default that is written by the command is read back by the node."""
    config = Config(NodeSection("a", "lab"))
    text = render(config)
    document = tomllib.loads(text)
    for section, key in ALL:
        within = document
        for name in section.split("."):
            within = within[name]
        if key in within:
            assert reading.parse(edited(text, {(section, key): within[key]})) == config
