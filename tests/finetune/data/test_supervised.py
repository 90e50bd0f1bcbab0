"""Rows on their way to the store: what is too long is dropped, cut or taken in pieces, and counted."""

from typing import Any

import numpy as np
import pytest

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.plain_text import PlainText
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.report.account import CUT, IN_PIECES
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.supervised import row_example, way_of_rows
from hybrid_ft.finetune.data.tokens.encode import Encoded
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.data.tokens.texts import EncodedText


def encoded(length: int, turns: list[tuple[int, int]], weights: list[float] | None = None) -> Encoded:
    return Encoded(np.arange(length, dtype=np.int32), list(turns), [0], "a", (), weights=weights)


@pytest.fixture
def fit(recipe: Any, tokenizer: Any) -> Any:
    """``fit(row, on_long_row=..., max_length=...)``"""

    def of(row: Any, **data: Any) -> Any:
        made = recipe("a.jsonl", **{"max_length": 10} | data)
        return way_of_rows(made.data, Encoder.of(made, tokenizer)).fit(row)

    return of


def test_a_row_that_fits_stays_as_it_is(fit: Any) -> None:
    row, happened = fit(encoded(10, [(4, 9)]))
    assert len(row.tokens) == 10 and not happened[CUT]
    assert row.labels() == [-100] * 4 + [4, 5, 6, 7, 8, 9]


def test_a_row_that_is_cut_loses_its_end_alone(fit: Any) -> None:
    weights = [1.0] * 6 + [0.5] * 8
    row, happened = fit(encoded(14, [(2, 4), (8, 11), (12, 13)], weights), on_long_row="cut")
    assert row.ids == list(range(10)) and row.turns == [(2, 4), (8, 9)] and row.weights == weights[:10]
    assert happened[CUT]
    assert row.labels() == [-100, -100, 2, 3, 4, -100, -100, -100, 8, 9]


@pytest.mark.parametrize(
    ("turns", "weights", "data", "kind"),
    [
        ([(2, 13)], None, {}, "longer than data.max_length"),
        ([(2, 13)], None, {"on_long_row": "split"}, "longer than data.max_length"),
        ([(10, 13)], None, {"on_long_row": "cut"}, "prompt alone longer than data.max_length"),
        ([(2, 3), (11, 13)], [0.0] * 5 + [1.0] * 9, {"on_long_row": "cut"}, "longer than data.max_length"),
    ],
)
def test_a_row_of_which_nothing_would_be_learned_is_dropped(
    fit: Any, turns: Any, weights: Any, data: Any, kind: str
) -> None:
    with pytest.raises(Unusable, match=r"data.max_length is 10") as dropped:
        fit(encoded(14, turns, weights), **data)
    assert dropped.value.kind == kind


def test_a_template_that_marks_no_answer_is_the_rows_fault(fit: Any) -> None:
    with pytest.raises(BadRow, match="marks none of the row's turns"):
        fit(encoded(5, []))


def test_a_long_text_is_taken_in_pieces_of_which_none_is_lost(fit: Any) -> None:
    text = EncodedText(list(range(23)), ())
    pieces, happened = fit(text, on_long_row="split")
    # each begins with the token before it, which is read and not trained again
    joined = [token for number, piece in enumerate(pieces) for token in piece.ids[number > 0 :]]
    assert joined == text.ids
    assert all(len(piece.ids) <= 10 for piece in pieces) and happened == {IN_PIECES: 1}
    (row,), happened = fit(text, on_long_row="cut")
    assert row.ids == text.ids[:10] and happened == {CUT: 1}
    with pytest.raises(Unusable, match="the text has 23 tokens"):
        fit(text)


def test_rows_of_both_kinds_keep_their_order(recipe: Any, tokenizer: Any, chat: Any) -> None:
    made = recipe("a.jsonl")
    way = way_of_rows(made.data, Encoder.of(made, tokenizer))
    rows = [PlainText("one"), Conversation(chat("q", "a")), PlainText("two")]
    found = way.encode(rows)
    assert [type(row) for row in found] == [EncodedText, Encoded, EncodedText]
    assert "one" in tokenizer.decode(found[0].ids) and "two" in tokenizer.decode(found[2].ids)


def test_an_example_shows_what_is_trained_apart(recipe: Any, tokenizer: Any, chat: Any) -> None:
    made = recipe("a.jsonl")
    encoder = Encoder.of(made, tokenizer)
    (row,) = way_of_rows(made.data, encoder).encode([Conversation(chat("ask", "tell", "more", "done"))])
    shown = row_example({"input_ids": row.ids, "labels": row.labels(), "origin": "a.jsonl:3"}, encoder)
    kinds = [(part.kind, part.text) for part in shown.parts]
    assert [kind for kind, _ in kinds] == ["context", "trained"] * 2 + ["context"] * (len(kinds) % 2)
    assert "tell" in kinds[1][1] and "done" in kinds[3][1] and "tell" not in kinds[0][1]
