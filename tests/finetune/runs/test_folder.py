"""To whom a run's folder belongs: what may change between two starts, what may not, and who holds it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.identity import recipe_identity


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """A recipe as plain data, with the local files it names."""
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "template.jinja").write_text("{{ x }}")
    return {
        "model": {"path": str(base), "chat_template": str(tmp_path / "template.jinja")},
        "data": {"sources": [{"path": str(tmp_path / "rows.jsonl")}, {"path": "hub/rows", "revision": "abc"}]},
        "output": str(tmp_path / "run"),
    }


def begin(raw: dict[str, Any]) -> RunFolder:
    recipe = Recipe.model_validate(raw)
    folder = RunFolder(raw["output"])
    with folder.held():
        folder.begin("sft", recipe, recipe_identity(recipe))
    return folder


def start_again(raw: dict[str, Any]) -> dict[str, Any]:
    """What is known of the run that goes on."""
    folder = RunFolder(raw["output"])
    with folder.held():
        folder.check(recipe_identity(Recipe.model_validate(raw)))
    return folder.record


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("train", {"save_every": 7}),
        ("train", {"keep": 9}),
        ("train", {"log_every": 3}),
        ("train", {"trackers": ["tensorboard"]}),
        ("evaluate", {"every": 5}),
    ],
)
def test_what_does_not_touch_the_weights_may_change(files, section, change):
    record = begin(files).record
    assert record and start_again(files | {section: change}) == record


@pytest.mark.parametrize(
    ("section", "change", "told"),
    [
        ("train", {"learning_rate": 1e-3}, "train.learning_rate was 2.5e-05, is 0.001"),
        ("train", {"steps": 10}, "train.steps was not set, is 10"),
        ("train", {"seed": 1}, "train.seed was 42, is 1"),
        ("train", {"betas": [0.9, 0.99]}, "train.betas.1 was 0.95, is 0.99"),
        ("evaluate", {"answers": 3}, "evaluate.answers was 0, is 3"),
        ("evaluate", {"samples": ["hi"]}, "evaluate.samples.0 was not set, is hi"),
    ],
)
def test_what_decides_the_weights_may_not_change(files, section, change, told):
    begin(files)
    with pytest.raises(InputError, match="belongs to another run") as caught:
        start_again(files | {section: change})
    assert told in str(caught.value) and "\n" not in str(caught.value) and caught.value.status == 2


def test_lora_put_on_or_taken_off_is_told(files):
    begin(files)
    with pytest.raises(InputError, match=r"model.lora.alpha was not set, is 64 .*also changed.*model.lora.rank"):
        start_again(files | {"model": files["model"] | {"lora": {}}})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("rows.jsonl", "data.sources.0.path"),
        ("base/model.safetensors", "model.path"),
        ("base/config.json", "model.path"),
        ("template.jinja", "model.chat_template"),
    ],
)
def test_a_file_that_changed_is_told(files, tmp_path, name, key):
    begin(files)
    (tmp_path / name).write_bytes(b"changed")
    with pytest.raises(InputError, match=f"{key} was sha256:.*, is sha256:"):
        start_again(files)


def test_a_hub_revision_that_changed_is_told(files):
    begin(files)
    files["data"]["sources"][1]["revision"] = "def"
    with pytest.raises(InputError, match="data.sources.1.revision was abc, is def"):
        start_again(files)


def test_the_same_files_elsewhere_are_the_same_run(files, tmp_path):
    record = begin(files).record
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(tmp_path / "rows.jsonl", moved / "train.jsonl")
    files["data"]["sources"][0]["path"] = str(moved / "train.jsonl")
    shutil.move(tmp_path / "run", moved / "run")
    assert record and start_again(files | {"output": str(moved / "run")}) == record


def test_one_process_at_a_time(files):
    begin(files)
    with RunFolder(files["output"]).held():
        child = os.fork()
        if child == 0:
            try:
                start_again(files)
            except InputError as error:
                os._exit(0 if "another process is at work" in str(error) else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
    start_again(files)


def test_nothing_is_left_of_a_run_that_did_not_begin(files, tmp_path):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "new/deep/run").held():
        assert (tmp_path / "new/deep/run").is_dir()
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    with RunFolder(empty).held():
        pass
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("place", ["a-file", "a-file/below", "/proc/run"])
def test_places_that_cannot_be_a_run_folder(tmp_path, place):
    (tmp_path / "a-file").write_text("x")
    with pytest.raises(InputError, match="output: ") as caught, RunFolder(tmp_path / place).held():
        raise AssertionError("held")
    assert caught.value.status == 2 and "\n" not in str(caught.value)
    assert (tmp_path / "a-file").read_text() == "x"


def test_a_link_that_leads_nowhere_stays(tmp_path):
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "unmounted" / "run")
    with pytest.raises(InputError, match="output: cannot write in"), RunFolder(link).held():
        raise AssertionError("held")
    assert link.is_symlink()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds thesis.tex and is not a run's folder"), RunFolder(tmp_path).held():
        raise AssertionError("held")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"identity": 3}', "\x00"])
def test_a_damaged_record_is_told_and_kept(files, content):
    folder = begin(files)
    (folder.path / "run.json").write_text(content)
    with pytest.raises(InputError, match="run.json is damaged"):
        start_again(files)
    assert (folder.path / "run.json").read_text() == content


def test_metrics_after_the_checkpoint_are_forgotten_and_a_torn_line_too(files):
    folder = begin(files)
    folder.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    folder.forget_metrics_after(2)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2]


def test_changed_rows_are_told_though_every_file_is_the_same(start, monkeypatch):
    """A hub dataset, a library or a column mapping can make other rows of the same recipe."""
    from hybrid_ft.finetune.training import run as training

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training.ends, "export", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        start(train={"steps": 2})
    with pytest.raises(InputError, match="belongs to another run: rows was sha256:"):
        start(train={"steps": 2, "save_every": 1}, seed=1)


@pytest.mark.parametrize("words", [129, 200])
def test_a_tokenizer_larger_than_the_embedding_is_refused_before_anything_is_written(
    start, tmp_path, tiny_tokenizer, words
):
    import copy

    larger = copy.deepcopy(tiny_tokenizer)
    larger.add_tokens([f"<extra-{index}>" for index in range(words - len(larger))])
    larger.save_pretrained(tmp_path / "larger")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match="the model's has 128"):
        start(model={"tokenizer": str(tmp_path / "larger")})
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_base_cut_short_is_refused_before_anything_is_written(start, tmp_path, tiny_base):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(InputError, match=r"model\.safetensors.*cut short|promises"):
        start(model={"path": str(broken)})
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


DAMAGED = """
from pathlib import Path
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.pipeline import _read
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.training.reference_cache import ReferenceCache

def held():
    with RunFolder("run").held():
        pass

for check in (held, ReferenceCache("cache", {"dtype": "float32"}).check, lambda: _read(Path("stages"))):
    try:
        check()
        print("passed")
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_damaged_records_are_refused_by_an_optimising_interpreter_too(tmp_path):
    """python -O leaves assertions out."""
    files = {
        "run/run.json": {"identity": 3},
        "cache/reference.json": {"key": [], "pieces": {}},
        "stages/pipeline.json": {"stages": 1},
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(content))
    done = subprocess.run(
        [sys.executable, "-O", "-c", DAMAGED], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [line.partition(";")[0] for line in done.stdout.splitlines()] == [
        "output: run/run.json is damaged",
        "dpo.reference_cache: cache/reference.json is damaged",
        "output: stages/pipeline.json is damaged",
    ]
