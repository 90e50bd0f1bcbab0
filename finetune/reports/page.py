"""A report: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from hybrid_ft.errors import InputError, masked, one_line
from hybrid_ft.finetune.evaluation import statistics
from hybrid_ft.finetune.reports.chart import Chart, chart, shown
from hybrid_ft.finetune.reports.cost import cost
from hybrid_ft.finetune.reports.differences import Marked, cut, ends, marked, recipe_rows
from hybrid_ft.finetune.reports.kept_run import KeptEvaluation, KeptRun, read_places
from hybrid_ft.finetune.reports.read import Lines
from hybrid_ft.finetune.reports.stage_answers import stage_answers
from hybrid_ft.finetune.runs.atomic import write_text
from hybrid_ft.finetune.runs.console import duration

MOST_BYTES = 500_000
MOST_RUNS = 12
NAME = "report.html"
_CURVES = (
    ("loss", "loss", False),
    ("held-out loss", "eval_loss", True),
    ("learning rate", "learning_rate", False),
    ("gradient norm", "grad_norm", False),
    ("tokens per second", "tokens_per_s", False),
    ("peak memory, GiB", "memory", False),
    ("padding", "padding", False),
    ("margin of chosen over rejected", "rewards/margins", False),
    ("pairs in the right order", "rewards/accuracies", False),
    ("score of chosen over rejected", "margin", False),
    ("accuracy", "accuracy", False),
    ("chosen answers against the reference, nats a token", "chosen_gain", False),
    ("rejected answers against the reference, nats a token", "rejected_gain", False),
    ("held-out margin", "eval_rewards/margins", True),
    ("held-out accuracy", "eval_accuracy", True),
    ("held-out pairs in the right order", "eval_rewards/accuracies", True),
    ("of those whose chosen answer is the longer", "eval_accuracy_longer", True),
    ("of those whose chosen answer is the shorter", "eval_accuracy_shorter", True),
)

_IN_ORDER = (
    ("rewards/accuracies", "pairs", "Held-out pairs in the right order"),
    ("accuracy", "pairs", "Held-out pairs in the right order"),
    ("accuracy", "rows", "Held-out answers on the right side of the reference"),
)
"""Of DPO, a reward model and KTO a share, what it is of, and its name."""


def write_report(places: Sequence[Path], out: Path, price: float | None = None) -> Path:
    """Write the report of runs, stages and evaluations; returns its path. ``price``: USD for one GPU for an hour.

    Raises InputError."""
    runs, evaluations = read_places(list(places))
    evaluations = [found for place in places if (found := stage_answers(place)) is not None] + evaluations
    if len(runs) > MOST_RUNS:
        raise InputError(f"{len(runs)} runs; a report holds {MOST_RUNS} at most, name fewer")
    if out.is_dir() or not out.absolute().parent.is_dir():
        reason = "is a folder; name a file" if out.is_dir() else "its folder does not exist"
        raise InputError(f"{out}: {reason}")
    text = ""
    for most in (40, 12, 4, 1, 0):  # answers of each run
        text = render(runs, evaluations, most, price)
        if len(text.encode()) <= MOST_BYTES:
            break
    try:
        write_text(out, text)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); name another file with --out") from None
    return out


def report_at_end(place: Path) -> str:
    """Write the report of what has just ended into its folder, and say so in a line; nothing that goes wrong with it
    may undo a run that is done."""
    try:
        return f"report    {write_report([place], place / NAME)}"
    except Exception as error:  # noqa: BLE001 - whatever it is, the results are there
        return (
            f"report    could not be made ({one_line(error)}); hybrid-ft report {shlex.quote(str(place))} tries again"
        )


def render(runs: list[KeptRun], evaluations: list[KeptEvaluation], most: int = 40, price: float | None = None) -> str:
    """The page, with so many answers of each run at most."""
    names = [run.name for run in runs] + [f"evaluation {one.name}" for one in evaluations]
    facts = [_facts(run) for run in runs]
    costs = [cost(run.record, run.recipe, sum(run.series("seconds")[1]), price) or "" for run in runs]
    return _template().render(
        title=", ".join(names),
        made=f"hybrid-ft, {_moment(datetime.now(UTC).isoformat())}",
        verdicts=[f"{run.name}: {line}" if len(runs) > 1 else line for run in runs for line in _verdict(run)],
        runs=[_shown_run(run, most) for run in runs],
        facts=_rows_of_facts(facts, costs),
        changed_keys=recipe_rows([run.recipe for run in runs])[:60] if len(runs) > 1 else [],
        evaluations=evaluations,
        marked_answers=_marked_answers,
        versions=_versions,
        charts=_charts(runs),
        most=most,
        cut=cut,
        ends=ends,
        script=markupsafe.Markup(_script()),
        script_digest=base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode(),
    )


@cache
def _script() -> str:
    """What shows a curve's values at the pointer. The page's policy lets no script run but one of its digest."""
    return Path(__file__).with_name("hover.js").read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    """Every text of a run is hostile: escaped by Jinja2, its secrets masked before."""
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: masked(_printable(value)) if type(value) is str else value,
    )
    source = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


def _printable(text: str) -> str:
    """Without what no HTML file may hold, half characters and control codes, and without what
    turns the text's direction."""
    return "".join(
        "\ufffd"
        if "\ud800" <= c <= "\udfff"
        or (c < " " and c not in "\n\t")
        or c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        else c
        for c in text
    )


