# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes while a node runs, and is on disk."""
