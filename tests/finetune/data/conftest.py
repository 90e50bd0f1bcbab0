"""Small tokenizers of three kinds, chat templates in the styles of several model families, and a recipe maker."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.template import ChatTemplate
from hybrid_ft.finetune.recipe.data_section import Source
from hybrid_ft.finetune.recipe.schema import Recipe

TEXT = [
    "The quick brown fox jumps over the lazy dog. What is 12 + 30? It is 42.",
    "\n\nOne.\n\nTwo.\n\nThree.\n\n\n\n",
    "You are a helpful assistant.\n\nuser assistant system model environment tool ipython",
    "functions function_calls im_start im_end endoftext header eot end_of_turn INST TOOL_CALLS think",
    'get_weather(city="Paris", days=2) {"name": "search", "arguments": {"q": "x"}}',
]

# Special tokens, and tokens that are added without being special: both are control tokens.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
SPECIAL += ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"]
SPECIAL += ["<bos>", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"]
ADDED = ["<functions>", "</functions>", "<function_calls>", "</function_calls>", "<think>", "</think>"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '{\"name\": \"' ~ c.function.name ~ '\", \"parameters\": ' ~ c.function.arguments | tojson ~ '}' }}{% endfor %}"
    "{% else %}{{ m.content | trim }}{% endif %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.role == 'tool' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS]' }}{% for c in m.tool_calls %}"
    "{{ c.function.name ~ ' ' ~ c.function.arguments | tojson }}{% endfor %}{{ '</s>' }}"
    "{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% set t = m.reasoning_content if m.reasoning_content else '' %}{% set c = m.content %}"
    "{% if not t and '</think>' in c %}{% set t = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{% if loop.last or t %}{{ '<think>\n' + t.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ c.lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPENED_THOUGHT = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>' }}{% endif")
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Prompts that only the names in them tell apart from plain text, as system prompt last and tools as JSON first.
SYSTEM_LAST = (
    "{% set s = messages | selectattr('role', 'equalto', 'system') | first %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>user\n' }}{% if loop.last or loop.index0 == (messages | length) - (3 if s else 2) %}"
    "{{ s.content ~ '\n' if s else '' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXT * 4, trainer)
    return with_tokens(backend)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """A space put before the first word only, line ends as bytes: pieces cannot be encoded one by one."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False
    )
    backend.train_from_iterator(TEXT * 4, trainer)
    parts = json.loads(backend.to_str())
    parts["added_tokens"] = parts["added_tokens"][:1]  # the bytes belong to the model
    return with_tokens(Tokenizer.from_str(json.dumps(parts)))


def unigram() -> PreTrainedTokenizerFast:
    """The control tokens are pieces of the model's own vocabulary, which would pick them from plain text."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", *SPECIAL, *ADDED], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXT * 20, trainer)
    return with_tokens(backend)


def words() -> PreTrainedTokenizerFast:
    """A token per word; the control tokens are words of the vocabulary."""
    known = ["<unk>", *SPECIAL, *ADDED, *dict.fromkeys(" ".join(TEXT).split())]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return with_tokens(backend)


def with_tokens(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in ADDED])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|begin_of_text|>", pad_token="<|pad|>"
    )


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece_like,
    "unigram": unigram,
    "words": words,
}
TEMPLATES = {
    "chatml": CHATML,
    "chatml, default system": CHATML_DEFAULT_SYSTEM,
    "llama": LLAMA,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "thinking": THINKING,
    "opened thought": OPENED_THOUGHT,
    "marked": MARKED,
    "system last": SYSTEM_LAST,
}


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """One of each kind, with ChatML as its own template."""
    made = {name: make() for name, make in KINDS.items()}
    for tokenizer in made.values():
        tokenizer.chat_template = CHATML
    return made


@pytest.fixture(scope="session")
def tokenizer(tokenizers: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return tokenizers["byte-level"]


@pytest.fixture(scope="session")
def control(tokenizer: PreTrainedTokenizerFast) -> ControlTokens:
    return ControlTokens(tokenizer)


@pytest.fixture(scope="session")
def templates(root: Path) -> dict[str, str]:
    olmo = root / "finetune/data/tokens/olmo-instruct.jinja"
    return TEMPLATES | {"olmo-instruct": olmo.read_text(encoding="utf-8")}


@pytest.fixture(scope="session")
def template(
    templates: dict[str, str], tokenizer: PreTrainedTokenizerFast, control: ControlTokens
) -> Callable[[str], ChatTemplate]:
    """A template by its name here, or from its text, with the byte-level tokenizer."""

    @functools.cache
    def made(name: str) -> ChatTemplate:
        return ChatTemplate(templates.get(name, name), "test", tokenizer, control)

    return made


@pytest.fixture(scope="session")
def recipe() -> Callable[..., Recipe]:
    """``recipe(path, ..., train={...}, **data)``: sources are paths or mappings."""

    def made(*sources: Any, train: dict[str, Any] | None = None, **data: Any) -> Recipe:
        listed = [source if isinstance(source, dict) else {"path": str(source)} for source in sources]
        return Recipe.model_validate(
            {"model": {"path": "tiny"}, "data": {"sources": listed, **data}, "train": train or {}}
        )

    return made


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., list[Any]]:
    """All that a file yields: Row and BadRow."""

    def read(path: Path) -> list[Any]:
        return list(open_source(Source(path=str(path))).rows)

    return read


@pytest.fixture(scope="session")
def chat() -> Callable[..., list[dict[str, Any]]]:
    """``chat("question", "answer", ...)`` as messages."""

    def made(*turns: str) -> list[dict[str, Any]]:
        return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]

    return made


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """``write_rows(rows)``: a .jsonl file of them."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


PAIR_SPECIAL = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
PAIR_CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n", "\n\n", "\x1b"]
# the last turn ends in another token than those before it, so that a rendered prompt is no prefix of the whole
PAIR_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% if tools and loop.first %}{{ '<tools>' + (tools | tojson) + '</tools>' }}{% endif %}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def pair_tokenizer() -> PreTrainedTokenizerFast:
    """Of single characters, in which two line ends are one token; its template ends turns as Olmo's does."""
    words = {word: index for index, word in enumerate([*PAIR_SPECIAL, *PAIR_CHARACTERS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("\n\n|[\\s\\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=PAIR_SPECIAL[0],
        pad_token=PAIR_SPECIAL[1],
        additional_special_tokens=PAIR_SPECIAL[2:],
    )
    tokenizer.chat_template = PAIR_TEMPLATE
    return tokenizer


@pytest.fixture
def pair_recipe() -> Callable[..., Recipe]:
    """``pair_recipe(path, data={...}, dpo={...})``: a recipe that drops what it may, its sections overridden."""

    def go(*paths: str, **sections: Any) -> Recipe:
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