def _charts(runs: list[KeptRun]) -> list[Chart]:
    found = []
    for title, name, dotted in (*_CURVES, *_tasks(runs)):
        unit = 2**30 if name == "memory" else 1
        series = [run.series(name) for run in runs]
        curves = [
            (run.name, number, x, [value / unit for value in y])
            for number, (run, (x, y)) in enumerate(zip(runs, series))
        ]
        if name == "padding" and not any(value for _, _, _, values in curves for value in values):
            continue  # packed rows have none, and a line at 0 says nothing
        found.append(chart(title, curves, dotted))
    return [one for one in found if one is not None]


def _tasks(runs: list[KeptRun]) -> list[tuple[str, str, bool]]:
    """Scores that were measured on the way."""
    names = dict.fromkeys(name for run in runs for line in run.metrics for name in line if name.startswith("suite/"))
    return [(name.removeprefix("suite/").replace("/", ": "), name, True) for name in names]


def _facts(run: KeptRun) -> dict[str, str]:
    record, identity = run.record, run.record.get("identity", {})
    finished = record.get("finished") or {}
    steps = run.metrics[-1]["step"] if run.metrics else 0
    seconds = sum(run.series("seconds")[1])
    tokens = run.series("tokens")[1]
    memory = run.series("memory")[1]
    model = run.recipe.get("model") or {}
    return {
        "stage": str(record.get("stage", "")),
        "base": str(model.get("path", "")),
        "trained": "LoRA" if model.get("lora") else "all weights",
        "state": f"finished {_moment(finished['at'])}" if finished.get("at") else "not finished",
        "steps": f"{steps:,}" if finished or not record.get("steps") else f"{steps:,} of {record['steps']:,}",
        "tokens": f"{max(tokens):,.0f}" if tokens else "",
        "time in steps": duration(seconds),
        "peak memory": f"{max(memory) / 2**30:.2f} GiB" if memory else "",
        "device": f"{record.get('device', '')}, {_processes(record.get('processes', 1))}",
        "begun": _moment(record.get("started", "")),
        "versions": _versions(identity),
    }


def _rows_of_facts(facts: list[dict[str, str]], costs: list[str]) -> list[tuple[str, list[str]]]:
    """The costs below the time, where there are any."""
    rows = []
    for name in facts[0] if facts else ():
        rows.append((name, [of_run.get(name, "") for of_run in facts]))
        if name == "time in steps" and any(costs):
            rows.append(("cost of the steps", costs))
    return rows


def _marked_answers(answers: list[str]) -> list[Marked]:
    """Models' answers, each with what differs from the first marked; in the first what the last has not."""
    if len(answers) < 2:
        return [[(False, cut(answer))] for answer in answers]
    return [marked(answers[0], answers[-1])[0], *(marked(answers[0], answer)[1] for answer in answers[1:])]


def _moment(kept: Any) -> str:
    """``3 November 2026, 09:05 UTC`` of a time as it is kept; what is none stays as it is."""
    try:
        when = datetime.fromisoformat(str(kept)).astimezone(UTC)
    except ValueError:
        return str(kept)
    return f"{when.day} {when.strftime('%B %Y, %H:%M')} UTC"


def _versions(identity: dict[str, Any]) -> str:
    known = {key.partition(".")[2]: value for key, value in identity.items() if key.startswith("version.")}
    return ", ".join(f"{name} {value}" for name, value in known.items())


