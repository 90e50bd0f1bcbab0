"""What preparing holds in memory, over all its processes, does not grow with the bytes of the rows."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

BYTES = 24 * 2**20
PREPARE = """
import sys
import yaml
from pathlib import Path
from transformers import AutoTokenizer
from hybrid_ft.finetune.data import encoding_workers
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.recipe.schema import Recipe
encoding_workers.cores = lambda: 2
recipe = Recipe.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text()))
print(len(prepare(recipe, AutoTokenizer.from_pretrained(sys.argv[2])).train))
"""


def held(process: int) -> int:
    """Bytes that a process and its children hold in memory, what they share once. Without pages of files, which the
    kernel takes back when it needs them, and of which some kernels map more around each that is read."""
    found, place = 0, Path("/proc", str(process))
    try:
        for line in (place / "smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss:", "Pss_File:")):
                found += (1 if line.startswith("Pss:") else -1) * int(line.split()[1]) * 1024
        children = [child for task in (place / "task").iterdir() for child in (task / "children").read_text().split()]
    except (OSError, ProcessLookupError):
        return found
    return found + sum(held(int(child)) for child in children)


def most_held(recipe: Path, tokenizer: Path) -> tuple[int, int]:
    """The rows that were prepared, and the most that was held meanwhile."""
    command = [sys.executable, "-c", PREPARE, str(recipe), str(tokenizer)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as running:
        most, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.1):
                most[0] = max(most[0], held(running.pid))

        watching = threading.Thread(target=watch)
        watching.start()
        assert running.stdout is not None
        said = running.stdout.read()
        done.set()
        watching.join()
    assert running.returncode == 0
    return int(said), most[0]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, tokenizer: Any) -> None:
    """Eight times the rows take less than half of the bytes that their text has more, which is no text and no token of
    theirs: a third of it comes and goes with what allocators keep and which batches are under way."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    answer = " ".join(f"w{number % 977}" for number in range(400))
    peaks = []
    for times in (1, 8):
        file, recipe, rows = tmp_path / f"rows-{times}.jsonl", tmp_path / f"r-{times}.yaml", 0
        with file.open("w") as out:
            while out.tell() < BYTES * times:
                out.write(f'{{"prompt": "question {rows}?", "completion": "{rows} {answer}"}}\n')
                rows += 1
        model = {"path": "tiny", "from_scratch": True, "chat_template": "olmo-instruct"}
        data = {"sources": [{"path": str(file)}], "cache": False, "max_length": 2**20, "packing": False}
        recipe.write_text(yaml.safe_dump({"model": model, "data": data}))
        prepared, most = most_held(recipe, tmp_path / "tokenizer")
        assert prepared == rows
        peaks.append(most)
    assert peaks[1] - peaks[0] < 7 * BYTES // 2, peaks
