# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine: its WireGuards, its rules, links, addresses and routes."""

import sys
from importlib.util import find_spec, module_from_spec

# pyroute2's own ``__init__`` imports all that pyroute2 can do, databases and file servers too: 5 MB. Its
# modules are found without it. docs/decisions/0046-imports-without-init.md
if "pyroute2" not in sys.modules and (_spec := find_spec("pyroute2")) is not None:
    sys.modules["pyroute2"] = module_from_spec(_spec)
