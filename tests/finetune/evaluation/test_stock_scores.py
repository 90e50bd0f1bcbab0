"""Scores of lm_eval's tasks: limits, gates and groups."""

from pathlib import Path

import pytest
from stock_files import measured, run

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import stock_scores, stock_tasks


@pytest.mark.slow
def test_limits_gates_and_what_is_forgotten(stock: Path, steady_base: Path) -> None:
    pytest.importorskip("lm_eval")
    from hybrid_ft.hybrid_model.checkpoint.save import save
    from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

    found = stock_tasks.load_stock(
        ["lm_eval:letters.yaml"], (), ["shots=1", "lm_eval:other:shots=3", "gsm8k:shots=9"], 7
    )
    assert found[0].leaves["letters"].get_config("num_fewshot") == 1
    assert found[0].rows is not None and len(set(found[0].rows["letters"])) == 7
    save(hybrid_ft.load(steady_base, from_scratch=True, seed=7), Path("other"), load_tokenizer(steady_base))
    models, tasks = [str(steady_base), "other"], ["lm_eval:letters.yaml", "lm_eval:rolling.yaml"]
    gate = limits("lm_eval:letters: {acc: 1.0}")
    status, screen = run(models, tasks, forgetting=["lm_eval:written.yaml"], limit=9, fail_below=gate)
    assert status == 1 and "lm_eval:letters: acc is" in screen and "forgetting" in screen and "no interval" in screen
    ours = measured()
    assert ours["lm_eval:letters", "acc"]["items"] == 9 and ours["lm_eval:written", "exact_match,strict"]["forgetting"]
    assert len(ours["lm_eval:letters", "acc"]["differences"]) == 1
    with pytest.raises(InputError, match="lm_eval:letters: no measure ac .*did you mean acc?"):
        run(models, tasks, fail_below=limits("lm_eval:letters: {ac: 1.0}"))


def limits(text: str) -> Path:
    Path("limits.yaml").write_text(text + "\n")
    return Path("limits.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [True, False])
def test_a_group_is_one_task_where_its_score_is_over_all_rows(
    stock: Path, steady_base: Path, monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    few = Path("rows.jsonl").read_text().splitlines(keepends=True)[:7]
    Path("few.jsonl").write_text("".join(few))
    text = Path("letters.yaml").read_text()
    Path("again.yaml").write_text(text.replace("task: letters", "task: again").replace("rows.jsonl", "few.jsonl"))
    how = f"aggregate_metric_list: [{{metric: acc, weight_by_size: {str(weighted).lower()}}}]\n"
    Path("group.yaml").write_text(f"group: both\ntask: [letters, again]\n{how}")
    manager = TaskManager(include_defaults=False, include_path=str(stock))
    monkeypatch.setattr(stock_tasks, "_manager", lambda names: manager)
    results = []
    asked = stock_scores.asked
    monkeypatch.setattr(stock_scores, "asked", lambda *given: results.append(asked(*given)) or results[-1])
    gate = limits("lm_eval:both: {acc: 0}" if weighted else "lm_eval:again: {acc_norm: 0}")
    assert run([str(steady_base)], ["lm_eval:both"], fail_below=gate)[0] == 0
    ours = measured()
    if weighted:
        assert set(ours) == {("lm_eval:both", "acc")} and ours["lm_eval:both", "acc"]["items"] == 31
        assert ours["lm_eval:both", "acc"]["scores"][0]["value"] == results[0]["results"]["both"]["acc,none"]
    else:
        assert {task for task, _ in ours} == {"lm_eval:letters", "lm_eval:again"}
        assert ours["lm_eval:again", "acc"]["items"] == 7


@pytest.mark.slow
def test_groups_of_groups_and_tags(stock: Path, steady_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of groups is one task by its own rule, a tag all that have it; what is named twice is refused."""
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    text = Path("letters.yaml").read_text()
    for name in ("one", "two", "three"):
        Path(f"{name}.yaml").write_text(text.replace("task: letters", f"task: {name}") + "tag: numbered\n")
    how = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    for name, members in (("inner", "[one, two]"), ("outer", "[inner, three]"), ("bare", "[numbered]"), ("none", "[]")):
        Path(f"{name}.yaml").write_text(f"group: {name}\ntask: {members}\n" + how * (name in ("inner", "outer")))
    manager = TaskManager(include_defaults=False, include_path=str(stock))
    monkeypatch.setattr(stock_tasks, "_manager", lambda names: manager)
    assert run([str(steady_base)], ["lm_eval:outer", "lm_eval:numbered"], limit=6)[0] == 0
    ours = measured()
    assert {task for task, _ in ours} == {"lm_eval:outer", "lm_eval:one", "lm_eval:two", "lm_eval:three"}
    assert ours["lm_eval:outer", "acc"]["items"] == 6 and ours["lm_eval:one", "acc"]["items"] == 2
    for tasks, said in (
        (["lm_eval:bare", "lm_eval:one"], "lm_eval:one: lm_eval:one is there already, by itself or in another group"),
        (["lm_eval:none"], "lm_eval:none: is a group without a task; name another"),
    ):
        with pytest.raises(InputError, match=said):
            run([str(steady_base)], tasks, out=Path("refused"))
        assert not Path("refused").exists()
