"""The domain recipes resolve, say where all is from, read made rows of their columns, and run to the end."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from domain_rows import CONFIGURATIONS, ROWS, row_of

from hybrid_ft.cli import main
from hybrid_ft.finetune.data.messages.columns import pair_format, row_format
from hybrid_ft.finetune.data.prepare import Prepared, prepare
from hybrid_ft.finetune.data.sources.rows import Row
from hybrid_ft.finetune.models import load_tokenizer
from hybrid_ft.finetune.recipe.data_section import Source
from hybrid_ft.finetune.recipe.hub_files import hub_dataset
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.shipped import EVALUATIONS, RECIPES, evaluation_names, recipe_names
from hybrid_ft.finetune.recipe.stages import load_stages

DOMAINS = sorted(path.stem for path in (RECIPES / "domains").glob("*.yaml"))
FILES = [name for name in recipe_names() if name.startswith("domains/") and name.count("/") == 2]
REPLAY = ("allenai/Dolci-Instruct-SFT", "allenai/Dolci-Instruct-DPO", "simplescaling/s1K-1.1")


def stage_of(name: str) -> Any:
    return "dpo" if name.endswith("/dpo") else "sft"


def test_the_domains_are_all_there() -> None:
    wanted = "code extraction finance legal long-documents math medical medical-think multilingual safety support tools"
    assert wanted.split() == DOMAINS
    assert {f"domains/{name}/{file}" for name in DOMAINS for file in ("sft", "qwen3.5-4b")} <= set(FILES)


def asked_by(name: str) -> list[str]:
    """The tasks of the command that measures a domain."""
    text = (RECIPES / f"domains/{name}.yaml").read_text()
    return re.findall(r"--(?:on|forgetting) (?:\\\n# +)?(\S+)", text)


@pytest.mark.parametrize("name", DOMAINS)
def test_stages(name: str) -> None:
    found = load_stages(f"domains/{name}").stages
    pairs = f"domains/{name}/dpo" in FILES
    assert [stage.kind for stage in found] == ["sft", *["dpo"] * pairs, "export"]
    text = (RECIPES / f"domains/{name}.yaml").read_text()
    asked = asked_by(name)
    assert f"hybrid-ft run domains/{name}\n" in text and asked
    assert {task for task in asked if not task.startswith("lm_eval:")} <= set(evaluation_names())
    assert all(f"runs/{name}/{folder}" in text for folder in [f"{len(found) - 1}-{found[-2].kind}/merged"])


@pytest.mark.parametrize("name", FILES)
def test_settings_and_their_sources(name: str) -> None:
    recipe, kind = load_recipe(name, stage=stage_of(name)), stage_of(name)
    text = (RECIPES / f"{name}.yaml").read_text()
    header = text[: text.index("model:\n")].replace("\n# ", " ")
    lora, sources = recipe.model.lora, recipe.data.sources
    assert lora is not None and lora.targets == "all-linear"
    qwen = name.endswith("qwen3.5-4b")
    assert lora.alpha == (32 if qwen else 64)
    # what travels is alpha times the rate; the sweep's best is 32 times 3e-4, and 32 times 1e-3 does harm
    assert (recipe.train.learning_rate or 0) * lora.alpha <= (64 * 1e-5 if kind == "dpo" else 0.0128) + 1e-12
    assert f"hybrid-ft {kind} {name}" in header and "Data" in header and "Source of" in header
    of_step = recipe.dpo.pairs_per_step if recipe.dpo else recipe.train.tokens_per_step
    said = [f"rank {lora.rank}", f"alpha {lora.alpha}"]
    if not qwen:
        said += [f"{of_step:,} {'pairs' if recipe.dpo else 'tokens'} a step", f"{recipe.train.epochs:g} epoch"]
        said += [f"{recipe.data.max_length:,} tokens", "of replay" if kind == "sft" else "general pairs"]
        said = said[:-1] if name in ("domains/long-documents/sft", "domains/extraction/dpo") else said
        assert "Mind: " in header and "Published: " in header and "Costs: " in header
        assert all(source.path in header for source in sources), name
    assert [text for text in said if text not in header.lower().replace("alpha stays 64", "alpha 64")] == []
    weights = [source.weight or 0.0 for source in sources]
    if any(weights):
        replayed = sum(source.weight or 0.0 for source in sources if source.path in REPLAY)
        assert sum(weights) == pytest.approx(1) and replayed >= 0.25
        assert recipe.data.weight_by == ("rows" if "long-documents" in name else "tokens")
    assert "mbpp" not in str(sources) and "legalbench" not in str(sources)
    assert recipe.output and recipe.output.startswith("runs/" + name.split("/")[1])
    # rows that hold what the result is measured by are left out; prompts that are made cannot be met
    asked = [task for task in asked_by(name.split("/")[1]) if not task.startswith(("long-", "lm_eval:"))]
    assert recipe.data.decontaminate == asked


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("/sft")])
def test_the_same_with_all_weights(name: str) -> None:
    """By the overrides in the header."""
    header = (RECIPES / f"{name}.yaml").read_text().replace("\n# ", " ")
    found = re.search(r"All weights: ((?:\S+=\S+ )*\S+=[^\s,]+), ", header)
    assert found is not None
    recipe = load_recipe(name, found[1].split(), stage="sft")
    assert recipe.model.lora is None and (recipe.train.learning_rate or 0) <= 2.5e-5


LONG = (
    "a man of forty who has had a cough for three weeks after a journey to the coast comes to see you and says that he "
    "sold his boat there for less than it had cost him two years before because the harbour was to be closed"
)
MET = {
    ("medqa", "medqa"): ROWS["GBaker/MedQA-USMLE-4-options-hf"] | {"sent1": LONG},
    ("medmcqa", "medmcqa"): ROWS["openlifescienceai/medmcqa"] | {"question": LONG},
    ("pubmedqa", "pubmedqa-hub"): ROWS["qiaojin/PubMedQA"] | {"context": {"contexts": [LONG]}},
    ("casehold", "case-hold"): ROWS["coastalcph/lex_glue"] | {"context": LONG},
    ("gsm8k", "gsm8k"): {"question": LONG, "answer": "#### 3"},
    ("mbpp", "mbpp"): {"text": LONG, "code": "x = 1", "test_list": ["assert f(1) == 2"], "test_setup_code": ""},
    ("legalbench", "legalbench-overruling"): {"text": LONG, "label": "Yes"},
    ("tatqa", "tatqa"): ROWS["next-tat/TAT-QA"] | {"paragraphs": [{"text": LONG}]},
    ("tool-calls", "xlam-function-calling"): ROWS["Salesforce/xlam-function-calling-60k"] | {"query": LONG},
}


@pytest.mark.parametrize(("task", "columns"), MET)
def test_a_row_that_a_task_asks_is_found_in_training_rows(
    task: str, columns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the two ask in other words: the row itself is dropped, another stays."""
    monkeypatch.chdir(tmp_path)
    row = MET[task, columns]
    text = json.dumps(row)
    other = text.replace(LONG, "nobody has ever asked anything like it in any of the hundred books of that old library")
    Path("asked.jsonl").write_text(text + "\n")
    Path("rows.jsonl").write_text(text + "\n" + other + "\n")
    found = yaml.safe_load((EVALUATIONS / f"{task}.yaml").read_text())
    rows = {"path": "asked.jsonl", "columns": found["rows"]["columns"]}
    Path("task.yaml").write_text(json.dumps({"rows": rows, "evaluator": "loss"}))
    sources = json.dumps([{"path": "rows.jsonl", "columns": columns}])
    model = "{path: tiny, chat_template: olmo-instruct}" if columns.startswith("xlam") else "{path: tiny}"
    Path("r.yaml").write_text(f"model: {model}\ndata: {{sources: {sources}, decontaminate: [task.yaml]}}\n")
    recipe = load_recipe("r.yaml")
    made = prepare(recipe, load_tokenizer(recipe))
    assert made.train["origin"] == ["rows.jsonl:2"]
    assert made.report.sources[0].dropped.by_reason["asked in an evaluation"].count == 1


