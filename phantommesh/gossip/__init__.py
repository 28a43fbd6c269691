# SPDX-License-Identifier: GPL-3.0-or-later
"""Membership on the wire: sealed under the group key, and what membership is told of the roster."""
