# SPDX-License-Identifier: GPL-3.0-or-later
"""The reports of a node on itself: views, events and metrics, and what is wrong."""
