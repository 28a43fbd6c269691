# SPDX-License-Identifier: GPL-3.0-or-later
"""Which addresses may reach this host at all: bans, the evidence for them, and their rules as text."""
