"""Log-probabilities after a shared beginning against every row computed alone by plain transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from random_ids import ids

from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.items import Asked, Item
from hybrid_ft.finetune.evaluation.likelihood import best_option, log_probs


@pytest.fixture(scope="module")
def plain(steady_base: Path) -> Any:
    from transformers import OlmoHybridForCausalLM

    return OlmoHybridForCausalLM.from_pretrained(steady_base).eval()


def item(prompt: list[int], branches: list[list[int]], labels: list[int] | None = None) -> Item:
    return Item(Asked("x:1", [], {}, None, {}, options=["a", "bcdef"]), prompt, branches, labels or [])


def alone(plain: Any, prompt: list[int], branch: list[int]) -> torch.Tensor:
    row = torch.tensor([prompt + branch])
    with torch.no_grad():
        logits = plain(row, use_cache=False).logits[0].log_softmax(-1)
    places = torch.arange(len(prompt) - 1, row.shape[1] - 1)
    return logits[places, row[0, len(prompt) :]]


@pytest.mark.parametrize("shots", [0, 40])
@pytest.mark.parametrize("tokens", [100, 100_000])
def test_branches_equal_rows_of_their_own(model: Any, plain: Any, shots: int, tokens: int) -> None:
    """One token and several, in one batch and in many, with a shared beginning and without."""
    shared = ids(shots, 1)
    items = [
        item(shared + ids(5 + 3 * n, n + 2), [ids(1, 50 + n), ids(1 + n % 3, 60 + n), ids(4, 70 + n)]) for n in range(6)
    ]
    found = dict(log_probs(model, items, Budget(tokens=tokens)))
    assert sorted(found) == list(range(6))
    for number, one in enumerate(items):
        for branch, values in zip(one.branches, found[number], strict=True):
            assert torch.allclose(torch.tensor(values), alone(plain, one.prompt, branch), atol=2e-5)


def test_labels_of_rows_that_begin_alike(model: Any, plain: Any) -> None:
    """Labels inside the shared beginning count for each row, the very first token for none."""
    shared = ids(20, 1)
    rows = [shared + ids(6 + n, n + 2) for n in range(4)]
    items = [item(row, [], [row[0], *[-100] * 4, *row[5:]]) for row in rows]
    found = dict(log_probs(model, items, Budget()))
    for number, row in enumerate(rows):
        assert torch.allclose(torch.tensor(found[number][0]), alone(plain, row[:5], row[5:]), atol=2e-5)


def test_the_best_option_as_a_whole_and_per_character() -> None:
    one = item([1], [[1], [2, 3]])
    assert best_option(one, [[-2.0], [-2.0, -1.0]], per_character=False) == 0
    assert best_option(one, [[-2.0], [-2.0, -1.0]], per_character=True) == 1
