"""The join token: what comes back, and what a person is told when it was mangled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.errors import UserError
from smalltalk_fed.wire.certificates import CertificateAuthority
from smalltalk_fed.wire.token import JoinToken, decode_token, encode_token, new_secret

TOKEN = JoinToken(
    "run.example.org:8470",
    "203.0.113.7:8471",
    CertificateAuthority.create("run", 1_790_000_000.0).certificate_der,
    new_secret(),
    1_790_086_400,
)
LINE = encode_token(TOKEN)

hosts = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,40}", fullmatch=True)
addresses = st.builds(lambda host, port: f"{host}:{port}", hosts, st.integers(1, 65535))


@given(
    st.builds(
        JoinToken,
        addresses,
        addresses,
        st.binary(max_size=600),
        st.binary(min_size=16, max_size=16),
        st.integers(0, 2**40 - 1),
    )
)
def test_token_survives(token: JoinToken) -> None:
    assert decode_token(encode_token(token)) == token


def test_token_is_one_line_that_a_shell_takes_as_it_is() -> None:
    assert LINE.startswith("stf1.")
    assert not set(LINE) & set(" \n'\"$&;=+/")
    assert len(LINE) < 600


def test_line_breaks_of_a_mail_don_t_matter() -> None:
    assert decode_token(f"  {LINE[:70]}\n{LINE[70:]}\n") == TOKEN


@given(st.integers(6, len(LINE) - 1))
def test_token_that_was_cut_off_is_told_so(length: int) -> None:
    with pytest.raises(UserError, match="cut off"):
        decode_token(LINE[:length])


@given(st.integers(9, len(LINE) - 1), st.sampled_from("AZaz09-_"))
def test_mistyped_token_is_told_so(position: int, letter: str) -> None:
    mistyped = LINE[:position] + letter + LINE[position + 1 :]
    if mistyped != LINE:
        with pytest.raises(UserError, match="damaged"):
            decode_token(mistyped)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_bits_that_mean_nothing_are_not_ignored(size: int) -> None:
    """The last letter of base64 may have bits to spare: one token is one line."""
    token = JoinToken("a:1", "b:2", bytes(size), bytes(16), 1)
    line = encode_token(token)
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
        if letter != line[-1]:
            with pytest.raises(UserError, match="damaged"):
                decode_token(line[:-1] + letter)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "begins with"),
        ("stf2.AAAA", "begins with"),
        (LINE[:60] + "é" + LINE[61:], "character"),
        (LINE + "AAAA", "damaged"),
    ],
)
def test_other_mistakes(text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        decode_token(text)


@pytest.mark.parametrize("address", ["", "host", "host:", "host:0", "host:65536", "a b:1", "h:1/x"])
def test_address_must_be_host_and_port(address: str) -> None:
    with pytest.raises(UserError, match="host:port"):
        encode_token(JoinToken(address, "a:1", b"", b"s" * 16, 1))


def test_a_token_of_the_first_version_is_still_read() -> None:
    line = (
        "stf1.AFEAarKNADAxMjM0NTY3ODlhYmNkZWYUcnVuLmV4YW1wbGUub3JnOjcwNzASWzIwMDE6ZGI4OjoxXTo3MDcx"
        "AAxhbiBhdXRob3JpdHnWZQmd"
    )
    assert decode_token(line) == JoinToken(
        "run.example.org:7070",
        "[2001:db8::1]:7071",
        b"an authority",
        b"0123456789abcdef",
        1_790_086_400,
    )
