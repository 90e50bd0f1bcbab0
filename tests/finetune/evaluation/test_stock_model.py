"""lm_eval's tasks through this project's forwards: against its own HFLM, and by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from stock_files import TASKS, measured, run

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation import evaluate, stock_tasks
from hybrid_ft.finetune.evaluation.batches import Budget
from hybrid_ft.finetune.evaluation.kept import Kept


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
def test_as_hflm_and_by_hand(stock: Path, steady_base: Path, form: str) -> None:
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
    stock: Path, steady_base: Path, monkeypatch: pytest.MonkeyPatch
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
def test_contexts_that_are_too_long_lose_their_beginning(stock: Path, steady_base: Path) -> None:
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
