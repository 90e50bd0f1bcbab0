"""What a recipe cannot ask of rows that are read as they come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hybrid_ft.errors import shown
from hybrid_ft.finetune.recipe.mistakes import Wrong

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe


def stream_contradictions(recipe: Recipe) -> Iterator[Wrong]:
    """Keys that need all rows at once."""
    data, streaming = recipe.data, (("data", "streaming"),)
    if not data.streaming:
        return
    if recipe.stage == "kto":
        part = "split: 'train[:100000]' of a source reads a part"
        why = "as a step holds all answers to a prompt and its weights balance all good and bad ones"
        yield Wrong(("data", "streaming"), f"got true; kto reads its rows whole, {why}; leave it out; {part}")
        return
    if recipe.train.steps is None:
        yield Wrong(("train", "steps"), "must be set with data.streaming: the end of a stream is not known", streaming)
    if data.eval.count and not data.eval.fraction:
        text = f"got {data.eval.count}; of a stream it limits data.eval.fraction, which must be set"
        yield Wrong(("data", "eval", "count"), text, (("data", "eval", "fraction"), *streaming))
    if data.weight_by == "tokens":
        yield Wrong(("data", "weight_by"), "got tokens; a stream is mixed by rows; leave it out", streaming)
    for index, source in enumerate(data.sources):
        loc = ("data", "sources", index)
        if source.count is not None:
            yield Wrong((*loc, "count"), f"got {source.count}; a stream has no sample; set weight", streaming)
        if source.split is not None and set(source.split) & set("[+"):
            text = f"got {shown(source.split)}; a stream is read whole; name one split, such as train"
            yield Wrong((*loc, "split"), text, streaming)
