# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node says of itself: views, events and metrics, and what is wrong."""
