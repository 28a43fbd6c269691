# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypothesis profiles. By default every run is the same and takes about a minute of CPU for the whole of
`fuzz/`; PHANTOMMESH_FUZZ=N runs N times as many examples, each time others."""

import os

from hypothesis import settings

TIMES = int(os.environ.get("PHANTOMMESH_FUZZ", "0"))

settings.register_profile("short", derandomize=True, deadline=None)
settings.register_profile("long", deadline=None, max_examples=100 * max(TIMES, 1), print_blob=True)
settings.load_profile("long" if TIMES else "short")