def test_what_is_asked_of_xlam_is_not_trained() -> None:
    """The one set without parts of its own."""
    rows = yaml.safe_load((EVALUATIONS / "tool-calls.yaml").read_text())["rows"]
    for name in ("domains/tools/sft", "domains/tools/qwen3.5-4b"):
        source = load_recipe(name, stage="sft").data.sources[0]
        assert source.path == rows["path"] and (source.split, rows["split"]) == ("train[:98%]", "train[98%:]")


def test_runs_have_folders_of_their_own() -> None:
    outputs = [load_recipe(name, stage=stage_of(name)).output for name in FILES]
    assert len(set(outputs)) == len(outputs)


def local(sources: list[Source], key: str, place: Path, rows: int) -> list[str]:
    """Overrides that put files of made rows in the place of datasets."""
    changes = []
    scarce = any((source.weight or 1) < 0.01 for source in sources)
    for number, source in enumerate(sources):
        many = (
            rows * 20 if scarce and (source.weight or 0) > 0.1 else rows
        )  # or the scarce one would have no row in the mix
        path = source.path
        if Path(path).is_absolute():  # ships here
            path = "datasets/" + path.split("/datasets/")[-1]
        row, file = row_of(path, source.name), place / f"{key.replace('.', '-')}-{number}.jsonl"
        row = row | {
            name: value[0] if isinstance(value, list) else value for name, value in (source.only or {}).items()
        }
        # each asks something else, or none could be held out
        text = json.dumps(row)
        asked = [
            "Which?",
            "cells die",
            "Add.",
            "Why is it blue?",
            "1 + 1?",
            "See (",
            "much?",
            "Rain",
            "tables for",
            "For Ann",
        ]
        asked += [
            "Ann is 3",
            "cancel order",
            "klokka",
            "pick it",
            "How many?",
            "We may end it",
            "What grew?",
            "Oslo's law",
        ]
        mark = next(mark for mark in asked if mark in text)
        file.write_text("".join(text.replace(mark, f"{n} {mark}") + "\n" for n in range(many)))
        changes += [f"{key}.{number}.{name}=null" for name in ("name", "split", "count")] + [
            f"{key}.{number}.path={file}"
        ]
    return changes


