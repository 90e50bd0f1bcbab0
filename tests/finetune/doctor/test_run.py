"""The whole command: its statuses, and a launch on bad GPUs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sound_gpu import SOUND

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune import launch
from hybrid_ft.finetune.doctor import collectives, hub, nvidia, run, system
from hybrid_ft.finetune.doctor.finding import Finding
from hybrid_ft.finetune.recipe.schema import Recipe


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no processes of its own."""
    monkeypatch.setattr(hub, "token", lambda: Finding("hub token", "none", here=False))
    monkeypatch.setattr(collectives, "check", lambda gpus: Finding("collectives", "right"))
    monkeypatch.setattr(system.storage, "probe", lambda folder: 1e9)


def test_on_a_cpu_what_needs_a_gpu_is_not_red(here: None, tmp_path: Path, tiny_base: Path) -> None:
    assert not torch.cuda.is_available()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    recipe = Recipe.model_validate(
        {"model": {"path": str(tiny_base)}, "data": {"sources": [{"path": str(rows)}]}, "output": str(tmp_path / "run")}
    )
    lines: list[str] = []
    assert run.run(recipe, lines.append) == 0
    assert [line for line in lines if line.startswith("-   GPUs") and line.endswith("not here")]
    names = [line[4:17].strip() for line in lines]
    assert {
        "versions",
        "kernels",
        "rate",
        "copies",
        "memlock",
        "collectives",
        "limits",
        "disk",
        "model",
        "tokenizer",
        "data",
    } <= set(names)


def test_a_red_line_is_status_3(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(nvidia, "query", lambda: SOUND.replace(", Disabled", ", Enabled"))
    lines: list[str] = []
    assert run.run(None, lines.append) == ENVIRONMENT
    assert sum(line.startswith("red") for line in lines) == 1


def test_a_launch_on_bad_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "query", lambda: SOUND.replace("81559, 4, 0", "81559, 4, 12"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="12 uncorrected ECC errors") as refused:
        launch._processes(launch.Launch())
    assert refused.value.status == ENVIRONMENT


@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        (None, "sees none of the 2 GPUs that nvidia-smi lists: it is a build without CUDA"),
        ("13.0", "lists: the driver is too old for its CUDA 13.0"),
    ],
)
def test_gpus_that_torch_does_not_see_are_red(cuda: str | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would train on the CPU of a machine that is paid for its GPUs; not where they are hidden on purpose."""
    monkeypatch.setattr(nvidia, "query", lambda: SOUND + SOUND)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(InputError, match=said) as refused:
        launch._processes(launch.Launch(processes=2))
    assert refused.value.status == ENVIRONMENT
    (found,) = run.unseen()
    assert found.red and said in found.said
    for name, value in (("CUDA_VISIBLE_DEVICES", ""), ("ACCELERATE_USE_CPU", "true")):
        with monkeypatch.context() as hidden:
            hidden.setenv(name, value)
            assert not [*run.unseen()]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not [*run.unseen()]


def test_each_copy_of_a_model_is_loaded(tiny_base: Path) -> None:
    def needed(**train: Any) -> Any:
        model = {"path": str(tiny_base)}
        recipe = {"model": model, "data": {"sources": [{"path": "rows.jsonl"}]}, "train": train}
        return run._needed(Recipe.model_validate(recipe), 8)[0]

    assert needed() == 8 * needed(sharded=True) > 0
