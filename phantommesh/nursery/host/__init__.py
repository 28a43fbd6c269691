# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine: its WireGuards, its rules, links, addresses and routes."""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec


def _import_by_parts(name: str) -> None:
    """Have modules of a package imported without the package's ``__init__``. That runs when somebody asks
    for a name of the package that is no module of its own."""
    spec = find_spec(name)
    if name in sys.modules or spec is None or spec.loader is None:
        return
    package, loader = module_from_spec(spec), spec.loader

    def rest(wanted: str) -> object:
        if wanted.startswith("__") or "__getattr__" not in vars(package):
            raise AttributeError(f"module {name!r} has no attribute {wanted!r}")
        if find_spec(f"{name}.{wanted}") is not None:
            return import_module(f"{name}.{wanted}")
        del package.__getattr__
        loader.exec_module(package)
        return getattr(package, wanted)

    package.__getattr__ = rest  # type: ignore[method-assign]  # PEP 562
    sys.modules[name] = package


# pyroute2's own ``__init__`` imports all that pyroute2 can do, databases and file servers too: twice what we
# use, in time and in memory.
_import_by_parts("pyroute2")
