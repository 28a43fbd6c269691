# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb `completion`: click's own scripts for shells."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_PHANTOMMESH_COMPLETE"  # as click derives it from the program's name


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script with which SHELL completes verbs, options and the names of peers.

    Put the line into ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish to have it in each shell.

    \b
    Example:
      source <(phantommesh completion bash)
      source <(phantommesh completion zsh)
      phantommesh completion fish | source
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click has these three"
    script = kind(ctx.find_root().command, {}, "phantommesh", VARIABLE)
    click.echo(script.source_template % script.source_vars())
