# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypothesis without deadlines here too."""

import tests.unit.conftest  # noqa: F401
