# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the overlay's addresses for the overlay, and gives them back when a node is taken down."""
