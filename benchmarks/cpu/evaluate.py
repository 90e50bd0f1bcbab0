"""Evaluation beside lm_eval's HFLM: the same model, tasks and rows, generation and choice.

    python benchmarks/cpu/evaluate.py [--model MODEL] [--rows 48] [--turns 3]

All sides go through ``lm_eval.evaluate`` on tasks of this file's making, in turns: HFLM with plain transformers' model,
and with the model laid flat, each at the batch size that was better for it of 16 and 64; this project's as ``hybrid-ft
evaluate --on lm_eval:...`` asks it, nothing kept. Choice: four options after a question and five examples, which all
questions share. Generation: one example and a question, 48 tokens. Answers must be the same and log-probabilities
within 1e-4, or nothing is printed."""

from __future__ import annotations

import json
import logging
import random
import statistics
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import common
import lm_eval
import transformers
from lm_eval.models.huggingface import HFLM

import hybrid_ft
from hybrid_ft.finetune.evaluation import stock_tasks
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.kept import Kept
from hybrid_ft.finetune.evaluation.stock_model import StockModel
from hybrid_ft.finetune.generation.generate import tokenizer_for_answers

BATCHES = (16, 64)
DIFFER = 1e-4
"""Log-probabilities of the two sides at most."""
HEAD = """
dataset_path: json
dataset_kwargs: {{data_files: {{train: {shots}, test: {rows}}}}}
training_split: train
fewshot_split: train
test_split: test
fewshot_config: {{sampler: first_n}}
doc_to_text: "Record: {{{{text}}}}\\nThe name in it:"
"""
CHOICE = """
task: choice
num_fewshot: 5
output_type: multiple_choice
doc_to_target: right
doc_to_choice: options
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
GENERATION = """
task: generation
num_fewshot: 1
output_type: generate_until
doc_to_target: "{{options[right]}}"
generation_kwargs: {until: ["\\n\\n\\n"], do_sample: false, max_gen_toks: 48}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
Answers = list[list[Any]]


def made(folder: Path, rows: int) -> None:
    """Rows of the quickstart's texts, and the two tasks."""
    lines = (Path(hybrid_ft.__file__).parent / "datasets" / "quickstart" / "train.jsonl").read_text().splitlines()
    chance = random.Random(0)
    texts = [json.loads(line)["messages"][0]["content"] for line in chance.sample(lines, rows + 5)]
    names = ["Anna Berg", "Omar Haddad", "Lucia Moretti", "Kenji Sato"]
    written = [
        json.dumps({"text": text, "options": [f" {name}" for name in names], "right": number % 4}) + "\n"
        for number, text in enumerate(texts)
    ]
    for name, part in (("shots", written[:5]), ("rows", written[5:])):
        (folder / f"{name}.jsonl").write_text("".join(part))
    head = HEAD.format(shots=folder / "shots.jsonl", rows=folder / "rows.jsonl")
    for name, text in (("choice", CHOICE), ("generation", GENERATION)):
        (folder / f"{name}.yaml").write_text(head + text)


def answers_of(task: Path, model: Any) -> Answers:
    """What a side answers, in the order of the rows."""
    (stock,) = stock_tasks.load_stock([f"lm_eval:{task}"], (), (), None)
    samples = stock_tasks.asked(stock, model)["samples"][task.stem]
    return [[one[0] for one in sample["resps"]] for sample in samples]


def check(theirs: Answers, ours: Answers) -> float:
    """The largest difference of log-probabilities; 0 of texts, which must be equal."""
    largest = 0.0
    for one, other in zip(theirs, ours, strict=True):
        if isinstance(one[0], str):
            assert one == other, (one, other)
            continue
        largest = max(largest, *(abs(a[0] - b[0]) for a, b in zip(one, other, strict=True)))
    assert largest <= DIFFER, largest
    return largest


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--model", default="tiny")
    options.add_argument("--rows", type=int, default=48, help="of choice; four times as many of generation")
    options.add_argument("--turns", type=int, default=3)
    options = options.parse_args()
    common.one_quiet_thread()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        tokenizer = tokenizer_for_answers(options.model)
        model = hybrid_ft.load(options.model).eval()
        saved = folder / "model"
        model.save_pretrained(saved)
        plain = transformers.AutoModelForCausalLM.from_pretrained(saved).eval()
        assert type(plain).__module__.startswith("transformers.")
        for name, rows in (("generation", 4 * options.rows), ("choice", options.rows)):
            made(folder, rows)
            measure(folder / f"{name}.yaml", rows, plain, model, tokenizer, options)


def measure(task: Path, rows: int, plain: Any, model: Any, tokenizer: Any, options: Any) -> None:
    count = iter(range(10**6))
    answered: dict[str, Answers] = {}

    def theirs(name: str, of: Any, batch: int) -> Callable[[], None]:
        side = HFLM(pretrained=of, tokenizer=tokenizer, batch_size=batch)
        return lambda: answered.__setitem__(name, answers_of(task, side))

    def ours() -> None:
        lines = Kept(task.parent / f"kept-{next(count)}.jsonl")
        side = StockModel(lambda: model, model.config, tokenizer, lines, Budget())
        with stock_tasks.templates_once():
            answered["ours"] = answers_of(task, side)

    sides: dict[str, Callable[[], None]] = {"ours": ours}
    batches = {}
    for name, of in (("hflm", plain), ("hflm_flat", model)):
        sizes = {batch: common.in_turns({name: theirs(name, of, batch)}, 1)[name].cpu[0] for batch in BATCHES}
        batches[name] = min(sizes, key=sizes.__getitem__)
        sides[name] = theirs(name, of, batches[name])
    ours()
    largest = max(check(answered[name], answered["ours"]) for name in batches)
    taken = common.in_turns(sides, options.turns)
    found = {name: common.ratios(taken[name], taken["ours"]) for name in batches}
    record = {
        "benchmark": "evaluate_cpu",
        "task": task.stem,
        "model": options.model,
        "rows": rows,
        "batches": batches,
        "cpu_s": {name: side.cpu for name, side in taken.items()},
        "ratios": found,
        "largest_difference": largest,
        "cpu": common.processor(),
        "date": datetime.now(UTC).date().isoformat(),
        "lm_eval": lm_eval.__version__,
        **common.versions(),
    }
    common.append(options.out, record)
    print(f"{task.stem}: {rows} rows, ours {statistics.median(taken['ours'].cpu):.1f} CPU s")
    for name, of in (("hflm", "plain transformers'"), ("hflm_flat", "laid flat")):
        print(f"  HFLM, {of} model, {batches[name]} a batch: {common.spread(found[name])} times as long")


if __name__ == "__main__":
    main()
