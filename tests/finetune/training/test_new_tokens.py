"""Runs that give the tokenizer new tokens: their rows are trained, exported, opened elsewhere, merged, gone on with."""

import io
import json
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from peft import PeftModel
from run_helpers import plain_model, refused_keys, stopping
from safetensors.torch import load_file
from transformers import AutoTokenizer, OlmoHybridForCausalLM

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.conversion.merge import run as merge
from hybrid_ft.finetune.generation.generate import load_for_answers
from hybrid_ft.finetune.models import load_model, load_tokenizer

LORA = {"rank": 4, "alpha": 8, "merge": True}
WORDS = {"new_tokens": ["abc"], "new_special_tokens": ["<|now|>"]}
MANY = {"new_tokens": [f"ab{index}" for index in range(70)], "new_special_tokens": ["<|now|>"]}


def logits(model: Any, row: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(row, use_cache=False).logits.double()


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.fixture
def go(tmp_path: Path, tiny_base: Path, tiny_tokenizer: Any) -> Any:
    """``go(output, pairs=False, model={...})`` runs a recipe on messages and pairs that hold the new words."""
    texts = [f"abc {chr(97 + index)}ab{index} cab" for index in range(12)]
    messages = [
        [{"role": "user", "content": f"abc ab3 {text[4]}"}, {"role": "assistant", "content": text}] for text in texts
    ]
    pairs = [{"prompt": f"ab{index} abc", "chosen": text, "rejected": text[::-1]} for index, text in enumerate(texts)]
    for name, rows in (("rows", [{"messages": each} for each in messages]), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(output: str, pairs: bool = False, **sections: Any) -> Path:
        from rich.console import Console

        from hybrid_ft.finetune.training.dpo import stage as dpo
        from hybrid_ft.finetune.training.sft import stage as sft

        recipe = recipe_of(
            tmp_path / f"{'pairs' if pairs else 'rows'}.jsonl", tiny_base, pairs, tmp_path / output, sections
        )
        status = (dpo if pairs else sft).run(recipe, Console(file=io.StringIO(), width=200))
        assert status == sections.get("status", 0)
        return tmp_path / output

    return run


def recipe_of(
    rows: Path, base: Path, pairs: bool = False, output: Path | None = None, sections: Any = MappingProxyType({})
) -> Any:
    from hybrid_ft.finetune.recipe.schema import Recipe

    return Recipe.model_validate(
        {
            "model": {"path": str(base)} | sections.get("model", {}),
            "data": {"sources": [{"path": str(rows)}], "max_length": 64},
            "train": {"steps": 4, "batch_tokens": 128, "learning_rate": 1e-2, "save_every": 2}
            | sections.get("train", {}),
            "output": str(output),
        }
        | ({"dpo": {"pairs_per_step": 4}} if pairs else {})
    )


@pytest.mark.parametrize("words", [WORDS, MANY], ids=["in free rows", "in new rows"])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_rows_begin_at_the_mean_of_their_pieces(base: Path, words: Any) -> None:
    recipe = recipe_of(base, base, sections={"model": words})
    tokenizer = load_tokenizer(recipe)
    before, after = plain_model(base, torch.float32), load_model(recipe, tokenizer)
    vocabulary = 128 if words is WORDS else 192
    for module in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, module)().weight, getattr(after, module)().weight
        ids = tokenizer.convert_tokens_to_ids(words["new_tokens"][0])
        pieces = AutoTokenizer.from_pretrained(base)(words["new_tokens"][0], add_special_tokens=False)["input_ids"]
        assert len(pieces) == 3 and new.shape == (vocabulary, 32)
        assert torch.allclose(new[ids], old[pieces].mean(0))
        assert torch.equal(new[4:80], old[4:80])
        if words is MANY:
            assert torch.allclose(new[-1], old.mean(0), atol=1e-6)
    assert (after.lm_head.weight is after.model.embed_tokens.weight) == before.config.tie_word_embeddings
    assert after.config.vocab_size == vocabulary


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path, tied: bool) -> Path:
    """The tiny base, or one whose head is its embedding."""
    if not tied:
        return tiny_base
    folder = tmp_path / "tied"
    shutil.copytree(tiny_base, folder)
    model = plain_model(tiny_base, torch.float32)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    model.tie_weights()
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("tied", "words"),
    [
        pytest.param(False, WORDS, id="head, in free rows"),
        pytest.param(True, MANY, id="tied, in new rows"),
        pytest.param(False, MANY, id="head, in new rows", marks=pytest.mark.slow),
        pytest.param(True, WORDS, id="tied, in free rows", marks=pytest.mark.slow),
    ],
)
def test_under_lora_the_new_rows_alone_are_trained(go: Any, base: Path, words: Any, tied: bool, tmp_path: Path) -> None:
    """Plain transformers with PEFT, the merged model, the merge command and what chat opens are one model."""
    folder = go("run", model={"path": str(base), "lora": LORA} | words)
    recipe = recipe_of(base, base, sections={"model": {"path": str(base)} | words})
    ids = load_tokenizer(recipe).convert_tokens_to_ids(["abc" if words is WORDS else "ab3", "<|now|>"])
    row = torch.tensor([[5, 9, 33, ids[0], 12, ids[1], 7, ids[0], 44]])
    start = load_model(recipe, load_tokenizer(recipe))
    folded = plain_model(folder / "merged", torch.float32)
    plain = OlmoHybridForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(start.config.vocab_size)
    wanted = logits(folded, row)
    assert relative(logits(PeftModel.from_pretrained(plain, folder / "adapter"), row), wanted) < 1e-5
    assert relative(logits(load_for_answers(str(folder / "adapter"))[0], row), wanted) < 1e-5
    from rich.console import Console

    assert merge(str(folder / "adapter"), str(tmp_path / "out"), None, Console(file=io.StringIO())) == 0
    assert relative(logits(plain_model(tmp_path / "out", torch.float32), row), wanted) < 1e-5
    for module in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(start, module)().weight, getattr(folded, module)().weight
        assert torch.equal(old[4:80], new[4:80])
        assert (old[ids] - new[ids]).abs().amin(1).gt(0).sum() >= 1
    assert (folded.lm_head.weight is folded.model.embed_tokens.weight) == tied
    for place in ("adapter", "merged"):
        tokenizer = AutoTokenizer.from_pretrained(folder / place)
        assert tokenizer.convert_tokens_to_ids("<|now|>") == ids[1]


