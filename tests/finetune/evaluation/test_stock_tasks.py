"""lm_eval's tasks as they are named: what cannot be used is said in one line."""

from pathlib import Path

import pytest
from stock_files import run

from hybrid_ft.errors import BAD_INPUT, ENVIRONMENT, InputError
from hybrid_ft.finetune.evaluation import stock_tasks


@pytest.mark.slow
def test_mistakes_of_a_stock_task(stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    missing = Path("letters.yaml").read_text().replace(str(stock / "rows.jsonl"), "nowhere.jsonl")
    Path("missing.yaml").write_text(missing)
    Path("kind.yaml").write_text(Path("written.yaml").read_text().replace("generate_until", "nosuch"))
    Path("list.yaml").write_text("- a\n")
    Path("unsafe.yaml").write_text(Path("written.yaml").read_text() + "unsafe_code: true\n")
    for tasks, changes, said in (
        (["lm_eval:missing.yaml"], (), r"lm_eval:missing.yaml: lm_eval cannot read it as a task file .*nowhere.jsonl.*; mend it"),
        (["lm_eval:kind.yaml"], (), r"lm_eval:kind.yaml: lm_eval cannot read it as a task file .*'nosuch'"),
        (["lm_eval:list.yaml"], (), r"lm_eval:list.yaml: lm_eval cannot read it as a task file"),
        (["lm_eval:none.yaml"], (), r"lm_eval:none.yaml: no such task file"),
        (["lm_eval:unsafe.yaml"], (), "runs what the model writes outside of any jail; use --on humaneval or mbpp"),
        (["lm_eval:letters.yaml"] * 2, (), "lm_eval:letters: a task of this name is there already"),
        (["lm_eval:letters.yaml"], ["lm_eval:letters:shot=3"], "lm_eval:letters: .*unknown key shot; did you mean shots"),
        (["lm_eval:letters.yaml"], ["samples=3"], "lm_eval:letters: .*unknown key samples"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said) as refused:
            stock_tasks.load_stock(tasks, (), changes, None)
        assert len(str(refused.value).splitlines()) == 1 and refused.value.status == BAD_INPUT
    manager = type("Manager", (), {"task_index": {}, "all_tasks": ["gsm8k", "arc_easy"]})()
    monkeypatch.setattr(stock_tasks, "_manager", lambda names: manager)
    with pytest.raises(InputError, match="lm_eval:gsm8: lm_eval has no task of that name; did you mean gsm8k?"):
        stock_tasks.load_stock(["lm_eval:gsm8"], (), (), None)
    with pytest.raises(
        InputError, match="lm_eval: needs a task's name behind it, such as lm_eval:gsm8k, or a task file"
    ):
        stock_tasks.load_stock(["lm_eval:"], (), (), None)


def test_without_lm_eval(stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_tasks, "find_spec", lambda name: None)
    with pytest.raises(InputError) as refused:
        run(["nowhere"], ["lm_eval:gsm8k"])
    assert refused.value.status == ENVIRONMENT
    assert str(refused.value) == "lm_eval:gsm8k: lm_eval is not installed; run pip install 'hybrid-ft[eval]'"
    assert not Path("out").exists()
