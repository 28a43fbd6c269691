# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node has on disk: all at once or not at all, read with suspicion, written atomically."""
