# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator's error has a fix, wherever it is raised. That doing the fix mends it is for
tests/cli/test_fixes.py."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# Errors that reach an operator. TrustError, ProofError, RecordError and the like also say what is wrong with
# bytes of others, where an operator can do nothing; StreamError is put into the words of a JoinError.
OPERATORS = {
    "ApiError", "ApiSocketError", "BackendError", "CliError", "ConfigError", "JoinError", "NftError",
    "NoConfigError", "NodeNotRunningError", "OverlapError", "PhantomMeshError", "StateError",
    "StateInUseError", "TakeDownError",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "phantommesh").rglob("*.py")), ids=lambda path: path.stem)
def test_each_error_of_an_operator_has_a_fix(path: Path) -> None:
    without = [
        f"{path.name}:{call.lineno}"
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in OPERATORS
        and not any(keyword.arg == "fix" for keyword in call.keywords)
    ]
    assert without == []
