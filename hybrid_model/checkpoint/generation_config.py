"""Generation defaults of a result: the base's settings and all end tokens."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from hybrid_ft.hybrid_model.checkpoint.config import FOREIGN

# What has no effect while do_sample is not true; transformers refuses to save such a file once it was changed.
_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OF_BEAMS = ("early_stopping", "length_penalty")
# Kept where a combination of the rest is one that transformers refuses.
_PLAIN = ("do_sample", *_OF_SAMPLING, "repetition_penalty", "max_new_tokens", "min_new_tokens", "stop_strings")


class Described(Protocol):
    """A model, or what is known of one that is not loaded."""

    config: PreTrainedConfig
    generation_config: GenerationConfig


@dataclass(frozen=True)
class GenerationDefaults:
    """What a result says of its answers: ``config`` for generation_config.json, ``use_cache`` for config.json.

    Taken from the base before it is trained: transformers' Trainer sets ``use_cache`` and aligns end tokens with the
    tokenizer's.
    """

    config: GenerationConfig
    use_cache: bool

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer, the chat template's first."""
        return _ids(self.config.eos_token_id)


def generation_defaults(
    model: Described, tokenizer: PreTrainedTokenizerBase, template_ends: Sequence[int] = ()
) -> GenerationDefaults:
    """The base's generation config with all end tokens, cleaned of what transformers would refuse to save."""
    config = cleaned(model.generation_config)
    ends = end_tokens(model, tokenizer, template_ends)
    config.eos_token_id = ends if len(ends) > 1 else ends[0] if ends else None
    if tokenizer.pad_token_id is not None:
        config.pad_token_id = tokenizer.pad_token_id
    elif config.pad_token_id is None and ends:
        config.pad_token_id = ends[0]
    if tokenizer.bos_token_id is not None:
        config.bos_token_id = tokenizer.bos_token_id
    return GenerationDefaults(config, bool(model.config.use_cache))


def end_tokens(model: Described, tokenizer: PreTrainedTokenizerBase, template_ends: Iterable[int] = ()) -> list[int]:
    """Every token that ends an answer, each once: of the chat template, the generation config,
    the config, the tokenizer.

    A fine-tuned model still writes its base's end token: LoRA leaves the head alone, and a few hundred rows do not
    unlearn it. Left out are ids that the model has not, and ids that this tokenizer has for an ordinary word: a model
    from scratch has the end token of its preset's tokenizer.
    """
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    words = {token for token in tokenizer.get_vocab().values() if token not in control}
    named = [
        *template_ends,
        *_ids(model.generation_config.eos_token_id),
        *_ids(model.config.eos_token_id),
        *_ids(tokenizer.eos_token_id),
    ]
    return [token for token in dict.fromkeys(named) if 0 <= token < model.config.vocab_size and token not in words]


def cleaned(config: GenerationConfig) -> GenerationConfig:
    """A copy that transformers saves and reads without complaint, without names of code to fetch.

    Sampling settings without a word on ``do_sample`` mean sampling: servers such as vLLM apply them, and so
    ``do_sample`` is set. Beside an explicit ``do_sample: false``, and where a value is out of range, they are dropped.
    """
    config = copy.deepcopy(config)
    config._from_model_config = None
    for name in [name for name in vars(config) if name.startswith(FOREIGN)]:
        delattr(config, name)
    for name, most in (("temperature", math.inf), ("top_p", 1.0)):
        value = getattr(config, name)
        if value is not None and not 0 < value <= most:
            setattr(config, name, None)
    given = [name for name in _OF_SAMPLING if getattr(config, name, None) is not None]
    if given and config.do_sample is None:
        config.do_sample = True
    if config.do_sample is not True:
        _unset(config, given)
    if (config.num_beams or 1) == 1:
        _unset(config, _OF_BEAMS)
    try:
        config.validate(strict=True)
    except ValueError:
        return GenerationConfig(**{name: getattr(config, name, None) for name in _PLAIN})
    return config


def _unset(config: GenerationConfig, names: Iterable[str]) -> None:
    for name in names:
        if hasattr(config, name):
            setattr(config, name, None)


def _ids(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
