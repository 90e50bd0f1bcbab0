"""Runs on other families than Olmo Hybrid, from folders as plain transformers saves them, and
what they leave behind."""

import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import hybrid_ft
from hybrid_ft import cli
from hybrid_ft.errors import InputError
from hybrid_ft.finetune import pipeline
from hybrid_ft.hybrid_model.families.known import FAMILIES, family_of, family_of_type

LORA = {"lora": {"targets": "all-linear", "rank": 4, "alpha": 8, "merge": True}}
OTHERS = [kind for family in FAMILIES for kind in family.tiny if kind not in ("olmo_hybrid", "qwen3_5_text")]
KINDS = ["qwen3_5", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)]


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A random model with a tokenizer beside it; Qwen3.5 with a vision tower and heads for further tokens."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind) / "base"
    tokens = {"vocab_size": 128, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": 0}
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        if kind == "qwen3_5":
            text = dict(family_of_type("qwen3_5_text").tiny["qwen3_5_text"]) | tokens
            vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 64}
            config = AutoConfig.for_model(kind, text_config=text, vision_config=vision, tie_word_embeddings=True)
            AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
            whole = load_file(folder / "model.safetensors") | {"mtp.norm.weight": torch.ones(5)}
            save_file(whole, folder / "model.safetensors", {"format": "pt"})
        else:
            config = AutoConfig.for_model(kind, **tokens | dict(family_of_type(kind).tiny[kind]))
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_result(folder: Path, base: Path) -> None:
    """The base's names, something trained, what is beside the text model as it was; it opens again here."""
    before, after = weights(base), weights(folder)
    assert {name: x.shape for name, x in before.items()} == {name: x.shape for name, x in after.items()}
    changed = {name for name, x in before.items() if not torch.equal(x, after[name])}
    assert not any("router" in name or ".gate.weight" in name for name in changed)
    assert changed and not any(name.startswith(("mtp.", "model.visual.")) for name in changed)
    kept = {"torch_dtype", "dtype", "transformers_version"}
    read = [json.loads((of / "config.json").read_text()) for of in (base, folder)]
    assert {k: v for k, v in read[0].items() if k not in kept} == {k: v for k, v in read[1].items() if k not in kept}
    with torch.no_grad():
        assert hybrid_ft.load(folder)(torch.arange(4, 20)[None], use_cache=False).logits.isfinite().all()


def test_sft_of_all_weights(start: Any, base: Path) -> None:
    run = start(model={"path": str(base)}, held_out=3, evaluate={"answers": 2, "every": 3})
    assert run.status == 0 and all(math.isfinite(loss) for loss in run.metrics().values())
    assert_result(run.folder / "model", base)


def test_sft_with_lora(start: Any, base: Path) -> None:
    """The adapter opens with PEFT on plain transformers, as the export checks; merged it is as the base is."""
    run = start(model={"path": str(base)} | LORA)
    assert run.status == 0
    assert (run.folder / "adapter/adapter_model.safetensors").is_file()
    assert_result(run.folder / "merged", base)


@pytest.mark.slow
def test_sft_with_lora_on_experts_goes_on_and_is_merged(start: Any, base: Path, tmp_path: Path) -> None:
    experts = family_of(hybrid_ft.load(base).config).experts
    wanted = {"lora": {"targets": "attention+experts", "rank": 4, "alpha": 8}}
    if not experts:
        with pytest.raises(InputError, match="has no routed experts"):
            start(model={"path": str(base)} | wanted)
        return
    run = start(model={"path": str(base)} | wanted)
    config = json.loads((run.folder / "adapter/adapter_config.json").read_text())
    assert config["target_parameters"] == sorted(experts) and config["target_modules"]
    trained = load_file(run.folder / "adapter/adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in trained.items() if "experts" in name)
    on = start("on", model={"path": str(base), "adapter": str(run.folder / "adapter")})
    after = load_file(on.folder / "adapter/adapter_model.safetensors")
    assert after.keys() == trained.keys() and not all(torch.equal(after[name], x) for name, x in trained.items())
    assert cli.main(["merge", str(on.folder / "adapter"), str(tmp_path / "merged")]) == 0
    assert_result(tmp_path / "merged", base)
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), on.folder / "adapter").eval()
    tokens = torch.arange(4, 40)[None]
    with torch.no_grad():
        theirs, ours = (
            model(tokens, use_cache=False).logits for model in (opened, hybrid_ft.load(tmp_path / "merged"))
        )
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_run_of_sft_and_dpo(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages in a row, the second from the first one's merged result. DPO itself refuses a first loss that is not
    that of equal models."""
    monkeypatch.chdir(tmp_path)
    pairs = [{"prompt": f"ab{i}", "chosen": "cd", "rejected": f"ef {i}"} for i in range(6)]
    rows = [{"prompt": f"ab{i}", "completion": f"cd {i}"} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    train = {"steps": 2, "batch_tokens": 200, "learning_rate": 0.01}
    sft = {"model": {"path": str(base)} | LORA, "train": train}
    dpo = {"model": LORA, "dpo": {"pairs_per_step": 3}, "train": train}
    for stage, file in ((sft, "rows.jsonl"), (dpo, "pairs.jsonl")):
        stage["data"] = {"sources": [{"path": file}], "max_length": 100, "eval": {"fraction": 0.4}}
    (tmp_path / "all.yaml").write_text(json.dumps({"stages": [{"sft": sft}, {"dpo": dpo}]}))
    screen = io.StringIO()
    assert pipeline.run("all.yaml", [], Console(file=screen, width=200)) == 0, screen.getvalue()
    first, second = (tmp_path / f"runs/all/{stage}/merged" for stage in ("1-sft", "2-dpo"))
    assert_result(first, base)
    assert_result(second, first)


def test_the_first_loss_is_that_of_plain_transformers(start: Any, base: Path) -> None:
    """Heads whose logits are scaled included: the fused head multiplies as transformers does."""
    run = start(model={"path": str(base)}, train={"steps": 1, "batch_tokens": 4096, "batch_size": 12}, rows=12)
    multimodal = "text_config" in json.loads((base / "config.json").read_text())
    plain = (AutoModelForImageTextToText if multimodal else AutoModelForCausalLM).from_pretrained(base).eval()
    total, count = 0.0, 0
    for ids, labels in zip(run.prepared.train["input_ids"], run.prepared.train["labels"], strict=True):
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        targets = torch.tensor(labels[1:])
        total += float(torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"))
        count += int((targets != -100).sum())
    assert run.metrics()[1] == pytest.approx(total / count, rel=1e-4)


def test_lora_on_layers_that_the_family_has_not_is_refused(base: Path, tiny_tokenizer: Any) -> None:
    from hybrid_ft.finetune.data.tokens.vocabulary import check_fits
    from hybrid_ft.finetune.recipe.model_section import Model

    sets = family_of_type(json.loads((base / "config.json").read_text())["model_type"])
    has_delta = "delta" in sets.lora(hybrid_ft.load(base).config)
    wanted = Model(path=str(base), lora={"targets": "delta"})
    if has_delta:
        check_fits(wanted, tiny_tokenizer)
    else:
        with pytest.raises(InputError, match="'delta' cannot be adapted in .*; use one of all-linear, "):
            check_fits(wanted, tiny_tokenizer)
