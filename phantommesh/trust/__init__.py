# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs of who is who: identities, certificates, invites, revocations, group keys."""
