# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the agents: their looks, their turns, and their hands."""
