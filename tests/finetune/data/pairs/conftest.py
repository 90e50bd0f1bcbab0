"""A tokenizer of single characters in which two line ends are one token, a template that ends turns as Olmo's does,
and recipes of one file."""

import json
from pathlib import Path
from typing import Any

import pytest

SPECIAL = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n", "\n\n", "\x1b"]
# the last turn ends in another token than those before it, so that a rendered prompt is no prefix of the whole
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% if tools and loop.first %}{{ '<tools>' + (tools | tojson) + '</tools>' }}{% endif %}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate([*SPECIAL, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("\n\n|[\\s\\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=SPECIAL[0], pad_token=SPECIAL[1], additional_special_tokens=SPECIAL[2:]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """``write(rows)`` puts rows into a JSON lines file and gives its path."""

    def go(rows: list[dict[str, Any]], name: str = "pairs.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return str(path)

    return go


@pytest.fixture
def recipe_of() -> Any:
    """``recipe_of(path, data={...}, dpo={...})``: a recipe that drops what it may, its sections overridden."""

    def go(*paths: str, **sections: Any) -> Any:
        from hybrid_ft.finetune.recipe.schema import Recipe

        data = {"sources": [{"path": path} for path in paths], "max_length": 512, "max_dropped": 0.9}
        return Recipe.model_validate(
            {
                "model": {"path": "tiny"} | sections.get("model", {}),
                "data": data | sections.get("data", {}),
                "train": {"batch_tokens": 2048} | sections.get("train", {}),
                "dpo": sections.get("dpo", None if "reward" in sections else {}),
                "reward": sections.get("reward"),
            }
        )

    return go
