# SPDX-License-Identifier: GPL-3.0-or-later
"""The control port: UDP, and TCP where UDP is blocked."""
