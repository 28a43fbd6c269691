# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is who, and who says so: identities, certificates, invites, revocations, group keys."""
