"""Stages in a row: what is done, what is done again, what each starts from, and what is refused."""

import io
import json
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import OlmoHybridForCausalLM

from hybrid_ft.errors import InputError
from hybrid_ft.finetune import pipeline
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.shipped import find_recipe

TRAIN = "train: {steps: 2, batch_tokens: 200, learning_rate: 0.01, save_every: 1}"


def write_files(folder: Path, base: Path) -> None:
    """A file of three stages with its recipes and data."""
    recipes = folder / "recipes"
    recipes.mkdir()
    (folder / "rows.jsonl").write_text('{"prompt": "ab", "completion": "cd"}\n' * 4)
    pairs = [{"prompt": f"ab{i}", "chosen": "cd", "rejected": f"ef {i}"} for i in range(6)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = "data: {{sources: [{{path: {}}}], max_length: 100}}"
    (recipes / "sft.yaml").write_text(f"model: {{path: {base}}}\n{data.format('rows.jsonl')}\n{TRAIN}\n")
    (recipes / "all.yaml").write_text(
        "stages:\n"
        "  - sft: sft.yaml\n"
        "  - dpo:\n"
        f"      {data.format('pairs.jsonl')}\n"
        f"      {TRAIN}\n"
        "      dpo: {pairs_per_step: 3}\n"
        "  - export: {dtype: bfloat16}\n"
    )


@pytest.fixture
def files(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, in the current directory's recipes/."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, tiny_base)
    return tmp_path / "recipes/all.yaml"


@pytest.fixture(scope="module")
def done_once(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, list[str], str]:
    """A folder in which all stages are done, what stood on the screen of its stages, and all of it."""
    folder = tmp_path_factory.mktemp("done")
    write_files(folder, tiny_base)
    before = os.getcwd()
    os.chdir(folder)
    try:
        done = run_stages(folder / "recipes/all.yaml")
    finally:
        os.chdir(before)
    assert done.status == 0
    return folder, done.stages, done.screen


@pytest.fixture
def finished(files: Path, done_once: tuple[Path, list[str], str]) -> list[str]:
    """All stages are done, in a copy of that folder; what they said."""
    shutil.copytree(done_once[0] / "runs", "runs")
    return done_once[1]


def run_stages(file: Path, *overrides: str) -> Any:
    from rich.console import Console

    screen = io.StringIO()
    status = pipeline.run(file, overrides, Console(file=screen, width=300))
    stages = [line for line in screen.getvalue().splitlines() if line.startswith(("stage ", "all "))]
    return SimpleNamespace(status=status, stages=stages, screen=screen.getvalue())


@pytest.fixture
def go(files: Path) -> Any:
    """``go(*overrides)`` runs the file; returns status, the lines of the stages, and the screen."""
    return partial(run_stages, files)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def started(stages: list[str]) -> list[str]:
    """Kinds of the stages that were worked on."""
    return [line.split()[4] for line in stages if line.startswith("stage") and "finished before" not in line]


def test_each_stage_starts_from_the_one_before(finished: list[str], tiny_base: Path) -> None:
    assert finished == [
        "stage 1 of 3  sft     runs/all/1-sft",
        "stage 2 of 3  dpo     runs/all/2-dpo",
        "stage 3 of 3  export  runs/all/3-export",
        "all 3 stages are done: runs/all/3-export/model",
    ]
    place = Path("runs/all")
    base, sft, dpo, last = (
        load_file(folder / "model.safetensors")
        for folder in (tiny_base, place / "1-sft/model", place / "2-dpo/model", place / "3-export/model")
    )
    name = "model.embed_tokens.weight"
    assert not torch.equal(base[name], sft[name]) and not torch.equal(sft[name], dpo[name])
    assert json.loads((place / "2-dpo/run.json").read_text())["stage"] == "dpo"
    assert load_recipe(place / "2-dpo/recipe.yaml").model.path == "runs/all/1-sft/model"
    assert last[name].dtype == torch.bfloat16 and torch.equal(last[name], dpo[name].bfloat16())
    assert (place / "3-export/model/tokenizer.json").exists()


def test_finished_stages_are_not_repeated(go: Any, finished: Any) -> None:
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path("runs/all").rglob("*[!k]") if path.is_file()}

    before = written()
    again = go()
    assert again.status == 0 and started(again.stages) == []
    assert written() == before


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (lambda file: edit(file, "pairs_per_step: 3", "pairs_per_step: 2"), ["dpo", "export"]),
        (lambda file: edit(file.parent / "sft.yaml", "0.01", "0.02"), ["sft", "dpo", "export"]),
        (lambda file: edit(file, "bfloat16", "float32"), ["export"]),
        (lambda file: edit(Path("pairs.jsonl"), "ef 1", "eg 1"), ["dpo", "export"]),
        (lambda file: edit(file.parent / "sft.yaml", "save_every: 1", "save_every: 2"), []),
    ],
    ids=["recipe", "first recipe", "export", "data", "nothing that counts"],
)
def test_a_changed_stage_and_all_after_it_are_redone(
    go: Any, files: Path, finished: Any, change: Any, redone: list[str]
) -> None:
    change(files)
    again = go()
    assert again.status == 0 and started(again.stages) == redone
    aside = sorted(path.name.split("-")[2] for path in Path("runs/all").glob("replaced-*"))
    assert aside == sorted(redone)
    assert started(go().stages) == []


