# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypothesis without deadlines: how long an example takes on a busy machine says nothing."""

from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
