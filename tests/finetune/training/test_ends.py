"""A finished run goes on by --extend as a longer run would have gone on, and merges its adapter when it is asked to."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_helpers import Killed, copied, killed_in

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs.export import Exporter

LORA = {"lora": {"targets": "all-linear", "rank": 4, "alpha": 8, "dropout": 0.1}}
STEADY = {"schedule": "constant", "warmup": 0.0}
RESULTS = ("model/model.safetensors", "adapter/adapter_model.safetensors")


def weights(folder: Path) -> list[bytes]:
    found = [(folder / name).read_bytes() for name in RESULTS if (folder / name).exists()]
    assert found
    return found


def trainer_of(kind: str) -> type:
    from hybrid_ft.finetune.training.dpo.trainer import PairTrainer
    from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

    return {"sft": PackedSFTTrainer, "dpo": PairTrainer}[kind]


@pytest.fixture(scope="module")
def finished_once(start_once: Any) -> Path:
    return start_once().folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """``start()`` has run to its end, in a copy of that folder."""
    return copied(finished_once, tmp_path / "run")


@pytest.mark.parametrize("model", [{}, pytest.param(LORA, marks=pytest.mark.slow)], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_it_ends_as_one_longer_run_would_have(
    start: Any, start_pairs: Any, monkeypatch: pytest.MonkeyPatch, kind: str, model: dict[str, Any]
) -> None:
    """Where the rate is constant, that is a run of the whole length; the end at step 5 lies within a pass, 9 too.
    Killed on the way, the same command goes on."""
    go = start if kind == "sft" else start_pairs
    if model and kind == "dpo":
        model = {"lora": LORA["lora"] | {"dropout": 0.0}}
    longer = STEADY | {"steps": 9}
    whole = go("whole", model=model, train=longer)
    go(model=model, train=STEADY | {"steps": 5})
    with killed_in(monkeypatch, trainer_of(kind), 7):
        go(model=model, train=longer, extend=True)
    record = json.loads((whole.folder.parent / "run/run.json").read_text())
    assert record["finished"] is None and record["accepted"][0]["finished"]["step"] == 5
    rest = go(model=model, train=longer, extend=True)
    assert rest.status == 0 and "going on from checkpoint-6" in rest.screen
    assert weights(rest.folder) == weights(whole.folder)
    assert "steps: 9" in (rest.folder / "recipe.yaml").read_text()
    again = go(model=model, train=longer, extend=True)
    assert again.status == 0 and again.screen.endswith("this run is finished; nothing to do\n")
    assert go(model=model, train=longer).screen == again.screen


def test_epochs_and_the_schedule_of_the_new_length(start: Any) -> None:
    """12 rows in packs of 48 tokens: the end of the first pass is that of the run, whose rate has come down to 0."""
    first = {"steps": None, "epochs": 1.0, "warmup": 0.0}
    short = start(train=first)
    steps = max(short.metrics())
    run = start(train=first | {"epochs": 3.0}, extend=True)
    assert f"extended  the run was finished at step {steps} and goes on from there" in run.screen
    assert f"going on from checkpoint-{steps}" in run.screen
    rates = run.metrics("learning_rate")
    assert max(rates) == 3 * steps
    for step in range(1, steps + 1):
        assert rates[step] == pytest.approx(1e-2 * (1 - (step - 1) / steps))
    for step in range(steps + 1, 3 * steps + 1):
        assert rates[step] == pytest.approx(1e-2 * (1 - (step - 1) / (3 * steps)))


def test_a_run_that_is_not_there_is_not_extended(start: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--extend: .* holds no run to go on with"):
        start(extend=True)
    assert not (tmp_path / "run").exists()


def test_what_leads_nowhere_is_refused_with_the_way_out(start: Any, finished: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for wanted, way in (
        ({"train": {"steps": 8}}, r"train.steps was 6, is 8; it is finished: .* by --extend"),
        ({"train": {"steps": 8}, "accept": True}, r"train.steps was 6, is 8; it is finished: .* by --extend"),
        ({"train": {"learning_rate": 1e-3}, "accept": True}, r"it is finished: .* more train.steps --extend"),
        ({"train": {"learning_rate": 1e-3}, "extend": True}, r"it is finished: .* more train.steps --extend"),
        ({"train": {"learning_rate": 1e-3, "steps": 8}, "extend": True}, r"learning_rate was .* by --accept-changes"),
        (
            {"train": {"steps": 6, "epochs": 9.0}, "extend": True},
            r"--extend: the recipe's 6 steps must be more than the 6",
        ),
        ({"train": {"steps": 4}, "extend": True}, r"--extend: the recipe's 4 steps must be more than the 6"),
    ):
        with pytest.raises(InputError, match=way) as caught:
            start(**wanted)
        assert caught.value.status == 2
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    both = start(train={"learning_rate": 1e-3, "steps": 7}, extend=True, accept=True)
    assert both.status == 0 and max(both.metrics()) == 7


def test_without_its_last_checkpoint_it_is_not_extended(start: Any, finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "run/checkpoints/checkpoint-6/scheduler.json"
    file.write_text("{}")
    with pytest.raises(InputError, match=r"checkpoint-6 is missing or damaged.*model.path=.*/run/model"):
        start(train={"steps": 8}, extend=True)
    assert json.loads((tmp_path / "run/run.json").read_text())["finished"]["step"] == 6


def test_an_unfinished_run_becomes_longer(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_in(monkeypatch, trainer_of("sft"), 3):
        start()
    run = start(train={"steps": 8}, extend=True)
    assert run.status == 0 and "going on from checkpoint-2" in run.screen and max(run.metrics()) == 8


def test_a_finished_run_of_an_older_program_has_nothing_to_do(
    start: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybrid_ft.finetune.runs import identity

    monkeypatch.setattr(identity, "code_digest", lambda: "sha256:other")
    assert start().screen.endswith("this run is finished; nothing to do\n")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_adapter_is_merged_after_the_end_as_it_would_have_been_at_the_end(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"lora": LORA["lora"] | {"merge": True}}
    whole = start("whole", model=both)
    run = start(model=LORA)
    adapter = files(run.folder / "adapter")
    whole_model = Exporter.whole

    def killed(self: Any, *args: Any) -> Path:
        whole_model(self, *args)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Exporter, "whole", killed)
        start(model=both)
    again = start(model=both)
    assert again.status == 0 and "its adapter is merged" in again.screen and f"merged: {run.folder}" in again.screen
    assert files(run.folder / "merged") == files(whole.folder / "merged")
    assert files(run.folder / "adapter") == adapter
    record = json.loads((run.folder / "run.json").read_text())
    assert record["finished"]["results"] == ["adapter", "merged"] and record["finished"]["step"] == 6
    assert "merge: true" in (run.folder / "recipe.yaml").read_text()
    assert start(model=both).screen.endswith("nothing to do\n") and start(model=LORA).screen.endswith("nothing to do\n")


@pytest.mark.slow
def test_an_extended_run_merges_as_well(start: Any) -> None:
    both = {"lora": LORA["lora"] | {"merge": True}}
    start(model=LORA)
    run = start(model=both, train={"steps": 8}, extend=True)
    assert (run.folder / "merged/model.safetensors").exists() and max(run.metrics()) == 8
