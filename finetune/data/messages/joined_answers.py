"""Answers judged good or bad, joined to pairs by their prompts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator

from hybrid_ft.finetune.data.messages.judgement import Judgement
from hybrid_ft.finetune.data.messages.preference import Preference, Unusable, preference_from
from hybrid_ft.finetune.data.sources.rows import BadRow

Judged = tuple[str, Judgement | BadRow | Unusable]
Pair = tuple[str, Preference | BadRow | Unusable]
ALONE = "no answer to the same prompt was judged the other way; hybrid-ft kto trains on such rows"


def joined(judged: Iterable[Judged], every: bool, notes: list[str]) -> Iterator[Pair]:
    """The pairs of judged answers, each with the place of its good one; in the place of an answer that
    has none, the reason.

    Good and bad answers to one prompt are paired in their order, or with ``every`` each good one with each bad one. All
    are held in memory until the last is read. How many were left over is added to ``notes``.
    """
    prompts: dict[str, tuple[list[tuple[str, Judgement]], list[tuple[str, Judgement]]]] = {}
    for place, made in judged:
        if isinstance(made, BadRow | Unusable):
            yield place, made
            continue
        turns = made.conversation.messages
        asked = json.dumps([turns[:-1], made.conversation.tools], sort_keys=True)
        prompts.setdefault(asked, ([], []))[0 if made.good else 1].append((place, made))
    left = 0
    for good, bad in prompts.values():
        if not good or not bad:
            for place, _ in good + bad:
                yield place, Unusable(ALONE, ALONE)
            continue
        left += 0 if every else abs(len(good) - len(bad))
        for (place, better), (_, worse) in itertools.product(good, bad) if every else zip(good, bad, strict=False):
            yield place, _pair(better, worse)
    if left:
        notes.append(f"{left:,} answers of which their prompt has no more of the other kind; pairs: all takes them too")


def _pair(good: Judgement, bad: Judgement) -> Preference | Unusable:
    chosen, rejected = good.conversation, bad.conversation
    try:
        pair = preference_from(chosen.messages, rejected.messages, chosen.tools, chosen.unused | rejected.unused)
    except Unusable as why:
        return why
    for kind in good.noticed.keys() | bad.noticed.keys():
        pair.noticed[kind] = pair.noticed.get(kind, 0) + good.noticed.get(kind, 0) + bad.noticed.get(kind, 0)
    return pair
