# SPDX-License-Identifier: GPL-3.0-or-later
"""What members ask of each other over a channel, and how many connections may ask."""
