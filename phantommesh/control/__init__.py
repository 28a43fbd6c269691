# SPDX-License-Identifier: GPL-3.0-or-later
"""The requests of members over a channel, and how many connections may ask."""
