"""What goes to the hub, what its card says, and what never leaves the machine. Nothing here asks the network."""

import importlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError
from run_helpers import copied

from hybrid_ft import cli

# the HTTP library under huggingface_hub, which is another one by version
httpx = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
LORA = {"lora": {"targets": "all-linear", "rank": 4, "alpha": 8}}
SECRET = "hf_" + "Ab3" * 10


class Hub:
    """Stands for huggingface_hub's HfApi: keeps what it was asked, and the content of every file that it was sent."""

    def __init__(self) -> None:
        self.repos: dict[str, bool] = {}
        self.sent: dict[str, bytes] = {}
        self.refuses: Exception | None = None

    def __call__(self) -> "Hub":
        return self

    def create_repo(self, name: str, *, private: bool | None, exist_ok: bool) -> Any:
        if self.refuses:
            raise self.refuses
        assert exist_ok
        full = name if "/" in name else f"someone/{name}"
        self.repos.setdefault(full, bool(private))

        class Url(str):
            repo_id = full

        return Url(f"https://huggingface.co/{full}")

    def repo_info(self, name: str) -> Any:
        return SimpleNamespace(private=self.repos[name])

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        assert repo_id in self.repos
        self.sent = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    return hub


@pytest.fixture(scope="module")
def run(start_once: Any) -> Any:
    """A LoRA run with an adapter and a merged model, held-out rows and answers."""
    lora = {"lora": LORA["lora"] | {"merge": True}}
    return start_once(model=lora, held_out=4, evaluate={"answers": 2, "max_new_tokens": 3, "samples": ["Why?"]})


@pytest.fixture
def trained(run: Any, tmp_path: Path) -> Any:
    """A copy that a test may change."""
    return replace(run, folder=copied(run.folder, tmp_path / "run"))


