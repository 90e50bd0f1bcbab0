"""From a task's items to scored answers, kept one by one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hybrid_ft.finetune.data.messages.column_templates import ColumnTemplate
from hybrid_ft.finetune.data.tokens.reasoning import BEGIN, END
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.items import Item, Items
from hybrid_ft.finetune.evaluation.kept import Kept
from hybrid_ft.finetune.evaluation.likelihood import best_option, log_probs
from hybrid_ft.finetune.evaluation.scored import Scored
from hybrid_ft.finetune.evaluation.scorers import calls, code, instructions, records, refusal, text
from hybrid_ft.finetune.evaluation.task import Task
from hybrid_ft.finetune.evaluation.written import write_answers
from hybrid_ft.finetune.generation.generate import Sampling
from hybrid_ft.finetune.runs.identity import digest_of
from hybrid_ft.hybrid_model.checkpoint.generation_config import end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOGETHER = 64
"""Answers that are scored and kept together at most."""
_OPENING = 32
"""Tokens at a prompt's end in which its template may open a thought."""
_NOT_SCORING = {"about", "rows", "made", "shots_from", "shots", "samples", "cluster", "prompt", "system"}
"""Keys of a task that the prompt's tokens stand for, or that choose among rows."""


def keys_of(task: Task, items: Items) -> list[list[str]]:
    """The key of every sample of every item: of all that decides its answer and score but the
    model and its tokenizer."""
    how = {name: value for name, value in task.model_dump().items() if name not in _NOT_SCORING}
    return [
        [
            digest_of([how, item.prompt, item.branches, item.labels, _held_against(task, item), sample])[7:39]
            for sample in range(task.samples)
        ]
        for item in items.items
    ]


def _held_against(task: Task, item: Item) -> Any:
    asked = item.asked
    columns = dict(asked.values) if task.evaluator in ("code", "instructions") else None
    return [asked.answer, asked.right, columns]


Job = tuple[int, int, str]
"""Item, sample and key of an answer."""


def missing(task: Task, items: Items, kept: Kept) -> list[Job]:
    """Every answer that is not there yet."""
    return [job for job in _jobs(task, items) if job[-1] not in kept.lines]


def _jobs(task: Task, items: Items) -> list[Job]:
    return [
        (number, sample, key) for number, keys in enumerate(keys_of(task, items)) for sample, key in enumerate(keys)
    ]


def score_missing(
    task: Task,
    items: Items,
    kept: Kept,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    budget: Budget,
    tell: Callable[[int], None] = lambda done: None,
) -> int:
    """Make the answers that are missing and keep them. Returns the tokens that were written or weighed."""
    jobs = _jobs(task, items)
    done = [key in kept.lines for _, _, key in jobs]
    if all(done):
        return 0
    tokens = 0
    found = _weighed(task, items, jobs, done, model, budget) if not task.generated else _written(
        task, items, jobs, done, model, tokenizer, budget
    )  # fmt: skip
    while part := list(itertools.islice(found, _TOGETHER)):
        tokens += sum(line.get("tokens", 0) for line in part)
        kept.add(_scored(task, items, part, tokenizer) if task.generated else part)
        tell(len(part))
    return tokens


def _weighed(
    task: Task, items: Items, jobs: list[Job], done: list[bool], model: PreTrainedModel, budget: Budget
) -> Iterator[dict[str, Any]]:
    asked = [items.items[number] for number, _, _ in jobs]
    for row, values in log_probs(model, asked, budget, done):
        item, (number, _, key) = asked[row], jobs[row]
        line = {"key": key, "item": number, "origin": item.asked.origin}
        if task.evaluator == "loss":
            loss = -sum(values[0]) / max(1, len(values[0]))
            yield line | {"tokens": len(values[0]), "scores": {"loss": loss}}
            continue
        best = best_option(item, values, task.per_character)
        options = item.asked.options
        yield line | {
            "answer": options[best],
            "reference": options[item.asked.right],
            "log_probs": [round(sum(branch), 6) for branch in values],
            "tokens": len(item.prompt),
            "scores": {"accuracy": float(best == item.asked.right)},
        }


def _written(
    task: Task,
    items: Items,
    jobs: list[Job],
    done: list[bool],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    budget: Budget,
) -> Iterator[dict[str, Any]]:
    prompts = [items.items[number].prompt for number, _, _ in jobs]
    sampling = Sampling(task.temperature, task.top_p, task.seed)
    ends = end_tokens(model, tokenizer, items.end_ids)
    # a text of the thoughts is none of the answer's
    stop = () if task.after or _opening(items, tokenizer).endswith(BEGIN) else task.stop
    answers = write_answers(model, tokenizer, prompts, ends, task.max_new_tokens, sampling, budget, stop, done)
    for row, (answer, tokens) in answers:
        number, sample, key = jobs[row]
        item = items.items[number]
        line = {"key": key, "item": number, "sample": sample, "origin": item.asked.origin, "answer": answer}
        line |= {"reference": _reference(task, item), "tokens": tokens}
        if tokens >= task.max_new_tokens:
            line["cut"] = True
        yield line


