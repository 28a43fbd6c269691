# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine: its WireGuards, its rules, links, addresses and routes."""
