"""Words that differ between two answers."""

from hybrid_ft.finetune.reports.differences import cut, ends, marked, recipe_rows


def test_words_that_differ() -> None:
    left, right = marked("it is red now", "it is blue now")
    assert [part for differs, part in left if differs] == ["red"]
    assert "".join(part for _, part in right) == "it is blue now"
    repeated = marked("before word " * 40, "after word " * 40)
    assert [part for differs, part in repeated[0][:4]] == ["before", " word ", "before", " word "]
    assert len(marked("a b " * 300, "c d " * 300)[0]) == 2  # too much to work out: all but the end
    rows = recipe_rows([{"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}, "d": None, "e": 0}])
    assert rows == [("a.c.1", ["2", "3"]), ("e", ["not set", "0"])]


def test_long_texts() -> None:
    assert cut("abc", 3) == ends("abc", 3) == "abc"
    assert cut("abcdef", 4) == "abc…"
    passage = "a passage " * 50 + "What is asked?"
    assert ends(passage, 43) == f"{passage[:20]}\n…\n{passage[-20:]}"
    assert len(ends(passage, 200)) <= 200 and ends(passage, 200).endswith("What is asked?")


def test_no_cut_leaves_half_a_secret() -> None:
    """Which has no longer the form of one, and would be shown."""
    secret = "hf_" + "aB3" * 9
    words = "x " * 50
    for text in (words + secret + words, secret + words, words + secret):
        for most in range(20, len(text)):
            assert "aB3" not in cut(text, most) + ends(text, most)
