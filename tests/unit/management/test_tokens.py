# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens of the API: made, kept as hashes, told apart."""

import hmac
import secrets

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phantommesh.management import tokens
from phantommesh.management.finding import UnknownMemberError
from phantommesh.management.scopes import Scope
from phantommesh.management.tokens import (
    ID_BYTES,
    MAX_TOKENS,
    RANDOM_BYTES,
    REMEMBERED,
    Made,
    TokenBook,
    TokenError,
    TokenFileError,
    TokenRequest,
    decode,
    encode,
)


def random() -> bytes:
    return secrets.token_bytes(ID_BYTES + RANDOM_BYTES)


def made(
    book: TokenBook, scope: Scope = Scope.READ, seconds: float = 60.0, now: float = 100.0
) -> tuple[TokenBook, Made]:
    return book.make(TokenRequest(scope, seconds, "ci"), random(), by="uid 0", now=now)


def test_a_token_is_known_until_it_expires_or_is_revoked() -> None:
    book, one = made(TokenBook())
    text = one.text.reveal().decode()
    assert text.startswith("pmt_") and len(text) == 47
    assert book.look(text, 159.9).standing == "good"
    assert book.look(text, 160.0).standing == "expired"
    book, over = book.revoke(one.token.id, 120.0)
    assert over.revoked == 120.0 and book.look(text, 130.0).standing == "revoked"
    assert book.look(text, 170.0).standing == "revoked"
    again, same = book.revoke(one.token.id, 150.0)
    assert (again, same) == (book, over)
    with pytest.raises(UnknownMemberError):
        book.revoke("0" * 12, 130.0)


@pytest.mark.parametrize("wrong", ["", "pmt_", "pmt_" + "x" * 42, "pmt_" + "x" * 44, "pmx_" + "x" * 43,
                                   "pmt_" + "x" * 42 + "\n", "pmt_" + "é" * 43])  # fmt: skip
def test_what_has_not_the_shape_of_a_token_is_malformed(wrong: str) -> None:
    assert TokenBook().look(wrong, 1.0).standing == "malformed"


def test_a_token_that_never_was_is_unknown() -> None:
    book, one = made(TokenBook())
    other = made(TokenBook())[1].text.reveal().decode()
    assert book.look(other, 101.0) == tokens.Looked("unknown")
    last = one.text.reveal().decode()
    swapped = last[:-5] + ("aaaaa" if last[-5:] != "aaaaa" else "bbbbb")
    assert book.look(swapped, 101.0).standing == "unknown"


def test_every_hash_is_compared_whichever_is_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    book, texts = TokenBook(), []
    for _ in range(5):
        book, one = made(book)
        texts.append(one.text.reveal().decode())
    compared = []
    real = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append(1)
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for text in (*texts, "pmt_" + "x" * 43):
        compared.clear()
        book.look(text, 101.0)
        assert len(compared) == 5


def test_neither_the_file_nor_a_repr_has_the_token() -> None:
    book, one = made(TokenBook())
    text = one.text.reveal().decode()
    shown = repr(one) + repr(book) + repr(book.look(text, 101.0)) + encode(book).decode()
    assert text not in shown and text[4:] not in shown
    answer = tokens.TokenMade(id="1", name="ci", scope=Scope.READ, expires="x", token=text)
    assert text not in repr(answer)


def test_the_book_is_bounded_and_what_is_long_over_makes_room() -> None:
    book = TokenBook()
    for _ in range(MAX_TOKENS):
        book, _made = made(book)
    with pytest.raises(TokenError, match="the most"):
        made(book)
    book, _made = made(book, now=160.0 + REMEMBERED)
    assert len(book.tokens) == 1


def test_a_token_that_is_over_gives_way_in_a_full_book_the_oldest_first() -> None:
    book = TokenBook()
    for number in range(MAX_TOKENS):
        book, _made = made(book, now=100.0 + number / 1000)
    ids = [token.id for token in book.tokens]
    for at, index in ((120.0, 7), (110.0, 3)):  # the later made was revoked first, and so is over for longer
        book, _ = book.revoke(ids[index], at)
    book, first = made(book, now=130.0)
    assert [token.id for token in book.tokens] == [*(i for i in ids if i != ids[3]), first.token.id]
    book, second = made(book, now=130.0)
    assert not {ids[3], ids[7]} & {token.id for token in book.tokens} and len(book.tokens) == MAX_TOKENS
    with pytest.raises(TokenError, match="that count"):
        made(book, now=130.0)
    # What has expired gives way too, and nothing that counts.
    book, third = made(book, now=165.0)
    assert len(book.tokens) == MAX_TOKENS
    assert {first.token, second.token, third.token} <= set(book.tokens)
    assert decode(encode(book)) == book


def test_a_file_is_read_as_it_was_written() -> None:
    book, one = made(made(TokenBook())[0], Scope.ADMIN)
    book, _ = book.revoke(one.token.id, 130.0)
    assert decode(encode(book)) == book
    twice = TokenBook((*book.tokens, book.tokens[0]))
    with pytest.raises(TokenFileError, match="twice"):
        decode(encode(twice))


@given(st.binary(max_size=300))
@example(b"[" * 5000)
@example(b'{"tokens": [{"id": "x"}]}')
def test_a_damaged_file_is_one_kind_of_error(data: bytes) -> None:
    try:
        decode(data)
    except TokenFileError:
        pass
