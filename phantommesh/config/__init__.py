# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: TOML and variables in, a frozen `Config` out. No key of it is a secret.

Secrets live in the state directory, in files of their own.
"""
