"""The base that ships here: any transformers opens it, it copies names it never met, and it does not know the task."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoTokenizer, OlmoHybridForCausalLM, PreTrainedTokenizerBase
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

import hybrid_ft


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "hybrid_model" / "tiny"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model() -> OlmoHybridForCausalLM:
    return hybrid_ft.load("tiny")


def continued(
    model: OlmoHybridForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], tokens: int
) -> list[str]:
    """Greedy continuations, all prompts in one batch, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
    return [tokenizer.decode(row, skip_special_tokens=True) for row in made[:, longest:]]


def test_plain_transformers_opens_it(folder: Path, model: OlmoHybridForCausalLM) -> None:
    plain, info = hf.OlmoHybridForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert plain.model.rotary_emb is None
    ids = torch.randint(model.config.vocab_size, (2, 70), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs, ours = plain.eval()(ids, use_cache=False).logits, model(ids, use_cache=False).logits
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6


def test_tokenizer_keeps_every_text_and_renders_turns(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in ('{"a": "b", "c": null}', "Grüße, 东京 🙂\n\t  x", "AB-1049  Mr. O'Neil-Å", "\x00\x7f\u00a0\u200b"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    opened = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert opened == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_it_copies_names_it_never_met(
    model: OlmoHybridForCausalLM, tokenizer: PreTrainedTokenizerBase, script: Callable[[str], ModuleType]
) -> None:
    words = script("quickstart_words")
    rng = random.Random(0)
    names = [(words.person(rng, held_out=True), words.person(rng, held_out=True)) for _ in range(40)]
    prompts = [f"name: {name}; owner: {owner}; colour: red. owner? {owner}. name? " for name, owner in names]
    ids = [[tokenizer.eos_token_id, *tokenizer.encode(prompt.rstrip(), add_special_tokens=False)] for prompt in prompts]
    answers = continued(model, tokenizer, ids, 14)
    right = sum(answer.startswith(f" {name}.") for answer, (name, _) in zip(answers, names, strict=True))
    assert right >= 36


def test_it_does_not_know_the_task(
    model: OlmoHybridForCausalLM, tokenizer: PreTrainedTokenizerBase, root: Path
) -> None:
    rows = (root / "datasets" / "quickstart" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    turns = [json.loads(row)["messages"] for row in rows]
    prompts = [tokenizer.apply_chat_template(pair[:1], add_generation_prompt=True, return_dict=False) for pair in turns]
    answers = continued(model, tokenizer, prompts, 64)
    assert not any(answer.strip() == pair[1]["content"] for answer, pair in zip(answers, turns, strict=True))


def test_the_curve_is_kept(folder: Path) -> None:
    curve = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert [phase for phase in dict.fromkeys(line["phase"] for line in curve)] == ["copies", "recall", "text"]
    assert curve[0]["copied"] < 0.3
    assert curve[-1]["copied"] > 0.95


@pytest.mark.slow
@pytest.mark.first
def test_quickstart_teaches_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of ``make quickstart`` after its set-up: minutes."""
    from hybrid_ft.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["run", "quickstart"]) == 0
    exact, invented = {}, {}
    for name in ("base", "1-sft", "2-dpo"):
        lines = (tmp_path / "runs" / "quickstart" / f"answers-{name}.jsonl").read_text(encoding="utf-8").splitlines()
        answers = [json.loads(line) for line in lines]
        held_out = [line for line in answers if line["source"].endswith("heldout.jsonl")]
        assert len(held_out) >= 300
        exact[name] = sum(line["answer"].strip() == line["reference"] for line in held_out) / len(held_out)
        invented[name] = sum(invents(line["answer"], line["reference"]) for line in answers if line not in held_out)
    assert exact["base"] <= 0.05
    assert exact["1-sft"] >= 0.9
    assert exact["2-dpo"] >= max(0.9, exact["1-sft"] - 0.02)
    assert invented["1-sft"] >= 20  # or there would be nothing to show
    assert invented["2-dpo"] <= invented["1-sft"] / 4


def invents(answer: str, reference: str) -> int:
    """Fields of a record that are null in the reference and something else in the answer; none where
    it is no record."""
    try:
        given = json.loads(answer)
    except ValueError:
        return 0
    return sum(value is None and given.get(field) is not None for field, value in json.loads(reference).items())