def _verdict(run: KeptRun) -> list[str]:
    """What has changed, in a line each: held-out loss, exact answers with their interval."""
    lines = []
    begun, ended = ((run.record.get(when) or {}).get("held_out") or {} for when in ("before", "finished"))
    losses = run.series("eval_loss")[1]
    before, after = begun.get("loss"), ended.get("loss") or (losses[-1] if losses else None)
    if before is not None and after is not None:
        lines.append(f"Held-out loss {shown(before)} before, {shown(after)} after.")
    for of, count, what in _IN_ORDER:
        if of in begun and of in ended and count in ended:
            shares = f"{100 * begun[of]:.1f} % before, {100 * ended[of]:.1f} % after"
            lines.append(f"{what}: {shares}, of {ended[count]:,.0f}.")
    was, now = ([float(bool(line.get("exact"))) for line in lines_] for lines_ in run.answers)
    if was and len(was) == len(now):
        scores = [statistics.share(values) for values in (was, now)]
        change = statistics.difference(was, now)
        words = [f"{100 * one.value:.1f} % [{100 * one.low:.1f}, {100 * one.high:.1f}]" for one in scores]
        text = f"no difference seen, at most {100 * change.most:.1f} points"
        if change.settled:
            text = f"{100 * change.value:+.1f} points [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
        lines.append(f"Exact answers to {len(was)} held-out prompts: {words[0]} before, {words[1]} after: {text}.")
    return lines


def _shown_run(run: KeptRun, most: int) -> dict[str, Any]:
    data = run.record.get("data") or {}
    account = data.get("account") or {}
    sources = [*account.get("sources", []), *account.get("eval_sources", [])]
    lengths = [
        (", ".join((split, *names)), values)
        for split in ("train", "eval")
        for names, values in _lengths((account.get(split) or {}).get("length") or {})
    ]
    stage, results = run.record.get("stage", "sft"), (run.record.get("finished") or {}).get("results", [])
    commands = [f"hybrid-ft {stage} {shlex.quote(str(run.path / 'recipe.yaml'))} output=runs/again"]
    commands += [f"hybrid-ft chat {shlex.quote(str(run.path / result))}" for result in results[-1:]]
    return {
        "name": run.name,
        "rows": _rows(run, most),
        "all_rows": sum(len(_pairs(both)) for both in (run.samples, run.answers)),
        "hard_rows": [_hard_row(line) for line in run.hard_rows[:most]],
        "data": data.get("summary", []),
        "sources": sources,
        "lengths": lengths,
        "commands": commands,
        "versions": _versions(run.record.get("identity", {})),
        "recipe_text": cut(run.recipe_text, 20_000),
    }


def _lengths(length: dict[str, Any]) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Those of rows, or of pairs' prompts and answers, each with its name."""
    return [((), length)] if "median" in length else [((name,), values) for name, values in length.items()]


def _rows(run: KeptRun, most: int) -> list[dict[str, Any]]:
    """Samples, then answers before and after, those first whose score changed, then the wrong ones."""
    pairs = sorted(
        _pairs(run.answers),
        key=lambda pair: (pair[0].get("exact") == pair[1].get("exact"), bool(pair[1].get("exact"))),
    )
    rows: list[tuple[dict[str, Any], dict[str, Any], str, str | None]]
    rows = [(was, now, "prompt", None) for was, now in _pairs(run.samples)]
    rows += [(was, now, "origin", str(now.get("reference", ""))) for was, now in pairs]
    return [_row(was, now, str(now.get(head, "")), reference) for was, now, head, reference in rows[:most]]


def _pairs(both: tuple[Lines, Lines]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Nothing where one of the two is not there yet."""
    before, after = both
    return list(zip(before, after, strict=True)) if len(before) == len(after) else []


def _row(was: dict[str, Any], now: dict[str, Any], head: str, reference: str | None) -> dict[str, Any]:
    before, after = marked(str(was.get("answer", "")), str(now.get("answer", "")))
    words = [{True: "right", False: "wrong", None: ""}[one.get("exact")] for one in (was, now)]
    return {
        "head": ends(head),
        "question": ends(str(now.get("question", ""))),
        "before": before,
        "after": after,
        "was": words[0],
        "now": words[1],
        "reference": None if reference is None else cut(reference),
    }


def _hard_row(line: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in ("prompt", "chosen", "rejected", "answer") if name in line]
    texts = [(name, (ends if name == "prompt" else cut)(str(line[name]), 600)) for name in names]
    loss = line.get("loss")
    value = shown(loss) if isinstance(loss, int | float) and math.isfinite(loss) else ""
    return {"place": f"{line.get('origin', '')}, {line.get('split', '')}", "loss": value, "texts": texts}


def _processes(count: int) -> str:
    return f"{count} process{'es' if count != 1 else ''}"
