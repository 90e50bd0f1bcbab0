"""A task's rows as items: tokens to ask with, answers to compare."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.data.messages.column_templates import ColumnTemplate, is_template
from hybrid_ft.finetune.data.messages.columns import row_format
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.report.count import Counts
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, looked_at, origin
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import encode
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.evaluation.made import made_rows
from hybrid_ft.finetune.evaluation.scorers.instructions import CHECKS
from hybrid_ft.finetune.evaluation.scorers.records import json_object
from hybrid_ft.finetune.evaluation.scorers.refusal import WANTED
from hybrid_ft.finetune.evaluation.scorers.text import number_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hybrid_ft.finetune.evaluation.task import Task
    from hybrid_ft.finetune.recipe.data_section import Source

_LOOK_AHEAD = 64
_MOST_MISTAKES = 20


@dataclass
class Asked:
    """One row as it was read: what is asked, and the rest of it. ``question``: the last turn's
    text before the answer."""

    origin: str
    turns: list[dict[str, Any]]
    answer: dict[str, Any]
    tools: list[dict[str, Any]] | None
    values: Mapping[str, Any]
    question: str = ""
    options: list[str] = field(default_factory=list)
    right: int = -1


@dataclass
class Item:
    """One row, ready to be asked.

    prompt     tokens up to where the answer begins
    branches   of choice: the tokens of each option; of loss: none
    labels     of loss: the prompt's tokens where they count, -100 elsewhere
    """

    asked: Asked
    prompt: list[int]
    branches: list[list[int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


@dataclass
class Items:
    """The items of a task, what was left out with its reason, and the tokens that end an answer."""

    items: list[Item]
    left_out: Counts
    end_ids: list[int]


def read_items(task: Task, tokenizer: PreTrainedTokenizerBase, limit: int | None = None) -> Items:
    """Read a task's rows for a model's tokenizer; ``limit``: a seeded sample of so many. Raises InputError."""
    left_out = Counts()
    rows = _made(task, tokenizer) if task.made is not None else _read(task.rows, task, left_out)
    shots = _read(task.shots_from, task, Counts())[: task.shots] if task.shots_from else rows[: task.shots]
    if len(shots) < task.shots:
        source = task.shots_from or task.rows
        place = source.path if source else "made"
        raise InputError(f"{place}: shots: got {task.shots}; there are {len(shots)} rows to take them from")
    rows = rows if task.shots_from or not task.shots else rows[task.shots :]
    most = min(limit or len(rows), task.rows.count if task.rows and task.rows.count else len(rows))
    if most < len(rows):
        rows = [rows[at] for at in sorted(random.Random(task.seed).sample(range(len(rows)), most))]
    if not rows:
        why = "".join(f"; left out, {reason}: {count}" for reason, count in left_out.most_first())
        raise InputError(f"{task.rows.path if task.rows else 'made'}: no row is left to ask{why}")
    if task.evaluator == "calls" and not any(row.tools or row.answer.get("tool_calls") for row in rows):
        raise InputError(f"{task.rows.path if task.rows else 'made'}: no row has tools or calls; name their columns")
    made = _in_chat(task, rows, shots, tokenizer) if task.form == "chat" else _plain(task, rows, shots, tokenizer)
    return Items(made[0], left_out, made[1])


def _made(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[Asked]:
    assert task.made is not None
    # room for the chat template's own tokens
    frame = len(_in_chat(task, [_asked_of("", "x")], [], tokenizer)[0][0].prompt) if task.form == "chat" else 1

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + frame

    try:
        rows = list(made_rows(task.made, count))
    except ValueError as error:
        raise InputError(str(error)) from None
    return [_asked_of(question, reference, number) for number, (question, reference) in enumerate(rows, start=1)]


def _asked_of(question: str, reference: str, number: int = 0) -> Asked:
    turns = [{"role": "user", "content": question}]
    return Asked(f"made:{number}", turns, {"role": "assistant", "content": reference}, None, {}, question)


def _read(source: Source | None, task: Task, left_out: Counts) -> list[Asked]:
    """The rows of a source, each checked against the task. Raises InputError with a line for each bad row."""
    assert source is not None
    opened = open_source(source)
    ahead, rows = looked_at(iter(opened.rows), _LOOK_AHEAD)
    good = [row for row in ahead if isinstance(row, Row)]
    form = row_format(source, good) if good else None
    if good and (form is None or form.name == "text"):  # a text asks nothing
        found = ", ".join(good[0].values)
        raise InputError(f"{opened.name}: columns in no known format (found {found}); say which is which under columns")
    prompt = ColumnTemplate(task.prompt) if task.prompt else None
    found_rows: list[Asked] = []
    mistakes: list[str] = []
    try:
        for row in rows:
            place = origin(opened.name, row)
            try:
                if isinstance(row, BadRow):
                    raise row
                assert form is not None
                conversation = form.convert(row.values)
                assert isinstance(conversation, Conversation)
                asked = _asked(place, conversation, row.values, task, prompt)
                if (reason := _out(asked, task)) is not None:
                    left_out.add(reason, place)
                else:
                    found_rows.append(asked)
            except BadRow as bad:
                mistakes.append(f"{place}: {bad}")
                if len(mistakes) == _MOST_MISTAKES:
                    break
    except InputError as error:  # the file cannot be read to its end
        mistakes.append(str(error))
        if len(mistakes) == 1:
            raise
    if mistakes:
        raise InputError("\n".join(mistakes))
    return found_rows


def _asked(
    place: str, conversation: Conversation, values: Mapping[str, Any], task: Task, prompt: ColumnTemplate | None
) -> Asked:
    """Raises BadRow for a row that the task cannot ask."""
    *turns, answer = conversation.messages
    question = str(turns[-1]["content"]) if turns else ""
    if prompt is not None:
        question = prompt({**values, "prompt": question})
        turns = [*turns[:-1], {**turns[-1], "content": question}]
    if task.system is not None:
        turns = [{"role": "system", "content": task.system}, *(turn for turn in turns if turn["role"] != "system")]
    asked = Asked(place, turns, answer, conversation.tools, values, question)
    if task.evaluator == "choice":
        asked.options, asked.right = _options(task, values, answer["content"].strip())
    if task.evaluator == "json" and json_object(answer["content"]) is None:
        raise BadRow("reference", f"the reference is {shown(answer['content'])}; must be a JSON object")
    if task.evaluator == "refusal" and answer["content"].strip() not in WANTED:
        raise BadRow("reference", f"the reference is {shown(answer['content'])}; must be {' or '.join(WANTED)}")
    if task.cluster is not None and task.cluster not in values:
        raise BadRow("column missing", f"column {task.cluster} is missing; cluster needs it")
    return asked


def _options(task: Task, values: Mapping[str, Any], reference: str) -> tuple[list[str], int]:
    """A row's options and which of them is right. Raises BadRow."""
    if isinstance(task.options, str):
        if task.options not in values:
            raise BadRow("options", f"options: no column {task.options} (found {', '.join(values)})")
        found = values[task.options]
        if (
            not isinstance(found, list)
            or not found
            or not all(isinstance(text, str) and text.strip() for text in found)
        ):
            raise BadRow("options", f"options: column {task.options} is {shown(found)}; must be a list of texts")
        options = [text.strip() for text in found]
    else:
        texts = task.options or []
        options = [ColumnTemplate(text)(values).strip() if is_template(text) else text.strip() for text in texts]
    if options.count(reference) != 1:
        rule = f"must be one of {', '.join(map(shown, options[:8]))}, once"
        raise BadRow("reference", f"the reference is {shown(reference)}; {rule}")
    return options, options.index(reference)


