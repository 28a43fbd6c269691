# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's HTTP API: a quart-trio application served by hypercorn on a Unix socket."""
