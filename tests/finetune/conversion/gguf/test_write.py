"""GGUF files read back by the gguf package, and by transformers where it knows the architecture."""

import os
import shlex
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybrid_ft import cli
from hybrid_ft.finetune.conversion.gguf import write
from hybrid_ft.hybrid_model.checkpoint.config import BUNDLED

gguf = pytest.importorskip("gguf")


def export(*arguments: Any) -> int:
    return cli.main(["export", *map(str, arguments), "--to", "gguf"])


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, Any]]:
    """Tensors, their types, and the settings, of the one file in a folder."""
    (file,) = folder.iterdir()
    reader = gguf.GGUFReader(file)
    tensors = {each.name: torch.tensor(gguf.quants.dequantize(each.data, each.tensor_type)) for each in reader.tensors}
    types = {each.name: each.tensor_type.name for each in reader.tensors}
    return tensors, types, {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize(("kind", "limit"), [("f32", 1e-6), ("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 5e-2)])
def test_transformers_reads_an_lfm2_with_the_same_logits(made: Any, tmp_path: Path, kind: str, limit: float) -> None:
    """Its reader is not of ours."""
    base = made("lfm2")
    assert export(base, tmp_path / "out", "--type", kind) == 0
    (file,) = (tmp_path / "out").iterdir()
    assert file.name == f"out-{kind.upper()}.gguf" and os.stat(file).st_mode & stat.S_IRUSR
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file=file.name, dtype=torch.float32).eval()
    wanted = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.arange(4, 60)[None]
    with torch.no_grad():
        got, logits = (model(ids, use_cache=False).logits.double() for model in (found, wanted))
    error = float((got - logits).norm() / logits.norm())
    assert error < limit and (kind == "f32" or error > 0)


def test_the_value_heads_of_qwen_change_places(made: Any, tmp_path: Path) -> None:
    """llama.cpp lets value head j use key head j modulo H, transformers j // (HV / H)."""
    base = made("qwen3_5_text", linear_num_value_heads=6, linear_num_key_heads=2)
    assert export(base, tmp_path / "out", "--type", "f32") == 0
    tensors, _, settings = read(tmp_path / "out")
    stored = load_file(base / "model.safetensors")
    place = [0, 3, 1, 4, 2, 5]
    heads = stored["model.layers.0.linear_attn.in_proj_z.weight"].view(6, 16, 64)[place].reshape(96, 64)
    assert torch.equal(tensors["blk.0.attn_gate.weight"], heads)
    qkv = stored["model.layers.0.linear_attn.in_proj_qkv.weight"]
    assert torch.equal(tensors["blk.0.attn_qkv.weight"][:64], qkv[:64])
    assert torch.equal(tensors["blk.0.attn_qkv.weight"][64:], qkv[64:].view(6, 16, 64)[place].reshape(96, 64))
    conv = stored["model.layers.0.linear_attn.conv1d.weight"].squeeze(1)
    assert torch.equal(tensors["blk.0.ssm_conv1d.weight"][64:], conv[64:].view(6, 16, 4)[place].reshape(96, 4))
    rates = -stored["model.layers.0.linear_attn.A_log"][place].exp()
    assert torch.equal(tensors["blk.0.ssm_a"], rates)
    assert torch.equal(tensors["blk.0.ssm_dt.bias"], stored["model.layers.0.linear_attn.dt_bias"][place])
    out = stored["model.layers.0.linear_attn.out_proj.weight"].view(64, 6, 16)[:, place].reshape(64, 96)
    assert torch.equal(tensors["blk.0.ssm_out.weight"], out)
    assert torch.equal(tensors["blk.0.ssm_norm.weight"], stored["model.layers.0.linear_attn.norm.weight"])
    assert torch.equal(tensors["blk.3.attn_q_norm.weight"], stored["model.layers.3.self_attn.q_norm.weight"] + 1)
    assert torch.equal(tensors["output_norm.weight"], stored["model.norm.weight"] + 1)
    assert len(tensors) == len(stored)
    wanted = {
        "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 6, "ssm.inner_size": 96,
        "full_attention_interval": 4, "rope.dimension_count": 8, "rope.dimension_sections": [2, 1, 1, 0],
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32, "block_count": 4,
    }  # fmt: skip
    assert {name: settings[f"qwen35.{name}"] for name in wanted} == wanted


def test_words(made: Any, tmp_path: Path) -> None:
    base = made("qwen3_5_text")
    assert export(base, tmp_path / "out") == 0
    _, types, settings = read(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens, kinds = settings["tokenizer.ggml.tokens"], settings["tokenizer.ggml.token_type"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[-3:] == [f"[PAD{index}]" for index in range(len(tokens) - 3, len(tokens))]
    kind = gguf.TokenType
    end, think, letter = (tokens.index(token) for token in ("<|im_end|>", "<think>", "h"))
    assert [kinds[end], kinds[think], kinds[letter], kinds[-1]] == [
        kind.CONTROL, kind.USER_DEFINED, kind.NORMAL, kind.UNUSED
    ]  # fmt: skip
    assert settings["tokenizer.ggml.merges"][:2] == ["h e", "he l"] and settings["tokenizer.ggml.pre"] == "qwen35"
    assert settings["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert not settings["tokenizer.ggml.add_bos_token"] and settings["tokenizer.chat_template"] == "{{ messages }}"
    assert types["token_embd.weight"] == "F16" and types["blk.0.ssm_conv1d.weight"] == "F32"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_what_is_read_back_and_differs_is_found(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = made("lfm2")
    quantize = gguf.quants.quantize
    monkeypatch.setattr(gguf.quants, "quantize", lambda data, of: quantize(data * (1.01 if data.ndim > 1 else 1), of))
    with pytest.raises(RuntimeError, match=r"is 1.0e-02 off the source's"):
        export(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert export(base, tmp_path / "out") == 0  # over what the first one has left


def tool(folder: Path, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "tool.py").write_text(f"import shutil, sys\n{body}\n")
    path = folder / write.QUANTIZE
    # a first line cannot name an interpreter whose path has a space
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(folder / "tool.py"))} "$@"\n')
    path.chmod(0o755)


def test_q4_k_m_is_made_by_the_tool(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in, which copies: what it makes is read back and compared."""
    base = made("lfm2")
    assert export(base, tmp_path / "out", "--type", "q4_k_m") == 3
    assert "needs llama.cpp's llama-quantize on PATH" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    tool(tmp_path / "bin", "assert sys.argv[3] == 'Q4_K_M'\nshutil.copyfile(*sys.argv[1:3])")
    assert export(base, tmp_path / "out", "--type", "q4_k_m") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["out-Q4_K_M.gguf"]
    tool(tmp_path / "bin", "sys.exit('no such type')")
    assert export(base, tmp_path / "other", "--type", "q4_k_m") == 3
    assert "llama-quantize: failed: no such type" in capsys.readouterr().err and not (tmp_path / "other").exists()
    (tmp_path / "bin" / write.QUANTIZE).write_text("#!/nowhere/python\n")
    assert export(base, tmp_path / "other", "--type", "q4_k_m") == 3
    error = capsys.readouterr().err
    assert "llama-quantize: cannot be started" in error and error.count("\n") == 1 and not (tmp_path / "other").exists()


def test_what_cannot_be_converted_is_said_before_work_begins(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = made("lfm2", split=r"\p{L}+|.")
    for arguments, message in (
        (
            (BUNDLED,),
            "--to gguf: Olmo Hybrid (olmo_hybrid) cannot be converted; known are lfm2, lfm2_moe, qwen3_5_text",
        ),
        ((base,), "tokenizer.json: splits text in a way that llama.cpp has no name for; known are gpt-2, qwen2"),
        ((base, "--type", "q2_k"), "--type: got 'q2_k'; must be one of f32, f16"),
        ((base, "--dtype", "float16"), "--dtype: does not go with --to gguf; take --type"),
        ((base, "--rows", "rows.jsonl"), "--rows: does not go with --to gguf"),
    ):
        assert export(arguments[0], tmp_path / "out", *arguments[1:]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["base"]
