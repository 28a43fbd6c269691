# SPDX-License-Identifier: GPL-3.0-or-later
"""Run every benchmark: ``python -m benchmarks [--quick] [--json]``. Fails if one of them does."""

import pkgutil
import subprocess
import sys

import benchmarks

NOT_BENCHMARKS = {"__main__", "machine", "rig"}


def main() -> None:
    """Run each in a process of its own, so that none inherits what another has warmed up."""
    found = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in NOT_BENCHMARKS)
    failed = []
    for name in found:
        print(f"== {name}", flush=True)
        if subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=False
        ).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
