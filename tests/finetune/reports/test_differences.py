"""Words that differ between two answers."""

from hybrid_ft.finetune.reports.differences import marked, recipe_rows


def test_words_that_differ() -> None:
    left, right = marked("it is red now", "it is blue now")
    assert [part for differs, part in left if differs] == ["red"]
    assert "".join(part for _, part in right) == "it is blue now"
    repeated = marked("before word " * 40, "after word " * 40)
    assert [part for differs, part in repeated[0][:4]] == ["before", " word ", "before", " word "]
    assert len(marked("a b " * 300, "c d " * 300)[0]) == 2  # too much to work out: all but the end
    rows = recipe_rows([{"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}, "d": None, "e": 0}])
    assert rows == [("a.c.1", ["2", "3"]), ("e", ["not set", "0"])]
