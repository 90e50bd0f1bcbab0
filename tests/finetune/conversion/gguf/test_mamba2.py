"""Granite 4 H, Bamba and Falcon-H1 as GGUF files, against transformers' own equations."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.bamba.modeling_bamba import apply_rotary_pos_emb

from hybrid_ft import cli

gguf = pytest.importorskip("gguf")


def assert_mixer(tensors: dict[str, torch.Tensor], stored: dict[str, torch.Tensor], groups: int) -> None:
    assert torch.equal(tensors["blk.0.ssm_a"], -stored["model.layers.0.mamba.A_log"].exp()[:, None])
    assert torch.equal(tensors["blk.0.ssm_d"], stored["model.layers.0.mamba.D"][:, None])
    assert torch.equal(tensors["blk.0.ssm_dt.bias"], stored["model.layers.0.mamba.dt_bias"])
    assert torch.equal(tensors["blk.0.ssm_conv1d.weight"], stored["model.layers.0.mamba.conv1d.weight"].squeeze(1))
    assert torch.equal(tensors["blk.0.ssm_norm.weight"], stored["model.layers.0.mamba.norm.weight"].view(groups, -1))


@pytest.mark.parametrize("experts", [4, 0])
def test_granite(made: Any, exported: Any, tmp_path: Any, experts: int) -> None:
    more = {"num_local_experts": experts, "num_experts_per_tok": min(experts, 2), "mamba_n_groups": 2}
    base = made("granitemoehybrid", split="qwen2", embedding_multiplier=3.0, **more)
    tensors, settings, stored = exported(base, tmp_path / "out")
    assert_mixer(tensors, stored, 2)
    gate, up = stored["model.layers.1.shared_mlp.input_linear.weight"].chunk(2)
    shared = "_shexp" if experts else ""
    assert torch.equal(tensors[f"blk.1.ffn_gate{shared}.weight"], gate)
    assert torch.equal(tensors[f"blk.1.ffn_up{shared}.weight"], up)
    if experts:
        both = stored["model.layers.1.block_sparse_moe.input_linear.weight"]
        assert torch.equal(torch.cat([tensors[f"blk.1.ffn_{part}_exps.weight"] for part in ("gate", "up")], 1), both)
    wanted = {
        "attention.scale": 0.25, "embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 4.0,
        "attention.head_count_kv": [0, 0, 2, 0], "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 128,
        "rope.scaling.finetuned": False,
    }  # fmt: skip
    assert {name: settings[name] for name in wanted} == wanted


def test_the_queries_of_bamba_turn_as_neighbours(made: Any, exported: Any, tmp_path: Any) -> None:
    """What llama.cpp turns, pairs (2i, 2i + 1), gives the scores that transformers gives with (i, i + n / 2)."""
    base = made("bamba", split="qwen2")
    tensors, settings, stored = exported(base, tmp_path / "out")
    assert_mixer(tensors, stored, 1)
    assert settings["rope.dimension_count"] == 8 and settings["rope.scaling.finetuned"] is True
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(5.0)[:, None] * 10_000.0 ** (-torch.arange(0, 8, 2) / 8)

    def scores(weights: Any, turned: Any) -> torch.Tensor:
        q, k = ((x @ weights(part).T).view(5, -1, 16).transpose(0, 1) for part in "qk")
        q, k = turned(q, k.repeat_interleave(2, dim=0))
        return q @ k.transpose(1, 2)

    def neighbours(*parts: torch.Tensor) -> list[torch.Tensor]:
        made = []
        for part in parts:
            pairs = torch.view_as_complex(part[..., :8].unflatten(-1, (4, 2)).contiguous())
            turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
            made.append(torch.cat([turned, part[..., 8:]], dim=-1))
        return made

    def halves(q: torch.Tensor, k: torch.Tensor) -> list[torch.Tensor]:
        cos, sin = (torch.cat([f(angles)] * 2, dim=-1)[None] for f in (torch.cos, torch.sin))
        return [part[0] for part in apply_rotary_pos_emb(q[None], k[None], cos, sin)]

    got = scores(lambda part: tensors[f"blk.1.attn_{part}.weight"], neighbours)
    want = scores(lambda part: stored[f"model.layers.1.self_attn.{part}_proj.weight"], halves)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-4) and want.std() > 0.1


MULTIPLIERS: dict[str, Any] = {
    "embedding_multiplier": 2.0, "lm_head_multiplier": 0.5, "key_multiplier": 0.7, "attention_in_multiplier": 0.9,
    "attention_out_multiplier": 1.1, "ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.8,
    "mlp_multipliers": [0.8, 0.6], "ssm_multipliers": [0.5, 0.7, 1.2, 0.9, 1.1],
}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_falcons_weights_hold_its_multipliers(made: Any, exported: Any, tmp_path: Any, tied: bool) -> None:
    """The file's weights in a model whose multipliers are 1 give the model's logits."""
    base = made("falcon_h1", split="qwen2", mamba_rms_norm=False, tie_word_embeddings=tied, **MULTIPLIERS)
    tensors, _, stored = exported(base, tmp_path / "out")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.FALCON_H1, 4)
    ones = {key: [1.0] * len(value) if isinstance(value, list) else 1.0 for key, value in MULTIPLIERS.items()}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    plain = type(model)(type(model.config)(**model.config.to_dict() | ones | {"tie_word_embeddings": False})).eval()
    weights = {}
    for name, old in plain.state_dict().items():
        asked = name.replace("dt_bias", "dt_proj.bias")
        new = tensors[names.get_name(asked, try_suffixes=(".weight", ".bias"))]
        weights[name] = ((-new).log() if name.endswith("A_log") else new).view(old.shape)
    plain.load_state_dict(weights)
    ids = torch.arange(4, 60)[None]
    with torch.no_grad():
        got, want = (each(ids, use_cache=False).logits.double() for each in (plain, model))
    assert float((got - want).norm() / want.norm()) < 1e-5
    assert len(tensors) == len(stored) + tied


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("falcon_h1", {"mamba_rms_norm": True}, "mamba_norm_before_gate is true; llama.cpp norms after the gate"),
        ("falcon_h1", {"mlp_bias": True}, "it has biases"),
        ("granitemoehybrid", {"position_embedding_type": "rope"}, "position_embedding_type is rope"),
        ("granitemoehybrid", {"layer_types": ["full_attention"] * 4}, "it has no Mamba layer"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    made: Any, tmp_path: Any, capsys: Any, kind: str, more: dict[str, Any], reason: str
) -> None:
    base = made(kind, split="qwen2", **more)
    capsys.readouterr()
    assert cli.main(["export", str(base), str(tmp_path / "out"), "--to", "gguf"]) == 2
    error = capsys.readouterr().err
    assert f"cannot be converted: {reason}" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
