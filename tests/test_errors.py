"""How values and complaints look in a message of one line; likely slips find their word."""

from typing import Any

import pytest

from hybrid_ft.errors import did_you_mean, holds_secret, masked, nearest, one_line, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (5, "5"),
        ("5", "'5'"),
        ("a\u2028\x1b", r"'a\u2028\x1b'"),
        ("x" * 100, "'" + "x" * 56 + "..."),
        pytest.param(10**5000, "a number of thousands of digits", id="long"),
        ([], "an empty list"),
        ([1, 2], "a list of 2"),
        ({}, "an empty mapping"),
        ({"role": 1, "a\nb": 2, 3: 4}, r"a mapping with role, a\nb, 3"),
        ({str(number): 0 for number in range(9)}, "a mapping with 0, 1, 2, 3"),
    ],
)
def test_shown(value: Any, text: str) -> None:
    assert shown(value) == text


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b\t c")) == "a b c"
    assert one_line(OSError()) == "OSError"
    assert one_line("x" * 400) == "x" * 297 + "..."


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("https://me:pass@host/x", "https://***@host/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("ssh://me:pass@host/x", "ssh://***@host/x"),
        ("sftp://me:pass@host/x", "sftp://***@host/x"),
        ("ssh://me@host/x", "ssh://me@host/x"),
        ("sftp://me@host:22/x", "sftp://me@host:22/x"),
    ],
)
def test_a_password_in_an_address_is_masked_and_a_user_of_ssh_is_not(text: str, seen: str) -> None:
    assert masked(text) == seen
    assert holds_secret(text) == (text != seen)


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("dop", "dpo"),  # two of three letters exchanged: the least likeness that counts
        ("cosin", "cosine"),
        ("sigmod", "sigmoid"),
        ("exprot", "export"),
        ("ppo", "dpo"),
        ("kto", None),
        ("quantize", None),
        ("", None),
    ],
)
def test_nearest_word(word: str, near: str | None) -> None:
    assert nearest(word, ["sft", "dpo", "export", "cosine", "sigmoid"]) == near


def test_a_suggestion_is_a_phrase() -> None:
    assert did_you_mean("dop", ["dpo"]) == "; did you mean dpo?"
    assert did_you_mean("x" * 100_000, ["dpo"]) == ""
