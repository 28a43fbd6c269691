# SPDX-License-Identifier: GPL-3.0-or-later
"""Measured paths: the state, round trip, loss and weight of each dimension of each peer."""
