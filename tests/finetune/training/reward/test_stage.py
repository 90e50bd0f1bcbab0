"""Whole runs of a reward model: how they begin, stop, go on and end, and what opens their result."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import LORA_ALONE, RESUMED_IN_EACH_WAY, resumed_and_whole, timeless
from safetensors.torch import load_file

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.training.reward.trainer import ScoreTrainer


def rows_of(tokens: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows, two of them padded on the right, and their mask."""
    ids = torch.randint(4, 80, (3, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, end in ((0, 9), (2, 17)):
        mask[row, end:] = 0
    return ids, mask


@torch.no_grad()
def scored(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    pad = model.config.pad_token_id
    return model.eval()(input_ids=ids.masked_fill(mask == 0, pad), attention_mask=mask).logits.squeeze(-1)


@RESUMED_IN_EACH_WAY
def test_resumed_equals_uninterrupted(start_reward: Any, monkeypatch: pytest.MonkeyPatch, model: dict) -> None:
    """21 pairs are steps of 8, 8 and 5. Killed in step 4, stopped in step 5."""
    more = {"model": model, "rows": 21, "held_out": 6, "evaluate": {"every": 3}, "train": {"batch_tokens": 60}}
    resumed, whole = resumed_and_whole(monkeypatch, start_reward, ScoreTrainer, **more)
    assert [line["pairs"] for line in timeless(resumed) if "pairs" in line] == [8, 8, 5, 8, 8, 5]
    assert timeless(resumed) == timeless(whole)


def test_what_is_seen_kept_and_opened(start_reward: Any, plain_scorer: Any) -> None:
    """The result gives plain transformers the scores that it gives here, padded rows among them."""

    import hybrid_ft

    run = start_reward(held_out=6, evaluate={"every": 3}, reward={"center_rewards_coefficient": 0.01})
    assert run.status == 0
    first, *_ = timeless(run.folder)
    assert first["pairs"] == 8 and 0 <= first["accuracy"] <= 1
    assert first["min_reward"] <= first["mean_reward"] <= first["max_reward"]
    held = [line for line in timeless(run.folder) if "eval_loss" in line]
    assert [line["step"] for line in held] == [3, 6] and held[0]["eval_pairs"] == 6 and "eval_accuracy" in held[0]
    assert "loss Bradley-Terry, scores drawn to 0 by 0.01" in run.screen and "held-out  before loss" in run.screen
    assert "hybrid-ft chat" not in run.screen and "hybrid-ft merge" not in run.screen
    record = json.loads((run.folder / "run.json").read_text())
    assert record["stage"] == "reward" and record["finished"]["held_out"]["pairs"] == 6
    result = run.folder / "model"
    assert not (result / "generation_config.json").exists()
    plain = plain_scorer.from_pretrained(result, dtype=torch.float32)
    ours = hybrid_ft.load(result, dtype="float32")
    assert plain.config.num_labels == 1 and plain.config.pad_token_id is not None
    expected = scored(plain, *rows_of())
    assert expected.std() > 0 and torch.allclose(scored(ours, *rows_of()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_adapter_opens_with_peft_merges_and_goes_on(
    start_reward: Any, tiny_base: Path, tmp_path: Path, plain_scorer: Any
) -> None:
    from peft import PeftModel

    import hybrid_ft
    from hybrid_ft.cli import main

    run = start_reward(model=LORA_ALONE, train={"steps": 4, "learning_rate": 1e-2})
    base = plain_scorer.from_pretrained(tiny_base, num_labels=1, dtype=torch.float32)
    merged = plain_scorer.from_pretrained(run.folder / "merged", dtype=torch.float32)
    base.config.pad_token_id = merged.config.pad_token_id
    expected = scored(PeftModel.from_pretrained(base, str(run.folder / "adapter")), *rows_of())
    assert torch.allclose(scored(merged, *rows_of()), expected, rtol=1e-4, atol=1e-5)
    assert main(["merge", str(run.folder / "adapter"), str(tmp_path / "again")]) == 0
    assert torch.allclose(scored(hybrid_ft.load(tmp_path / "again", dtype="float32"), *rows_of()), expected, rtol=1e-3)
    further = start_reward("more", model={"adapter": str(run.folder / "adapter"), "lora": {}}, train={"steps": 1})
    assert further.status == 0 and f"{run.folder / 'adapter'}: " in further.screen
    before, after = (load_file(of.folder / "adapter" / "adapter_model.safetensors") for of in (run, further))
    close = [name for name in before if torch.allclose(before[name], after[name], atol=2e-3)]
    assert before.keys() == after.keys() and len(close) == len(before)
    assert any(not torch.equal(before[name], after[name]) for name in before if "score" in name)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "layer"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_an_adapter_and_its_head_are_trained_on_a_quantised_base(
    start_reward: Any, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, plain_scorer: Any, how: str, layer: str
) -> None:
    from peft import PeftModel

    pytest.importorskip("bitsandbytes")
    seen: dict[str, Any] = {}
    step = ScoreTrainer.training_step

    def watched(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        seen["model"] = model
        return step(self, model, *args, **kwargs)

    monkeypatch.setattr(ScoreTrainer, "training_step", watched)
    run = start_reward(model=LORA_ALONE | {"quantize": how}, train={"steps": 4, "learning_rate": 1e-2})
    assert run.status == 0
    kinds = {name: type(module).__name__ for name, module in seen["model"].named_modules()}
    packed = [name for name, kind in kinds.items() if kind == layer]
    assert packed and not any("score" in name or name.endswith(("a_proj", "b_proj")) for name in packed)
    trained = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert all(tensor.any() for tensor in trained.values()) and any("score" in name for name in trained)
    # merged into the base as it was: near what was trained on the rounded one, and no further from it than rounding
    base = plain_scorer.from_pretrained(tiny_base, num_labels=1, dtype=torch.float32)
    merged = plain_scorer.from_pretrained(run.folder / "merged", dtype=torch.float32)
    base.config.pad_token_id = merged.config.pad_token_id
    expected = scored(PeftModel.from_pretrained(base, str(run.folder / "adapter")), *rows_of())
    assert torch.allclose(scored(merged, *rows_of()), expected, rtol=1e-4, atol=1e-5)
    rounded = scored(seen["model"], *rows_of())
    assert 0 < (rounded - expected).norm() < 0.3 * expected.norm()


def test_a_reward_model_is_named_where_words_are_asked_for(
    start_reward: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit status 2, nothing written."""
    from hybrid_ft.cli import main

    result = start_reward(rows=8, train={"steps": 1}, reward={"pairs_per_step": 4}).folder / "model"
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "ab?", "completion": "cd"}) + "\n")
    (tmp_path / "r.yaml").write_text(
        f"model: {{path: {result}}}\ndata: {{sources: [{{path: {tmp_path / 'q.jsonl'}}}]}}\noutput: {tmp_path / 'no'}\n"
    )
    for command in (
        ["chat", str(result)],
        ["generate", str(result), "--prompts", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "no")],
        ["export", str(result), str(tmp_path / "no"), "--to", "transformers"],
        ["sft", str(tmp_path / "r.yaml")],
    ):
        assert main(command) == 2
        said = capsys.readouterr().err.strip()
        assert "holds a reward model" in said and len(said.splitlines()) == 1, said
        assert not (tmp_path / "no").exists()


def test_an_adapter_of_another_kind_does_not_go_on(start_reward: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from hybrid_ft.finetune import models

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    monkeypatch.setattr(models, "check_base", lambda folder, base: None)
    for task, lora, says in (("CAUSAL_LM", {}, "has no head that scores"),):
        raw = {"peft_type": "LORA", "base_model_name_or_path": "tiny", "task_type": task}
        (adapter / "adapter_config.json").write_text(json.dumps(raw))
        (adapter / "adapter_model.safetensors").touch()
        with pytest.raises(InputError, match=says):
            start_reward(model={"adapter": str(adapter), "lora": lora})
    assert not (tmp_path / "run").exists()


def test_its_card_and_report_are_of_scores(start_reward: Any) -> None:
    from io import StringIO

    from rich.console import Console

    from hybrid_ft.finetune.hub import push

    folder = start_reward(
        rows=8, held_out=4, evaluate={"every": 1}, train={"steps": 2}, reward={"pairs_per_step": 4}
    ).folder
    assert push.run(folder / "model", "me/scorer", Console(file=StringIO()), dry_run=True) == 0
    card = (folder / "model" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "AutoModelForCausalLM" not in card
    assert "one score" in card and "training a reward model" in card and "| held-out accuracy |" in card
    report = (folder / "report.html").read_text()
    assert "score of chosen over rejected" in report and "held-out accuracy" in report
