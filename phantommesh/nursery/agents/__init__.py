# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs the agents: when each looks, what it sees, and how what is accepted is done."""
