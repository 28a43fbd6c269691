# SPDX-License-Identifier: GPL-3.0-or-later
"""Scatter proofs: made, countersigned, kept, exported and judged."""
