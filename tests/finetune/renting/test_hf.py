"""The Hugging Face Job: what run_job is called with, and the script that the job runs."""

import inspect
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.renting import hf

TOKEN = "hf_" + "AbcdEfgh1234567890"


def test_it_is_what_run_job_takes(job):
    wanted = yaml.safe_load(hf.specification(job("hf", secret=("HF_TOKEN",))))
    inspect.signature(huggingface_hub.run_job).bind(**wanted)
    assert wanted["flavor"] == "h200x2" and wanted["timeout"] == "12h"
    assert wanted["secrets"] == ["HF_TOKEN"] and "volumes" not in wanted
    assert 'mirror="hf://buckets/me/runs/hub"' in wanted["command"][2] and "output=runs/hub" in wanted["command"][2]


def test_the_bucket_brings_the_token_that_it_needs(job):
    assert yaml.safe_load(hf.specification(job("hf")))["secrets"] == ["HF_TOKEN"]
    own = {"bucket": None, "mirror": "s3://my-runs/hub"}
    assert yaml.safe_load(hf.specification(job("hf", **own)))["secrets"] == []


@pytest.fixture
def started(monkeypatch):
    """What run_job was called with."""
    calls: list[dict] = []

    def run_job(attempts=1, **given):
        calls.append(given)
        return SimpleNamespace(url="https://huggingface.co/jobs/me/1")

    monkeypatch.setattr(huggingface_hub, "run_job", run_job)
    return calls


def test_a_secret_s_value_goes_to_the_hub_alone(job, started, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    text, said = hf.specification(job("hf", secret=("HF_TOKEN",))), []
    assert TOKEN not in text
    assert hf.start(text, said.append) == 0
    (given,) = started
    assert given["secrets"] == {"HF_TOKEN": TOKEN}
    assert said == ["started https://huggingface.co/jobs/me/1"]


def test_restarts_are_attempts_and_an_older_hub_library_does_not_lose_them(job, started, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    text = hf.specification(job("hf", restarts=4))
    assert yaml.safe_load(text)["attempts"] == 5
    assert hf.start(text, print) == 0 and len(started) == 1

    def older(*, image, command, env, secrets, flavor, timeout, name):
        raise AssertionError("a job was started")

    monkeypatch.setattr(huggingface_hub, "run_job", older)
    with pytest.raises(
        InputError, match="^--restarts: huggingface_hub .* starts a job once; pip install -U"
    ) as refused:
        hf.start(text, print)
    assert refused.value.status == 3


def test_a_secret_that_is_not_set_starts_nothing(job, started, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(InputError, match="^--secret: MY_KEY is not set") as refused:
        hf.start(hf.specification(job("hf", secret=("MY_KEY",))), print)
    assert refused.value.status == 3 and started == []


@pytest.mark.parametrize("error", [OSError, HfHubHTTPError.__bases__[0]])
def test_what_the_hub_refuses_is_one_line(job, monkeypatch, error):
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def run_job(**given):
        raise error("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "run_job", run_job)
    with pytest.raises(InputError, match="^--start: Hugging Face did not start the job: no network$") as refused:
        hf.start(hf.specification(job("hf")), print)
    assert refused.value.status == 3


def run(wanted: dict, home: Path, program: str) -> int:
    """The job's command in a folder of its own, where ``program`` stands for hybrid-ft."""
    (home / ".venv/bin").mkdir(parents=True)
    for name, text in (("python", f'printf "%s\\n" "$@" > {home}/installed'), ("hybrid-ft", program)):
        (home / ".venv/bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (home / ".venv/bin" / name).chmod(0o755)
    script = wanted["command"][2]
    return subprocess.run(["bash", "-c", script], env=os.environ | wanted["env"], timeout=60, check=False).returncode


def test_the_script_brings_the_recipe_and_passes_the_status_on(job, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "HOME", str(tmp_path / "there"))
    mine = job("hf", "hub.yaml", "evaluate.samples=[it's $HOME]")
    wanted = yaml.safe_load(hf.specification(mine))
    there = tmp_path / "there"
    assert run(wanted, there, f'printf "%s\\n" "$@" > {there}/launched\nexit 4') == 4
    assert "hybrid-ft==1.0" in (there / "installed").read_text().splitlines()
    launch, file, *rest = (there / "launched").read_text().splitlines()
    assert launch == "launch" and (there / file).read_text() == Path("hub.yaml").read_text()
    monkeypatch.chdir(there)
    found = load_recipe(file, rest[: rest.index("--processes")])
    assert found.output == "runs/hub" and found.mirror == "hf://buckets/me/runs/hub"
    assert found.evaluate.samples == ["it's $HOME"]


def test_the_run_is_told_to_save_before_the_job_s_time_is_over(job, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "HOME", str(tmp_path / "there"))
    wanted = yaml.safe_load(hf.specification(job("hf", time="90m")))
    assert " --signal=TERM 4200 " in wanted["command"][2]
    wanted["command"][2] = wanted["command"][2].replace(" 4200 ", " 0.3 ")
    waits = "trap 'exit 75' TERM\nwhile :; do sleep 0.05; done"
    assert run(wanted, tmp_path / "there", waits) == 75


@pytest.mark.parametrize(
    ("file", "overrides", "options", "message"),
    [
        ("mine.yaml", [], {}, r"^data\.sources\.0\.path: lies on this machine, .* \(hf upload OWNER/NAME '/.*--repo-type dataset\)"),
        ("hub.yaml", ["model.path=my rows"], {}, r"^model\.path: lies on this machine, .*--repo-type model\)"),
        ("hub.yaml", ["data.sources.0.columns=columns.yaml"], {}, r"^data\.sources\.0\.columns: lies on this machine"),
        ("hub.yaml", [], {"package": "x.whl"}, r"^--package: a wheel on this machine cannot be brought"),
        ("hub.yaml", [], {"gpu": "h201"}, r"^--gpu: 'h201' must be one of .*did you mean h200\?"),
    ],
)  # fmt: skip
def test_what_the_job_would_not_have_is_refused(job, file, overrides, options, message):
    Path("x.whl").touch()
    with pytest.raises(InputError, match=message) as refused:
        hf.specification(job("hf", file, *overrides, **options))
    assert refused.value.status == 2


def test_what_ships_needs_nothing(job):
    wanted = yaml.safe_load(hf.specification(job("hf", "quickstart/sft", package=None, image="me/hybrid-ft")))
    assert wanted["env"] == {} and wanted["image"] == "me/hybrid-ft"
    assert "hybrid-ft launch quickstart/sft" in wanted["command"][2] and "pip" not in wanted["command"][2]


def test_a_file_of_stages_must_hold_them_itself(job, place):
    with pytest.raises(
        InputError, match=r"parts/first\.yaml: lies on this machine, and --on hf brings one file; write"
    ):
        hf.specification(job("hf", "all.yaml"))
    (place / "one.yaml").write_text("stages:\n  - sft: {model: {path: me/base}, data: {sources: [{path: me/rows}]}}\n")
    wanted = yaml.safe_load(hf.specification(job("hf", "one.yaml")))
    assert wanted["env"][hf.RECIPE].startswith("stages:") and "launch one.yaml" in wanted["command"][2]


def test_two_mirrors_are_refused(job):
    with pytest.raises(InputError, match="^mirror: 's3://mine/hub' not with --bucket"):
        job("hf", "hub.yaml", "mirror=s3://mine/hub")


def test_a_mirror_on_the_jobs_own_disk_is_refused(job):
    with pytest.raises(InputError, match="mirror: 'there' goes with the machine"):
        job("hf", bucket=None, mirror="there")
