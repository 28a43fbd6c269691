# SPDX-License-Identifier: GPL-3.0-or-later
"""WireGuard devices as values: what they should be, the smallest change, and the protocols."""
