"""What goes to the hub, what its card says, and what never leaves the machine. Nothing here asks the network."""

import importlib
import json
import shutil
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError
from pushes import Hub, push

# the HTTP library under huggingface_hub, which is another one by version
httpx = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


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
