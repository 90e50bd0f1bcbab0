"""lm_eval's tasks through this project's forwards: against its own HFLM, and by hand."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import hybrid_ft
from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.evaluation import evaluate, stock_scores, stock_tasks
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.evaluate import Wanted
from hybrid_ft.finetune.evaluation.kept import Kept

HEAD = "dataset_path: json\ndataset_kwargs: {data_files: {train: ROWS, test: ROWS}}\ntest_split: test\n"
TASKS = {
    "letters": HEAD + 'training_split: train\nfewshot_split: train\noutput_type: multiple_choice\nnum_fewshot: 4\n'
    'fewshot_config: {sampler: first_n}\ndoc_to_text: "Question: {{q}}\\nAnswer:"\ndoc_to_target: y\ndoc_to_choice: c\n'
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, {metric: acc_norm, aggregation: mean, "
    "higher_is_better: true}]\n",
    "written": HEAD + 'output_type: generate_until\nnum_fewshot: 0\ndoc_to_text: "{{q}}\\n"\ndoc_to_target: a\n'
    'generation_kwargs: {until: ["e", "\\n"], do_sample: false, max_gen_toks: 12}\n'
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    "filter_list: [{name: strict, filter: [{function: take_first}]}, {name: first, filter: [{function: regex, "
    'regex_pattern: "([a-z]+)"}, {function: take_first}]}]\n',
    "rolling": HEAD + 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{q}} {{a}}"\n'
    "metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]\n",
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [
        {"q": f"what is {n} and {n % 5}" + " more" * (n % 7), "a": str(n), "y": n % 3, "c": [f"it {n}", "none", "a b c d"]}
        for n in range(24)
    ]  # fmt: skip
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        Path(f"{name}.yaml").write_text(f"task: {name}\n" + text.replace("ROWS", str(tmp_path / "rows.jsonl")))
    return tmp_path


def run(models: list[str], tasks: list[str], **wanted: Any) -> tuple[int, str]:
    screen = io.StringIO()
    wanted = {"tasks": tasks, "out": Path("out")} | wanted
    return evaluate.run(models, Wanted(**wanted), Console(file=screen, width=200)), screen.getvalue()


def measured() -> dict[tuple[str, str], Any]:
    return {(one["task"], one["name"]): one for one in json.loads(Path("out/results.json").read_text())["measures"]}


def hflm(model: Any, tokenizer: Any, tasks: list[str], **more: Any) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=5)
    manager = TaskManager(include_defaults=False)
    results = lm_eval.simple_evaluate(model=theirs, tasks=tasks, task_manager=manager, bootstrap_iters=0, **more)
    assert results is not None
    return dict(results)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "chat"])
def test_as_hflm_and_by_hand(place: Path, steady_base: Path, form: str) -> None:
    """Scores as plain transformers' in lm_eval's own model give them, log-probabilities within 1e-4."""
    pytest.importorskip("lm_eval")
    from transformers import OlmoHybridForCausalLM

    from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

    names = [f"lm_eval:{name}.yaml" for name in TASKS]
    run([str(steady_base)], names, changes=[f"form={form}"])
    plain, tokenizer = OlmoHybridForCausalLM.from_pretrained(steady_base).eval(), load_tokenizer(steady_base)
    chat = {"apply_chat_template": True, "fewshot_as_multiturn": True} if form == "chat" else {}
    theirs = hflm(plain, tokenizer, [f"{name}.yaml" for name in TASKS], **chat)
    ours = measured()
    assert set(ours) == {
        *(("lm_eval:letters", name) for name in ("acc", "acc_norm")),
        *(("lm_eval:written", f"exact_match,{name}") for name in ("strict", "first")),
        ("lm_eval:rolling", "word_perplexity"),
    }
    for (task, name), one in ours.items():
        expected = theirs["results"][task.removeprefix("lm_eval:")][name if "," in name else f"{name},none"]
        assert one["scores"][0]["value"] == pytest.approx(expected, rel=1e-4)
    kept = [json.loads(line) for file in Path("out/answers").iterdir() for line in file.read_text().splitlines()]
    weighed = sorted(line["log_prob"] for line in kept if "log_prob" in line)
    samples = [row for task in ("letters", "rolling") for row in theirs["samples"][task]]
    expected = sorted(one[0] if isinstance(one, list | tuple) else one for row in samples for (one,) in row["resps"])
    assert weighed == pytest.approx(expected, abs=1e-4)
    written = {line["answer"] for line in kept if "answer" in line}
    assert written == {row["resps"][0][0] for row in theirs["samples"]["written"]}
    # by hand: the likeliest of three is the one that counts
    rows = theirs["samples"]["letters"]
    right = [max(range(3), key=lambda at: row["resps"][at][0][0]) == row["doc"]["y"] for row in rows]
    assert ours["lm_eval:letters", "acc"]["scores"][0]["value"] == sum(right) / len(rows)


@pytest.mark.slow
def test_what_prompts_share_is_read_once_and_kept(
    place: Path, steady_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.utils import env

    model = hybrid_ft.load(steady_base).eval()
    monkeypatch.setattr(evaluate, "model_for_answers", lambda path: model)
    read: list[int] = []
    forward = type(model.base_model).forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(kwargs["input_ids"].numel())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.base_model), "forward", watched)
    tasks = ["lm_eval:letters.yaml"]
    # characters are tokens here: four examples before each of 24 questions
    asked = hflm_contexts(stock_tasks.load_stock(tasks, (), (), None)[0])
    compiled: list[str] = []
    compile_one = env.compile
    monkeypatch.setattr(env, "compile", lambda text, *more: compiled.append(text) or compile_one(text, *more))
    run([str(steady_base)], tasks, batch_tokens=100_000)
    assert 0 < max(map(compiled.count, compiled)) < 4, "a template is compiled for each row"
    shared = len("".join(asked[0].rpartition("\n\n")[:2]))
    assert len(set(asked)) == 24 and shared > 80
    assert sum(read) < shared + sum(len(context) - shared + 3 * 8 for context in asked)
    (file,) = Path("out/answers").iterdir()
    whole, results = file.read_bytes(), Path("out/results.json").read_text()
    read.clear()
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "model_for_answers", lambda path: pytest.fail("nothing is missing"))
        run([str(steady_base)], tasks)
    assert read == []
    # a kill in the middle of a line
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:40]) + lines[40][:9])
    run([str(steady_base)], tasks, batch_tokens=100_000)
    assert 0 < sum(read) < 0.9 * sum(map(len, asked))
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert Path("out/results.json").read_text() == results


def hflm_contexts(stock: stock_tasks.Stock) -> list[str]:
    (task,) = stock.leaves.values()
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    return list(dict.fromkeys(request.args[0] for request in task.instances))


@pytest.mark.slow
def test_contexts_that_are_too_long_lose_their_beginning(place: Path, steady_base: Path) -> None:
    """As in HFLM, with continuations of one token and several, and a text longer than the model reads."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from hybrid_ft.finetune.evaluation.stock_model import StockModel
    from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

    model, tokenizer = hybrid_ft.load(steady_base).eval(), load_tokenizer(steady_base)
    model.config.max_position_embeddings = 24
    ours = StockModel(lambda: model, model.config, tokenizer, Kept(Path("kept.jsonl")), Budget())
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=24)

    def instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
        return [Instance(kind, {}, each, number, ("t", number, 1)) for number, each in enumerate(arguments)]

    pairs = [("a b c " * n, "x y"[: 1 + n % 3]) for n in range(9)] + [("", "some text"), ("so ", " and so")]
    found, expected = (lm.loglikelihood(instances("loglikelihood", pairs)) for lm in (ours, theirs))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = [("short",), ("long text " * 9,)]
    found, expected = (lm.loglikelihood_rolling(instances("loglikelihood_rolling", texts)) for lm in (ours, theirs))
    assert found == pytest.approx(expected, abs=1e-3)
    settings = {"until": ["z"], "max_gen_toks": 8}
    asked = instances("generate_until", [(text * 9, settings) for text in ("ask ", "do ")])
    assert ours.generate_until(asked) == theirs.generate_until(asked) and len(ours.cut) > 5
    likeliest = ours.generate_until(instances("generate_until", [("what", {"max_gen_toks": 1, "until": []})]))[0]
    ((_, greedy), (_, other)) = ours.loglikelihood(
        instances("loglikelihood", [("what", likeliest), ("what", "b" if likeliest != "b" else "c")])
    )
    assert greedy and not other
    with pytest.raises(InputError, match="lm_eval:t: generation_kwargs has num_beams: 4, which is not known here"):
        ours.generate_until(instances("generate_until", [("x", {"num_beams": 4})]))
    with pytest.raises(InputError, match="answers of 24 tokens leave no room in 24"):
        ours.generate_until(instances("generate_until", [("x", {"max_gen_toks": 24})]))


