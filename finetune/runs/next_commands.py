"""What can be done with a result, as commands to be typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG
from hybrid_ft.hybrid_model.families.family import VLLM
from hybrid_ft.hybrid_model.families.known import family_of_type

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""


def next_commands(results: list[Path], model_type: str, scores: bool = False) -> list[str]:
    """Lines for the last of ``results``, model folders or an adapter's: what each does, and its command. ``scores``: of
    a reward model."""
    last = results[-1]
    adapter = next((path for path in results if (path / CONFIG).is_file()), None)
    place = shlex.quote(str(last))
    if scores:
        lines = [f"score     hybrid-ft score {place} --rows pairs.jsonl --out scores.jsonl"]
        if adapter == last:
            lines.append(f"merge     hybrid-ft merge {place} {shlex.quote(str(last.with_name('merged')))}")
        return [*lines, f"publish   hybrid-ft push {place} OWNER/NAME --private"]
    lines = [
        f"talk      hybrid-ft chat {place}",
        f"answer    hybrid-ft generate {place} --prompts prompts.jsonl --out answers.jsonl",
    ]
    if adapter == last:
        lines.append(f"merge     hybrid-ft merge {place} {shlex.quote(str(last.with_name('merged')))}")
        lines.append(f"train on  hybrid-ft dpo RECIPE model.adapter={place}")
    else:
        lines.append(f"train on  hybrid-ft dpo RECIPE model.path={place}")
        lines.append(f"shrink    hybrid-ft export {place} {shlex.quote(str(last.with_name('int8')))} --to int8")
    return [*lines, f"serve     {_serve(last, model_type)}", f"publish   hybrid-ft push {place} OWNER/NAME --private"]


def _serve(result: Path, model_type: str) -> str:
    family = family_of_type(model_type)
    served = _served_type(result) or model_type
    if served in family.unserved:
        return f"vLLM {VLLM} has no class for {served}; docs/families.md has what other servers know"
    flags = f" {family.serve_flags}".rstrip()
    if not (result / CONFIG).is_file():
        return f"vllm serve {shlex.quote(str(result))}{flags}"
    config = json.loads((result / CONFIG).read_text(encoding="utf-8"))
    if config.get("target_parameters"):
        return "merge this adapter of experts first"
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    most = next((size for size in _RANKS if size >= rank), None)
    if most is None:
        return f"vLLM serves adapters up to rank {_RANKS[-1]}; merge this one first"
    base, module = shlex.quote(config["base_model_name_or_path"]), shlex.quote(f"tuned={result}")
    return f"vllm serve {base} --enable-lora --max-lora-rank {most} --lora-modules {module}{flags}"


def _served_type(result: Path) -> str | None:
    """``model_type`` of what a server opens, which for a text model out of a multimodal one is another than its own;
    None where that config is not here."""
    path: str | Path | None = result / "config.json"
    if (result / CONFIG).is_file():
        base = json.loads((result / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        path = Path(base).expanduser() / "config.json"
        if not path.is_file():
            path = _cached_config(base)
    if path is None or not Path(path).is_file():
        return None
    found: str | None = json.loads(Path(path).read_text(encoding="utf-8")).get("model_type")
    return found


def _cached_config(name: str) -> str | None:
    """A hub model's ``config.json`` that was fetched for the run; nothing is fetched now."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return found if isinstance(found, str) else None
