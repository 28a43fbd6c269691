# SPDX-License-Identifier: GPL-3.0-or-later
"""What looks like a secret is starred out of text, and nothing else is."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.secret import starred

TOKEN = "pmt_" + "Zm9v-_" * 7 + "A"
KEY = base64.b64encode(bytes(range(32))).decode()
PEM = (
    ec.generate_private_key(ec.SECP256R1())
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)
BODY = PEM.splitlines()[1]


@pytest.mark.parametrize(
    ("text", "secret", "left"),
    [
        (
            f"/v1/tokens?access_token={TOKEN}&dry_run=1",
            TOKEN[4:],
            "/v1/tokens?access_token=pmt_***&dry_run=1",
        ),
        (f"/v1/x_{TOKEN}/y", TOKEN[4:], "/v1/x_pmt_***/y"),
        (f"pm1_{BODY}", BODY[:8], None),
        ("a pmf1_Zm9vYmFy, pm1_Zm9vYmFy.", "Zm9v", "a pmf1_***, pm1_***."),
        (f"before\n{PEM}after!", BODY, "before\n-----BEGIN PRIVATE KEY-----***\nafter!"),
        (PEM[:70], PEM[30:60], "-----BEGIN PRIVATE KEY-----***"),
        (f"/v1/keys/{KEY}?x=1", KEY, "/v1/keys/***?x=1"),
        (f"PrivateKey = {KEY}", KEY, "PrivateKey = ***"),
        (f"private_key={'ab' * 32}", "abab", "private_key=***"),
    ],
    ids=[
        "query",
        "path",
        "invite",
        "pact",
        "pem",
        "half-pem",
        "key-in-path",
        "named-key",
        "hex-key",
    ],  # none is drawn
)
def test_a_secret_is_starred_out_wherever_it_stands(text: str, secret: str, left: str | None) -> None:
    shown = starred(text)
    assert secret in text and secret not in shown and "***" in shown
    assert left is None or shown == left
    assert starred(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "send `Authorization: Bearer pmt_...`",
        "pm0 and pm1 are up, /v1/peers/pm-1",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "ab" * 32,
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert starred(text) == text


@given(st.text(), st.text())
def test_json_stays_json(before: str, after: str) -> None:
    """So a whole document can be starred out at once."""
    shown = starred(json.dumps({"a": f"{before}{PEM}{after}", "b": f"{before}{TOKEN}{after}"}))
    assert BODY not in shown and TOKEN not in shown and set(json.loads(shown)) == {"a", "b"}
