"""lm_eval's tasks in ``evaluate.suite``: before, on the way, after; as the command asks them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_helpers import Killed

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import stock_tasks

HEAD = "dataset_path: json\ndataset_kwargs: {data_files: {test: ROWS}}\ntest_split: test\nnum_fewshot: 0\n"
LETTERS = (
    HEAD + 'task: letters\noutput_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_target: y\ndoc_to_choice: c\n'
)
WRITTEN = (
    HEAD
    + 'task: written\noutput_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: a\n'
    + (
        "generation_kwargs: {until: [x], max_gen_toks: 3}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
)
STEPS = {"steps": 4, "save_every": 2, "learning_rate": 3e-2, "schedule": "constant"}


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``suite(every=2)``: the section, of a choice and a written answer, and the file of rows."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"q": f"say {n}", "a": "ab"[n % 2], "y": n % 2, "c": ["it is a", "b"]} for n in range(12)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("letters", LETTERS), ("written", WRITTEN)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("ROWS", str(tmp_path / "few.jsonl")))
    names = [f"lm_eval:{tmp_path}/{name}.yaml" for name in ("letters", "written")]
    return lambda **more: {"suite": {"tasks": names[:1], "forgetting": names[1:]} | more}


def table(place: Path) -> dict[str, Any]:
    return {one["task"]: one for one in json.loads((place / "results.json").read_text())["measures"]}


@pytest.mark.slow
def test_the_last_score_is_the_commands_and_a_cut_run_ends_as_the_whole_one(
    start: Any, suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from hybrid_ft.finetune.evaluation import evaluate
    from hybrid_ft.finetune.evaluation.kept import Kept

    section = suite(every=2, best="lm_eval:letters")
    run = start(train=STEPS, evaluate=section)
    on_the_way = run.metrics("suite/lm_eval:letters/acc")
    assert list(on_the_way) == [2, 4]
    found = table(run.folder / "suite")
    assert found["lm_eval:written"]["forgetting"] and found["lm_eval:letters"]["items"] == 12
    assert found["lm_eval:letters"]["scores"][1]["value"] == max(on_the_way.values())
    assert "lm_eval:letters: acc" in (run.folder / "report.html").read_text()

    wanted = evaluate.Wanted(section["suite"]["tasks"], section["suite"]["forgetting"], out=tmp_path / "out")
    with (tmp_path / "screen").open("w") as screen:
        evaluate.run([str(run.folder / "model")], wanted, Console(file=screen))
    for task, again in table(tmp_path / "out").items():
        assert again["scores"][0] == pytest.approx(found[task]["scores"][1], rel=1e-6), task

    without = start("without", train=STEPS)
    last = [(one.folder / "checkpoints/checkpoint-4/model.safetensors").read_bytes() for one in (run, without)]
    assert last[0] == last[1]

    add = Kept.add

    def cut(self: Kept, lines: Any) -> None:
        if "step-4/lm_eval-written" in str(self.path):
            raise Killed
        add(self, lines)

    with monkeypatch.context() as patched:
        patched.setattr(Kept, "add", cut)
        with pytest.raises(Killed):
            start("cut", train=STEPS, evaluate=section)
    cut_run = start("cut", train=STEPS, evaluate=section)
    results = [(one.folder / "suite/results.json").read_text() for one in (cut_run, run)]
    assert results[0].replace("/cut/", "/run/") == results[1]


@pytest.mark.slow
def test_processes_share_the_rows(suite: Any, tmp_path: Path, tiny_base: Path) -> None:
    """Two processes, one after the other; the first lacks the second's half."""
    from hybrid_ft.finetune.evaluation.suite import Suite
    from hybrid_ft.finetune.generation.generate import load_for_answers
    from hybrid_ft.finetune.recipe.schema import Suite as Section

    model, tokenizer = load_for_answers(str(tiny_base))
    wanted = Section(**suite()["suite"])
    one, two = (Suite.of(wanted, tokenizer, tmp_path / name) for name in ("one", "two"))
    assert (
        one.digest() == two.digest() != Suite.of(wanted.model_copy(update={"limit": 3}), tokenizer, tmp_path).digest()
    )
    whole = one.measure(model, 0)
    assert whole and one.done(0)
    assert two.measure(model, 0, stopped=lambda: True) is None and not two.done(0)
    for rank in (1, 0):
        stub: Any = SimpleNamespace(count=2, rank=rank, main=not rank, wait=lambda: None, any=lambda flag: flag)
        for stock in two.stock[::-1] if rank else []:
            two.stock = [stock]
            with pytest.raises(KeyError):
                two.measure(model, 0, stub)
        two.stock = one.stock
    shared = two.measure(model, 0, stub)
    assert shared and two.done(0)
    assert [found.lines for found in shared] == [found.lines for found in whole]
    for task, each in (("letters", 6), ("written", 6)):
        files = sorted((tmp_path / f"two/suite/step-0/lm_eval-{task}").glob("*.jsonl"))
        kept = [[json.loads(line)["key"] for line in file.read_text().splitlines()] for file in files]
        answers = [[key for key in keys if not key.startswith("whole")] for keys in kept]
        assert [len(keys) for keys in answers] in ([each, each], [2 * each, 2 * each]), task
        assert not set(answers[0]) & set(answers[1])


def test_what_cannot_be_is_one_line(suite: Any, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_ft.finetune.recipe.load import load_recipe

    few = tmp_path / "few.jsonl"
    head = f"model: {{path: tiny}}\ndata: {{sources: [{{path: {few}}}]}}\n"
    for section, complaint in (
        ("tasks: ['lm_eval:lettres.yaml']", r"r.yaml:3: evaluate.suite.tasks.0: got 'lm_eval:lettres.yaml'; .*letters"),
        ("tasks: ['lm_eval:letters.yaml', 'lm_eval:x/letters.yaml']", "a task lm_eval:letters is there already"),
        ("tasks: ['lm_eval:letters.yaml'], best: letters, every: 2", "must be one of lm_eval:letters"),
    ):
        (tmp_path / "r.yaml").write_text(f"{head}evaluate: {{suite: {{{section}}}}}\n")
        with pytest.raises(InputError, match=complaint):
            load_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(f"{head}evaluate: {{suite: {{tasks: ['lm_eval:letters.yaml']}}}}\n")
    found = load_recipe(tmp_path / "r.yaml").evaluate.suite
    assert found and found.tasks == [f"lm_eval:{tmp_path}/letters.yaml"]

    # a group whose tasks are scored one by one has no score of its own to choose by
    from lm_eval.tasks import TaskManager

    (tmp_path / "both.yaml").write_text("group: both\ntask: [letters, written]\n")
    manager = TaskManager(include_defaults=False, include_path=str(tmp_path))
    monkeypatch.setattr(stock_tasks, "_manager", lambda names: manager)
    section = {"suite": {"tasks": ["lm_eval:both"], "every": 2, "best": "lm_eval:both"}}
    with pytest.raises(InputError, match=r"best: got lm_eval:both, .*one of lm_eval:letters, lm_eval:written"):
        start(evaluate=section)
    assert not (tmp_path / "run").exists()