@pytest.fixture
def asking(files: Path) -> Path:
    """The file with an ``evaluate`` section of one prompt whose record lacks a value."""
    row = {"prompt": "ab", "completion": '{"a": null, "b": 2}'}
    Path("asked.jsonl").write_text(json.dumps(row) + "\n")
    with files.open("a") as file:
        file.write("evaluate:\n  sources: [asked.jsonl]\n  max_new_tokens: 2\n")
    return files


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every model that is asked, each of which answers the same."""
    from hybrid_ft.finetune.evaluation import answers as evaluate

    models: list[Any] = []
    monkeypatch.setattr(
        evaluate, "answer", lambda model, tokenizer, prompts, *rest: models.append(model) or ['{"a": 1, "b": 2}']
    )
    return models


def test_every_model_is_asked_once(go: Any, asking: Path, asked: list[Any]) -> None:
    first = go()
    lines = [line.split() for line in first.screen.splitlines()]
    tables = [number for number, line in enumerate(lines) if line[:2] == ["base", "sft"]]
    stages = [number for number, line in enumerate(lines) if line[:1] == ["stage"]]
    # the first result as soon as it is known, the last one with all models
    assert stages[0] < tables[0] < stages[1] < stages[2] < tables[1] and lines[tables[0]] == ["base", "sft"]
    lines = lines[tables[1] :]
    title, exact, invented = [line for line in lines if line[:1] in (["base"], ["exact"], ["invented"])][:3]
    assert title == ["base", "sft", "dpo"]
    assert exact == ["exact", "answers", *["0.0%", "(0/1)"] * 3]
    assert invented == ["invented", "values", *["100.0%", "(1/1)"] * 3]
    assert len(asked) == 3
    names = ["answers-1-sft.jsonl", "answers-2-dpo.jsonl", "answers-base.jsonl"]
    assert sorted(path.name for path in Path("runs/all").glob("*.jsonl")) == names
    again = go()
    assert len(asked) == 3 and "asked.jsonl" in again.screen


@pytest.mark.slow
def test_a_changed_model_and_changed_questions_are_asked_anew(
    go: Any, asking: Path, finished: list[str], asked: list[Any]
) -> None:
    assert started(go().stages) == [] and len(asked) == 3
    edit(asking, "pairs_per_step: 3", "pairs_per_step: 2")
    go()
    assert len(asked) == 4
    edit(asking, "max_new_tokens: 2", "max_new_tokens: 3")
    go()
    assert len(asked) == 7


def test_models_are_asked_in_the_arithmetic_of_their_training(
    go: Any, asking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is loaded in float32 to be trained in bfloat16."""
    from hybrid_ft.finetune.evaluation import answers as evaluate

    seen = []

    def answer(model: Any, tokenizer: Any, prompts: list[list[int]], *rest: Any) -> list[str]:
        seen.append(model(input_ids=torch.tensor(prompts[:1])).logits.dtype)
        return [""] * len(prompts)

    monkeypatch.setattr(evaluate, "answer", answer)
    go("sft.model.dtype=bfloat16", "dpo.model.dtype=bfloat16")
    assert seen == [torch.bfloat16] * 3


