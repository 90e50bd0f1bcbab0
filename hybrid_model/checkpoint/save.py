"""Writing a checkpoint in the released layout, reopened by plain transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hybrid_ft.hybrid_model.checkpoint.agreement import difference_of_logits
from hybrid_ft.hybrid_model.checkpoint.base_layout import save_in_base_layout, verify_in_base_layout
from hybrid_ft.hybrid_model.checkpoint.tokenizer import check_vocabulary
from hybrid_ft.hybrid_model.checkpoint.usual_mode import give_usual_mode
from hybrid_ft.hybrid_model.families.family import Released, is_scorer
from hybrid_ft.hybrid_model.families.known import family_of


def save(model: PreTrainedModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Write a checkpoint that transformers and vLLM open: released tensor names, one dtype, config, generation config.

    Every tensor is written in the model's dtype, ``A_log`` and ``dt_bias`` too, because vLLM wants one dtype and the
    released checkpoint has one. (``model.save_pretrained`` keeps these two in float32, so that a resumed run is exact.)
    Raises InputError for a tokenizer that is too large for the model, before anything is written.
    """
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.config)
    folder = Path(folder)
    if family_of(model.config).released is None and not is_scorer(model.config):
        save_in_base_layout(model, folder)
        give_usual_mode(folder.glob("*.safetensors"))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return folder
    dtype = model.dtype
    state_dict = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size="5GB")
    give_usual_mode(folder.glob("*.safetensors"))
    write_config(model.config, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def write_config(config: PreTrainedConfig, folder: Path) -> None:
    """``config.json``, mended where some readers would take it for another model's (no rope for a theta of 10,000)."""
    written = family_of(config).repair(json.loads(config.to_json_string(use_diff=True)))
    text = json.dumps(written, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def verify(folder: str | Path, model: PreTrainedModel) -> float:
    """Open a saved folder as a stranger would, with plain transformers, and compare it with the model in memory.

    Returns the relative L2 difference of the logits of 64 tokens. Raises RuntimeError for a tensor that is missing,
    unexpected or of another shape, for logits that differ by more than two implementations may in float32, for
    rope where the model has none, and for end tokens outside the vocabulary.
    """
    folder = Path(folder)
    family = family_of(model.config)
    if family.released is None or is_scorer(model.config):
        return verify_in_base_layout(folder, model)
    half = model.dtype in (torch.bfloat16, torch.float16)
    compared = torch.float32 if half else model.dtype
    plain, info = getattr(transformers, family.architecture).from_pretrained(
        folder, dtype=compared, output_loading_info=True
    )
    problems = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if problems:
        raise RuntimeError(f"{folder}: transformers reports {problems}")
    _check_names(folder, family.released, model.config)
    if (plain.base_model.rotary_emb is None) != (model.base_model.rotary_emb is None):
        raise RuntimeError(f"{folder}: the saved config and the model differ in whether they have rope")
    ends = plain.generation_config.eos_token_id
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and not 0 <= end < plain.config.vocab_size:
            raise RuntimeError(f"{folder}: end token {end} is outside the vocabulary of {plain.config.vocab_size}")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(plain.config.vocab_size, (1, 64), generator=generator)
    training = model.training
    model.eval()
    try:
        # a trained model blows the rounding of half precision up to any size, so the same weights are run in float32;
        # A_log and dt_bias are rounded first, as they were in saving
        ran = copy.deepcopy(model).to(model.dtype).float() if half else model
        return difference_of_logits(ran, plain.eval(), tokens, folder)
    finally:
        model.train(training)


def _check_names(folder: Path, released: Released, config: PreTrainedConfig) -> None:
    """The files hold the released names and no others: transformers reads more than vLLM does."""
    from safetensors import safe_open

    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    differing = names.symmetric_difference(released.shapes(config))
    if differing:
        raise RuntimeError(f"{folder}: tensor names differ from the released layout: {sorted(differing)[:4]}")