def stand_in(name: str, place: Path, rows: int = 40, *more: str, model: bool = True) -> list[str]:
    """The recipe on the tiny base and made rows."""
    recipe = load_recipe(name, stage=stage_of(name))
    changes = [*local(recipe.data.sources, "data.sources", place, rows), *more]
    changes += local(recipe.data.eval.sources, "data.eval.sources", place, 4)
    changes += [] if recipe.data.eval.sources else ["data.eval.count=4"]
    changes += ["data.decontaminate=[]"]  # the tasks' rows are on the hub
    if model:
        # the tiny base's template has no place for tools
        changes += ["model.path=tiny", "model.tokenizer=null"] + (
            [] if "tools" in name else ["model.chat_template=null"]
        )
        changes += ["model.chat_template=olmo-instruct"] if "tools" in name else []
        changes += ["model.chat_template_kwargs=null"]
    return changes


def prepared(name: str, place: Path) -> tuple[Recipe, Prepared]:
    recipe = load_recipe(name, stand_in(name, place), stage=stage_of(name))
    return recipe, prepare(recipe, load_tokenizer(recipe))


@pytest.mark.parametrize("name", FILES)
def test_rows_of_their_columns_are_read(name: str, tmp_path: Path) -> None:
    recipe, made = prepared(name, tmp_path)
    assert made.report.refusal is None and made.eval is not None and len(made.eval) == 4
    shares = [counts.share for counts in made.report.sources]
    assert all(counts.read == counts.kept >= 40 and not counts.dropped.count for counts in made.report.sources)
    weights = [source.weight for source in recipe.data.sources]
    if recipe.data.weight_by == "tokens":
        scarce = 1 / min(weights)  # type: ignore[type-var, operator]
        for share, weight in zip(shares, weights, strict=True):
            assert share == pytest.approx(weight, abs=0.25 if scarce > 20 else 0.1)
    elif any(weights):
        assert [counts.taken for counts in made.report.sources] == [40, 40]


