"""Answers after a shared beginning: those of each prompt alone, and what is read for them."""

import copy
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from random_ids import ids

import hybrid_ft
from hybrid_ft.finetune.evaluation import written
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.written import write_answers
from hybrid_ft.finetune.generation.generate import Sampling, answer


def test_answers_after_a_shared_beginning(model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token what each prompt alone gives; the beginning is read once."""
    shared = ids(90, 1)
    prompts = [shared + ids(3 + 5 * n, n + 2) for n in range(5)]
    read = []
    forward = type(model.base_model).forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(kwargs["input_ids"].numel())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.base_model), "forward", watched)
    found = dict(write_answers(model, tiny_tokenizer, prompts, [3, 0], 12, Sampling(), Budget(tokens=300)))
    assert max(read) == 90 or max(read) < 2 * 90
    assert sum(size >= 90 for size in read) <= 1 + sum(90 <= size < 180 for size in read)
    assert sum(read) < 90 + 5 * (25 + 12) + 60
    monkeypatch.undo()
    expected = [answer(model, tiny_tokenizer, [prompt], [3, 0], 12)[0] for prompt in prompts]
    assert [found[number][0] for number in range(5)] == expected


def test_answers_without_one(model: Any, tiny_tokenizer: Any) -> None:
    prompts = [ids(3 + 4 * n, n + 2) for n in range(5)]
    found = dict(write_answers(model, tiny_tokenizer, prompts, [3, 0], 8, Sampling(), Budget(tokens=60)))
    assert [found[number][0] for number in range(5)] == answer(model, tiny_tokenizer, prompts, [3, 0], 8)


@pytest.mark.parametrize("shared", [0, 80])
@pytest.mark.parametrize("at_once", [1, 25, 4096])
def test_prompts_are_read_in_pieces_and_answered_together(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, at_once: int, shared: int
) -> None:
    """Whatever the pieces, and where a prompt has one token of its own: each answer is what its prompt alone gives."""
    prompts = [ids(shared, 1) + ids(own, n + 2) for n, own in enumerate((1, 9, 4, 1, 17, 12, 1))]
    read: list[tuple[int, int]] = []
    forward = type(model.base_model).forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(tuple(kwargs["input_ids"].shape))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.base_model), "forward", watched)
    monkeypatch.setattr(written, "_READ", at_once)
    found = dict(write_answers(model, tiny_tokenizer, prompts, [3, 0], 12, Sampling(), Budget()))
    monkeypatch.undo()
    assert [found[n][0] for n in range(7)] == answer(model, tiny_tokenizer, prompts, [3, 0], 12)
    pieces = [rows for rows, columns in read[1:] if columns > 1]
    # longest first: 16, 11, 8, 3 and three of none before the last
    assert pieces == {1: [1, 1, 1, 4], 25: [1, 6], 4096: [7]}[at_once]
    assert max(rows for rows, columns in read if columns == 1 and rows > 1) == 7


@pytest.mark.parametrize(
    "kind",
    [
        "qwen3_5_text",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("granitemoehybrid", "nemotron_h", "lfm2", "falcon_h1")
        ),
    ],
)
def test_answers_of_another_family(kind: str, tiny_tokenizer: Any) -> None:
    """Its caches are transformers' own: no beginning is shared, and every answer is plain
    transformers' of its prompt."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from hybrid_ft.hybrid_model.families.known import family_of_type
    from hybrid_ft.hybrid_model.lay_flat import lay_flat

    tokens = {"vocab_size": len(tiny_tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **tokens | {"initializer_range": 0.3} | dict(family_of_type(kind).tiny[kind]))
    plain = AutoModelForCausalLM.from_config(config).float().eval()
    shared = ids(70, 3)
    prompts = [[*shared, *ids(2 + 3 * n, n)] for n in range(4)]
    with torch.no_grad():
        rows = [
            plain.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8, pad_token_id=0)[0, len(prompt) :]
            for prompt in prompts
        ]
    expected = [tiny_tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    model = lay_flat(plain)
    found = dict(write_answers(model, tiny_tokenizer, prompts, [3], 8, Sampling(), Budget(tokens=200)))
    assert [found[number][0] for number in range(4)] == expected
    assert len(set(expected)) == 4


def test_states_are_float32_in_a_model_of_bfloat16(steady_base: Path) -> None:
    from hybrid_ft.finetune.evaluation.written import _states_of
    from hybrid_ft.hybrid_model.door.cache import DeltaCache

    states = _states_of(hybrid_ft.load(steady_base, dtype=torch.bfloat16).eval(), ids(70, 1))
    assert states is not None
    kept = [layer.state for layer in states.layers if isinstance(layer, DeltaCache)]
    assert kept and all(state is not None and state.dtype == torch.float32 for state in kept)


def test_answers_end_at_a_text_of_their_own(model: Any, tiny_tokenizer: Any) -> None:
    """Where the new tokens hold it, not where the prompt's end begins it; a row that has ended waits for the others."""
    prompts = [ids(4 + n, n + 2) for n in range(8)]

    def asked(stops: list[str]) -> dict[int, tuple[str, int]]:
        return dict(write_answers(model, tiny_tokenizer, prompts, [3, 0], 16, Sampling(), Budget(), stops))

    whole = asked([])
    longest = max(whole, key=lambda number: len(whole[number][0]))
    text = whole[longest][0]
    across = [str(tiny_tokenizer.decode(prompts[n][-1:])) + whole[n][0][:1] for n in whole if whole[n][0]]
    stops = [text[-4:-2], *(stop for stop in across if not any(stop in each for each, _ in whole.values()))]
    assert len(text) > 6 and len(stops) > 1
    ended = asked(stops)
    for number, (found, tokens) in ended.items():
        full, at = whole[number][0], whole[number][0].find(stops[0])
        assert found == (full if at < 0 else full[: at + 2])
        assert tokens == whole[number][1] if at < 0 else tokens <= whole[number][1]
    assert ended[longest][1] < whole[longest][1]


@pytest.mark.parametrize("shared", [0, 80])
def test_rows_that_have_ended_leave_their_batch(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, shared: int
) -> None:
    """In two batches, each answer is what its prompt alone gives up to the text; few columns are
    read for ended rows."""
    prompts = [ids(shared, 1) + ids(5 + n % 7, n + 2) for n in range(40)]
    whole = answer(model, tiny_tokenizer, prompts, [3, 0], 40)
    # the letter that ends most answers early and leaves some long
    ends = {letter: [text.find(letter) + 1 or len(text) for text in whole] for letter in sorted(set("".join(whole)))}
    letter = min(ends, key=lambda one: abs(statistics.median(ends[one]) - 6) - (max(ends[one]) > 25) * 10)
    assert max(ends[letter]) > 2 * statistics.median(ends[letter])
    columns = 0
    forward = type(model.base_model).forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal columns
        shape = kwargs["input_ids"].shape
        columns += shape[0] if shape[1] == 1 else 0
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.base_model), "forward", watched)
    read = {}
    for least in (4, 1000):
        columns = 0
        monkeypatch.setattr(written, "_WORTH_LEAVING", least)
        found = dict(write_answers(model, tiny_tokenizer, prompts, [3, 0], 40, Sampling(), Budget(rows=20), [letter]))
        for number, text in enumerate(whole):
            assert found[number][0] == text.partition(letter)[0] + letter * (letter in text)
        read[least] = columns
    assert read[4] < 0.9 * read[1000]


def test_the_tags_of_a_thought_are_text_where_they_are_special_tokens(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them no one could tell where the answer begins."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<unseen>"]})
    begin, end, unseen = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<unseen>"])
    answer_ids = [begin, *tokenizer("so")["input_ids"], end, unseen, *tokenizer("yes")["input_ids"]]
    monkeypatch.setattr(written, "_continue", lambda *_: [answer_ids])
    found = dict(write_answers(model, tokenizer, [ids(3, 1)], [0], 8, Sampling(), Budget(tokens=60)))
    assert found[0][0].replace(" ", "") == "<think>so</think>yes"
