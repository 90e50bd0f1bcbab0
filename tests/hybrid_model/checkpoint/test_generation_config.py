"""Every end token is kept, ordinary words are not taken for one, and sampling defaults are those of the base."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.generation_config import cleaned, end_tokens, generation_defaults
from hybrid_ft.hybrid_model.checkpoint.save import save

ENDOFTEXT, PAD, IM_START, IM_END = range(4)


def model(generation: Any = None, config: Any = None, vocab_size: int = 128, **defaults: Any) -> Any:
    return SimpleNamespace(
        generation_config=GenerationConfig(eos_token_id=generation, **defaults),
        config=SimpleNamespace(eos_token_id=config, vocab_size=vocab_size, use_cache=True),
    )


@pytest.mark.parametrize(
    ("generation", "config", "template", "expected"),
    [
        (None, None, [IM_END], [IM_END, ENDOFTEXT]),
        ([IM_END, ENDOFTEXT], None, [IM_END], [IM_END, ENDOFTEXT]),
        (PAD, IM_START, [IM_END], [IM_END, PAD, IM_START, ENDOFTEXT]),
        (PAD, [PAD, IM_START], [], [PAD, IM_START, ENDOFTEXT]),
        (100, 127, [], [100, 127, ENDOFTEXT]),  # rows of the embedding that the tokenizer has no token for
        (128, -1, [], [ENDOFTEXT]),
        (40, 40, [IM_END], [IM_END, ENDOFTEXT]),  # an ordinary word of this tokenizer
    ],
)
def test_ends_are_the_union(
    tiny_tokenizer: Any, generation: Any, config: Any, template: list[int], expected: list[int]
) -> None:
    assert len(tiny_tokenizer) < 100
    assert end_tokens(model(generation, config), tiny_tokenizer, template) == expected


def test_the_bases_defaults_stay(tiny_tokenizer: Any) -> None:
    given = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 2048, "repetition_penalty": 1.1}
    defaults = generation_defaults(model(ENDOFTEXT, **given), tiny_tokenizer, [IM_END])
    assert defaults.ends == [IM_END, ENDOFTEXT] and defaults.use_cache
    assert {name: getattr(defaults.config, name) for name in given} == given
    assert defaults.config.pad_token_id == PAD


@pytest.mark.parametrize(
    ("given", "saved"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
        ({"temperature": 0.6, "do_sample": False, "top_k": 20}, {"do_sample": False}),
        ({"temperature": 0.0, "do_sample": True, "top_p": 0.0}, {"do_sample": True}),
        ({"early_stopping": True, "length_penalty": 2.0, "max_new_tokens": 9}, {"max_new_tokens": 9}),
        ({"num_beams": 4, "early_stopping": True}, {"num_beams": 4, "early_stopping": True}),
        ({"output_scores": True, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"custom_generate": "owner/name", "trust_remote_code": True, "min_p": 0.1}, {"do_sample": True, "min_p": 0.1}),
    ],
)
def test_what_transformers_would_not_save_is_cleaned(given: Any, saved: Any, tmp_path: Any) -> None:
    config = cleaned(GenerationConfig(**given))
    config.validate(strict=True)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    del written["transformers_version"]
    assert written == saved


def test_a_generation_config_that_transformers_cannot_read_is_one_line(tiny_base: Any, tmp_path: Any) -> None:
    save(hybrid_ft.load(tiny_base), tmp_path)
    (tmp_path / "generation_config.json").write_text('{"num_return_sequences": 3}')
    with pytest.raises(InputError, match=r"generation_config\.json: Greedy methods") as refused:
        hybrid_ft.load(tmp_path)
    assert "\n" not in str(refused.value)