@pytest.mark.parametrize(
    ("path", "columns", "asked", "answer"),
    [
        ("GBaker/MedQA-USMLE-4-options-hf", "medqa", "Which?\n\nA. a\nB. b\nC. c\nD. d", "c\n\nThe answer is C."),
        ("openlifescienceai/medmcqa", "medmcqa", "Which?\n\nA. a\nB. b\nC. c\nD. d", "It is b because of c.\n\nThe answer is B."),
        ("qiaojin/PubMedQA", "pubmedqa-hub", "Cells die.\n\nLeaves make holes.\n\nDo cells die?", "They do.\n\nyes"),
        ("simplescaling/s1K-1.1", "s1k", "How many?", "Two."),
        ("ise-uiuc/Magicoder-OSS-Instruct-75K", "magicoder-oss", "Add.", "x = 1\ny = 2\n"),
        ("bigcode/self-oss-instruct-sc2-exec-filter-50k", "self-oss-instruct", "Add.", "x\ny"),
        ("meta-math/MetaMathQA", "metamath", "1 + 1?", "2. The answer is: 2"),
        ("coastalcph/lex_glue", "case-hold", "A. p\nB. q\nC. r\nD. s\nE. t", "t\n\nThe answer is E."),
        ("UCSC-VLAA/m23k-tokenized", "m23k", "Which?\nA. a\nB. b", "It is B."),
        ("paraloq/json_data_extraction", "json-extraction", '{"type": "object"}\n\nAnn is 3.', '{"name": "Ann", "age": 3}'),
        ("TableQAKit/FinQA_retrieval", "finqa", "Sales rose.\nA lot.\n\n | 2019\nSales | 10\n\nEnd.\n\nHow much?", "divide(2, 8)\n#### 25%"),
        ("bitext/Bitext-customer-support-llm-chatbot-training-dataset", "bitext-support", "cancel order {{", "I cancel {{Order Number}}."),
        ("CohereLabs/aya_dataset", "aya", "Hva er klokka?", "Den er ni."),
        ("allenai/coconot", "coconot", "How do I pick it?", "I cannot help."),
    ],
)  # fmt: skip
def test_columns(path: str, columns: str, asked: str, answer: str) -> None:
    conversation = turns(columns, ROWS[path])
    assert asked in conversation[0] and conversation[1:] == [answer]


def turns(columns: str, values: dict[str, Any]) -> list[str]:
    form = row_format(Source.model_validate({"path": "rows.jsonl", "columns": columns}), [Row(1, values)])
    assert form is not None
    return [message["content"] for message in form.convert(values).messages]


def test_columns_that_differ_from_row_to_row() -> None:
    medmcqa = ROWS["openlifescienceai/medmcqa"]
    for left in ({"exp": None}, {"exp": ""}):
        assert turns("medmcqa", medmcqa | left)[1] == "b\n\nThe answer is B."
    tos = CONFIGURATIONS["coastalcph/lex_glue", "unfair_tos"]
    assert turns("unfair-tos", tos)[1] == "unilateral termination, arbitration"
    assert turns("unfair-tos", tos | {"labels": []})[1] == "none"
    finqa = ROWS["TableQAKit/FinQA_retrieval"]
    bare = {name: finqa[name] for name in ("pre_text", "table", "post_text")} | {"question": "How much?", "answer": "3"}
    assert turns("finqa", bare)[1] == "#### 3"
    objects = ROWS["paraloq/json_data_extraction"] | {
        "schema": {"type": "object"},
        "item": {"b": "<é & 'ø'>", "a": None},
    }
    question, record = turns("json-extraction", objects)
    assert '{"type": "object"}' in question and record == """{"b": "<é & 'ø'>", "a": null}"""
    tatqa = turns("tatqa", ROWS["next-tat/TAT-QA"])
    assert tatqa[0].startswith(" | 2019 | 2018\nSales | 10 | 8\n\nAmounts are in million.\n\nWhat grew?\n")
    assert tatqa[1:] == ["#### Sales, costs", "By how much?", "10-8, in million\n#### 2"]
    gsm8k = {"question": "q", "answer": "3 * 4 = <<3*4=12>>12 and 12 / 2 = <<12/2=6>>6\n#### 6"}
    assert turns("gsm8k-plain", gsm8k)[1] == "3 * 4 = 12 and 12 / 2 = 6\n#### 6"
    assert turns("gsm8k-plain", {"question": "q", "answer": "two\n#### 2"})[1] == "two\n#### 2"
    openmath = {
        "problem": "1 + 1",
        "generated_solution": "\\boxed{2}",
        "expected_answer": "2",
        "problem_source": "gsm8k",
    }
    assert turns("openmath2", openmath) == ["1 + 1", "\\boxed{2}"]
    mbpp = {"text": "Add.", "code": "def f():\r\n\treturn 1\r\n", "test_list": ["assert f() == 1"]}
    assert turns("mbpp", mbpp)[1] == "def f():\n\treturn 1\n"


