# SPDX-License-Identifier: GPL-3.0-or-later
"""SigmaVault: the share of each dimension in a peer's traffic, the secret maps, and the ruleset that
obeys."""
