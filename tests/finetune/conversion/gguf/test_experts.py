"""Models with experts, and Nemotron-H and Jamba without, as GGUF files, against their checkpoints and transformers."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from hybrid_ft import cli

gguf = pytest.importorskip("gguf")

LIST = "layers_block_type"
# For each: what it is made with, a layer with experts, their name there, gate, up and down.
MIXTURES: dict[str, tuple[dict[str, Any], int, str, tuple[str | None, ...]]] = {
    "lfm2_moe": ({}, 1, "model.layers.1.feed_forward", ("w1", "w3", "w2")),
    "qwen3_5_moe_text": ({}, 0, "model.layers.0.mlp", ("gate_proj", "up_proj", "down_proj")),
    "qwen3_next": ({"split": "qwen2"}, 0, "model.layers.0.mlp", ("gate_proj", "up_proj", "down_proj")),
    "kimi_linear": ({}, 1, "model.layers.1.block_sparse_moe", ("w1", "w3", "w2")),
    "jamba": ({}, 1, "model.layers.1.feed_forward", ("gate_proj", "up_proj", "down_proj")),
    "nemotron_h": (
        {LIST: ["linear_attention", "moe", "full_attention", "moe"], "moe_latent_size": 48},
        1, "backbone.layers.1.mixer", (None, "up_proj", "down_proj"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_experts_of_a_layer_are_one_tensor(made: Any, exported: Any, tmp_path: Any, kind: str) -> None:
    more, layer, before, parts = MIXTURES[kind]
    tensors, settings, stored = exported(made(kind, **more), tmp_path / "out")
    count = settings["expert_count"]
    assert count > settings["expert_used_count"] >= 2
    for part, name in zip(("gate", "up", "down"), parts, strict=True):
        if name is not None:
            each = [stored[f"{before}.experts.{number}.{name}.weight"] for number in range(count)]
            assert torch.equal(tensors[f"blk.{layer}.ffn_{part}_exps.weight"], torch.stack(each))
    router = "router" if kind == "jamba" else "gate"
    assert torch.equal(tensors[f"blk.{layer}.ffn_gate_inp.weight"], stored[f"{before}.{router}.weight"])
    chosen_by = [name for name in stored if name.startswith(before) and name.endswith("bias")]
    assert len(chosen_by) == (kind in ("lfm2_moe", "nemotron_h", "kimi_linear"))
    for name in chosen_by:
        assert stored[name].any() and torch.equal(tensors[f"blk.{layer}.exp_probs_b.bias"], stored[name])
    each = [name for name in stored if ".experts." in name]
    split = {"qwen3_next": 3, "kimi_linear": 1}.get(kind, 0)
    assert len(tensors) == len(stored) - len(each) * (count - 1) // count + split


def test_what_qwen_next_keeps_by_key_head_comes_apart(made: Any, exported: Any, tmp_path: Any) -> None:
    base = made("qwen3_next", split="qwen2", linear_num_value_heads=6, linear_num_key_heads=2)
    tensors, _, stored = exported(base, tmp_path / "out")
    mixer = Qwen3NextGatedDeltaNet(AutoConfig.from_pretrained(base), 0)
    x, before = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)), "model.layers.0.linear_attn"
    together = [x @ stored[f"{before}.in_proj_{part}.weight"].T for part in ("qkvz", "ba")]
    q, k, v, z, *_ = (part.flatten(2) for part in mixer.fix_query_key_value_ordering(*together))
    assert torch.allclose(x @ tensors["blk.0.attn_qkv.weight"].T, torch.cat([q, k, v], dim=-1), atol=1e-5)
    assert torch.allclose(x @ tensors["blk.0.attn_gate.weight"].T, z, atol=1e-5)
    assert torch.equal(tensors["blk.0.ssm_ba.weight"], stored[f"{before}.in_proj_ba.weight"])
    assert torch.equal(tensors["blk.0.ssm_a"], -stored[f"{before}.A_log"].exp())
    assert torch.equal(tensors["blk.0.ssm_norm.weight"], stored[f"{before}.norm.weight"])
    assert torch.equal(tensors["blk.0.attn_norm.weight"], stored["model.layers.0.input_layernorm.weight"] + 1)
    assert tensors["blk.0.ffn_gate_inp_shexp.weight"].shape == (64,)


@pytest.mark.parametrize("mlp", ["mlp", "moe"])
def test_a_layer_of_nemotron_is_told_by_its_keys_and_width(made: Any, exported: Any, tmp_path: Any, mlp: str) -> None:
    base = made("nemotron_h", **{LIST: ["linear_attention", mlp, "full_attention", mlp]})
    tensors, settings, stored = exported(base, tmp_path / "out")
    width = {"mlp": 96, "moe": 32}[mlp]
    wanted = {
        "attention.head_count_kv": [0, 0, 2, 0], "feed_forward_length": [0, width, 0, width], "ssm.group_count": 2,
        "ssm.time_step_rank": 4, "ssm.inner_size": 128, "attention.key_length": 16,
    }  # fmt: skip
    assert {name: settings[name] for name in wanted} == wanted
    before = "backbone.layers.0.mixer"
    assert torch.equal(tensors["blk.0.ssm_a"], -stored[f"{before}.A_log"].exp()[:, None])
    assert torch.equal(tensors["blk.0.ssm_d"], stored[f"{before}.D"][:, None])
    assert torch.equal(tensors["blk.0.ssm_dt.bias"], stored[f"{before}.dt_bias"])
    assert torch.equal(tensors["blk.0.ssm_norm.weight"], stored[f"{before}.norm.weight"].view(2, -1))
    assert torch.equal(tensors["output_norm.weight"], stored["backbone.norm_f.weight"])


def test_keys_and_values_of_kimi_come_apart_where_they_are_unfolded(made: Any, exported: Any, tmp_path: Any) -> None:
    tensors, settings, stored = exported(made("kimi_linear"), tmp_path / "out")
    x, both = (
        torch.randn(5, 16, generator=torch.Generator().manual_seed(0)),
        "model.layers.4.self_attn.kv_b_proj.weight",
    )
    heads = (x @ stored[both].T).view(5, 4, 32)  # 16 numbers of a key, 16 of a value
    k = torch.einsum("tc,hcd->thd", x, tensors["blk.4.attn_k_b.weight"])
    v = torch.einsum("tc,hdc->thd", x, tensors["blk.4.attn_v_b.weight"])
    assert torch.allclose(torch.cat([k, v], dim=-1), heads, atol=1e-5)
    assert torch.equal(tensors["blk.0.ssm_a"], -stored["model.layers.0.self_attn.A_log"].exp().view(-1, 1))
    assert torch.equal(tensors["blk.0.ffn_up.weight"], stored["model.layers.0.block_sparse_moe.up_proj.weight"])
    wanted = {
        "attention.head_count_kv": [0, 0, 0, 0, 1], "leading_dense_block_count": 1, "attention.key_length": 24,
        "attention.value_length": 16, "attention.key_length_mla": 24, "attention.value_length_mla": 16,
    }  # fmt: skip
    assert {name: settings[name] for name in wanted} == wanted


def test_jamba_without_experts(made: Any, exported: Any, tmp_path: Any) -> None:
    tensors, settings, stored = exported(made("jamba", num_experts=1), tmp_path / "out")
    assert "expert_count" not in settings and settings["attention.head_count_kv"] == [0, 0, 2, 0]
    assert torch.equal(tensors["blk.0.ssm_a"], -stored["model.layers.0.mamba.A_log"].exp())
    assert torch.equal(tensors["blk.0.ssm_d"], stored["model.layers.0.mamba.D"])
    assert len(tensors) == len(stored)


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("nemotron_h", {}, "it has layers with experts and layers without"),
        ("nemotron_h", {LIST: ["linear_attention", "moe"], "n_group": 2}, "n_group is not 1"),
        ("nemotron_h", {LIST: ["linear_attention", "mlp"], "mlp_bias": True}, "its projections have biases"),
        ("jamba", {"mamba_expand": 3}, "llama.cpp wants mamba_expand 2"),
        ("qwen3_next", {"mlp_only_layers": [1]}, "some of its layers have no experts"),
        ("qwen3_next", {"norm_topk_prob": False}, "norm_topk_prob is false"),
        ("kimi_linear", {"norm_topk_prob": False}, "llama.cpp routes with n_group 1"),
        ("lfm2_moe", {"routed_scaling_factor": 2.0}, "llama.cpp routes with"),
        ("qwen3_5_text", {"linear_value_head_dim": 32}, "linear_key_head_dim and linear_value_head_dim differ"),
        (
            "qwen3_5_text", {"layer_types": ["linear_attention", "full_attention", "full_attention", "linear_attention"]},
            "layer_types is not attention once in 2 layers",
        ),
    ],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_refused(
    made: Any, tmp_path: Any, capsys: Any, kind: str, more: dict[str, Any], reason: str
) -> None:
    base = made(kind, **{"split": "qwen2"} | more)
    capsys.readouterr()
    assert cli.main(["export", str(base), str(tmp_path / "out"), "--to", "gguf"]) == 2
    error = capsys.readouterr().err
    assert f"cannot be converted: {reason}" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()
