# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's files: all at once or not at all, read with suspicion, written atomically."""
