# SPDX-License-Identifier: GPL-3.0-or-later
"""With other members: links, gossip, requests and answers, an authority's work, proofs."""