def _out(asked: Asked, task: Task) -> str | None:
    """Why a row is not asked although nothing is wrong with it."""
    if task.evaluator == "number" and number_in(asked.answer["content"]) is None:
        return "the reference has no number"
    if task.evaluator == "instructions":
        ids, arguments = asked.values.get("instruction_id_list"), asked.values.get("kwargs")
        if not isinstance(ids, list) or not isinstance(arguments, list) or len(ids) != len(arguments) or not ids:
            raise BadRow("columns", "instructions need the columns instruction_id_list and kwargs, lists of one length")
        unknown = next((name for name in ids if name not in CHECKS), None)
        if unknown is not None:
            return f"no program here checks {shown(unknown)}"
    return None


def _in_chat(
    task: Task, rows: list[Asked], shots: list[Asked], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Item], list[int]]:
    encoder = Encoder.of_tokenizer(tokenizer)
    examples = [turn for shot in shots for turn in (*_without_system(shot.turns), shot.answer)]
    conversations, owners = [], []
    for number, row in enumerate(rows):
        system = [turn for turn in row.turns[:1] if turn["role"] == "system"]
        turns = [*system, *examples, *row.turns[len(system) :]]
        answers = [row.answer] if task.evaluator == "loss" else [{"role": "assistant", "content": "x"}]
        if task.evaluator == "choice":
            answers = [{"role": "assistant", "content": option} for option in row.options]
        for answer in answers:
            conversations.append(Conversation([*turns, answer], row.tools))
            owners.append(number)
    items: list[Item] = []
    mistakes = []
    for number, encoded in zip(owners, encode(conversations, encoder.template, encoder.control)):
        row = rows[number]
        if isinstance(encoded, BadRow):
            mistakes.append(f"{row.origin}: {encoded}")
            continue
        if task.evaluator == "loss":
            items.append(Item(row, encoded.ids, [], encoded.labels()))
            continue
        if not items or items[-1].asked is not row:
            items.append(Item(row, encoded.prompt_ids))
        if task.evaluator == "choice":
            first, last = encoded.turns[-1]
            items[-1].branches.append(encoded.ids[first:last])
    if mistakes:
        raise InputError("\n".join(mistakes[:_MOST_MISTAKES]))
    return items, encoder.eos_token_ids


def _without_system(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [turn for turn in turns if turn["role"] != "system"]


def _plain(
    task: Task, rows: list[Asked], shots: list[Asked], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Item], list[int]]:
    """Text and nothing else: examples, question, then a space and the answer."""
    control = ControlTokens(tokenizer)
    opening = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
    head = f"{task.system}\n\n" if task.system else ""
    head += "".join(f"{shot.question} {shot.answer['content'].strip()}\n\n" for shot in shots)
    texts = [head + row.question for row in rows]
    encoded = [opening + list(found.ids) for found in control.encode(texts)]
    items = [Item(row, ids) for row, ids in zip(rows, encoded, strict=True)]
    if task.evaluator == "choice":
        whole = control.encode(
            [f"{text} {option}" for text, row in zip(texts, rows, strict=True) for option in row.options]
        )
        at = iter(whole)
        for item in items:
            rests = [opening + list(next(at).ids) for _ in item.asked.options]
            item.branches = [rest[len(item.prompt) :] for rest in rests]
            # where a token joins the question's last letters and the answer's first, all begin before it
            if any(rest[: len(item.prompt)] != item.prompt or not rest[len(item.prompt) :] for rest in rests):
                common = min(_common(item.prompt, rest) for rest in rests)
                item.prompt, item.branches = item.prompt[:common], [rest[common:] for rest in rests]
    end = tokenizer.eos_token_id
    return items, [] if end is None else [end]


def _common(one: list[int], other: list[int]) -> int:
    """How many leading tokens two rows share."""
    return next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
