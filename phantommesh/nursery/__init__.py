# SPDX-License-Identifier: GPL-3.0-or-later
"""All that awaits: sockets, threads, processes, the kernel and the clock."""

import sys

# structlog imports rich wherever rich is installed, for tracebacks with local variables in them. We never
# print those (`logs.py`), and rich takes a seventh of the time in which a node imports. So structlog is
# imported here, before all else of the nursery, as if there were no rich.
if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # `import rich` then raises ImportError
    try:
        import structlog as structlog
    finally:
        del sys.modules["rich"]
