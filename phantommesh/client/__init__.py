# SPDX-License-Identifier: GPL-3.0-or-later
"""A running node, asked from outside: blocking, standard library only."""
