"""The command line as a user meets it: exit statuses, one line per mistake, nothing written, nothing heavy imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hybrid_ft
from hybrid_ft import cli
from hybrid_ft.errors import InputError

HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "numpy", "accelerate")
BAD = (
    "model: {path: tiny, lora: {rnk: 4}}\n"
    "data:\n  sources:\n    - path: gone.jsonl\n"
    "train:\n  learnin_rate: 1e-5\n  steps: many\n"
)


def hybrid_ft_command(*arguments: str, cwd: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in a fresh process, which then says which heavy modules it has imported."""
    program = (
        f"import sys\nfrom hybrid_ft.cli import main\n{code}\n"
        f"status = main({list(arguments)!r})\n"
        f"print('imported:', *[name for name in {HEAVY!r} if name in sys.modules])\n"
        "sys.exit(status)"
    )
    env = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def test_help_names_every_command(tmp_path: Path) -> None:
    shown = hybrid_ft_command("--help", cwd=tmp_path).stdout
    assert all(
        f" {name} " in shown for name in ("sft", "data", "chat", "generate", "merge", "export", "push", "recipes")
    )
    assert hybrid_ft_command("--version", cwd=tmp_path).stdout.startswith(hybrid_ft.__version__)


@pytest.mark.parametrize("command", ["sft", "data"])
def test_a_bad_recipe_is_refused_at_once(tmp_path: Path, command: str) -> None:
    """Every mistake on a line of its own, status 2, nothing written, nothing heavy imported."""
    (tmp_path / "bad.yaml").write_text(BAD)
    run = hybrid_ft_command(command, "bad.yaml", "train.stps=3", cwd=tmp_path)
    assert run.stderr.splitlines() == [
        "error: bad.yaml:1: unknown key model.lora.rnk; did you mean model.lora.rank?",
        "error: bad.yaml:4: data.sources.0.path: got 'gone.jsonl'; there is no such data file",
        "error: bad.yaml:6: unknown key train.learnin_rate; did you mean train.learning_rate?",
        "error: bad.yaml:7: train.steps: got 'many'; must be a whole number",
        "error: override train.stps: unknown key train.stps; did you mean train.steps?",
    ]
    assert run.returncode == 2
    assert run.stdout == "imported:\n"
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sft"], "error: Missing argument 'RECIPE'; see hybrid-ft sft --help"),
        (["sfr", "x"], "error: No such command 'sfr'"),
        (["sft", "--steps", "3"], "error: No such option: --steps"),
        (
            ["generate", "x", "--prompts", "p.txt", "--max-new-tokens", "0"],
            "error: Invalid value for '--max-new-tokens'",
        ),
        (["sft", "nowhere.yaml"], "error: nowhere.yaml: no such recipe file"),
        (["sft", "."], "error: .: is a folder; give a recipe file"),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_a_recipe_for_pairs_is_not_for_sft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}")
    Path("pairs.yaml").write_text("model: {path: tiny}\ndata: {sources: [{path: rows.jsonl}]}\ndpo: {}\n")
    assert cli.main(["sft", "pairs.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: pairs.yaml:3: dpo: this recipe is for pairs")


def replaced_sft(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(path: str, overrides: list[str], stage: str) -> None:
        raise error

    monkeypatch.setattr("hybrid_ft.finetune.recipe.load.load_recipe", fail)


def test_input_errors_keep_their_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    replaced_sft(monkeypatch, InputError("one\ntwo", status=5))
    assert cli.main(["sft", "x"]) == 5
    assert capsys.readouterr().err == "error: one\nerror: two\n"
    monkeypatch.setenv("RANK", "3")
    assert cli.main(["sft", "x"]) == 5
    assert capsys.readouterr().err == "[rank 3] error: one\n[rank 3] error: two\n"


def test_a_current_folder_that_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cli.main(["sft", "x"]) == 2
    assert capsys.readouterr().err == "error: the current folder is no longer there; change to one that is\n"


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced_sft(monkeypatch, KeyboardInterrupt())
    assert cli.main(["sft", "x"]) == 130


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced_sft(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["sft", "x"])


def test_libraries_are_told_before_they_are_imported(tmp_path: Path) -> None:
    """No code fetched by a layer's name, no telemetry; what the user has set stays."""
    code = "import os\nos.environ.pop('USE_HUB_KERNELS', None)\nos.environ['TRANSFORMERS_VERBOSITY'] = 'debug'"
    ends = "print({name: os.environ[name] for name in ('USE_HUB_KERNELS', 'HF_HUB_DISABLE_TELEMETRY', 'TRANSFORMERS_VERBOSITY')})"
    run = hybrid_ft_command("--version", cwd=tmp_path, code=f"{code}\nimport atexit\natexit.register(lambda: {ends})")
    assert run.stdout.splitlines()[-1] == str(
        {"USE_HUB_KERNELS": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "debug"}
    )


def test_answers_do_not_go_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Why?\n")
    assert cli.main(["generate", "tiny", "--prompts", str(prompts), "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_pairs_are_shown_by_a_mapping_s_short_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"history": "Which tea?", "human_ref_A": "Green.", "human_ref_B": "None.", "labels": 0}
    rows.write_text(json.dumps(row) + "\n")
    recipe = tmp_path / "pairs.yaml"
    recipe.write_text(f"model: {{path: tiny}}\ndata: {{sources: [{{path: {rows}, columns: shp}}]}}\ndpo: {{}}\n")
    assert cli.main(["data", str(recipe)]) == 0
    shown = capsys.readouterr().out
    # labels 0 prefers the second comment
    assert shown.index("None.") < shown.index("Green.")
    assert cli.main(["sft", str(recipe)]) == 2
    assert "hybrid-ft dpo" in capsys.readouterr().err
