# SPDX-License-Identifier: GPL-3.0-or-later
"""All that awaits: sockets, threads, processes, the kernel and the clock."""

import sys

# structlog imports rich wherever there is one, for tracebacks that `logs.py` never prints: 3 MB. So structlog
# is imported here, before all else of the nursery, as if there were no rich.
# docs/decisions/0046-imports-without-init.md
if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # `import rich` then raises ImportError
    try:
        import structlog as structlog
    finally:
        del sys.modules["rich"]
