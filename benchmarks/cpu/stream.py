"""A stream's memory and first window, of a large file beside a small one.

    python benchmarks/cpu/stream.py --megabytes 1024 --windows 12

Files of made-up conversations, one a hundred times the other, are streamed by processes of their own, in turns: seconds
from opening to the first window, resident memory after each window, and seconds to go on near the file's end.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import common

from hybrid_ft.finetune import models
from hybrid_ft.finetune.data.streaming.windows import RowStream
from hybrid_ft.finetune.data.supervised import way_of_rows
from hybrid_ft.finetune.data.tokens.encoder import Encoder
from hybrid_ft.finetune.recipe.schema import Recipe

BUFFER = 1000
_STATUS = Path("/proc/self/status")


def write(file: Path, size: int) -> int:
    """Rows of about 1 kB until there are ``size`` bytes; how many."""
    chance, words = (
        random.Random(0),
        [
            "the",
            "of",
            "and",
            "to",
            "in",
            "is",
            "that",
            "it",
            "was",
            "for",
            "on",
            "are",
            "with",
            "as",
            "his",
            "they",
            "at",
        ],
    )
    texts = [" ".join(chance.choices(words, k=90)) for _ in range(500)]
    rows = written = 0
    with file.open("w", encoding="utf-8") as out:
        while written < size:
            row = {"prompt": f"{rows} {chance.choice(texts)}", "completion": chance.choice(texts)}
            written += out.write(json.dumps(row) + "\n")
            rows += 1
    return rows


def resident() -> int:
    """Bytes of this process in memory."""
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS")) * 1024


def measure(file: str, windows: int, near_end: int) -> dict[str, Any]:
    """In a process of its own."""
    recipe = Recipe.model_validate(
        {
            "model": {"path": "tiny"},
            "data": {"sources": [{"path": file}], "streaming": True, "shuffle_buffer": BUFFER, "max_length": 4096},
            "train": {"steps": 1},
        }
    )
    way = way_of_rows(recipe.data, Encoder.of(recipe, models.load_tokenizer(recipe)))
    began, memory, window = time.perf_counter(), [resident()], None
    stream = RowStream(recipe, way, texts=True)
    first = 0.0
    for number, window in enumerate(stream.windows(), start=1):
        first = first or time.perf_counter() - began
        memory.append(resident())
        if number == windows:
            break
    spent = time.perf_counter() - began
    assert window is not None
    state = json.loads(json.dumps(window.start))
    state["sources"][0] |= {"place": [0, near_end, near_end], "taken": 0}
    began, again = time.perf_counter(), RowStream(recipe, way, texts=True)
    again.load(state)
    next(again.windows())
    on = time.perf_counter() - began
    return {"first_window": first, "near_end": on, "resident": memory, "rows_per_second": windows * BUFFER / spent}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "NEAR_END"), help="(a process of the benchmark's own)")
    asked = parser.parse_args()
    common.one_quiet_thread()
    if asked.measure:
        print(json.dumps(measure(asked.measure[0], asked.windows, int(asked.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"large": asked.megabytes * 2**20, "small": asked.megabytes * 2**20 // 50}
        files = {name: Path(folder, f"{name}.jsonl") for name in sizes}
        rows = {name: write(files[name], size) for name, size in sizes.items()}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes}
        for _ in range(asked.turns):
            for name, file in files.items():
                command = [sys.executable, __file__, "--windows", str(asked.windows)]
                command += ["--measure", str(file), str(max(rows[name] - 2 * BUFFER, 0))]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
        for name, turns in found.items():
            print(f"{name} file: {files[name].stat().st_size / 2**20:,.0f} MB, {rows[name]:,} rows")
            for key in ("first_window", "near_end", "rows_per_second"):
                print(f"  {key:16} {common.spread([turn[key] for turn in turns])}")
            for turn in turns:
                print("  resident MB      " + " ".join(f"{size / 2**20:.0f}" for size in turn["resident"]))
        peaks = [
            max(one["resident"]) / max(two["resident"]) for one, two in zip(found["large"], found["small"], strict=True)
        ]
        print(f"peak memory, large to small: {common.spread(peaks)}")
        record = {"date": datetime.now(UTC).date().isoformat(), **common.versions(), "processor": common.processor()}
        record |= {"buffer": BUFFER, "megabytes": asked.megabytes, "rows": rows, "turns": found}
        common.append(asked.out, record)


if __name__ == "__main__":
    main()
