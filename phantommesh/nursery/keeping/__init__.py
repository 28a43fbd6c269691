# SPDX-License-Identifier: GPL-3.0-or-later
"""State that changes while a node runs, and is on disk."""
