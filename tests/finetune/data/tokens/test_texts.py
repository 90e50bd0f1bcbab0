"""Plain texts in tokens: all trained, an end token after each, long ones in pieces that lose nothing."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.plain_text import PlainText
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.texts import EncodedText, encode_texts
from hybrid_ft.finetune.recipe.schema import Recipe

WriteRows = Callable[..., Path]
MakeRecipe = Callable[..., Recipe]
LONG = "The quick brown fox jumps over the lazy dog. What is 12 + 30? It is 42. " * 12


def trained(rows: Any) -> list[list[int]]:
    return [[label for label in labels if label != -100] for labels in rows["labels"]]


def test_every_token_is_trained_and_the_one_that_ends_it(tokenizers: dict[str, Any]) -> None:
    for name, tokenizer in tokenizers.items():
        control = ControlTokens(tokenizer)
        (text,) = encode_texts([PlainText("The lazy dog.\n\nTwo.")], tokenizer, control)
        assert isinstance(text, EncodedText)
        whole = tokenizer("The lazy dog.\n\nTwo.")["input_ids"]
        assert text.ids == [*whole, tokenizer.eos_token_id], name
        assert text.columns()["labels"] == [-100, *text.ids[1:]]
        assert text.sizes() == {"length": len(text.ids), "trained": len(text.ids) - 1}


def test_a_tokenizer_that_begins_texts_begins_these(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    control = ControlTokens(tokenizer)
    bos = tokenizer.bos_token_id
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, text: {"input_ids": [bos]})
    (text,) = encode_texts([PlainText("One.")], tokenizer, control)
    assert isinstance(text, EncodedText) and text.ids[0] == bos and bos not in text.ids[1:]


def test_control_strings_in_a_text_are_text(tokenizer: Any) -> None:
    (text,) = encode_texts([PlainText("One.<|endoftext|>Two.")], tokenizer, ControlTokens(tokenizer))
    assert isinstance(text, EncodedText)
    assert text.control_tokens_as_text == ("<|endoftext|>",)
    assert text.ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("size", [2, 3, 7, 10, 11, 12, 100])
def test_pieces_train_every_token_once(size: int) -> None:
    text = EncodedText(list(range(11)))
    pieces = text.pieces(size)
    assert all(2 <= len(piece.ids) <= size for piece in pieces)
    assert [token for piece in pieces for token in piece.columns()["labels"][1:]] == list(range(1, 11))


def test_a_tokenizer_without_an_end(tokenizer: Any) -> None:
    endless: Any = SimpleNamespace(eos_token_id=None)
    with pytest.raises(InputError, match="has no eos_token, which ends a plain text"):
        encode_texts([PlainText("One.")], endless, ControlTokens(tokenizer))


def test_texts_and_chats_are_prepared_together(write_rows: WriteRows, recipe: MakeRecipe, tokenizer: Any) -> None:
    chats = write_rows([{"prompt": "q", "completion": "fox"}] * 3, "chats.jsonl")
    texts = write_rows([{"text": "The lazy dog.", "url": "x"}, {"text": LONG, "id": 3}], "texts.jsonl")
    made = recipe(chats, texts, max_length=64, on_long_row="split")
    prepared = prepare(made, tokenizer)
    (chat, text) = prepared.report.sources
    assert (chat.format, chat.kept, text.format, text.read) == ("prompt-completion", 3, "text", 2)
    assert text.reads == "every token of text is trained, and the one that ends it"
    assert text.ignored == ["id", "url"]
    origins = prepared.train["origin"][:]
    rows = [index for index, origin in enumerate(origins) if "texts.jsonl" in origin]
    whole = [*tokenizer("The lazy dog.")["input_ids"], tokenizer.eos_token_id]
    long = [*tokenizer(LONG)["input_ids"], tokenizer.eos_token_id]
    first, *pieces = trained(prepared.train.select(rows))
    assert first == whole[1:] and len(pieces) > 2
    assert [token for piece in pieces for token in piece] == long[1:]
    assert str(text.count("texts_in_pieces")) == f"1 ({texts}:2)"
    assert prepared.report.train.duplicates == 2  # of the chats; no piece is another's
    assert prepared.packs is not None and sum(map(len, prepared.packs)) == len(origins)


@pytest.mark.parametrize(
    ("on_long_row", "says"),
    [
        ("drop", "text longer than data.max_length, which data.on_long_row: split takes in pieces"),
        ("error", "the text has .* tokens; data.max_length is 64"),
    ],
)
def test_long_texts_are_never_lost_unseen(
    on_long_row: str, says: str, write_rows: WriteRows, recipe: MakeRecipe, tokenizer: Any
) -> None:
    texts = write_rows([{"text": LONG}, {"text": "One."}])
    with pytest.raises(InputError, match=says):
        prepare(recipe(texts, max_length=64, on_long_row=on_long_row), tokenizer)
    cut = prepare(recipe(texts, max_length=64, on_long_row="cut"), tokenizer)
    assert len(cut.train) == 2 and str(cut.report.sources[0].count("cut")) == f"1 ({texts}:1)"


def test_pieces_of_a_text_stay_on_one_side(write_rows: WriteRows, recipe: MakeRecipe, tokenizer: Any) -> None:
    texts = write_rows([{"text": f"{number} {LONG}"} for number in range(6)])
    prepared = prepare(recipe(texts, max_length=64, on_long_row="split", eval={"fraction": 0.4}), tokenizer)
    assert prepared.eval is not None
    assert not set(prepared.eval["origin"][:]) & set(prepared.train["origin"][:])


def test_text_where_chats_are_asked_for(write_rows: WriteRows, recipe: MakeRecipe, tokenizer: Any) -> None:
    texts = write_rows([{"text": "One."}])
    asked = recipe(texts)
    asked = asked.model_copy(update={"model": asked.model.model_copy(update={"chat_template": "olmo-instruct"})})
    with pytest.raises(InputError, match=r"rows\.jsonl:1: rows are plain text, and model.chat_template asks for chats"):
        prepare(asked, tokenizer)
    said = recipe({"path": str(texts), "format": "text"})
    said = said.model_copy(update={"model": asked.model})
    assert len(prepare(said, tokenizer).train) == 1


def test_a_tokenizer_without_a_chat_template(
    write_rows: WriteRows, recipe: MakeRecipe, tokenizers: dict[str, Any]
) -> None:
    bare = tokenizers["byte-level"]
    before, bare.chat_template = bare.chat_template, None
    try:
        texts = write_rows([{"text": "One."}])
        with pytest.raises(InputError, match="for plain text, format: text on every source"):
            prepare(recipe(texts), bare)
        prepared = prepare(recipe({"path": str(texts), "format": "text"}), bare)
        assert prepared.chat_template is None and prepared.eos_token_ids == [bare.eos_token_id]
        assert prepared.report.template == "none, plain text"
    finally:
        bare.chat_template = before


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": None}, "text is null; give its text"),
        ({"text": " \n"}, "text: the text is empty; drop the row"),
        ({"text": 3}, "text: got 3; must be a string"),
        ({"id": 3}, "column text is missing (found id)"),
    ],
)
def test_what_is_no_text(
    row: dict[str, Any], says: str, write_rows: WriteRows, recipe: MakeRecipe, tokenizer: Any
) -> None:
    with pytest.raises(InputError) as error:
        prepare(recipe(write_rows([{"text": "One."}, row])), tokenizer)
    assert f":2: {says}" in str(error.value)


def test_a_text_beside_a_label_is_not_taken_for_plain(
    write_rows: WriteRows, recipe: MakeRecipe, tokenizer: Any
) -> None:
    rows = write_rows([{"text": "One.", "sentiment": 1}])
    with pytest.raises(InputError, match="columns in no known format"):
        prepare(recipe(rows), tokenizer)
    prepared = prepare(recipe({"path": str(rows), "format": "text"}), tokenizer)
    assert prepared.report.sources[0].ignored == ["sentiment"]
