import pytest

from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.tokens.encode_pairs import TokenPair
from hybrid_ft.finetune.data.tokens.fit_pairs import Limits, fit


def pair(prompt: int, chosen: int, rejected: int) -> TokenPair:
    return TokenPair(list(range(prompt)), list(range(100, 100 + chosen)), list(range(200, 200 + rejected)))


def limits(max_length: int = 10, batch_tokens: int = 100, prompt: str = "drop", row: str = "drop") -> Limits:
    return Limits(max_length, batch_tokens, prompt, row, header=2)


def kind(pair: TokenPair, limits: Limits) -> str:
    with pytest.raises(Unusable) as caught:
        fit(pair, limits)
    return caught.value.kind


def test_a_pair_that_just_fits_is_left_alone() -> None:
    fitted = fit(pair(6, 4, 3), limits(batch_tokens=13))
    assert (fitted.pair, fitted.cut_prompt, fitted.cut_answers) == (pair(6, 4, 3), 0, 0)
    assert kind(pair(6, 4, 4), limits(batch_tokens=13)) == "over train.batch_tokens"
    assert kind(pair(6, 3, 5), limits()) == "longer than data.max_length"


def test_a_long_prompt_loses_its_start_and_answers_nothing() -> None:
    fitted = fit(pair(20, 4, 5), limits(prompt="cut_start"))
    assert fitted.pair.prompt == [15, 16, 17, 18, 19]
    assert (len(fitted.pair.chosen), len(fitted.pair.rejected), fitted.cut_prompt) == (4, 5, 15)


def test_a_prompt_is_never_cut_down_to_its_header() -> None:
    assert len(fit(pair(5, 1, 7), limits(prompt="cut_start")).pair.prompt) == 3
    assert kind(pair(5, 1, 8), limits(prompt="cut_start")) == "longer than data.max_length"


def test_answers_lose_their_end_only_where_the_recipe_says_so() -> None:
    fitted = fit(pair(6, 9, 3), limits(row="cut"))
    assert (fitted.pair.prompt, fitted.pair.chosen, fitted.pair.rejected) == (
        list(range(6)),
        [100, 101, 102, 103],
        [200, 201, 202],
    )
    assert (fitted.cut_prompt, fitted.cut_answers) == (0, 5)


def test_a_cut_that_takes_everything_or_the_difference_drops_the_pair() -> None:
    assert kind(pair(10, 1, 1), limits()) == "prompt alone longer than data.max_length"
    assert kind(pair(10, 1, 1), limits(row="cut")) == "nothing left of an answer"
    alike = TokenPair([0] * 8, [1, 1, 2], [1, 1, 3])
    assert kind(alike, limits(row="cut")) == "identical answers"
    assert len(fit(alike, limits(11, row="cut")).pair.chosen) == 3
