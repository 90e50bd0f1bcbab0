"""What a scalar means, what is refused, and that every line number is right."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.yaml_file import MAX_BYTES, dotted, dump_yaml, plain_scalar, read_value, read_yaml


def read(tmp_path: Path, text: str | bytes):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.0e+5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("0", 0),
        ("+12", 12),
        ("0o17", 15),
        ("0xff", 255),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("-.inf", -math.inf),
    ],
)
def test_yaml_1_2_numbers_and_constants(tmp_path: Path, text: str, value: object) -> None:
    got = read(tmp_path, f"key: {text}\n").value["key"]
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "off",
        "yes",
        "on",
        "y",
        "012",
        "0.5.1",
        "12:30",
        "2024-01-01",
        "1_000",
        "1e",
        "e5",
        "0x",
        "-0x1",
        "nan",
        "inf",
        "7B",
        "tRue",
        "9" * 400,
    ],
)
def test_everything_else_is_text(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"key: {text}\n").value["key"] == text


def test_quotes_make_text_and_keys_are_text(tmp_path: Path) -> None:
    assert read(tmp_path, "1: '1'\ntrue: \"null\"\n").value == {"1": "1", "true": "null"}


def test_lines_of_keys_and_items(tmp_path: Path) -> None:
    text = "a: 1\n\n# a comment\nb:\n  - x\n  - c: 2\n    d: |\n      long\n      text\n  - [p,\n     q]\n"
    lines = read(tmp_path, text).lines
    assert lines == {
        ("a",): 1,
        ("b",): 4,
        ("b", 0): 5,
        ("b", 1): 6,
        ("b", 1, "c"): 6,
        ("b", 1, "d"): 7,
        ("b", 2): 10,
        ("b", 2, 0): 10,
        ("b", 2, 1): 11,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/object/apply:os.system [id]", ":1: tag !!python/object/apply:os.system is not allowed"),
        ("a: 1\nb: &x 2\nc: *x", ":2: anchor &x is not allowed"),
        ("a: 1\nb: 2\na: 3", ":3: key a is given twice (first on line 1)"),
        ("a:\n  b: 1\n  'b': 2", ":3: key a.b is given twice (first on line 2)"),
    ],
)
def test_noted_and_read_on(tmp_path: Path, text: str, said: str) -> None:
    mistakes = read(tmp_path, text).mistakes
    line, what = mistakes[0]
    assert f":{line}: {what}".startswith(said)


def test_alias_cannot_multiply(tmp_path: Path) -> None:
    """The billion-laughs file: each line holds nine of the line before; nothing is expanded."""
    text = "a: &a [x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    value, _, mistakes = read(tmp_path, text)
    assert value["i"] == [None] * 9
    assert sum("alias" in what for _, what in mistakes) == 72


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": is empty; a recipe must be a mapping of keys such as model:, data:, train:"),
        ("- 1", ": holds a list of 1; a recipe must be a mapping"),
        ("text", ": holds 'text'; a recipe must be a mapping"),
        ("a: 1\n---\nb: 2", ":2: a second document starts here"),
        ("a:\n\tb: 1", ":2: a tab cannot indent YAML"),
        ("a: [1, 2", ":1: not YAML"),
        ("a: b: c", ":1: not YAML: mapping values are not allowed here at column 5"),
        ("? [1]\n: 2", ":1: a key must be a plain string"),
        ("x: 1\ny: " + "[" * 5000, ":2: nested more than 16 deep"),
        (b"a: 1\nb: \xff\n", ":2: byte 0xff is not UTF-8"),
        ("a: 1\nb: \x07", ":2: control character 0x07"),
        ("a: " + "x" * MAX_BYTES, ": larger than 64 kB"),
    ],
)
def test_refused_in_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(InputError) as refused:
        read(tmp_path, text)
    assert str(refused.value).startswith(f"{tmp_path / 'recipe.yaml'}{said}")
    assert "\n" not in str(refused.value)


def test_text_that_no_file_name_can_hold_is_noted(tmp_path: Path) -> None:
    assert read(tmp_path, 'a: 1\nb: "x\\0y"\nc: "\\ud800"\n').mistakes == [
        (2, "character 0x00 is not allowed in a string"),
        (3, "character 0xd800 is not allowed in a string"),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_those_of_an_editor(tmp_path: Path, end: str) -> None:
    text = end.join(["a:", "  # \u2028", "  b: 1", '  c: "\u2029\x85x"', "  d: [", "1, 2]", "# \u2028", ""])
    lines = read(tmp_path, text).lines
    assert [lines[("a", key)] for key in "bcd"] == [3, 4, 5]
    assert lines["a", "d", 0] == 6
    with pytest.raises(InputError, match=r"recipe.yaml:8: not YAML: .* at column 6"):
        read(tmp_path, text + '"\u2028  " : *')
    with pytest.raises(InputError, match="recipe.yaml:8: byte 0xff is not UTF-8"):
        read(tmp_path, ("\ufeff" + text).encode() + b"\xff\xc3\xa9")


def test_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    value, lines, mistakes = read(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert (value, lines, mistakes) == ({"a": 1, "b": 2}, {("a",): 1, ("b",): 2}, [])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("", None),
        ('""', ""),
        ("a: b # c", "a: b # c"),
        ("*.jsonl", "*.jsonl"),
        ("[1, no, 'x']", [1, "no", "x"]),
        ("{rank: 8}", {"rank": 8}),
    ],
)
def test_value_of_an_override(text: str, value: object) -> None:
    assert read_value(text) == value


@pytest.mark.parametrize("text", ["[1", "'a' b", "[*x]", "[!!int 1]", "{a: 1, a: 2}", "a\x00b"])
def test_value_of_an_override_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_value(text)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(
        st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t0123456789.eExo-+~#:'\"{}[]&*!|>% "),
        max_size=20,
    )
)


@settings(max_examples=80)
@given(
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    file = tmp_path_factory.mktemp("yaml") / "recipe.yaml"
    file.write_text(dump_yaml({"key": value}), encoding="utf-8", newline="")
    back = read_yaml(file)
    assert back.mistakes == []
    assert back.value == {"key": value}


@given(st.text("0123456789.eE+-_xo:nulTrueifaNy~", max_size=12))
def test_numbers_are_those_of_json_and_a_few_more(text: str) -> None:
    """What Python's float takes and looks like JSON is a number here too, and no number is
    something Python cannot read."""
    value = plain_scalar(text)
    if isinstance(value, int | float) and not isinstance(value, bool):
        assert text.startswith(("0x", "0o")) or "." in text[:2] or float(text) == value


def test_dotted_quotes_what_is_no_word() -> None:
    assert dotted(("data", "sources", 0, "path")) == "data.sources.0.path"
    assert dotted(("a b\x1b[31m",)) == r"'a b\x1b[31m'"
