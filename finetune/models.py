"""Opens a recipe's model and tokenizer, and decides their arithmetic."""

from __future__ import annotations

import math
import re
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from transformers import GenerationConfig, set_seed

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.schema import changed
from hybrid_ft.finetune.runs import device
from hybrid_ft.hybrid_model import adapters
from hybrid_ft.hybrid_model.checkpoint import tokenizer as tokenizers
from hybrid_ft.hybrid_model.checkpoint.adapter_files import read_config, scores
from hybrid_ft.hybrid_model.checkpoint.adapter_start import check_base, open_adapter
from hybrid_ft.hybrid_model.checkpoint.config import find_folder
from hybrid_ft.hybrid_model.checkpoint.merge_in_memory import merge_in_memory
from hybrid_ft.hybrid_model.checkpoint.new_tokens import add_rows, add_tokens
from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.hybrid_model.quantised import check_installed, known_to_peft, quantise, size
from hybrid_ft.hybrid_model.scorer import refuse_scorer

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hybrid_ft.finetune.recipe.schema import Recipe


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The one that the recipe names, or the adapter's where it has one, or the base's; with the recipe's new tokens."""
    return _tokenizer_and_pieces(recipe)[0]


def _tokenizer_and_pieces(recipe: Recipe) -> tuple[PreTrainedTokenizerBase, dict[int, list[int]]]:
    tokenizer = _tokenizer_as_it_lies(recipe)
    return tokenizer, add_tokens(tokenizer, recipe.model.new_tokens, recipe.model.new_special_tokens)


def _tokenizer_as_it_lies(recipe: Recipe) -> PreTrainedTokenizerBase:
    wanted = recipe.model
    if wanted.adapter and not wanted.tokenizer:
        folder = find_folder(wanted.adapter)
        if (folder / "tokenizer.json").is_file():
            return tokenizers.load_tokenizer(folder)
    if not wanted.tokenizer:
        return tokenizers.load_tokenizer(wanted.path, wanted.revision)
    try:
        return tokenizers.load_tokenizer(wanted.tokenizer)
    except InputError as error:
        raise InputError(f"model.tokenizer: {error}", error.status) from None


def in_bfloat16(recipe: Recipe) -> bool:
    """Whether the arithmetic is bfloat16."""
    dtype = recipe.model.dtype
    return dtype == "bfloat16" or (dtype == "auto" and (device.is_gpu() or recipe.train.optimizer == "adamw_bf16"))


def arithmetic(recipe: Recipe) -> AbstractContextManager[object]:
    """Where every forward of a run takes place: steps, reference, trial, held-out loss and answers alike.

    bfloat16 is autocast's: matrix products in bfloat16, norms and losses in float32. Two forwards of which one is
    outside differ by more than a run may begin with: DPO's first loss is off by 0.004. torch would keep every weight's
    bfloat16 copy until the outermost context ends, 13 GB of a 7B and stale after a step; each is used once.
    """
    if not in_bfloat16(recipe):
        return nullcontext()
    return torch.autocast(device.kind(), torch.bfloat16, cache_enabled=False)


