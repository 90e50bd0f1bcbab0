"""Encoding in which only the chat template can write control tokens.

A tokenizer turns ``<|im_end|>`` into one token wherever it stands, in a user's text too. Here a copy of it is kept in
which every control token has a name that no text can hold. The template's own control tokens are renamed before
encoding; the same strings in a message are then plain text, and everything else is encoded as it always is.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.tokens.parts import InOne, PartTokenizer, Tokenized
from hybrid_ft.hybrid_model.checkpoint.new_tokens import tokens_of_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEMBERED = 400  # characters
_MOST_REMEMBERED = 4096


class ControlTokens:
    """The control tokens of a tokenizer: all that were added to its vocabulary, runs of white space and words of a
    recipe apart.

    Raises InputError for a tokenizer whose parts cannot be taken apart.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError("model.tokenizer: has no tokenizer.json; convert it to a fast tokenizer first")
        added = tokenizer.get_added_vocab()
        words = tokens_of_text(tokenizer)
        self.ids: dict[str, int] = {name: index for name, index in added.items() if name.strip() and name not in words}
        longest_first = sorted(self.ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        nonce = secrets.token_hex(8)
        always = set.intersection(*map(set, self.ids)) if self.ids else set()
        self._always = min(always, key=str.isalnum, default="")
        self._renamed = {name: f"\U000f0000{nonce}{index}\U000f0001" for name, index in self.ids.items()}
        parts = json.loads(backend.to_str())
        # The model itself writes its unknown token, wherever a text has a character that it does not know.
        self._counted = frozenset(self.ids.values()) - {_unknown(parts["model"])}
        self._is_counted = np.zeros(1 + max([_last_id(parts["model"]), *added.values()]), bool)
        self._is_counted[list(self._counted)] = True
        self._original = {renamed: name for name, renamed in self._renamed.items()}
        self._written = re.compile("\U000f0000[0-9a-f]+\U000f0001")
        self._short: dict[str, list[int]] = {}
        self._backend = _renamed_copy(parts, self._renamed, self.ids)
        self._in_parts = PartTokenizer.of(self._backend, parts, "\U000f0000", f"\U000f0000{nonce}[0-9]+\U000f0001")
        if not self._backend.encode("any words", add_special_tokens=False).ids:
            raise InputError("model.tokenizer: makes no tokens of plain text; its vocabulary is empty or damaged")

    def mark(self, literal: str) -> str:
        """Text that the template wrote, its control tokens renamed."""
        return self.pattern.sub(lambda match: self._renamed[match[0]], literal)

    def found_in(self, literal: str) -> list[re.Match[str]]:
        """Every control token that text would become, left to right."""
        if self._always not in literal:  # far sooner seen than that no name is in it
            return []
        return list(self.pattern.finditer(literal))

    def encode(self, marked: list[str]) -> Sequence[Tokenized]:
        """Encode texts whose control tokens are marked. No begin or end token is put around them."""
        if self._in_parts is not None:
            return self._in_parts.encode(marked)
        return [InOne(encoding) for encoding in self._backend.encode_batch(marked, add_special_tokens=False)]

    def ids_of(self, marked: str) -> list[int]:
        """The ids of one marked text; those of short ones, which come again in row after row, are kept."""
        if (known := self._short.get(marked)) is not None:
            return known
        ids: list[int] = self.encode([marked])[0].ids
        if len(marked) <= _REMEMBERED:
            if len(self._short) >= _MOST_REMEMBERED:
                self._short.clear()
            self._short[marked] = ids
        return ids

    def text(self, ids: list[int]) -> str:
        """Ids as text, control tokens by their own names."""
        written = self._backend.decode(ids, skip_special_tokens=False)
        return self._written.sub(lambda match: self._original.get(match[0], match[0]), written)

    def shown(self, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
        """Tokens as text to look at; text that only looks like a control token as ``[text: <|im_end|>]``."""
        whole = str(tokenizer.decode(ids))
        known = frozenset(self.ids.values())
        if len(self.found_in(whole)) <= sum(map(known.__contains__, ids)):
            return whole
        parts = []
        for control, group in itertools.groupby(ids, known.__contains__):
            text = str(tokenizer.decode(list(group)))
            parts.append(text if control else self.pattern.sub(lambda match: f"[text: {match[0]}]", text))
        return "".join(parts)

    def count(self, ids: Sequence[int] | np.ndarray) -> int:
        """How many of the ids are control tokens, the model's unknown token apart."""
        return int(np.count_nonzero(self._is_counted[ids]))

    def count_in(self, literal: str) -> int:
        """How many such tokens are in what the template wrote."""
        return sum(self.ids[match[0]] in self._counted for match in self.pattern.finditer(literal))


def _unknown(model: dict[str, Any]) -> int | None:
    if isinstance(model["vocab"], list):
        return model.get("unk_id")
    return model["vocab"].get(model.get("unk_token"))


def _last_id(model: dict[str, Any]) -> int:
    vocab = model["vocab"]
    return len(vocab) - 1 if isinstance(vocab, list) else max(vocab.values(), default=0)


def _renamed_copy(parts: dict[str, Any], renamed: dict[str, str], ids: dict[str, int]) -> Any:
    from tokenizers import Tokenizer

    # Neither changes an id without special tokens; a post-processor may shift offsets.
    parts |= {"truncation": None, "padding": None, "post_processor": None}
    for token in parts["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    _rename_in_model(parts["model"], renamed, ids)
    copy = Tokenizer.from_str(json.dumps(parts))
    for name, index in ids.items():
        if copy.token_to_id(renamed[name]) != index:
            raise InputError(f"model.tokenizer: its token {name} cannot be told apart from text; use another tokenizer")
    return copy


def _rename_in_model(model: dict[str, Any], renamed: dict[str, str], ids: dict[str, int]) -> None:
    """Give the new names the old ids, and take the old names out of the vocabulary, where a merge could reach them."""
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: [piece, score], the id is the place
        for name, index in ids.items():
            if index < len(vocab):
                vocab[index][0] = renamed[name]
        return
    merged = {part for merge in model.get("merges", ()) for part in _merge_parts(merge)} if vocab.keys() & ids else ()
    for name, index in ids.items():
        # a token that merges are made of, or that stands for the unknown, cannot go; encoding then checks for it
        if name in vocab and name not in merged and name != model.get("unk_token"):
            del vocab[name]
        vocab[renamed[name]] = index


def _merge_parts(merge: str | list[str]) -> tuple[str, str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right
