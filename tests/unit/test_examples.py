# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples hold against the code: their commands and options exist, the configuration is good."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from phantommesh.cli import cli
from phantommesh.cli.base import CONFIG
from phantommesh.config import reading

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def commands(text: str) -> list[list[str]]:
    """The arguments of each ``phantommesh`` that a text has as a line of code."""
    return [
        shlex.split(line, comments=True) for line in re.findall(r"^phantommesh (.+)$", text, re.MULTILINE)
    ]


def parse(arguments: list[str]) -> None:
    """Parse arguments as the command would, and run nothing. Raises click.UsageError."""
    command: click.Command = cli
    context = click.Context(cli, info_name="phantommesh", **cli.context_settings)
    while isinstance(command, click.Group):
        _, rest, _ = command.make_parser(context).parse_args(list(arguments))
        if not rest and command.invoke_without_command:
            break
        name, inner, arguments = command.resolve_command(context, rest)
        assert inner is not None
        command, context = inner, click.Context(inner, info_name=name, parent=context)
    command.parse_args(context, list(arguments))


@pytest.mark.parametrize("name", ["README.md", "two-machines.md"])
def test_commands_of_an_example_exist(name: str) -> None:
    shown = commands((EXAMPLES / name).read_text())
    assert len(shown) >= {"README.md": 0, "two-machines.md": 12}[name]
    for arguments in shown:
        parse(arguments)


def test_a_command_that_does_not_exist_is_seen() -> None:
    for line in ("phantommesh invit\n", "phantommesh invite --tll 1h\n", "phantommesh invite --ttl never\n"):
        [arguments] = commands(line)
        with pytest.raises(click.UsageError):
            parse(arguments)


def test_the_configuration_is_accepted_and_changes_something_in_each_section(tmp_path: Path) -> None:
    path = EXAMPLES / "phantommesh.toml"
    result = CliRunner().invoke(
        cli, ["--state-dir", str(tmp_path / "none"), "config", "check", str(path)], prog_name="phantommesh"
    )
    assert result.exit_code == 0, result.output
    shown, plain = reading.load(path), reading.parse('[node]\nname = "alpha"\nmesh = "example"\n')
    for section in re.findall(r"^\[(\w+)\]$", path.read_text(), re.MULTILINE):
        assert getattr(shown, section) != getattr(plain, section), section


def test_the_configuration_says_where_the_command_looks_for_it() -> None:
    assert str(CONFIG) in (EXAMPLES / "phantommesh.toml").read_text().splitlines()[0]
