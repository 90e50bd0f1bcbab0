"""New tokens: in a tokenizer, and as rows of embedding and head.

A row begins at the mean of the pieces that the token's text was made of, so that the model starts from what it knows of
it. Rows that fill the vocabulary up begin at the mean of all, as likely as an average token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from hybrid_ft.errors import InputError, shown

OF_TEXT = "tokens_of_text"
"""Key of ``tokenizer_config.json``: added tokens that are words, which a message may hold, and no control tokens."""


def add_tokens(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], special: Sequence[str]
) -> dict[int, list[int]]:
    """Add ordinary and special tokens; returns the id of each and the ids of the pieces that it was before.

    Raises InputError for a text that is a token already, and for one that the tokenizer cannot make a token of.
    """
    known = tokenizer.get_vocab()
    for key, texts in (("new_tokens", words), ("new_special_tokens", special)):
        for text in texts:
            if text in known:
                raise InputError(f"model.{key}: {shown(text)} is a token of the tokenizer already; leave it out")
    pieces = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*special, *words)}
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in special], special_tokens=True)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in words])
    if words:
        tokenizer.init_kwargs[OF_TEXT] = [*tokenizer.init_kwargs.get(OF_TEXT, ()), *words]
    rows: dict[int, list[int]] = {}
    for text, of in pieces.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] in known.values():
            raise InputError(f"model.new_tokens: {shown(text)} cannot be a token of this tokenizer; leave it out")
        rows[ids[0]] = of
    return rows


def tokens_of_text(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Added tokens that messages may hold."""
    return set(tokenizer.init_kwargs.get(OF_TEXT) or ())


def padded_vocabulary(tokens: int, vocabulary: int) -> int:
    """Rows for that many tokens: those there are, or more, in the multiple of up to 64 that ``vocabulary`` is."""
    step = math.gcd(vocabulary, 64)
    return max(vocabulary, math.ceil(tokens / step) * step)


@torch.no_grad()
def add_rows(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Give each new id its row of the embedding, and of the head where that is another matrix;
    make room where needed."""
    if not pieces:
        return
    weights = _matrices(model)
    before, starts = len(weights[0]), []
    for weight in weights:
        mean = weight.mean(0, dtype=torch.float32)
        rows = {token: weight[list(of)].mean(0, dtype=torch.float32) if of else mean for token, of in pieces.items()}
        starts.append((mean, rows))
    resize(model, padded_vocabulary(1 + max(pieces), before))
    for weight, (mean, rows) in zip(_matrices(model), starts, strict=True):
        weight[before:] = mean.to(weight.dtype)
        for token, row in rows.items():
            weight[token] = row.to(weight.dtype)


def resize(model: PreTrainedModel, vocabulary: int) -> None:
    """Embedding and head of ``vocabulary`` rows; new ones hold nothing in particular. The generator is
    left as it was."""
    if model.get_input_embeddings().weight.shape[0] != vocabulary:
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(vocabulary, mean_resizing=False)


def _matrices(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    modules: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = {id(module.weight): module.weight for module in modules if module is not None}
    return list(found.values())
