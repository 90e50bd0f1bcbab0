"""Long prompts: as long as asked, found with few counts, and answered as their own text has it."""

import re
from collections import Counter, defaultdict

import pytest

from hybrid_ft.finetune.evaluation.made import _KINDS, made_rows
from hybrid_ft.finetune.evaluation.task import Made

KINDS = sorted(_KINDS)


def words(text: str) -> int:
    return text.count(" ") + text.count("\n")


def solved(kind: str, question: str) -> list[str]:
    """The answer, from the text alone."""
    if kind == "variables":
        values: dict[str, str] = {}
        for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", question):
            values[name] = values.get(value, value)
        asked = re.search(r"the value (\d+) in the text", question)
        assert asked is not None
        return [name for name, value in values.items() if value == asked[1]]
    if kind in ("common-words", "frequent-words"):
        text = question.split("\n\n")[1]
        counts = Counter(re.findall(r"[a-z]+", text)).most_common(11)
        most = 10 if kind == "common-words" else 3
        assert counts[most - 1][1] > counts[most][1], "a tie"
        return [word for word, _ in counts[:most]]
    numbers: dict[str, list[str]] = defaultdict(list)
    for key, number in re.findall(r"A secret number of (\S+) is (\d+)\.", question):
        numbers[key].append(number)
    asked = re.search(r"secret numbers? of (\S+) in the text above", question)
    assert asked is not None
    assert (len(numbers) > 100) is (kind == "needles")
    return numbers[asked[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_of_64k_tokens(kind: str) -> None:
    lengths: list[int] = []

    def count(text: str) -> int:
        lengths.append(words(text))
        return lengths[-1]

    ((question, reference),) = made_rows(Made(kind=kind, tokens=65_536, count=1), count)  # type: ignore[arg-type]
    assert 65_536 * 0.998 <= words(question) <= 65_536
    # a bisection tokenises thirteen texts of more than half the length
    assert sum(length > 30_000 for length in lengths) <= 4
    assert Counter(reference.splitlines()) == Counter(solved(kind, question))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_do_not_grow_in_proportion(kind: str) -> None:
    """Steps of 700, and none at all at first: the largest row that fits is still found."""

    def count(text: str) -> int:
        return max(1000, words(text) // 700 * 700)

    ((question, _),) = made_rows(Made(kind=kind, tokens=5000, count=1), count)  # type: ignore[arg-type]
    assert count(question) == 4900
    with pytest.raises(ValueError, match="made.tokens: got 999; the question alone is longer"):
        list(made_rows(Made(kind=kind, tokens=999, count=1), count))  # type: ignore[arg-type]
