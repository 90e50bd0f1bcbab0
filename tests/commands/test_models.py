"""Commands that use a model: what is typed is what the function is given, and what cannot be is refused first."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft import cli
from hybrid_ft.finetune.generation.generate import Sampling


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``called(module)``: what its ``run`` is given, positions and names, when the command is typed."""

    def of(module: str) -> list[Any]:
        found: list[Any] = []

        def run(*given: Any, **named: Any) -> int:
            found.extend([*given, named] if named else given)
            return 7

        monkeypatch.setattr(import_module(f"hybrid_ft.finetune.{module}"), "run", run)
        return found

    return of


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("Why?\nHow?\n")
    return tmp_path


def typed(*words: str) -> int:
    return cli.main([*words])


def test_chat(called: Any) -> None:
    given = called("generation.chat")
    assert typed("chat", "tiny", "--system", "Be kind.", "--seed", "3", "--top-p", "0.5") == 7
    assert given == ["tiny", "Be kind.", 512, Sampling(0.7, 0.5, 3), given[-1]]


def test_generate(called: Any, prompts: Path) -> None:
    given = called("generation.generate")
    assert typed("generate", "tiny", "--prompts", "prompts.txt", "--max-new-tokens", "9", "--temperature", "0.3") == 7
    path, file, rows, out, most, sampling, _ = given
    assert (path, str(file), out, most, sampling) == ("tiny", "prompts.txt", None, 9, Sampling(0.3, 1.0, 0))
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--count", "3"], "--count: is for --as-rejected; leave it out"),
        (["--out", "no/such.jsonl"], "its folder does not exist; make it first"),
        (["--as-rejected"], "--out: got None; --as-rejected needs a file in .jsonl"),
        (["--as-rejected", "--out", "a.txt"], "--out: got a.txt; --as-rejected needs a file in .jsonl"),
        (["--as-rejected", "--out", "a.jsonl", "--chat-template-kwargs", "{}"], "--as-rejected asks as the rows say"),
        (["--as-rejected", "--out", "no/such.jsonl"], "its folder does not exist; make it first"),
    ],
)
def test_what_generate_cannot_do_is_said_before_a_model_is_opened(
    called: Any, prompts: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    given = [*called("generation.generate"), *called("generation.as_rejected")]
    assert typed("generate", "no-such-model", "--prompts", "prompts.txt", *options) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and given == []
    assert [path.name for path in prompts.iterdir()] == ["prompts.txt"]


def test_answers_for_pairs(called: Any, prompts: Path) -> None:
    given = called("generation.as_rejected")
    rejected = ["--as-rejected", "--out", "a.jsonl", "--count", "5", "--seed", "2"]
    assert typed("generate", "tiny", "--prompts", "rows.jsonl", *rejected) == 7
    assert given[:5] == ["tiny", "rows.jsonl", Path("a.jsonl"), 512, Sampling(0.0, 1.0, 2)] and given[6] == 5


def test_score(called: Any, prompts: Path) -> None:
    given = called("training.reward.score")
    assert typed("score", "model", "--rows", "rows.jsonl", "--out", "a.jsonl", "--answers") == 7
    assert given[:3] == ["model", "rows.jsonl", Path("a.jsonl")] and given[4] is True


def test_merge_and_export(called: Any) -> None:
    merged, exported = called("conversion.merge"), called("conversion.export")
    assert typed("merge", "adapter", "out", "--dtype", "float16") == 7
    assert merged[:3] == ["adapter", "out", "float16"]
    assert typed("export", "model", "out", "--to", "gguf", "--type", "q8_0", "--rows", "rows.jsonl") == 7
    assert exported[:3] == ["model", "out", "gguf"] and exported[4:] == [None, None, "rows.jsonl", "q8_0"]


def test_push(called: Any) -> None:
    given = called("hub.push")
    assert (
        typed("push", "folder", "me/name", "--private", "--base", "owner/base", "--run", "run", "--license", "mit") == 7
    )
    assert given[:2] == [Path("folder"), "me/name"]
    named = {"private": True, "dry_run": False, "base": "owner/base", "run_folder": Path("run"), "license_id": "mit"}
    assert given[-1] == named
