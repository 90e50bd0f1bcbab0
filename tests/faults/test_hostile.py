"""Inputs made to do harm: secrets stay where they are, and no code comes with weights, configs, templates, archives."""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hostile
import pytest
from harness import Job, checkpoints, differing, digest, results
from hostile import ESCAPES, MODELS, RUNAWAYS, YAMLS, ZIPS, bombs, of_template
from refusals import MOST_SECONDS, RECIPE, Case, tried

from hybrid_ft.finetune.data.sources import json_rows, packed
from hybrid_ft.finetune.data.tokens import template

CANARIES = {
    "HF_TOKEN": "hf_CanaryQwErTyUiOpAsDfGhJkLz7391",
    "HUGGING_FACE_HUB_TOKEN": "hf_CanaryZxCvBnMaSdFgHjKlQw1846",
    "WANDB_API_KEY": "5c4e1f0canary9b7d2a6e83f15b90c7d4e2a16f38",
    "AWS_SECRET_ACCESS_KEY": "wJalrCanaryK7MDENG/bPxRfiCYzEXAMPLE0",
    "OPENAI_API_KEY": "sk-canary-proj-4Fq8Zt1LmN6vXy3RwB0k",
    "MY_PASSWORD": "canary horse battery 58",
}
TOKEN = "hf_RecipeCanaryPoIuYtReWqLkJh2957"
"""stands in no variable"""
PASSWORD = "url-canary-4417"


def leaks(*texts: str, under: Path | None = None) -> list[str]:
    """Where one of the canaries stands: in a text, a file's content, or its name."""
    wanted = [value.encode() for value in (*CANARIES.values(), TOKEN, PASSWORD)]
    files = [path for path in under.rglob("*") if path.is_file() and not path.is_symlink()] if under else []
    found = [text[-300:] for text in texts if any(value in text.encode() for value in wanted)]
    return found + [str(file) for file in files if any(value in file.read_bytes() + bytes(file) for value in wanted)]


def secret(name: str, recipe: str = RECIPE, *overrides: str, command: str = "sft", status: int = 2) -> Case:
    return Case(f"secret: {name}", (), (command, "r.yaml", *overrides), recipe, status=(status,))


OF_STAGES = f"stages: [{{sft: quickstart}}]\noutput: runs/{TOKEN}\n"
SECRETS = [
    secret("unknown key", RECIPE.replace("steps: 1", f"steps: 1, hub_token: {TOKEN}")),
    secret("unknown key on the command line", RECIPE, f"train.hub_token={TOKEN}"),
    secret("a key that is one", RECIPE + f"{TOKEN}: 1\n"),
    secret("URL", RECIPE.replace("rows.jsonl", f"'https://user:{PASSWORD}@example.org/rows.jsonl'")),
    secret("URL of a model", RECIPE.replace("tiny", f"'https://user:{PASSWORD}@example.org/model'")),
    secret("output", RECIPE.replace("output: run", f"output: run-{TOKEN}")),
    secret("output on the command line", RECIPE, f"output=run-{TOKEN}"),
    secret("model", RECIPE.replace("tiny", TOKEN)),
    secret("a model's revision", RECIPE.replace("tiny", f"tiny, revision: {TOKEN}")),
    secret("a sample", RECIPE + f"evaluate: {{samples: [{TOKEN}]}}\n"),
    secret("a value of another type", RECIPE.replace("steps: 1", f"steps: {TOKEN}")),
    secret("no YAML", RECIPE + f"a: [{TOKEN}\n"),
    secret("a tag", RECIPE + f"a: !{TOKEN} x\n"),
    secret("an option", RECIPE, f"--{TOKEN}"),
    secret("an option's value", RECIPE, f"--token={TOKEN}"),
    secret("no key", RECIPE, TOKEN),
    secret("output of stages", OF_STAGES, command="run"),
    secret("output of stages on the command line", OF_STAGES.replace(TOKEN, "x"), f"output=x/{TOKEN}", command="run"),
    secret("key of stages", OF_STAGES.replace(f"runs/{TOKEN}", f"x\n{TOKEN}: 1"), command="run"),
    secret("a stage", f"stages: [{{{TOKEN}: x}}]\n", command="run"),
    secret("a stage's recipe", f"stages: [{{sft: {TOKEN}.yaml}}]\n", command="run"),
    Case("secret: a command", (), (TOKEN,)),
    Case("secret: a recipe's name", (), ("sft", f"{TOKEN}.yaml")),
    Case("secret: a file of stages by such a name", (), ("run", f"{TOKEN}.yaml"), files={f"{TOKEN}.yaml": "stages: [{sft: r.yaml}]\n"}),
    Case("secret: a recipe by such a name", (), ("sft", f"{TOKEN}.yaml"), files={f"{TOKEN}.yaml": RECIPE.replace("output: run\n", "")}),
    Case("secret: a model to talk to", (), ("chat", f"owner/{TOKEN}"), status=(2, 3)),
    Case("secret: a number", (), ("chat", "tiny", "--max-new-tokens", TOKEN)),
    *[secret(f"the value of {name}", RECIPE.replace("output: run", f"output: 'run {value}'")) for name, value in CANARIES.items()],
    *[secret(f"{name} on the command line", RECIPE, f"train.steps={value}") for name, value in CANARIES.items()],
]  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


