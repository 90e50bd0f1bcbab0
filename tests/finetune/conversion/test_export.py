"""hybrid-ft export: other dtypes and shards read back and compared, and 8 and 4 bits that plain transformers opens."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from export_helpers import export, logits
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from hybrid_ft.finetune.conversion.source import cache_bytes
from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED
from hybrid_ft.hybrid_model.families.known import family_of_type


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.fixture(params=["qwen3_5_text", "nemotron_h", "granitemoehybrid"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny model of another family."""
    kind = request.param
    sizes = family_of_type(kind).tiny[kind] | {"vocab_size": 128, "eos_token_id": 0, "pad_token_id": None}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path / kind)
    return tmp_path / kind


def test_another_dtype_in_small_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        export(BUNDLED, tmp_path / "out", "--to", "transformers", "--dtype", "bfloat16", "--shard-size", "300kB") == 0
    )
    before, after = tensors(BUNDLED), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == torch.bfloat16 and torch.equal(after[name], tensor.bfloat16())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 9 and all(path.stat().st_size < 320_000 for path in files)
    rounded = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16())
        wanted = rounded(torch.arange(4, 60)[None], use_cache=False).logits.double()
    assert torch.equal(logits(tmp_path / "out", dtype=torch.float32), wanted)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["rope_parameters"] == {"rope_theta": None}
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (BUNDLED / name).read_bytes()
    out = capsys.readouterr().out
    assert "every tensor read back from 9 files" in out and "size      2.1 MB of weights" in out


def test_without_a_change_every_byte_is_the_same(other: Path, tmp_path: Path) -> None:
    assert export(other, tmp_path / "out", "--to", "transformers") == 0
    before, after = tensors(other), tensors(tmp_path / "out")
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(tmp_path / "out"), logits(other))


def test_what_a_family_keeps_in_float32_stays(other: Path, tmp_path: Path) -> None:
    assert export(other, tmp_path / "out", "--to", "transformers", "--dtype", "float16") == 0
    model_type = json.loads((other / "config.json").read_text())["model_type"]
    kept = family_of_type(model_type).float32
    after = tensors(tmp_path / "out")
    assert {name: tensor.dtype == torch.float32 for name, tensor in after.items()} == {
        name: name.endswith(kept) for name in after
    }
    assert any(name.endswith(kept) for name in after)


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    large = shutil.copytree(BUNDLED, tmp_path / "large")
    found = load_file(large / "model.safetensors")
    found["model.embed_tokens.weight"][5, 5] = 1e30
    save_file(found, large / "model.safetensors", {"format": "pt"})
    short = shutil.copytree(BUNDLED, tmp_path / "short")
    (short / "model.safetensors").write_bytes((BUNDLED / "model.safetensors").read_bytes()[:-5])
    damaged = shutil.copytree(large, tmp_path / "damaged")
    found["model.embed_tokens.weight"][5, 5] = math.nan
    save_file(found, damaged / "model.safetensors", {"format": "pt"})
    there = {path for path in tmp_path.rglob("*")}
    for arguments, message, status in (
        ((BUNDLED, "{t}/out", "--to", "onnx"), "--to: got 'onnx'; must be one of transformers, int8, int4, gguf", 2),
        ((BUNDLED, "{t}/out", "--to", "transformers", "--dtype", "int3"), "dtype: got 'int3'; must be one of", 2),
        ((BUNDLED, "{t}/out", "--to", "transformers", "--shard-size", "big"), "--shard-size: got 'big'; must be", 2),
        ((BUNDLED, "{t}/out", "--to", "int8", "--shard-size", "5GB"), "--shard-size: goes with --to transformers", 2),
        ((BUNDLED, "{t}/there", "--to", "transformers"), "is there already", 2),
        ((BUNDLED, "{t}/none/out", "--to", "transformers"), "its folder does not exist", 2),
        ((adapter, "{t}/out", "--to", "transformers"), "is an adapter; make a model of it first: hybrid-ft merge", 2),
        ((short, "{t}/out", "--to", "transformers"), "it is damaged, copy it again", 2),
        ((large, "{t}/out", "--to", "transformers", "--dtype", "float16"), "not finite in torch.float16", 4),
        ((damaged, "{t}/out", "--to", "transformers"), "values that are not finite; take another checkpoint", 2),
        ((BUNDLED, "{t}/out", "--to", "transformers", "--rows", "{t}/rows.jsonl"), "rows.jsonl", 2),
    ):
        assert export(*(str(part).format(t=tmp_path) for part in arguments)) == status, message
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert {path for path in tmp_path.rglob("*")} == there


def test_the_memory_of_a_conversation() -> None:
    """Keys and values of 2 attention layers of 4, with 2 heads of 16, for 10 tokens in 16 bits."""
    config = AutoConfig.for_model("lfm2", **family_of_type("lfm2").tiny["lfm2"])
    config.layer_types = ["conv", "full_attention", "conv", "full_attention"]
    assert cache_bytes(config, 10) == 2 * 2 * 10 * 2 * 2 * 16