def test_pairs_of_the_domains() -> None:
    judged = ROWS["nvidia/HelpSteer3"]
    source = Source.model_validate({"path": "rows.jsonl", "columns": "helpsteer3"})
    form = pair_format(source, [Row(1, judged)])
    assert form is not None
    assert form.convert(judged).chosen == {"role": "assistant", "content": "Light."}


def test_the_page_has_them_with_their_data_and_tasks(root: Path) -> None:
    page = (root / "docs" / "domains.md").read_text()
    for name in DOMAINS:
        line = re.search(rf"(?m)^\| `{name}` \|.*$", page)
        assert line is not None, name
        files = [file for file in FILES if file in (f"domains/{name}/sft", f"domains/{name}/dpo")]
        named = {source.path for file in files for source in load_recipe(file, stage=stage_of(file)).data.sources}
        for path in map(hub_dataset, named - {"allenai/Dolci-Instruct-SFT", "allenai/Dolci-Instruct-DPO"}):
            assert path.startswith(("/", "datasets/")) or all(part in line[0] for part in path.split("/")), path
        tasks = re.findall("`([a-z0-9-]+)`", line[0].rpartition("|")[0].rpartition("|")[2])
        assert {task for task in tasks if not task.endswith("-")} <= set(evaluation_names())


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out.split()
    assert {f"domains/{name}" for name in DOMAINS} | set(FILES) <= set(listed)


def short(name: str, place: Path) -> list[str]:
    more = ["train.steps=2", "train.batch_tokens=8192", "evaluate.every=2"]
    more += ["dpo.pairs_per_step=4"] if stage_of(name) == "dpo" else ["train.tokens_per_step=null"]
    return stand_in(name, place, 40, *more, model=stage_of(name) == "sft")


def asked(name: str, place: Path) -> str:
    """A task of the first source's made rows, as the recipe reads them."""
    source = load_recipe(f"domains/{name}/sft", stage="sft").data.sources[0]
    rows = {
        "path": str(place / "data-sources-0.jsonl"),
        "columns": source.columns and source.columns.file,
        "only": source.only,
        "count": 3,
    }
    task = {"rows": {key: value for key, value in rows.items() if value}, "evaluator": "loss"}
    (place / "rows.yaml").write_text(json.dumps(task))
    return f"evaluate.suite.tasks=[{place / 'rows.yaml'}]"


def check_table(run: Path) -> None:
    (measure,) = json.loads((run / "suite" / "results.json").read_text())["measures"]
    assert measure["task"] == "rows" and measure["items"] == 3 and len(measure["differences"]) == 1
    assert all(math.isfinite(score["value"]) for score in measure["scores"])
    assert "rows: loss" in (run / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(DOMAINS) - {"medical", "extraction", "safety", "legal"}))
def test_from_data_to_the_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the other domains the SFT; the whole of these is the test below."""
    monkeypatch.chdir(tmp_path)
    changes = [*short(f"domains/{name}/sft", tmp_path), "train.steps=1", "evaluate.every=1", "data.max_length=8192"]
    changes += [asked(name, tmp_path)]
    assert main(["sft", f"domains/{name}/sft", *changes]) == 0
    check_table(tmp_path / "runs" / f"{name}-sft")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["medical", "extraction", "safety", "legal"])
def test_two_steps_of_each_stage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    changes = [f"sft.{change}" for change in (*short(f"domains/{name}/sft", tmp_path), asked(name, tmp_path))]
    if f"domains/{name}/dpo" in FILES:
        (tmp_path / "pairs").mkdir()
        pairs = short(f"domains/{name}/dpo", tmp_path / "pairs")
        changes += [f"dpo.{change}" for change in [*pairs, "model.chat_template=null"]]
    assert main(["run", f"domains/{name}", *changes]) == 0
    last = max((tmp_path / "runs" / name).glob("*-export"))
    check_table(last.parent / "1-sft")
    assert AutoModelForCausalLM.from_pretrained(last / "model").num_parameters() > 1e6
    for folder, first in {"1-sft": None, "2-dpo": 1.0 if name == "extraction" else 0.6931}.items():
        if (metrics := last.parent / folder / "metrics.jsonl").is_file():
            lines = [json.loads(line) for line in metrics.read_text().splitlines()]
            losses = [line["loss"] for line in lines if "loss" in line]
            assert len(losses) == 2 and (first is None or losses[0] == pytest.approx(first, abs=1e-3))