@pytest.mark.slow
def test_the_quickstart_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it runs where there is a GPU: both stages of all weights, and a table as good as in float32.

    A CPU without instructions for bfloat16 multiplies in it 28 times as slowly: there a few steps of each stage.
    """
    monkeypatch.chdir(tmp_path)
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    asked = "evaluate.sources=[{path: datasets/quickstart/heldout.jsonl, split: 'train[:8]'}]"
    short = [] if fast else ["sft.train.steps=8", "dpo.train.steps=4", "dpo.data.sources.0.split='train[:64]'", asked]
    done = run_stages(find_recipe("quickstart"), "sft.model.dtype=bfloat16", "dpo.model.dtype=bfloat16", *short)
    assert done.status == 0
    if not fast:
        return
    lines = [json.loads(line) for line in Path("runs/quickstart/answers-2-dpo.jsonl").read_text().splitlines()]
    assert sum(line["exact"] for line in lines) / len(lines) > 0.9


def test_rows_that_cannot_be_asked_are_named_before_any_training(go: Any, asking: Path) -> None:
    Path("asked.jsonl").write_text('{"prompt": "ab"}\n')
    with pytest.raises(InputError, match="asked.jsonl:1"):
        go()
    assert not Path("runs").exists()


def test_a_stopped_stage_goes_on(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_ft.finetune.training.dpo.trainer import PairTrainer

    step = PairTrainer.training_step

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(PairTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            go()
    again = go()
    assert started(again.stages) == ["dpo", "export"] and "going on from checkpoint-1" in again.screen
    assert not list(Path("runs/all").glob("replaced-*"))


def test_adapters_are_merged_for_the_next_stage(go: Any) -> None:
    done = go("sft.model.lora.rank=2", "dpo.model.lora.rank=2")
    assert done.status == 0
    assert Path("runs/all/1-sft/merged").is_dir() and Path("runs/all/2-dpo/merged").is_dir()


def test_nothing_is_left_of_stages_that_could_not_begin(go: Any, files: Path) -> None:
    Path("rows.jsonl").write_text('{"prompt": "ab"}\n')
    with pytest.raises(InputError, match="stage 1, sft: .*rows.jsonl"):
        go()
    assert not Path("runs").exists()


def test_a_folder_of_something_else_is_refused(go: Any) -> None:
    Path("runs/all").mkdir(parents=True)
    Path("runs/all/thesis.txt").touch()
    with pytest.raises(InputError, match="output: runs/all holds thesis.txt and no pipeline.json"):
        go()
    assert os.listdir("runs/all") == ["thesis.txt"]


def test_adapters_go_from_stage_to_stage_unmerged(files: Path, go: Any, tiny_base: Path) -> None:
    """SFT, DPO and SFT train one adapter: each moves it by what AdamW can in two steps, nothing is merged, and plain
    PEFT makes of the last one what its factors say."""
    later = "      model: {adapter: previous}\n"
    edit(files, "  - dpo:\n", f"  - dpo:\n{later}")
    rows = "data: {sources: [{path: rows.jsonl}], max_length: 100}"
    edit(files, "  - export: {dtype: bfloat16}\n", f"  - sft:\n{later}      {rows}\n      {TRAIN}\n")
    edit(files.with_name("sft.yaml"), f"{{path: {tiny_base}}}", f"{{path: {tiny_base}, lora: {{rank: 2, alpha: 4}}}}")
    done = go()
    assert done.status == 0 and done.stages[-1] == "all 3 stages are done: runs/all/3-sft/adapter"
    folders = [Path("runs/all") / name for name in ("1-sft", "2-dpo", "3-sft")]
    assert not [folder for folder in folders if (folder / "merged").exists()]
    configs = [json.loads((folder / "adapter/adapter_config.json").read_text()) for folder in folders]
    assert {(config["r"], config["base_model_name_or_path"]) for config in configs} == {(2, str(tiny_base))}
    first, second, third = (load_file(folder / "adapter/adapter_model.safetensors") for folder in folders)
    for before, after in ((first, second), (second, third)):
        assert before.keys() == after.keys()
        moved = max(float((before[name] - after[name]).abs().max()) for name in before)
        assert 1e-4 < moved < 2.1 * 0.01  # a new one begins at random, further away
    metrics = [json.loads(line) for line in (folders[1] / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(OlmoHybridForCausalLM.from_pretrained(tiny_base), folders[2] / "adapter")
        found = adapted.eval()(ids, use_cache=False).logits
        by_hand = OlmoHybridForCausalLM.from_pretrained(tiny_base).eval()
        weights = dict(by_hand.named_parameters())
        for name in [name for name in third if name.endswith("lora_A.weight")]:
            weight = weights[name.removeprefix("base_model.model.").replace("lora_A.", "")]
            weight += 4 / 2 * third[name.replace("lora_A", "lora_B")] @ third[name]
        wanted = by_hand(ids, use_cache=False).logits
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert started(go().stages) == []
