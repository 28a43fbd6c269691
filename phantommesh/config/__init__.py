# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: TOML in, a frozen `Config` out."""
