"""Pairs that are too long: dropped, cut or refused, as the recipe says."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.tokens.encode_pairs import TokenPair

PROMPT_TOO_LONG = "prompt alone longer than data.max_length"
PAIR_TOO_LONG = "longer than data.max_length"
OVER_BUDGET = "over train.batch_tokens"
NOTHING_LEFT = "nothing left of an answer"
CUT_PROMPT = "cut_prompts"


@dataclass(frozen=True)
class Limits:
    """``max_length``: tokens of a prompt with one answer; ``batch_tokens``: of a prompt with both.

    ``header``: tokens at a prompt's end that only ask for an answer; a cut prompt keeps more than those.
    """

    max_length: int
    batch_tokens: int
    on_long_prompt: str
    on_long_row: str
    header: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """A pair that fits, and how many tokens it lost to that."""

    pair: TokenPair
    cut_prompt: int = 0
    cut_answers: int = 0


def fit(pair: TokenPair, limits: Limits) -> Fitted:
    """The pair within the limits. Raises Unusable, where it does not fit or nothing is left of it.

    Where prompts may be cut they are, from their start, as far as the longer answer needs, unless nothing but the
    header would stay. Answers are cut from their end, and only where data.on_long_row says so.
    """
    cut_prompt = cut_answers = 0
    if pair.longest > limits.max_length and limits.on_long_prompt == "cut_start":
        room = limits.max_length - (pair.longest - len(pair.prompt))
        if room > limits.header:
            cut_prompt = len(pair.prompt) - room
            pair = replace(pair, prompt=pair.prompt[cut_prompt:])
    if pair.longest > limits.max_length:
        pair, cut_answers = _cut_answers(pair, limits)
    if pair.tokens > limits.batch_tokens:
        size = f"the pair has {pair.tokens:,} tokens, prompt once and both answers"
        raise Unusable(OVER_BUDGET, f"{size}; train.batch_tokens is {limits.batch_tokens:,}")
    return Fitted(pair, cut_prompt, cut_answers)


def _cut_answers(pair: TokenPair, limits: Limits) -> tuple[TokenPair, int]:
    room = limits.max_length - len(pair.prompt)
    limit = f"data.max_length is {limits.max_length:,}"
    if room < 1 and limits.on_long_row == "cut":
        prompt = f"the prompt alone has {len(pair.prompt):,} tokens, so the cut would take all of the answers"
        raise Unusable(NOTHING_LEFT, f"{prompt}; {limit}")
    if room < 1:
        raise Unusable(PROMPT_TOO_LONG, f"the prompt alone has {len(pair.prompt):,} tokens; {limit}")
    if limits.on_long_row != "cut":
        longer = "chosen" if len(pair.chosen) >= len(pair.rejected) else "rejected"
        raise Unusable(PAIR_TOO_LONG, f"prompt and {longer} have {pair.longest:,} tokens; {limit}")
    chosen, rejected = pair.chosen[:room], pair.rejected[:room]
    if chosen == rejected:
        raise Unusable("identical answers", f"chosen and rejected are the same after the cut to {room:,} tokens")
    lost = len(pair.chosen) + len(pair.rejected) - len(chosen) - len(rejected)
    return replace(pair, chosen=chosen, rejected=rejected), lost
