"""Rows and pairs of random tokens, and runs of a second on the tiny base."""

import io
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # pytest imports a test file by its path, and so not its neighbours


@dataclass
class Start:
    """One start of a run: its exit status, what was on the screen, its folder, and the rows it was given."""

    status: int
    screen: str
    folder: Path
    prepared: Any

    def metrics(self, name: str = "loss") -> dict[int, float]:
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line[name] for line in lines if name in line}


@pytest.fixture
def start(tmp_path: Path, tiny_base: Path, tiny_tokenizer: Any) -> Any:
    """``start(rows=..., train={...}, ...)`` runs a recipe on random rows into ``tmp_path / output``;
    ``start.prepared`` are the rows."""
    return starts_in(tmp_path, tiny_base, tiny_tokenizer)


@pytest.fixture(scope="module")
def start_once(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_tokenizer: Any) -> Any:
    """The same into a folder of the module's: a run that several tests copy."""
    return starts_in(tmp_path_factory.mktemp("once"), tiny_base, tiny_tokenizer)


@pytest.fixture(scope="session")
def start_in(tiny_base: Path, tiny_tokenizer: Any) -> Callable[[Path], Any]:
    """``start_in(folder)``: the same into a folder that the caller has made, for runs that several files copy."""
    return lambda place: starts_in(place, tiny_base, tiny_tokenizer)


def starts_in(place: Path, tiny_base: Path, tiny_tokenizer: Any) -> Callable[..., Start]:
    def go(
        output: str = "run",
        rows: int = 12,
        held_out: int = 0,
        seed: int = 0,
        accept: bool = False,
        extend: bool = False,
        weights: bool = False,
        **sections: Any,
    ) -> Start:
        from rich.console import Console

        from hybrid_ft.finetune.recipe.schema import Recipe
        from hybrid_ft.finetune.training.run import run
        from hybrid_ft.finetune.training.sft import stage as sft

        recipe = Recipe.model_validate(
            {
                "model": {"path": str(tiny_base)} | sections.get("model", {}),
                "data": {"sources": [{"path": "rows.jsonl"}], "max_length": 24} | sections.get("data", {}),
                "train": {"steps": 6, "batch_tokens": 48, "batch_size": 3, "learning_rate": 1e-2, "save_every": 2}
                | sections.get("train", {}),
                "evaluate": {"max_new_tokens": 4} | sections.get("evaluate", {}),
                "output": str(place / output),
                "mirror": sections.get("mirror"),
            }
        )
        prepared = go.prepared = random_rows(rows, held_out, seed, recipe, tiny_tokenizer.chat_template, weights)
        stage = replace(sft.SFT, prepare=lambda recipe, tokenizer: prepared)
        screen = io.StringIO()
        status = run(recipe, stage, Console(file=screen, width=200), accept, extend)
        return Start(status, screen.getvalue(), place / output, prepared)

    go.place = place  # type: ignore[attr-defined]
    return go


def random_rows(rows: int, held_out: int, seed: int, recipe: Any, chat_template: str, weights: bool = False) -> Any:
    """What ``prepare`` gives: rows of 5 to 20 tokens, the first third of each not trained on, packed in order.

    ``weights``: tokens of two rows in three weigh 0.01 to 1 in the loss.
    """
    from datasets import Dataset

    chance = random.Random(seed)

    def make(count: int, name: str) -> Any:
        columns: dict[str, list[Any]] = {key: [] for key in ("input_ids", "labels", "origin", "prompt_ids", "answer")}
        for index in range(count):
            ids = [chance.randrange(4, 80) for _ in range(chance.randint(5, 20))]
            prompt = len(ids) // 3
            columns["input_ids"].append(ids)
            columns["labels"].append([-100] * prompt + ids[prompt:])
            columns["origin"].append(f"{name}:{index + 1}")
            columns["prompt_ids"].append(ids[:prompt])
            columns["answer"].append("ab")
        if weights:
            columns["weights"] = [
                [] if index % 3 == 1 else [chance.choice((0.01, 0.25, 1.0)) for _ in ids]
                for index, ids in enumerate(columns["input_ids"])
            ]
        return Dataset.from_dict(columns)

    def pack(dataset: Any) -> list[list[int]] | None:
        if not recipe.data.packing:
            return None
        packs: list[list[int]] = []
        room = 0
        for index, ids in enumerate(dataset["input_ids"]):
            if len(ids) > room:
                packs.append([])
                room = recipe.train.batch_tokens
            packs[-1].append(index)
            room -= len(ids)
        return packs

    train, held = make(rows, "rows.jsonl"), make(held_out, "held.jsonl") if held_out else None
    return SimpleNamespace(
        train=train,
        eval=held,
        packs=pack(train),
        eval_packs=pack(held) if held else None,
        eos_token_ids=[3, 0],
        chat_template=chat_template,
        template_arguments=recipe.model.chat_template_kwargs or {},
        report=SimpleNamespace(summary=lambda: [f"{rows} rows"], as_dict=dict),
    )


@pytest.fixture(scope="session")
def make_rows() -> Callable[[int], Any]:
    """So many rows as ``start`` trains on."""
    unpacked = SimpleNamespace(data=SimpleNamespace(packing=False), model=SimpleNamespace(chat_template_kwargs=None))
    return lambda count: random_rows(count, 0, 0, unpacked, "").train


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., Any]:
    return random_pairs


def random_pairs(count: int, seed: int = 0, prompts: tuple[int, int] = (1, 30), name: str = "pairs.jsonl") -> Any:
    """What ``prepare`` gives for pairs: prompts of 1 to 30 tokens, some of them shared by two pairs, answers
    of 1 to 12."""
    from datasets import Dataset

    chance = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [chance.randrange(4, 80) for _ in range(chance.randint(low, high))]

    rows: list[dict[str, Any]] = []
    for index in range(count):
        prompt = rows[-1]["prompt_ids"] if index % 5 == 4 else tokens(*prompts)
        rows.append(
            {
                "prompt_ids": prompt,
                "chosen_ids": tokens(1, 12),
                "rejected_ids": tokens(1, 12),
                "origin": f"{name}:{index + 1}",
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A device mesh of this process alone: pieces are whole, and dtypes, groups and hooks those of many."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.fixture
def start_pairs(tmp_path: Path, tiny_base: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``start_pairs(pairs=..., train={...}, dpo={...}, ...)`` runs a recipe on random pairs
    into ``tmp_path / output``."""

    def go(
        output: str = "run", pairs: int = 20, held_out: int = 0, seed: int = 0, extend: bool = False, **sections: Any
    ) -> Any:
        from stage_runs import drawn, run_on

        from hybrid_ft.finetune.recipe.schema import Recipe
        from hybrid_ft.finetune.training.dpo.stage import DPO

        recipe = Recipe.model_validate(
            {
                "model": {"path": str(tiny_base)} | sections.get("model", {}),
                "data": {"sources": [{"path": "pairs.jsonl"}], "max_length": 48} | sections.get("data", {}),
                "train": {"steps": 6, "batch_tokens": 100, "learning_rate": 1e-3, "save_every": 2}
                | sections.get("train", {}),
                "dpo": {"pairs_per_step": 8} | sections.get("dpo", {}),
                "evaluate": {"max_new_tokens": 4} | sections.get("evaluate", {}),
                "output": str(tmp_path / output),
            }
        )
        prepared = drawn(random_pairs, pairs, held_out, seed, tiny_tokenizer)
        return run_on(prepared, monkeypatch, recipe, DPO, extend=extend)

    return go
