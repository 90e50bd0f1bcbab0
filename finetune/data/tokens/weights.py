"""The weight of each token in the loss, from its characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hybrid_ft.finetune.data.messages.training_marks import KIND, Weights
from hybrid_ft.finetune.data.sources.rows import BadRow

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.messages.conversation import Conversation
    from hybrid_ft.finetune.data.tokens.borders import Laid
    from hybrid_ft.finetune.data.tokens.filled import Filled
    from hybrid_ft.finetune.data.tokens.skeleton import Skeleton


def check_unmoved(conversation: Conversation, moved: Conversation) -> None:
    """Refuse weights of a content's parts where reasoning was moved out of it or into it. Raises BadRow."""
    for index, weights in conversation.weights.items():
        if len(weights) > 1 and conversation.messages[index]["content"] != moved.messages[index]["content"]:
            what = f"turn {index + 1}'s parts have different marks, and its reasoning is moved by data.reasoning"
            raise BadRow(KIND, f"{what}; give its parts one mark, or its reasoning a field of its own")


def placed_weights(
    conversation: Conversation, learned: Iterable[int], filled: Filled, skeleton: Skeleton, template: str
) -> list[Weights] | None:
    """The weights of the messages that are ``learned``, their ends no longer characters of a content but of the
    rendered and marked text. None where all are 1.

    Raises BadRow where the template writes a content whose parts differ in other characters, or not once.
    """
    weights = [_placed(conversation, message, filled, skeleton, template) for message in learned]
    return weights if any(weight != 1 for of_turn in weights for _, weight in of_turn) else None


def _placed(conversation: Conversation, message: int, filled: Filled, skeleton: Skeleton, template: str) -> Weights:
    weights = conversation.weights.get(message, [(None, 1.0)])
    if len(weights) == 1:
        return weights
    content = conversation.messages[message]["content"]
    of_content = [
        (2 * number + 1, times, slot.text)
        for number, (text, times) in enumerate(filled.plan.slots)
        if (slot := skeleton.slots[text]).message == message and slot.field == "content"
    ]
    if len(of_content) != 1 or of_content[0][1:] != (0, content.strip()):
        what = f"turn {message + 1}'s parts have different marks, and chat template {template} writes its text changed"
        raise BadRow(KIND, f"{what}; give its parts one mark")
    piece, _, core = of_content[0]
    start, lead = filled.marked_starts[piece], len(content) - len(content.lstrip())
    if filled.plan.marked[piece // 2].endswith(content[:lead]):  # else the template left it out
        return [(None if end is None else start - lead + min(end, lead + len(core)), weight) for end, weight in weights]
    return [(None if end is None else start + min(max(end - lead, 0), len(core)), weight) for end, weight in weights]


def token_weights(laid: Laid, turns: Iterable[tuple[int, int, Weights]]) -> list[float]:
    """Of every token, 1 where nothing says otherwise. ``turns``: first and last token of each, and its placed weights.

    A token with characters of two parts has the later one's: it is what the model has to say next to get there.
    """
    found = [1.0] * len(laid.tokens)
    for first, last, weights in turns:
        position = 0
        for token in range(first, last + 1):
            if (end := laid.end_of(token)) is not None:
                position = max(position, end - 1)
            found[token] = next(weight for until, weight in weights if until is None or position < until)
    return found
