"""Rows into tokens: rows per second on this machine's cores, beside TRL's own way.

    python benchmarks/cpu/prepare.py --tokenizer FOLDER [--rows rows.jsonl] [--before FOLDER]

Sides, in turns: ``prepared`` is what a run does, nothing kept; ``before`` the same by another commit, whose files lie
in FOLDER/hybrid_ft (``git archive COMMIT | tar x -C FOLDER/hybrid_ft``), ids and labels being compared; ``trl`` TRL's
SFTTrainer, its rows mapped by as many processes; ``tokenizer`` the tokenizers library alone on the finished texts,
which no other way of asking it for every text can be faster than. Each side is a process of its own and says the
seconds, wall and CPU with its children's, from a loaded tokenizer to the last row. Without ``--rows`` rows are made of
words of the documentation. Rows are in ``messages`` form."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import common
import datasets
import trl
from transformers import AutoTokenizer

import hybrid_ft
from hybrid_ft.finetune.data.prepare import Prepared, prepare
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.recipe.data_section import Data
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.shipped import PACKAGE_ROOT

SIDES = ("prepared", "before", "trl", "tokenizer")


def made_rows(count: int) -> list[dict[str, Any]]:
    """Conversations of one to three rounds, of words that come as often as in the quickstart's text."""
    words = (PACKAGE_ROOT / "docs" / "data.md").read_text(encoding="utf-8").split()
    chance = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(least, most)))

    rows = []
    for number in range(count):
        turns = []
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            turns.append({"role": "user", "content": f"{text(10, 120)} {number}"})
            turns.append({"role": "assistant", "content": text(20, 300)})
        rows.append({"messages": turns})
    return rows


def side(name: str, path: Path, tokenizer: Any) -> Callable[[], Callable[[], str]]:
    """What a side does, which gives what then finds a hash of ids and labels, "" where it has none."""
    uncached = {"cache": False} if "cache" in Data.model_fields else {}
    data = {"sources": [{"path": str(path)}], "max_length": 2**20, "packing": False, **uncached}
    model = {"path": "tiny", "from_scratch": True, "chat_template": "olmo-instruct"}
    recipe = Recipe.model_validate({"model": model, "data": data})

    def prepared() -> Callable[[], str]:
        with redirect_stderr(io.StringIO()):
            made = prepare(recipe, tokenizer)
        return lambda: hash_of(made)

    def hash_of(made: Prepared) -> str:
        train = made.train
        found = hashlib.sha256()
        for table in train.select_columns(["input_ids", "labels"]).with_format("arrow").iter(512):
            for column in table.columns:
                found.update(column.combine_chunks().flatten().to_numpy().tobytes())
        return found.hexdigest()

    if name in ("prepared", "before"):
        return prepared
    template = Encoder.of(recipe, tokenizer).template
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    if name == "tokenizer":
        texts = [template.render(row["messages"]) for row in rows]
        backend = tokenizer.backend_tokenizer

        def alone() -> Callable[[], str]:
            for start in range(0, len(texts), 256):
                backend.encode_batch(texts[start : start + 256], add_special_tokens=False)
            return str

        return alone
    base = hybrid_ft.load("tiny")
    tokenizer.chat_template = template.text
    work = tempfile.mkdtemp(dir=path.parent)

    def trls() -> Callable[[], str]:
        arguments = trl.SFTConfig(
            output_dir=work, max_length=None, dataset_num_proc=os.cpu_count(), report_to=[], use_cpu=True
        )
        trl.SFTTrainer(base, arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)
        return str

    return trls


def timed(name: str, path: Path, tokenizer: str) -> None:
    """Run one side here, and print what it took."""
    common.one_quiet_thread()
    run = side(name, path, AutoTokenizer.from_pretrained(tokenizer))
    wall, cpu = time.perf_counter(), _cpu()
    hash_of = run()
    wall, cpu = time.perf_counter() - wall, _cpu() - cpu
    print(json.dumps({"wall": wall, "cpu": cpu, "hash": hash_of()}))


def _cpu() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--one", choices=SIDES, help="run one side in this process")
    options = parser.parse_args()
    if options.one:
        timed(options.one, options.rows, options.tokenizer)
        return
    with tempfile.TemporaryDirectory() as work:
        path = options.rows or Path(work, "rows.jsonl")
        if options.rows is None:
            path.write_text("".join(json.dumps(row) + "\n" for row in made_rows(options.count)), encoding="utf-8")
        names = [name for name in options.sides if name != "before" or options.before]
        taken = in_turns(names, path, options)
        count = sum(1 for _ in path.open("rb"))
        record = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), **common.versions(), "trl": trl.__version__}
        record |= {"processor": common.processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        record |= {"rows": count, "bytes": path.stat().st_size, "made": options.rows is None, "seconds": taken}
        for name in names:
            for kind in ("wall", "cpu"):
                speeds = [count / one[kind] for one in taken[name]]
                pairs = zip(taken[name], taken["prepared"], strict=True)
                ratios = [other[kind] / own[kind] for other, own in pairs]
                print(f"{name:>10}  {common.spread(speeds, 0)} rows a second {kind}  times {common.spread(ratios)}")
        common.append(options.out, record)


def in_turns(names: list[str], path: Path, options: Any) -> dict[str, list[dict[str, Any]]]:
    """What each side took in each turn."""
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.turns):
        for name in names:
            command = [sys.executable, __file__, "--one", name, "--rows", str(path), "--tokenizer", options.tokenizer]
            paths = os.environ.get("PYTHONPATH", "")
            if name == "before":
                paths = os.pathsep.join([str(options.before), paths])
            run = subprocess.run(
                command, env=os.environ | {"PYTHONPATH": paths}, check=True, stdout=subprocess.PIPE, text=True
            )
            taken[name].append(json.loads(run.stdout.splitlines()[-1]))
    hashes = {one["hash"] for name in ("prepared", "before") for one in taken.get(name, ())}
    assert len(hashes) == 1, "the sides make other ids or labels"
    return taken


if __name__ == "__main__":
    main()