@pytest.mark.slow
def test_limits_gates_and_what_is_forgotten(place: Path, steady_base: Path) -> None:
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
    place: Path, steady_base: Path, monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    few = Path("rows.jsonl").read_text().splitlines(keepends=True)[:7]
    Path("few.jsonl").write_text("".join(few))
    text = Path("letters.yaml").read_text()
    Path("again.yaml").write_text(text.replace("task: letters", "task: again").replace("rows.jsonl", "few.jsonl"))
    how = f"aggregate_metric_list: [{{metric: acc, weight_by_size: {str(weighted).lower()}}}]\n"
    Path("group.yaml").write_text(f"group: both\ntask: [letters, again]\n{how}")
    manager = TaskManager(include_defaults=False, include_path=str(place))
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
def test_mistakes_of_a_stock_task(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    missing = Path("letters.yaml").read_text().replace(str(place / "rows.jsonl"), "nowhere.jsonl")
    Path("missing.yaml").write_text(missing)
    Path("unsafe.yaml").write_text(Path("written.yaml").read_text() + "unsafe_code: true\n")
    for tasks, changes, said in (
        (["lm_eval:missing.yaml"], (), r"lm_eval:missing.yaml: cannot be opened; .*nowhere.jsonl"),
        (["lm_eval:unsafe.yaml"], (), "runs what the model writes outside of any jail; use --on humaneval or mbpp"),
        (["lm_eval:letters.yaml"] * 2, (), "lm_eval:letters: a task of this name is there already"),
        (["lm_eval:letters.yaml"], ["lm_eval:letters:shot=3"], "lm_eval:letters: .*unknown key shot; did you mean shots"),
        (["lm_eval:letters.yaml"], ["samples=3"], "lm_eval:letters: .*unknown key samples"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said) as refused:
            stock_tasks.load_stock(tasks, (), changes, None)
        assert len(str(refused.value).splitlines()) == 1
    manager = type("Manager", (), {"task_index": {}, "all_tasks": ["gsm8k", "arc_easy"]})()
    monkeypatch.setattr(stock_tasks, "_manager", lambda names: manager)
    with pytest.raises(InputError, match="lm_eval:gsm8: lm_eval has no task of that name; did you mean gsm8k?"):
        stock_tasks.load_stock(["lm_eval:gsm8"], (), (), None)


def test_without_lm_eval(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_tasks, "find_spec", lambda name: None)
    with pytest.raises(InputError) as refused:
        run(["nowhere"], ["lm_eval:gsm8k"])
    assert refused.value.status == ENVIRONMENT
    assert str(refused.value) == "lm_eval:gsm8k: lm_eval is not installed; run pip install 'hybrid-ft[eval]'"
    assert not Path("out").exists()
