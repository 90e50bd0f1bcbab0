"""Commands that can be copied from the screen: quoted, with what the family's server needs."""

import json
import re
from pathlib import Path

import huggingface_hub
import pytest

from hybrid_ft.finetune.runs.next_commands import next_commands
from hybrid_ft.hybrid_model.families.family import VLLM
from hybrid_ft.hybrid_model.families.known import FAMILIES

FLAGS = "--enforce-eager --disable-cascade-attn --mamba_ssm_cache_dtype float32"


def adapter(folder: Path, **settings: object) -> Path:
    folder.mkdir()
    given = {"base_model_name_or_path": "owner/base", "r": 32} | settings
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


def test_of_a_model(tmp_path: Path) -> None:
    place = tmp_path / "my runs" / "model"
    assert next_commands([place], "olmo_hybrid") == [
        f"talk      hybrid-ft chat '{place}'",
        f"answer    hybrid-ft generate '{place}' --prompts prompts.jsonl --out answers.jsonl",
        f"train on  hybrid-ft dpo RECIPE model.path='{place}'",
        f"shrink    hybrid-ft export '{place}' '{place.with_name('int8')}' --to int8",
        f"serve     vllm serve '{place}' {FLAGS}",
        f"publish   hybrid-ft push '{place}' OWNER/NAME --private",
    ]
    assert next_commands([place], "qwen3_next")[-2] == f"serve     vllm serve '{place}'"


@pytest.mark.parametrize(
    ("settings", "rank"), [({}, 32), ({"r": 20}, 32), ({"r": 4, "rank_pattern": {"up_proj": 60}}, 64)]
)
def test_of_an_adapter(tmp_path: Path, settings: dict[str, object], rank: int) -> None:
    place = adapter(tmp_path / "adapter", **settings)
    lines = next_commands([place], "olmo_hybrid")
    assert lines[2:] == [
        f"merge     hybrid-ft merge {place} {tmp_path / 'merged'}",
        f"train on  hybrid-ft dpo RECIPE model.adapter={place}",
        f"serve     vllm serve owner/base --enable-lora --max-lora-rank {rank} --lora-modules tuned={place} {FLAGS}",
        f"publish   hybrid-ft push {place} OWNER/NAME --private",
    ]
    merged = next_commands([place, tmp_path / "merged"], "olmo_hybrid")
    assert merged[0] == f"talk      hybrid-ft chat {tmp_path / 'merged'}" and not any(
        "hybrid-ft merge" in x for x in merged
    )


def test_what_a_server_cannot_do(tmp_path: Path) -> None:
    wide = next_commands([adapter(tmp_path / "adapter", r=1024)], "olmo_hybrid")
    assert wide[-2] == "serve     vLLM serves adapters up to rank 512; merge this one first"
    experts = adapter(tmp_path / "experts", target_parameters=["mlp.experts.down_proj"])
    assert next_commands([experts], "qwen3_next")[-2] == "serve     merge this adapter of experts first"


def test_what_is_said_of_serving_is_what_the_table_says(root: Path, tmp_path: Path) -> None:
    table = (root / "docs/families.md").read_text().partition("## Where a result can be served")[2]
    header, _, *rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert header[2] == f"vLLM {VLLM}"
    served = {kind: row[2].startswith("yes") for row in rows for kind in re.findall(r"`(\w+)`", row[1])}
    assert served.keys() == {kind for family in FAMILIES for kind in (*family.model_types, *family.frames)}
    for kind, yes in served.items():
        line = next_commands([tmp_path / "model"], kind)[-2]
        assert line.startswith("serve     vllm serve" if yes else f"serve     vLLM {VLLM} has no class for {kind}"), (
            kind
        )


@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_5_moe"])
@pytest.mark.parametrize("of", ["a result", "an adapter of a folder", "an adapter of a hub model"])
def test_a_text_model_is_served_as_the_multimodal_one_that_it_came_out_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, of: str
) -> None:
    """vLLM has a class for the multimodal model, and none for its text model alone."""
    base = tmp_path / "base"
    base.mkdir()
    if of == "an adapter of a hub model":
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(base / file))
        place = adapter(tmp_path / "adapter")
    else:
        place = base if of == "a result" else adapter(tmp_path / "adapter", base_model_name_or_path=str(base))
    for model_type in (kind, f"{kind}_text"):
        (base / "config.json").write_text(json.dumps({"model_type": model_type}))
        line = next_commands([place], f"{kind}_text")[-2]
        if model_type == kind:
            assert line.startswith("serve     vllm serve ")
        else:
            assert line.startswith(f"serve     vLLM {VLLM} has no class for {model_type}; ")
