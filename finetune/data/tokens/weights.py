"""The weight of each token in the loss, from its characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hybrid_ft.finetune.data.messages.training_marks import KIND, Weights
from hybrid_ft.finetune.data.sources.rows import BadRow

if TYPE_CHECKING:
    from tokenizers import Encoding

    from hybrid_ft.finetune.data.messages.conversation import Conversation
    from hybrid_ft.finetune.data.tokens.skeleton import Skeleton
    from hybrid_ft.finetune.data.tokens.template import Plan


def placed(
    conversation: Conversation, learned: Iterable[int], plan: Plan, skeleton: Skeleton, marked: list[str], template: str
) -> list[Weights] | None:
    """The weights of the messages that are ``learned``, their ends no longer characters of a content but of the rendered
    text, which is ``marked``: the plan's literals and texts in turn. None where all are 1.

    Raises BadRow where the template writes a content whose parts differ in other characters, or not once.
    """
    weights = [_placed(conversation, message, plan, skeleton, marked, template) for message in learned]
    return weights if any(weight != 1 for of_turn in weights for _, weight in of_turn) else None


def _placed(
    conversation: Conversation, message: int, plan: Plan, skeleton: Skeleton, marked: list[str], template: str
) -> Weights:
    weights = conversation.weights.get(message, [(None, 1.0)])
    if len(weights) == 1:
        return weights
    content = conversation.messages[message]["content"]
    of_content = [
        (2 * number + 1, times, slot.text)
        for number, (text, times) in enumerate(plan.slots)
        if (slot := skeleton.slots[text]).message == message and slot.field == "content"
    ]
    if len(of_content) != 1 or of_content[0][1:] != (0, content.strip()):
        what = f"turn {message + 1}'s parts have different marks, and chat template {template} writes its text changed"
        raise BadRow(KIND, f"{what}; give its parts one mark")
    piece, _, core = of_content[0]
    start, lead = sum(map(len, marked[:piece])), len(content) - len(content.lstrip())
    if marked[piece - 1].endswith(content[:lead]):  # else the template left it out
        return [(None if end is None else start - lead + min(end, lead + len(core)), weight) for end, weight in weights]
    return [(None if end is None else start + min(max(end - lead, 0), len(core)), weight) for end, weight in weights]


def token_weights(encoding: Encoding, turns: Iterable[tuple[int, int, Weights]]) -> list[float]:
    """Of every token, 1 where nothing says otherwise. ``turns``: first and last token of each, and its placed weights.

    A token with characters of two parts has the later one's: it is what the model has to say next to get there.
    """
    found = [1.0] * len(encoding.ids)
    for first, last, weights in turns:
        position = 0
        for token in range(first, last + 1):
            if (chars := encoding.token_to_chars(token)) is not None:
                position = max(position, chars[1] - 1)
            found[token] = next(weight for end, weight in weights if end is None or position < end)
    return found
