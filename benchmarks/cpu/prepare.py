"""Rows into tokens: rows per second on this machine's cores, beside TRL's own way.

    python benchmarks/cpu/prepare.py --tokenizer FOLDER [--rows rows.jsonl]

Sides, in turns: ``prepared`` is what a run does, nothing kept; ``plainly`` the same with each text encoded whole, in one
process whose tokenizer has all cores; ``trl`` TRL's SFTTrainer, its rows mapped by as many processes; ``tokenizer`` the
tokenizers library alone on the finished texts, which no other way of asking it for every text can be faster than.
Without ``--rows`` rows are made of the quickstart's words. Rows are in ``messages`` form.
"""

from __future__ import annotations

import io
import json
import os
import random
import statistics
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import common
import datasets
import trl
from transformers import AutoTokenizer

import hybrid_ft
from hybrid_ft.finetune.data import encoding_workers
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.data.tokens.parts import PartTokenizer
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.shipped import PACKAGE_ROOT


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


def sides(path: Path, rows: list[dict[str, Any]], tokenizer: Any, work: Path) -> dict[str, Callable[[], object]]:
    data = {"sources": [{"path": str(path)}], "cache": False, "max_length": 2**20}
    model = {"path": "tiny", "from_scratch": True, "chat_template": "olmo-instruct"}
    recipe = Recipe.model_validate({"model": model, "data": data})
    template = Encoder.of(recipe, tokenizer).template
    texts = [template.render(row["messages"]) for row in rows]
    base = hybrid_ft.load("tiny")
    tokenizer.chat_template = template.text

    def prepared() -> None:
        with redirect_stderr(io.StringIO()):
            assert len(prepare(recipe, tokenizer).train) == len(rows)

    def plainly() -> None:
        nothing = mock.patch.object(PartTokenizer, "of", lambda *_: None)
        with nothing, mock.patch.object(encoding_workers, "cores", lambda: 1):
            prepared()

    def trls() -> None:
        arguments = trl.SFTConfig(
            output_dir=str(work), max_length=None, dataset_num_proc=os.cpu_count(), report_to=[], use_cpu=True
        )
        trainer = trl.SFTTrainer(
            base, arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
        )
        assert len(trainer.train_dataset) == len(rows)

    def alone() -> None:
        for start in range(0, len(texts), 256):
            tokenizer.backend_tokenizer.encode_batch(texts[start : start + 256], add_special_tokens=False)

    return {"prepared": prepared, "plainly": plainly, "trl": trls, "tokenizer": alone}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    common.one_quiet_thread()
    with tempfile.TemporaryDirectory() as work:
        path = options.rows or Path(work, "rows.jsonl")
        if options.rows is None:
            path.write_text("".join(json.dumps(row) + "\n" for row in made_rows(options.count)), encoding="utf-8")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        taken = common.in_turns(
            sides(path, rows, AutoTokenizer.from_pretrained(options.tokenizer), Path(work)), options.turns
        )
        speeds = {name: [len(rows) / seconds for seconds in side.wall] for name, side in taken.items()}
        for name, each in speeds.items():
            print(f"{name:>10}  {common.spread(each, 0)} rows/s")
        ratios = {
            name: statistics.median(a / b for a, b in zip(speeds["prepared"], speeds[name], strict=True))
            for name in ("plainly", "trl", "tokenizer")
        }
        print("  ".join(f"{ratio:.2f} times {name}" for name, ratio in ratios.items()))
        record = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), **common.versions(), "trl": trl.__version__}
        record |= {
            "processor": common.processor(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "rows": len(rows),
        }
        record |= {
            "bytes": path.stat().st_size,
            "made": options.rows is None,
            "rows_per_second": speeds,
            "ratios": ratios,
        }
        common.append(options.out, record)


if __name__ == "__main__":
    main()