def test_all_weights_are_trained_and_exported_with_the_tokens(go: Any, tiny_base: Path) -> None:
    folder = go("run", model=MANY)
    opened = plain_model(folder / "model", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert opened.get_input_embeddings().weight.shape == opened.get_output_embeddings().weight.shape == (192, 32)
    assert tokenizer("ab3", add_special_tokens=False)["input_ids"] == [tokenizer.convert_tokens_to_ids("ab3")]
    now = tokenizer.convert_tokens_to_ids(["ab3", "<|now|>"])
    assert tokenizer.decode(now, skip_special_tokens=True) == "ab3"
    again = go("again", model={"path": str(folder / "model")})
    assert plain_model(again / "model", torch.float32).config.vocab_size == 192


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, {"lora": LORA}], ids=["full", "lora"])
def test_resumed_equals_uninterrupted(go: Any, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    whole = go("whole", model=MANY | model)

    with stopping(monkeypatch, after=2):
        go("cut", model=MANY | model, status=75)
    resumed = go("cut", model=MANY | model)
    for file in whole.glob("*/*.safetensors"):
        assert file.read_bytes() == (resumed / file.relative_to(whole)).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("words", [WORDS, MANY], ids=["in free rows", "in new rows"])
def test_pairs_go_on_from_an_adapter_with_new_tokens(go: Any, words: Any) -> None:
    """Its rows are trained further; the reference is the model as it starts, and so is that of a fresh adapter."""
    first = go("first", model={"lora": LORA} | words) / "adapter"
    second = go("second", pairs=True, model={"adapter": str(first)})
    fresh = go("fresh", pairs=True, model={"lora": LORA} | words)
    for folder in (second, fresh):
        line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        assert line["loss"] == pytest.approx(0.6931, abs=1e-4)
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    rows = [load_file(place / "adapter_model.safetensors")[name] for place in (first, second / "adapter")]
    assert rows[0].shape == rows[1].shape and not torch.equal(rows[0], rows[1])
    merged = go("merged", model={"adapter": str(first), "merge_adapter": True, "new_tokens": ["zzz"]})
    assert plain_model(merged / "model", torch.float32).config.vocab_size == (128 if words is WORDS else 192)


def test_words_are_tokens_in_messages_and_control_tokens_are_not(tiny_base: Path) -> None:
    from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens

    tokenizer = load_tokenizer(recipe_of(tiny_base, tiny_base, sections={"model": WORDS}))
    ids = tokenizer.convert_tokens_to_ids(["abc", "<|now|>"])
    control = ControlTokens(tokenizer)
    (encoded,) = control.encode(["abc<|now|>"])
    assert encoded.ids[0] == ids[0] and ids[1] not in encoded.ids
    (encoded,) = control.encode([control.mark("abc<|now|>")])
    assert encoded.ids == ids


def test_a_token_that_is_there_already_is_refused(tiny_base: Path) -> None:
    for words in ({"new_tokens": ["a"]}, {"new_special_tokens": ["<|im_end|>"]}):
        with pytest.raises(InputError, match=r"model\.new_\w*tokens: '.*' is a token of the tokenizer already"):
            load_tokenizer(recipe_of(tiny_base, tiny_base, sections={"model": words}))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("new_tokens: [ab, ab]", "model.new_tokens.1: got 'ab' twice"),
        ("new_tokens: [ab], new_special_tokens: [ab]", "model.new_special_tokens.0: got 'ab' twice"),
        ("new_tokens: [' ']", "model.new_tokens.0: got ' '; must hold more than white space"),
        (
            "adapter: a, new_tokens: [ab]",
            "model.new_tokens: got a list of 1; model.adapter goes on with its own tokens",
        ),
    ],
)
def test_keys_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str) -> None:
    found = refused_keys(tmp_path, monkeypatch, model)
    assert any(message in line for line in found), found
