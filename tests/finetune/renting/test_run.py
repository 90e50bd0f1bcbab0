"""``hybrid-ft rent`` as a user types it: a file is written, and nothing is started unless it is asked for."""

import os
from pathlib import Path

import pytest
import yaml

from hybrid_ft import cli

SKY = ["--on", "sky", "--gpu", "h100", "--gpus", "8", "--bucket", "s3://my-runs", "--package", "hybrid-ft==1.0"]
HF = ["--on", "hf", "--gpu", "h200", "--bucket", "me/runs", "--time", "12h", "--package", "hybrid-ft==1.0"]
SLURM = ["--on", "slurm", "--time", "12h"]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sky, sbatch and run_job that write down that they were called; nothing else is in PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("sky", "sbatch"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/calls\nexit 7\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))

    def run_job(**given: object) -> None:
        (folder / "calls").write_text("run_job")
        raise OSError("refused")

    monkeypatch.setattr("huggingface_hub.run_job", run_job)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    return folder


@pytest.mark.parametrize(
    ("options", "file", "call", "status"),
    [
        (SKY, "hub.sky.yaml", "sky jobs launch hub.sky.yaml\n", 7),
        (HF, "hub.hf.yaml", "run_job", 3),
        (SLURM, "hub.sbatch", "sbatch hub.sbatch\n", 7),
    ],
)
def test_only_start_starts(place, tools, capsys, options, file, call, status):
    assert cli.main(["rent", "hub.yaml", *options]) == 0
    assert "nothing was started" in capsys.readouterr().out
    assert Path(file).is_file() and not (tools / "calls").exists()
    assert sorted(path.name for path in place.iterdir() if path.name.startswith((".", "hub."))) == sorted(
        [file, "hub.yaml"]
    )
    assert cli.main(["rent", "hub.yaml", *options, "--start"]) == status
    assert (tools / "calls").read_text() == call


@pytest.mark.parametrize("program", ["sky", "sbatch"])
def test_a_program_that_is_not_here_is_status_3(place, tools, capsys, program):
    (tools / program).unlink()
    assert cli.main(["rent", "hub.yaml", *(SKY if program == "sky" else SLURM), "--start"]) == 3
    said = capsys.readouterr()
    assert said.err.startswith(f"error: --start: {program} is not installed here") and said.out == ""
    assert not Path("hub.sky.yaml").exists() and not Path("hub.sbatch").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.yaml", *SKY], "nothing.yaml: no such recipe file"),
        (["hub.yaml", "train.epohcs=2", *SKY], "override train.epohcs: unknown key"),
        (["hub.yaml", *SKY, "--gpu", "h10"], "--gpu: 'h10' must be one of"),
        (["mine.yaml", *HF], "data.sources.0.path: lies on this machine"),
        (["hub.yaml", *SKY, "--package", "git+https://me:secret@host/x"], "hub.yaml: the file would hold a secret"),
        (["hub.yaml", *SLURM, "--write", "no/such/file"], "--write: no/such is not a folder"),
        (["hub.yaml", *SLURM, "--write", "columns.yaml"], "columns.yaml: is there with another text"),
        (["hub.yaml", *SKY, "--package", "hybrid-ft; touch x"], "--package: 'hybrid-ft; touch x' must be a wheel"),
        (["hub.yaml", "train.sequence_parallel=3", *SKY], "train.sequence_parallel: got 3; must divide the number of"),
        (["hub.yaml"], "--on: must be given, one of sky, hf, slurm"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line_and_writes_nothing(place, tools, capsys, arguments, message):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert cli.main(["rent", *arguments, "--start"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {message}") and said.err.count("\n") == 1 and said.out == ""
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert not (tools / "calls").exists()


def test_a_file_that_was_written_is_written_again_only_as_it_is(place, tools, capsys):
    assert cli.main(["rent", "hub.yaml", *SLURM]) == 0
    assert cli.main(["rent", "hub.yaml", *SLURM]) == 0
    with open("hub.sbatch", "a") as file:
        file.write("# my own line\n")
    assert cli.main(["rent", "hub.yaml", *SLURM]) == 2
    assert Path("hub.sbatch").read_text().endswith("# my own line\n")


def test_secrets_of_the_environment_are_not_written(place, tools, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "value-of-the-token")
    assert cli.main(["rent", "hub.yaml", *SKY, "--secret", "HF_TOKEN"]) == 0
    text = Path("hub.sky.yaml").read_text()
    assert "value-of-the-token" not in text and yaml.safe_load(text)["secrets"] == {"HF_TOKEN": None}
    assert os.access("hub.sky.yaml", os.R_OK)
