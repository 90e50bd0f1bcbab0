"""SFT on a stream: one order for any number of processes, and a stopped run ends as the uninterrupted one."""

import io
import itertools
import json
import random
from types import SimpleNamespace

import pytest
import torch
from run_helpers import LORA, Killed, interrupt_at
from torch.utils.data import DataLoader

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training.sft.streamed import StreamSteps
from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer


@pytest.fixture
def go(tmp_path, tiny_base, monkeypatch):
    """``go("run", data={...})``: 7 steps of two packs, windows of 12 rows, over the end of a pass of 40."""
    from rich.console import Console

    from hybrid_ft.finetune.training.sft.stage import run

    chance = random.Random(0)
    with open(tmp_path / "rows.jsonl", "w") as file:
        for number in range(41):
            row = {"prompt": f"{number}?", "completion": "word " * chance.randint(1, 9), "weight": (1, 0.5)[number % 2]}
            file.write("{broken\n" if number == 9 else json.dumps(row) + "\n")

    def start(output, **sections):
        recipe = Recipe.model_validate(
            {
                "model": {"path": str(tiny_base)} | sections.get("model", {}),
                "data": {
                    "sources": [{"path": str(tmp_path / "rows.jsonl")}],
                    "streaming": True,
                    "shuffle_buffer": 12,
                    "on_bad_row": "skip",
                    "max_dropped": 0.1,
                    "eval": {"fraction": 0.1},
                    "max_length": 96,
                }
                | sections.get("data", {}),
                "train": {"steps": 7, "batch_tokens": 192, "batch_size": 3, "accumulation": 2, "save_every": 2}
                | {"learning_rate": 1e-2}
                | sections.get("train", {}),
                "output": str(tmp_path / output),
            }
        )
        screen = io.StringIO()
        status = run(recipe, Console(file=screen, width=250))
        folder = tmp_path / output
        record = json.loads((folder / "run.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        timed = ("tokens_per_s", "seconds", "memory")
        metrics = [{name: value for name, value in line.items() if name not in timed} for line in lines]
        return SimpleNamespace(
            status=status, screen=screen.getvalue(), folder=folder, data=record["data"], metrics=metrics
        )

    return start


def results(folder):
    """Every weight file of the results, as bytes."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*.safetensors"))}
    assert found
    return found


CASES = {
    "packed": {},
    "padded": {"data": {"packing": False}},
    "lora": {"model": LORA, "train": {"loader_workers": 1, "save_every": 3}},
}


@pytest.mark.parametrize(
    "case", ["packed", *(pytest.param(case, marks=pytest.mark.slow) for case in ("padded", "lora"))]
)
def test_killed_and_stopped_it_ends_as_the_uninterrupted_run(go, monkeypatch, case):
    whole = go("whole", **CASES[case])
    assert whole.status == 0 and "in pass 2" in whole.data["summary"][1]
    counts = whole.data["account"]["sources"][0]
    assert counts["rows_read"] == 41 and counts["dropped"]["not JSON"] == {
        "rows": 1,
        "first": [f"{whole.folder.parent}/rows.jsonl:10"],
    }
    for step, how in ((4, "kill"), (6, "SIGTERM"), (7, "kill")):
        with monkeypatch.context() as patched:
            interrupt_at(patched, PackedSFTTrainer, step, how)
            if how == "kill":
                with pytest.raises(Killed):
                    go("cut", **CASES[case])
            else:
                assert go("cut", **CASES[case]).status == 75
    cut = go("cut", **CASES[case])
    assert "going on from checkpoint-6" in cut.screen
    assert results(cut.folder) == results(whole.folder)
    assert cut.metrics == whole.metrics and [line["step"] for line in cut.metrics] == list(range(1, 8))
    assert cut.data == whole.data


def test_a_bad_row_ends_a_run_with_its_place(go):
    with pytest.raises(InputError, match=r"rows\.jsonl:10: not JSON .*; 1 bad row of 41\. Fix it, or set data\.on_bad"):
        go("run", data={"on_bad_row": "error"})


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_stream_is_one_line_from_a_loader_s_process_too(workers):
    def stream():
        def windows():
            raise InputError("rows.jsonl:7: not JSON")
            yield

        return SimpleNamespace(windows=windows)

    steps = StreamSteps(stream, 1, Team(), packed=True)
    loader = DataLoader(steps, batch_size=None, num_workers=workers, collate_fn=lambda item: item)
    if workers:
        rows, error = next(iter(loader))
        assert rows == [] and isinstance(error, InputError) and str(error) == "rows.jsonl:7: not JSON"
    else:
        with pytest.raises(InputError, match=r"^rows.jsonl:7: not JSON$"):
            next(iter(loader))


@pytest.fixture
def windows():
    """A stream of windows of 3 to 5 packs of one row each, whose id is its number."""
    from hybrid_ft.finetune.data.streaming.stream_rows import StreamRow
    from hybrid_ft.finetune.data.streaming.windows import Window

    def row(number):
        ids = torch.full((1,), number, dtype=torch.int32).numpy()
        return StreamRow(f"rows.jsonl:{number}", ids, ids, ids[:0].astype("float32"))

    class Stream:
        at = 0

        def load(self, state):
            self.at = state["at"]

        def windows(self):
            while True:
                size, start = 3 + self.at % 3, self.at
                self.at += size
                rows = [row(start + number) for number in range(size)]
                yield Window(rows, [0] * size, [[number] for number in range(size)], {"at": start}, {"rows": self.at})

    return Stream


@pytest.mark.parametrize("a_step", [1, 4, 7])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_take_disjoint_parts_of_one_order(windows, a_step, count):
    """From the beginning and from every step's state, on as many processes or another number of them."""
    parts = [
        StreamSteps(windows, a_step, SimpleNamespace(count=count, number=rank), packed=True) for rank in range(count)
    ]
    a_turn = -(-a_step // count)
    taken = [list(itertools.islice(part, 6 * a_turn)) for part in parts]
    order, states = [], []
    for turn in range(6 * a_turn):
        got = [of_process[turn] for of_process in taken]
        assert len({json.dumps(state) for _, state in got}) == 1
        states.append(got[0][1])
        for [example], _ in got:
            order += example["rows"]
            if not example["rows"]:
                assert set(example["labels"]) == {-100} and example["input_ids"]
    assert order == [f"rows.jsonl:{number}" for number in range(6 * a_step)]
    for step in range(6):
        other = StreamSteps(windows, a_step, Team(), packed=True)
        other.start = json.loads(json.dumps(states[step * a_turn]))
        following = [example["rows"][0] for [example], _ in itertools.islice(other, a_step)]
        assert following == [f"rows.jsonl:{number}" for number in range((step + 1) * a_step, (step + 2) * a_step)]