def load_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, weights: bool = True) -> PreTrainedModel | PeftModel:
    """The base, and the adapters on it: fresh ones, or one that goes on training; or with one merged. Full weights are
    float32 even where the arithmetic is bfloat16, unless the optimizer keeps more of their bits.

    bfloat16 keeps 8 bits: an update of 2.5e-5 to a weight of 0.02 is lost in rounding, so that a model trained in
    place in bfloat16 hardly moves. Frozen weights, under LoRA, lose nothing. ``weights``: False gives the same without
    the base's values.
    """
    wanted, lora = recipe.model, recipe.model.lora
    small = bool(lora) or recipe.train.optimizer == "adamw_bf16"
    dtype = torch.bfloat16 if in_bfloat16(recipe) and small else torch.float32
    if wanted.quantize:
        check_installed()
    model = hybrid_ft.load(
        wanted.path,
        dtype=dtype,
        from_scratch=wanted.from_scratch,
        vocab_size=math.ceil(len(tokenizer) / 64) * 64 if wanted.from_scratch else None,
        seed=recipe.train.seed,
        revision=wanted.revision,
        scores=recipe.reward is not None,
        weights=weights,
    )
    if recipe.reward is None:
        refuse_scorer(model.config, f"model.path: {wanted.path}")
    else:
        model.config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    freeze_routers(model)
    # a model from scratch knows nothing of the pieces
    named = wanted.new_tokens or wanted.new_special_tokens
    pieces = _tokenizer_and_pieces(recipe)[1] if named and not wanted.from_scratch else {}
    if wanted.from_scratch:
        # a preset's is of its own tokenizer; in another one that id may be a word, and would get no gradient
        model.get_input_embeddings().padding_idx = tokenizer.pad_token_id
    set_seed(recipe.train.seed)
    folder = None
    if wanted.adapter:
        folder = find_folder(wanted.adapter, weights=True)
        check_base(folder, wanted.path)
        _check_adapters_kind(recipe, folder)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(str(folder))
        if wanted.merge_adapter and weights:
            merge_in_memory(model, folder)
    going_on = None if wanted.merge_adapter else folder
    if going_on is None:
        add_rows(model, pieces)
        tokenizers.check_vocabulary(tokenizer, model.config)
    if lora is None:
        return model
    if wanted.quantize:
        quantise(model, wanted.quantize, dtype, values=weights)
    with known_to_peft(model, wanted.quantize):
        if going_on is not None:
            return open_adapter(model, going_on, trained=True, dropout=lora.dropout)
        # what an adapter takes from the base at its start comes with the values
        of_base = {} if weights else {"init": "default"}
        return adapters.add_lora(model, **lora.adapters | of_base, token_rows=sorted(pieces))


def _check_adapters_kind(recipe: Recipe, folder: Path) -> None:
    """An adapter that goes on is one of a reward model if, and only if, one is trained."""
    of_scorer = scores(read_config(folder))
    if of_scorer and (recipe.reward is None or recipe.model.merge_adapter):
        raise InputError(
            f"model.adapter: {folder} makes a reward model of its base; it goes on under hybrid-ft reward alone"
        )
    if recipe.reward is not None and not of_scorer and not recipe.model.merge_adapter:
        raise InputError(
            f"model.adapter: {folder} is a language model's and has no head that scores; set model.merge_adapter: true"
        )


def on_whole_base(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, trained: PeftModel) -> PeftModel:
    """The adapter that was trained on a quantised base, on the base as it was: that is what can be merged."""
    whole = load_model(changed(recipe, "model", quantize=None), tokenizer)
    assert isinstance(whole, PeftModel)
    there = dict(whole.named_parameters())
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                there[name].copy_(parameter)
    whole.generation_config = trained.generation_config
    return whole.eval()


def trained_adapter(recipe: Recipe, folder: Path) -> PeftModel:
    """The base with the adapter that a run of this recipe has left in ``folder``, in the dtypes of its training."""
    wanted = recipe.model
    dtype = torch.bfloat16 if in_bfloat16(recipe) else torch.float32
    model = hybrid_ft.load(
        wanted.path,
        dtype=dtype,
        seed=recipe.train.seed,
        revision=wanted.revision,
        scores=recipe.reward is not None,
    )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    return open_adapter(model, folder)


def freeze_routers(model: PreTrainedModel) -> None:
    """What chooses experts stays as it was trained, and so no loss balances their load.

    A few thousand rows of one domain say little of how the experts should be shared out, and TRL would add that loss
    for every model whose config names a coefficient.
    """
    router = re.compile(family_of(model.config).router)
    for name, parameter in model.named_parameters():
        if router.fullmatch(name):
            parameter.requires_grad_(False)
    if hasattr(model.config, "router_aux_loss_coef"):
        model.config.router_aux_loss_coef = 0.0


def describe_model(recipe: Recipe, model: torch.nn.Module) -> str:
    whole = sum(size(parameter) for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    wanted, how = recipe.model, "all trained"
    if wanted.lora:
        goes_on = wanted.adapter and not wanted.merge_adapter
        layers = " ".join(wanted.lora.modules or [wanted.lora.targets])
        which = wanted.adapter if goes_on else f"LoRA on {layers}, rank {wanted.lora.rank}"
        base = f", base in {wanted.quantize}" if wanted.quantize else ""
        how = f"{which}{base}: {trained:,} trained ({trained / whole:.2%})"
    merged = f" with {wanted.adapter} merged" if wanted.merge_adapter else ""
    return f"{wanted.path}{merged}: {whole:,} parameters, {how}"
