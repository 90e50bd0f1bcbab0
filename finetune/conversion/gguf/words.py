"""A tokenizer as GGUF files hold it: tokens, kinds, merges, way to split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.config import json_object

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# How a text is split before the merges, and what llama.cpp calls that.
SPLITS = {
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}": "qwen2",
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}": "qwen35",
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}": "llama-bpe",
}
# llama.cpp takes a whole word that is a token before it merges in the last of them alone.
_WHOLE_WORDS = ("llama-bpe",)


def split_name(folder: Path) -> str:
    """What llama.cpp calls this tokenizer's way to split. Raises InputError for one that it would
    read in another way."""
    path = folder / "tokenizer.json"
    raw = json_object(path)
    model: dict[str, Any] = raw.get("model") or {}
    steps = raw.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers") or [steps]
    kinds = [step.get("type") for step in steps]
    if model.get("type") != "BPE" or model.get("byte_fallback") or kinds[-1] != "ByteLevel":
        raise InputError(f"{path}: must be a byte-level BPE to go into a GGUF file")
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space"):
        name = "gpt-2"
    else:
        pattern = (steps[0].get("pattern") or {}).get("Regex") if kinds == ["Split", "ByteLevel"] else None
        name = SPLITS.get(str(pattern), "")
    if not name or bool(model.get("ignore_merges")) != (name in _WHOLE_WORDS):
        raise InputError(
            f"{path}: splits text in a way that llama.cpp has no name for; known are {', '.join(['gpt-2', *SPLITS.values()])}"
        )
    return name


def write_words(
    writer: Any, folder: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int, ends: list[int]
) -> None:
    """``vocabulary``: rows of the embedding, of which those without a token get one that is never used. ``ends``: the
    tokens that end an answer, the first of them as eos."""
    from gguf import TokenType

    raw = json_object(folder / "tokenizer.json")
    tokens = [f"[PAD{index}]" for index in range(vocabulary)]
    kinds = [TokenType.UNUSED] * vocabulary
    for token, index in tokenizer.get_vocab().items():
        tokens[index], kinds[index] = token, TokenType.NORMAL
    for index, added in tokenizer.added_tokens_decoder.items():
        tokens[index] = added.content
        kinds[index] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(folder))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in raw["model"]["merges"]])
    ids = {"bos": tokenizer.bos_token_id, "pad": tokenizer.pad_token_id, "eos": ends[0] if ends else None}
    for name, index in ids.items():
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    for index in ends[1:2]:
        writer.add_eot_token_id(index)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begins)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