def harm(case: Case, folder: Path) -> list[str]:
    """What a hostile input has done, or how it was not refused; a line that begins with its name, or none."""
    got = tried(case, folder / "here")
    told = got.err.splitlines()
    checks = [
        (got.status in case.status, f"status {got.status}: {got.err[:300]} {got.out[-300:]}"),
        (got.seconds < MOST_SECONDS, f"{got.seconds:.1f} s"),
        (not list(folder.rglob(hostile.MARKER)), "its code was run"),
        ({path.name for path in folder.iterdir()} == {"here"}, "written outside of its folder"),
    ]
    if got.status != 0:
        one_each = bool(told) and all(line.startswith("error: ") and line.isprintable() for line in told)
        checks += [(one_each and len(told) <= (case.complaints or 100), f"not one line: {told}")]
        checks += [(not got.changed, f"left behind {got.changed}")]
        checks += [(say in got.err, f"does not say {say!r}: {got.err[:300]}") for say in case.says]
    shutil.rmtree(folder)
    return [f"{case.name}: {text}" for good, text in checks if not good]


def harms(cases: Iterable[Case], folder: Path) -> list[str]:
    found = []
    for number, case in enumerate(cases):
        (folder / str(number)).mkdir()
        found.append(" | ".join(harm(case, folder / str(number))))
    return [each for each in found if each]


def told_secrets(cases: Iterable[Case], folder: Path) -> list[str]:
    found = []
    for number, case in enumerate(cases):
        got = tried(case, folder / str(number))
        where = leaks(got.out, got.err)
        if got.status not in case.status or not got.err.startswith("error: ") or got.changed or where:
            found.append(f"{case.name}: status {got.status}, wrote {got.changed}, leaks {where}: {got.err[:300]}")
    return found


