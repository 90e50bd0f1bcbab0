"""Every tensor of what transformers saves has a name in llama.cpp, for families that its architectures hold."""

import re

import pytest
from safetensors import safe_open

gguf = pytest.importorskip("gguf")

ARCHITECTURES = {
    "lfm2": "LFM2",
    "olmo2": "OLMO2",
    "olmo3": "OLMO2",
    "qwen3_5_text": "QWEN35",
    "qwen3_5_moe_text": "QWEN35MOE",
    "qwen3_next": "QWEN3NEXT",
    "nemotron_h": "NEMOTRON_H_MOE",
    "granitemoehybrid": "GRANITE_HYBRID",
    "falcon_h1": "FALCON_H1",
    "lfm2_moe": "LFM2MOE",
    "jamba": "JAMBA",
    "bamba": "GRANITE_HYBRID",
}
# What llama.cpp's converter renames, joins or splits itself before it asks for a name.
CONVERTED = (
    r"(dt_bias|e_score_correction_bias|experts\.\d+\.\w+\.weight|(block_sparse_moe|shared_mlp)\.input_linear\.weight)"
)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k == "lfm2" else pytest.mark.slow) for k in ARCHITECTURES]
)
def test_llama_cpp_has_a_name_for_every_tensor(kind, plain_model, tmp_path):
    model = plain_model(kind)
    model.save_pretrained(tmp_path)
    known = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, ARCHITECTURES[kind]), model.config.num_hidden_layers)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if not re.search(rf"{CONVERTED}$", name)]  # noqa: SIM118, not iterable
    assert len(names) > 20
    assert [name for name in names if known.get_name(name, try_suffixes=(".weight", ".bias")) is None] == []
