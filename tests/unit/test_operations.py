# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/operations.md names commands, keys and variables that there are."""

import re
import shlex
from pathlib import Path

import click
import pytest

from phantommesh.cli import cli
from phantommesh.config.environment import variables

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "operations.md").read_text()
GLOBAL = {param.envvar for param in cli.params if isinstance(param.envvar, str)}
SECRETS = {"PHANTOMMESH_INVITE", "PHANTOMMESH_TOKEN"}  # which no option gives

EVENTS = (
    "reboot", "off for a month", "disk is lost", "configuration is lost", "second authority",
    "authority is lost", "root key", "another name", "another address", "other ports", "to another machine",
    "upgrade", "no file",
)  # fmt: skip


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    found = [line for block in blocks for line in block.splitlines()]
    found += re.findall(r"`(phantommesh [^`]+)`", TEXT)
    return sorted({line for line in found if line.startswith("phantommesh ")})


@pytest.mark.parametrize("line", commands())
def test_each_command_is_one(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(cli, **cli.context_settings)
    while isinstance(command, click.Group):
        given = list(words)
        context = command.make_context(command.name, given, parent=None if command is cli else context)
        rest = [*context._protected_args, *context.args]
        if not rest and command.invoke_without_command:
            return
        words = rest
        name, found, words = command.resolve_command(context, words)
        assert found is not None, name
        command = found
    command.make_context(command.name, words, parent=context)


def test_there_are_commands_and_a_row_for_each_event() -> None:
    assert len(commands()) > 15
    rows = [line.lower() for line in TEXT.splitlines() if line.startswith("| ")]
    assert [event for event in EVENTS if not any(event in row for row in rows)] == []


def test_each_key_and_each_variable_is_one() -> None:
    known = {name: f"{section}.{key}" for name, section, key, _ in variables()}
    named = set(re.findall(r"PHANTOMMESH_[A-Z0-9_]+", TEXT)) - {"PHANTOMMESH_SECTION_KEY"}
    assert named - known.keys() - GLOBAL - SECRETS == set()
    sections = {key.partition(".")[0] for key in known.values()}
    keys = {key for key in re.findall(r"`([a-z]+\.[a-z0-9_]+)`", TEXT) if key.partition(".")[0] in sections}
    assert keys - set(known.values()) == set()
    assert len(keys) > 6


def test_each_link_within_the_page_leads_somewhere() -> None:
    titles = {"#" + title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", TEXT, re.MULTILINE)}
    assert set(re.findall(r"\]\((#[^)]+)\)", TEXT)) <= titles