@pytest.fixture
def small_bombs(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The limits lowered, and archives that pass them."""
    monkeypatch.setattr(packed, "MOST_UNPACKED", 2**18)
    monkeypatch.setattr(json_rows, "MAX_LINE_BYTES", 2**14)
    return bombs(2**19)


def test_a_share_of_what_is_hostile(tmp_path: Path, canaries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SECONDS", 0.3)
    for name in ("secrets", "harm"):
        (tmp_path / name).mkdir()
    assert told_secrets(SECRETS[::2], tmp_path / "secrets") == []
    programs = [*ESCAPES.items(), ("nested loops", RUNAWAYS["nested loops"])]
    templates = [of_template(*each)[0] for each in programs[::3]]
    assert harms([*MODELS[:4], *YAMLS[::4], *templates, *ZIPS], tmp_path / "harm") == []


def test_an_archive_that_fills_the_memory(small_bombs: list[Case], tmp_path: Path) -> None:
    assert harms(small_bombs, tmp_path) == []


@pytest.mark.faults
def test_executions(tmp_path: Path, small_bombs: list[Case], faults_row: Callable[..., None]) -> None:
    templates = [case for each in (ESCAPES | RUNAWAYS).items() for case in of_template(*each)]
    cases = [*MODELS, *YAMLS, *ZIPS, *small_bombs, *templates]
    failures = harms(cases, tmp_path)
    faults_row("hostile weights, configs, templates, archives", "0 executions, refused in 30 s", len(cases), failures)
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
def test_secrets_refused(tmp_path: Path, canaries: None, faults_row: Callable[..., None]) -> None:
    failures = told_secrets(SECRETS, tmp_path)
    faults_row("secrets in recipes and arguments", "refused, 0 leaks", len(SECRETS), failures)
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
@pytest.mark.parametrize("end", ["finished", "stopped", "not finite"])
def test_secrets_in_the_environment(
    harness: Any, jobs: dict[str, Job], faults_row: Callable[..., None], end: str
) -> None:
    inject: dict[str, dict[str, Any]] = {
        "finished": {},
        "stopped": {"signal_in_step": {"step": 3, "number": int(signal.SIGTERM)}},
        "not finite": {"not_finite": {"what": "loss", "step": 3, "value": "nan", "place": 0}},
    }[end]
    expected = {"finished": 0, "stopped": 75, "not finite": 4}[end]

    def trial(name: str) -> str | None:
        folder = harness.folder()
        child = harness.start(jobs[name], folder / "run", inject, environment=CANARIES)
        status = child.wait()
        if status != expected:
            return f"exit status {status}\n{child.screen}"
        written = [path for path in folder.rglob("*") if path.is_file()]
        found = leaks(child.screen, under=folder)
        return f"leaks in {found}" if found or not written else None

    names = ("sft-lora", "dpo-full")
    failures = harness.each(names, trial)
    faults_row(f"canary secrets, a run that is {end}", "0 leaks", len(names), failures)
    assert not failures, "\n".join(failures[:10])


def test_a_leak_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0" + CANARIES["HF_TOKEN"].encode() + b"\0")
    assert leaks(f"x {TOKEN}", under=tmp_path) == [f"x {TOKEN}", str(tmp_path / "a.bin")]


def planted(checkpoint: Path, marker: Path, replace: bool) -> None:
    """Pickles by the names that trainers load; or each file replaced by one, the manifest made to agree."""
    if not replace:
        names = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt")
        for name in (*names, "training_args.bin", "pytorch_model.bin", "adapter_model.bin"):
            (checkpoint / name).write_bytes(hostile.saved(marker))
        return
    listed = json.loads((checkpoint / "manifest.json").read_text())
    content = hostile.saved(marker)
    for name in listed:
        (checkpoint / name).write_bytes(content)
        listed[name] |= {"size": len(content), "sha256": digest(content)}
    (checkpoint / "manifest.json").write_text(json.dumps(listed))


@pytest.mark.faults
def test_pickles_in_a_checkpoint(harness: Any, jobs: dict[str, Job], faults_row: Callable[..., None]) -> None:
    trials = [(name, replace) for name in ("sft-lora", "dpo-full") for replace in (False, True)]
    for name in ("sft-lora", "dpo-full"):
        harness.whole(jobs[name])

    def trial(one: tuple[str, bool]) -> str | None:
        job, folder = jobs[one[0]], harness.folder()
        stop = {"signal_in_step": {"step": 4, "number": int(signal.SIGTERM)}}
        assert harness.start(job, folder / "run", stop).wait() == 75
        planted(checkpoints(folder / "run")[-1], folder / "ran", replace=one[1])
        child = harness.start(job, folder / "run")
        status = child.wait()
        if (folder / "ran").exists():
            return "a pickle was run"
        if one[1] and status in (2, 5):
            return None if "Traceback" not in child.screen else child.screen
        wrong = f"exit status {status}\n{child.screen}" if status else ""
        return wrong or ", ".join(differing(results(folder / "run"), harness.whole(job).digests)) or None

    failures = harness.each(trials, trial)
    faults_row("pickles in a checkpoint", "0 executions", len(trials), failures)
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
def test_foreign_code_beside_a_base(
    harness: Any, jobs: dict[str, Job], tiny_base: Path, faults_row: Callable[..., None]
) -> None:
    def trial(name: str) -> str | None:
        folder = harness.folder()
        shutil.copytree(tiny_base, folder / "base")
        hostile.foreign_code(folder / "base", folder / "ran")
        child = harness.start(jobs[name].but("foreign", f"model.path={folder / 'base'}"), folder / "run")
        status = child.wait()
        if status or (folder / "ran").exists():
            return f"exit status {status}, code run: {(folder / 'ran').exists()}\n{child.screen}"
        exported = [file for at in ("model", "adapter") for file in (folder / "run" / at).rglob("*") if file.is_file()]
        texts = {file: file.read_text() for file in exported if file.suffix in (".json", ".py", ".md")}
        kept = [f"{file.name}: {key}" for file, text in texts.items() for key in hostile.FOREIGN_KEYS if key in text]
        kept += [file.name for file in exported if file.suffix == ".py"]
        return f"the export keeps {kept}" if kept or not texts else None

    names = ("sft-full", "sft-lora", "dpo-full")
    failures = harness.each(names, trial)
    faults_row("foreign code beside a base", "0 executions, none exported", len(names), failures)
    assert not failures, "\n".join(failures[:10])


def listening(group: int) -> list[str]:
    """Addresses on which a process of a group listens, in the kernel's hexadecimal."""
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            handles = list((process / "fd").iterdir()) if os.getpgid(int(process.name)) == group else []
            for handle in handles:
                with suppress(OSError):  # closed meanwhile
                    inodes.add(os.readlink(handle))
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    rows = [line.split() for file in tables if file.exists() for line in file.read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]


def test_a_port_is_seen() -> None:
    with socket.socket() as open_port:
        open_port.bind(("127.0.0.1", 0))
        mine = f":{open_port.getsockname()[1]:04X}"  # pytest's other processes open and close theirs meanwhile
        assert not [place for place in listening(os.getpgrp()) if place.endswith(mine)]
        open_port.listen()
        assert [place for place in listening(os.getpgrp()) if place.endswith(mine)]


@pytest.mark.faults
def test_no_port_is_open(harness: Any, jobs: dict[str, Job], faults_row: Callable[..., None]) -> None:
    looks = []

    def trial(name: str) -> str | None:
        child, seen = harness.start(jobs[name], harness.folder() / "run"), set()
        while not child.ended(0):
            seen |= set(listening(child.pid))
            looks.append(time.monotonic())
            time.sleep(0.02)
        return f"listens on {seen}" if seen or child.wait() else None

    names = ("sft-lora", "dpo-full")
    failures = harness.each(names, trial)
    faults_row("ports of a run", "none", len(names), failures, f"{len(looks)} looks")
    assert not failures, "\n".join(failures[:10])
