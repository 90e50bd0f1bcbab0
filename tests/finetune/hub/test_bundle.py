"""What of a folder is sent, and what is refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pushes import SECRET, Hub, front, push


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
