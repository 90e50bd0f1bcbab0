"""The SkyPilot task: what it says, and that the recipe means the same where it is brought."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sky_tasks import bring, command

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.stages import load_stages
from hybrid_ft.finetune.renting import sky


def test_what_it_asks_for(job):
    task = yaml.safe_load(sky.task(job("sky", spot=True, secret=("HF_TOKEN",))))
    assert task["name"] == "hub"
    assert task["resources"] == {
        "accelerators": "H100:8",
        "use_spot": True,
        "disk_size": 512,
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]},
    }
    assert task["secrets"] == {"HF_TOKEN": None}
    assert task["file_mounts"]["/copies"] == {"source": "s3://my-runs", "mode": "MOUNT"}
    assert command(task["run"])[-5:] == [
        "hub.yaml",
        'mirror="/copies/hub"',
        "output=runs/hub",
        "--processes",
        "8",
    ]


def test_with_a_mirror_the_run_is_on_the_machines_own_disk(job):
    task = yaml.safe_load(sky.task(job("sky", bucket=None, mirror="s3://my runs/hub")))
    assert list(task["file_mounts"]) == ["~/hybrid-ft/hub.yaml"]
    words = command(task["run"])
    assert 'mirror="s3://my runs/hub"' in words and "output=runs/hub" in words
    assert "s3fs" in task["setup"]


def test_the_recipe_means_the_same_there(job, place, tmp_path, monkeypatch):
    mine = job("sky", "mine.yaml", "train.epochs=2")
    text = sky.task(mine)
    assert "$(touch" not in text.partition("run: |")[2], "only what is brought may have such a name, as a path of YAML"
    task = yaml.safe_load(text)
    there = bring(task, tmp_path / "home")
    # nothing of this machine can be opened from there
    shutil.rmtree(place / "my rows")
    (place / "columns.yaml").unlink()
    monkeypatch.chdir(there)
    program, launch, file, *rest = command(task["run"])
    assert (program, launch) == (".venv/bin/hybrid-ft", "launch")
    found = load_recipe(file, rest[: rest.index("--processes")])
    assert Path(file).read_text().startswith("# a comment of the user's\n")
    assert found.output == "runs/mine" and found.mirror == "/copies/mine" and found.train.epochs == 2
    rows, parts, hub, shipped = found.data.sources
    assert Path(rows.path).is_file() and rows.path.endswith("train.jsonl")
    assert len(list(there.glob(parts.path))) == 2
    assert hub.path == "me/rows" and hub.columns is not None and Path(str(hub.columns.file)).is_file()
    assert shipped.path == mine.recipes[0].data.sources[3].path  # ships, not brought
    same = {"data", "output", "mirror"}
    assert found.model_dump(exclude=same) == mine.recipes[0].model_dump(exclude=same)


def test_stages_mean_the_same_there(job, place, tmp_path, monkeypatch):
    """Each with what it reads here, and the file's own questions; what a stage leaves is not brought."""
    made = place / "runs/all/1-sft/model"
    made.mkdir(parents=True)
    mine = job("sky", "all.yaml", "sft.train.epochs=2")
    here = load_stages("all.yaml", ["sft.train.epochs=2"])
    task = yaml.safe_load(sky.task(mine))
    there = bring(task, tmp_path / "home")
    shutil.rmtree(place / "my rows")
    shutil.rmtree(place / "parts")
    monkeypatch.chdir(there)
    assert not [path for path in there.rglob("*") if path.name in ("model", "1-sft")]
    _, _, file, *rest = command(task["run"])
    found = load_stages(file, rest[: rest.index("--processes")])
    assert found.place == Path("runs/all") and [stage.kind for stage in found.stages] == ["sft", "dpo", "export"]
    sft, dpo = (stage.recipe for stage in found.stages[:2])
    assert sft is not None and sft.train.epochs == 2 and Path(sft.data.sources[0].path).read_text()
    assert sft.mirror == "/copies/all/1-sft" and dpo is not None and dpo.dpo.reference_cache is None
    rows, hub = found.questions.sources
    assert Path(rows.path).read_text() and hub.path == "me/questions"
    same = {"data", "mirror"}
    assert sft.model_dump(exclude=same) == here.stages[0].recipe.model_dump(exclude=same)