def push(*arguments: Any) -> int:
    return cli.main(["push", *map(str, arguments)])


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_model_with_its_card(trained: Any, hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    merged = trained.folder / "merged"
    (merged / "notes.py").write_text("print()")
    before = {path.name: path.read_bytes() for path in merged.iterdir()}
    assert push(merged, "someone/tuned", "--dry-run", "--license", "apache-2.0") == 0
    out = capsys.readouterr().out
    assert "nothing was sent" in out and "left out  notes.py" in out and hub.repos == {}
    card = (merged / "README.md").read_text()
    assert front(card) == {
        "library_name": "transformers", "license": "apache-2.0", "pipeline_tag": "text-generation",
        "tags": ["hybrid-ft", "sft", "lora"],
    }  # fmt: skip
    after = json.loads((trained.folder / "run.json").read_text())
    losses = [after["before"]["held_out"]["loss"], after["finished"]["held_out"]["loss"]]
    assert f"| held-out loss | {losses[0]:.4f} | {losses[1]:.4f} |" in card and "| exact answers | 0.0% (0/2) |" in card
    assert "supervised fine-tuning (SFT), LoRA of rank 4 on all-linear" in card and "6 steps on" in card
    assert "- `rows.jsonl`, a local file" in card and "rank: 4" in card and 'from_pretrained("someone/tuned"' in card
    assert str(tmp_path) not in card and "output:" not in card and "trackers" not in card

    (merged / "README.md").write_text(card + "\nMine.\n")
    assert push(merged, "someone/tuned", "--private") == 0
    assert (
        "as it is" in (out := " ".join(capsys.readouterr().out.split()))
        and "sent https://huggingface.co/someone/tuned" in out
    )
    assert hub.repos == {"someone/tuned": True}
    sent = {name: data for name, data in hub.sent.items() if name != "README.md"}
    assert hub.sent["README.md"].decode().endswith("Mine.\n")
    assert sent == {name: data for name, data in before.items() if name not in ("notes.py", "README.md")}


def test_an_adapter_is_sent_with_the_hub_s_name_of_its_base(
    trained: Any, hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    adapter = trained.folder / "adapter"
    files = sorted(path.name for path in adapter.iterdir())
    assert push(adapter, "tuned") == 2
    assert "which only this machine has; say what the hub calls it by --base" in capsys.readouterr().err
    assert sorted(path.name for path in adapter.iterdir()) == files
    assert push(adapter, "tuned", "--base", "owner/base") == 0
    assert json.loads(hub.sent["adapter_config.json"])["base_model_name_or_path"] == "owner/base"
    assert str(tmp_path).encode() not in b"".join(hub.sent.values())
    assert hub.sent["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    shown = front(hub.sent["README.md"].decode())
    assert (shown["base_model"], shown["base_model_relation"], shown["library_name"]) == (
        "owner/base",
        "adapter",
        "peft",
    )
    assert hub.repos == {"someone/tuned": False}


def test_hub_names_are_told_from_local_ones_by_the_run_s_identity(trained: Any, hub: Hub) -> None:
    """A relative folder may look like a hub's name."""
    from hybrid_ft.finetune.runs.folder import RunFolder

    recipe = yaml.safe_load((trained.folder / "recipe.yaml").read_text())
    recipe["model"]["path"] = "runs/base"
    recipe["data"]["sources"] = [{"path": "owner/rows", "split": "train"}, {"path": "data/rows"}]
    recipe["data"]["eval"]["sources"] = [{"path": "owner/held"}]
    recipe["model"]["chat_template"] = f"/disk/me/{SECRET}.jinja"
    (trained.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder = RunFolder(trained.folder)
    folder._read()
    known = folder.record["identity"] | {"model.path": "sha256:0", "data.sources.0.path": "owner/rows"}
    folder.note(identity=known | {"data.sources.1.path": "sha256:1", "data.eval.sources.0.path": "owner/held"})
    assert push(trained.folder / "merged", "someone/tuned") == 0
    card = hub.sent["README.md"].decode()
    assert front(card)["datasets"] == ["owner/rows", "owner/held"] and "base_model" not in front(card)
    assert "Made of `base`, a local folder" in card and "- `rows`, a local file" in card
    assert "huggingface.co/datasets/owner/held), held out" in card and "path: rows" in card
    assert SECRET not in card and "/disk/me" not in card


def test_what_cannot_be_sent_is_refused_and_nothing_is_written(
    trained: Any, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    for spoil, arguments, message in (
        ({}, ["{f}", "no spaces here"], "must be OWNER/NAME of the hub"),
        ({}, ["{f}", "a/b", "--base", "a b"], "--base: a b: must be OWNER/NAME"),
        (
            {},
            ["{f}", "a/b", "--license", "mit\nbase_model: x"],
            "--license: got 'mit\\nbase_model: x'; must be an id of the hub's",
        ),
        ({}, ["{f}/..", "a/b"], "holds no config.json, adapter_config.json or *.gguf; did you mean"),
        ({}, ["{f}/none", "a/b"], "no such folder"),
        ({}, ["{f}", "a/b", "--run", "{f}"], "must be a run's folder"),
        ({"chat_template.jinja": f"x {SECRET}"}, ["{f}", "a/b"], "holds what looks like a credential"),
        ({"README.md": f"x {SECRET}"}, ["{f}", "a/b"], "holds what looks like a credential"),
        ({"model.safetensors": "x"}, ["{f}", "a/b"], "model.safetensors"),
        ({"a.gguf": "GGML"}, ["{f}", "a/b"], "does not begin as a GGUF file does"),
    ):
        folder = shutil.copytree(trained.folder / "merged", trained.folder / "copy", dirs_exist_ok=True)
        for name, text in spoil.items():
            (folder / name).write_text(text)
        before = sorted(os.listdir(folder))
        assert push(*(part.format(f=folder) for part in arguments)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and SECRET not in error
        assert sorted(os.listdir(folder)) == before and hub.repos == {}
        shutil.rmtree(folder)


def test_an_unfinished_run_has_no_card(trained: Any, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((trained.folder / "run.json").read_text())
    (trained.folder / "run.json").write_text(json.dumps(record | {"finished": None}))
    assert push(trained.folder / "merged", "a/b") == 2
    assert "this run is not finished" in capsys.readouterr().err
    shutil.move(trained.folder / "merged", trained.folder.parent / "apart")
    assert push(trained.folder.parent / "apart", "a/b") == 0
    assert "Not recorded: no run's folder was named." in hub.sent["README.md"].decode()


def test_what_the_hub_says_is_one_line(trained: Any, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    request = httpx.Request("POST", "https://huggingface.co/api/repos/create")
    for error, fix in (
        (
            HfHubHTTPError("401\nInvalid token", response=httpx.Response(401, request=request)),
            "log in by hf auth login",
        ),
        (httpx.ConnectError("no route"), "the same command sends the rest"),
    ):
        hub.refuses = error
        assert push(trained.folder / "merged", "a/b") == 3
        said = capsys.readouterr().err
        assert fix in said and said.count("\n") == 1
    hub.refuses, hub.repos["a/b"] = None, False
    assert push(trained.folder / "merged", "a/b", "--private") == 2
    assert "a/b is there and public" in capsys.readouterr().err and hub.sent == {}
