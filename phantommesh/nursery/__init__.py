# SPDX-License-Identifier: GPL-3.0-or-later
"""All that awaits: sockets, threads, processes, the kernel and the clock."""
