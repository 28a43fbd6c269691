# SPDX-License-Identifier: GPL-3.0-or-later
"""The members that are alive: SWIM with Lifeguard, in which no member's word alone kills."""
