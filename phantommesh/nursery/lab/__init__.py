# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: a whole mesh of real nodes on one machine, made, watched and judged."""
