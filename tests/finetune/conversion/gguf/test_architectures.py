"""Olmo 2 and 3 as GGUF files: windows, and positions that are stretched."""

from typing import Any

import pytest
from safetensors.torch import load_file

from hybrid_ft import cli

gguf = pytest.importorskip("gguf")

WINDOW = {"rope_type": "default", "rope_theta": 500000.0}
YARN = {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 8.0, "original_max_position_embeddings": 512}


def test_olmo_3(made: Any, tmp_path: Any) -> None:
    rope = {"sliding_attention": WINDOW, "full_attention": YARN | {"attention_factor": 1.2079441541679836}}
    base = made("olmo3", split="qwen2", max_position_embeddings=4096, rope_parameters=rope)
    assert cli.main(["export", str(base), str(tmp_path / "out"), "--to", "gguf", "--type", "q8_0"]) == 0
    reader = gguf.GGUFReader(next((tmp_path / "out").iterdir()))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    wanted = {
        "attention.sliding_window": 16, "attention.sliding_window_pattern": [True, True, True, False],
        "rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 512,
        "rope.freq_base": 500000.0, "attention.head_count_kv": 2, "feed_forward_length": 96,
    }  # fmt: skip
    assert {name: fields[f"olmo2.{name}"] for name in wanted} == wanted
    assert len(reader.tensors) == len(load_file(base / "model.safetensors"))


@pytest.mark.parametrize(
    ("rope", "reason"),
    [
        (
            {"sliding_attention": WINDOW | {"rope_theta": 1e4}, "full_attention": WINDOW},
            "its layers with a window turn",
        ),
        ({"sliding_attention": YARN, "full_attention": YARN}, "its layers with a window turn"),
        ({"sliding_attention": WINDOW, "full_attention": YARN | {"beta_fast": 16}}, "rope_parameters.beta_fast is 16"),
        (
            {"sliding_attention": WINDOW, "full_attention": WINDOW | {"rope_type": "linear", "factor": 2.0}},
            "rope_type is linear; default and yarn are written",
        ),
    ],
)
def test_positions_that_llama_cpp_turns_otherwise_are_refused(
    made: Any, tmp_path: Any, capsys: Any, rope: dict[str, Any], reason: str
) -> None:
    base = made("olmo3", split="qwen2", max_position_embeddings=4096, rope_parameters=rope)
    capsys.readouterr()
    assert cli.main(["export", str(base), str(tmp_path / "out"), "--to", "gguf"]) == 2
    error = capsys.readouterr().err
    assert f"cannot be converted: {reason}" in error and error.count("\n") == 1
