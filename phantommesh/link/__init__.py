# SPDX-License-Identifier: GPL-3.0-or-later
"""One pair's post-quantum handshake: datagrams in; datagrams, signatures to make and PSKs to install out."""