def test_scripts_are_bash_and_run_what_they_say(job, place, tmp_path):
    """The set-up and the command, with a uv and a program that write down what they are given."""
    task = yaml.safe_load(sky.task(job("sky", "mine.yaml", 'evaluate.samples=[it\'s "$HOME"]')))
    home, tools = tmp_path / "home", tmp_path / "home/.local/bin"
    folder = bring(task, home)
    tools.mkdir(parents=True)
    (tools / "uv").write_text('#!/bin/bash\nprintf "%s\\n" "$@" >> "$HOME/uv"\n')
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/hybrid-ft").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$HOME/launch"\nexit 75\n')
    for tool in (tools / "uv", folder / ".venv/bin/hybrid-ft"):
        tool.chmod(0o755)
    environment = os.environ | {"HOME": str(home)}
    for script, status in ((task["setup"], 0), (task["run"], 75)):
        assert subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, check=False).returncode == status
    installed = (home / "uv").read_text().splitlines()
    assert "hybrid-ft==1.0" in installed and any(line.startswith("transformers==") for line in installed)
    assert not [line for line in installed if "+cpu" in line]
    launched = (home / "launch").read_text().splitlines()
    assert 'evaluate.samples=[it\'s "$HOME"]' in launched
    assert not list(tmp_path.rglob("hacked"))


def test_a_wheel_is_brought_and_an_image_needs_none(job, place):
    Path("hybrid_ft-1.0-py3-none-any.whl").touch()
    task = yaml.safe_load(sky.task(job("sky", package="hybrid_ft-1.0-py3-none-any.whl")))
    brought = task["file_mounts"]["~/hybrid-ft/hybrid_ft-1.0-py3-none-any.whl"]
    assert brought == str(place / "hybrid_ft-1.0-py3-none-any.whl")
    assert "./hybrid_ft-1.0-py3-none-any.whl" in task["setup"]
    task = yaml.safe_load(sky.task(job("sky", package=None, image="me/hybrid-ft:1")))
    assert task["resources"]["image_id"] == "docker:me/hybrid-ft:1" and "setup" not in task
    assert command(task["run"])[:2] == ["hybrid-ft", "launch"]


def test_a_checkout_is_no_release(job):
    with pytest.raises(InputError, match="^--package: must be given, what runs here is a checkout"):
        sky.task(job("sky", package=None))


def test_a_quantised_base_brings_its_library(job):
    assert "bitsandbytes" in sky.task(job("sky", "hub.yaml", "model.quantize=nf4", "model.lora.rank=8"))


@pytest.mark.parametrize("accepts", [True, False])
def test_skypilot_is_asked_where_it_is_installed(job, tmp_path, monkeypatch, accepts):
    """A module of that name stands for it: the task must come to it, and what it refuses be said in one line."""
    tool = tmp_path / "tool"
    (tool / "lib" / "sky").mkdir(parents=True)
    refuses = "" if accepts else 'raise ValueError("unknown key nodes")'
    (tool / "lib" / "sky" / "__init__.py").write_text(
        "class Task:\n    @staticmethod\n    def from_yaml(file):\n"
        f"        assert 'recover_on_exit_codes' in open(file).read()\n        {refuses or 'pass'}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tool / "lib"))
    (tool / "sky").write_text(f"#!{sys.executable}\n")
    (tool / "sky").chmod(0o755)
    monkeypatch.setenv("PATH", str(tool), prepend=os.pathsep)
    text = sky.task(job("sky"))
    if accepts:
        assert sky.check(text, Path.cwd())
    else:
        with pytest.raises(InputError, match="^SkyPilot does not take the task: ValueError: unknown key nodes$"):
            sky.check(text, Path.cwd())
    assert not [path for path in Path.cwd().iterdir() if path.name.startswith(".")]


def test_a_folder_of_that_name_is_not_skypilot(job, tmp_path, monkeypatch):
    (tmp_path / "sky").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert not sky.check(sky.task(job("sky")), Path.cwd())


@pytest.mark.skipif(not shutil.which("sky"), reason="SkyPilot is not installed")
def test_skypilot_itself_takes_it(job, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert sky.check(sky.task(job("sky", "mine.yaml", spot=True, secret=("HF_TOKEN",))), Path.cwd())