def _reference(task: Task, item: Item) -> str:
    answer = item.asked.answer
    if task.evaluator == "instructions":
        return ", ".join(item.asked.values["instruction_id_list"])
    if task.evaluator == "calls" and answer.get("tool_calls"):
        made = calls.of_messages(answer["tool_calls"])
        return "\n".join(json.dumps({"name": name, "arguments": given}, ensure_ascii=False) for name, given in made)
    return str(answer["content"])


def _opening(items: Items, tokenizer: PreTrainedTokenizerBase) -> str:
    """How the prompts end, all alike."""
    return str(tokenizer.decode(items.items[0].prompt[-_OPENING:])).rstrip()


def _scored(
    task: Task, items: Items, lines: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """The lines with their scores: 0 on all measures where thoughts do not end. Programs run side by side."""
    opening = _opening(items, tokenizer)
    counted = [what_counts(task, line["answer"], opening) for line in lines]
    asked = [items.items[line["item"]] for line in lines]
    found = _passed(task, asked, counted) if task.evaluator == "code" else [
        score(task, item, part or "") for item, part in zip(asked, counted, strict=True)
    ]  # fmt: skip
    return [
        line | ({"scores": scores} if part is not None else {"unended": True, "scores": dict.fromkeys(scores, 0.0)})
        for line, part, scores in zip(lines, counted, found, strict=True)
    ]


def score(task: Task, item: Item, counted: str) -> dict[str, float]:
    """The measures, by the task's evaluator, code apart, of the part of an answer that counts."""
    reference = str(item.asked.answer["content"])
    if task.evaluator == "exact":
        return text.exact(counted, reference)
    if task.evaluator == "contains":
        return text.contains(counted, reference)
    if task.evaluator == "number":
        return text.number(counted, reference)
    if task.evaluator == "refusal":
        return refusal.declines(counted, reference)
    if task.evaluator == "json":
        return records.record(counted, reference)
    if task.evaluator == "instructions":
        values = item.asked.values
        return instructions.follows(counted, values["instruction_id_list"], values["kwargs"])
    assert task.evaluator == "calls"
    made = item.asked.answer.get("tool_calls")
    return calls.calls(counted, calls.of_messages(made) if made else calls.calls_in(reference))


def what_counts(task: Task, answer: str, opening: str = "") -> str | None:
    """The part of an answer that is scored, which thoughts at its beginning are not; None where they do not end, or
    where what it counts after is not there.

    ``opening``: how the prompt ends, which may open a thought, or end one before the answer begins."""
    thought_ended = opening.rstrip().endswith(END)
    if opening.rstrip().endswith(BEGIN) or answer.lstrip().startswith(BEGIN):
        _, mark, answer = answer.partition(END)
        if not mark:
            return None
        thought_ended = True
    if task.after:
        _, mark, answer = answer.rpartition(task.after)
        if not mark and not (thought_ended and task.after == END):
            return None
    for stop in task.stop:
        answer = answer.partition(stop)[0]
    return answer


def _passed(task: Task, asked: list[Item], counted: list[str | None]) -> list[dict[str, float]]:
    """Whether the programs pass that the answers' code makes; of no answer none is run."""
    assert task.program is not None
    program = ColumnTemplate(task.program)
    programs = [
        program({**item.asked.values, "row": item.asked.values, "answer": code.code_in(part)})
        for item, part in zip(asked, counted, strict=True)
        if part is not None
    ]
    passed = iter(code.passes(programs))
    return [{"pass": float(part is not None and next(passed))} for part in counted]


def of_items(task: Task, items: Items, kept: Kept) -> list[dict[str, Any]]:
    """A line of each item: its first sample's, with the mean of every measure over its samples. Raises KeyError for an
    answer that is missing."""
    lines = []
    for number, (item, keys) in enumerate(zip(items.items, keys_of(task, items), strict=True)):
        samples = [kept.lines[key] for key in keys]
        measures = samples[0]["scores"]
        means = {name: sum(line["scores"].get(name, 0.0) for line in samples) / len(samples) for name in measures}
        cluster = (
            None if task.cluster is None else json.dumps(item.asked.values[task.cluster], sort_keys=True, default=str)
        )
        line = samples[0] | {"item": number, "scores": means, "cluster": cluster, "question": item.asked.question}
        lines.append(line | {"unended": any(line.get("unended") for line in samples)})
    return lines


_EXAMPLES = 3


def examples(by_task: list[list[Scored]]) -> list[dict[str, Any]]:
    """Of each task a few rows with the models' answers, those first whose score has changed most."""
    found = []
    for models in by_task:
        measure = next(iter(models[0].lines[0]["scores"]), "loss")
        if measure == "loss":
            continue
        rows = range(len(models[0].lines))
        moved = sorted(
            rows, key=lambda at: -abs(models[-1].lines[at]["scores"][measure] - models[0].lines[at]["scores"][measure])
        )
        found += [
            {
                "task": models[0].name,
                "origin": models[0].lines[at]["origin"],
                "question": models[0].lines[at]["question"],
                "reference": models[0].lines[at]["reference"],
                "answers": [model.lines[at]["answer"] for model in models],
                "scores": [model.lines[at]["scores"][measure] for model in models],
            }
            for at in moved[:_EXAMPLES]
        ]
    return found
