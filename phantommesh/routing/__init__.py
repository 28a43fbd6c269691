# SPDX-License-Identifier: GPL-3.0-or-later
"""Which way traffic goes where no direct way is: relays, their leases, the rules that forward, the choice."""
