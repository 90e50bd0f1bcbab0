"""Bad tasks, limits and folders given to the commands that measure, show and answer."""

import json
from importlib.util import find_spec
from typing import Any

from refusals import JUDGED, REWARD, Case, Content, lines

ASKED = lines({"prompt": "2 + 2?", "completion": "4"}, {"prompt": "3 + 3?", "completion": "6"})
GOOD = "rows: asked.jsonl\nevaluator: exact\n"
LM = "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: asked.jsonl}}\ntest_split: test\n"
LM += "doc_to_text: '{{prompt}}'\ndoc_to_target: '{{completion}}'\noutput_type: generate_until\n"
RUN = json.dumps({"stage": "sft", "identity": {}})


def evaluated(name: str, *says: str, task: str = GOOD, more: tuple[str, ...] = (), **files: Content) -> Case:
    """``evaluate tiny --on t.yaml``, beside two rows to ask."""
    shipped: dict[str, Content] = {"asked.jsonl": ASKED, "t.yaml": task}
    named = {file.replace("__", "."): content for file, content in files.items()}
    return Case(f"evaluate: {name}", says, ("evaluate", "tiny", "--on", "t.yaml", *more), files=shipped | named)


def stock(name: str, of: str, *says: str, text: str = LM, more: tuple[str, ...] = ()) -> Case:
    files: dict[str, Content] = {"asked.jsonl": ASKED, "lm.yaml": text}
    return Case(f"evaluate: {name}", says, ("evaluate", "tiny", "--on", of, *more), files=files)


def shown(name: str, command: str, place: str, *says: str, **files: Content) -> Case:
    named = {file.replace("__", ".").replace("_IN_", "/"): content for file, content in files.items()}
    return Case(f"{command}: {name}", says, (command, *place.split()), files=named)


def folder(path: Any) -> None:
    path.mkdir()


TASKS = [
    Case("evaluate: a task that is not there", ("nope: no such task file, and no shipped task has that name",), ("evaluate", "tiny", "--on", "nope")),
    Case("evaluate: a task's name misspelt", ("gsm9k: no such task file", "did you mean gsm8k?"), ("evaluate", "tiny", "--on", "gsm9k")),
    evaluated("an unknown key", "t.yaml:3: unknown key evaluater", task=GOOD + "evaluater: exact\n"),
    evaluated("an evaluator that is none", "t.yaml:2: evaluator", task="rows: asked.jsonl\nevaluator: best\n"),
    evaluated("a task that is a list", "t.yaml", task="- rows\n"),
    evaluated("a task without rows", "t.yaml", "rows", task="evaluator: exact\n"),
    evaluated("rows that are not there", "gone.jsonl", task="rows: gone.jsonl\nevaluator: exact\n"),
    evaluated("more shots than rows", "shots: got 9; there are 2 rows to take them from", task=GOOD + "shots: 9\n"),
    evaluated("calls of rows without any", "no row has tools or calls; name their columns", task="rows: asked.jsonl\nevaluator: calls\n"),
    evaluated("code without leave", "--run-code", task="rows: asked.jsonl\nevaluator: code\nprogram: '{{ answer }}'\n"),
    evaluated("a change that is none", "'max_new_tokens': must be key=value", more=("--set", "max_new_tokens")),
    evaluated("a change of a task that is not asked", "--set other:limit=3: other is not evaluated", more=("--set", "other:limit=3")),
    evaluated("a limit file that is not there", "limits.yaml", more=("--fail-below", "limits.yaml")),
    evaluated("a limit of another task", "limits.yaml", "gsm8k", more=("--fail-below", "limits.yaml"), limits__yaml="gsm8k: 0.5\n"),
    evaluated("a limit of no measure", "limits.yaml", "no measure best", more=("--fail-below", "limits.yaml"), limits__yaml="t: {best: 0.5}\n"),
    evaluated("a limit in words", "limits.yaml", more=("--fail-below", "limits.yaml"), limits__yaml="t: high\n"),
    evaluated("trained on what is no recipe", "other: must be a recipe, or a run's folder with recipe.yaml in it", more=("--trained-on", "other"), other=folder),
    evaluated("answers into a file", "out", more=("--out", "out"), out="x"),
    Case("evaluate: no task", ("name a task, --on TASK",), ("evaluate", "tiny")),
    Case("evaluate: a model that is not there", ("/no/such/model: no such folder",), ("evaluate", "/no/such/model", "--on", "t.yaml"), files={"asked.jsonl": ASKED, "t.yaml": GOOD}),
    stock("no name behind lm_eval", "lm_eval:", "lm_eval: needs a task's name behind it"),
    stock("a file of lm_eval that is not there", "lm_eval:gone.yaml", "lm_eval:gone.yaml: no such task file"),
    stock("a setting that lm_eval's tasks have not", "lm_eval:lm.yaml", "override evaluator: unknown key evaluator", more=("--set", "evaluator=exact")),
]  # fmt: skip
if find_spec("lm_eval"):
    unread = "lm_eval:lm.yaml: lm_eval cannot read it as a task file"
    TASKS.append(stock("a file that lm_eval cannot read", "lm_eval:lm.yaml", unread, text=LM.replace("asked", "gone")))

PAGES = [
    shown("a folder that is not there", "report", "gone", "gone: must be the folder of a run"),
    shown("a folder of nothing", "report", "empty", "empty: must be the folder of a run", empty=folder),
    shown("a record that is damaged", "report", "run", "run/run.json: is damaged; it must hold a JSON object", run_IN_run__json="[1"),
    shown("stages of which none has begun", "report", "all", "all: none of its stages has begun", all_IN_pipeline__json="{}"),
    shown("a table that is damaged", "report", "e", "e/results.json: is damaged ('measures'); evaluate again", e_IN_results__json="{}"),
    shown("a table that is cut short", "report", "e", "e/results.json: is damaged; it must hold a JSON object", e_IN_results__json='{"mea'),
    shown("a page over a folder", "report", "run --out page", "page: is a folder; name a file", run_IN_run__json=RUN, page=folder),
    shown("a page into a folder that is not there", "report", "run --out no/page.html", "no/page.html: its folder does not exist", run_IN_run__json=RUN),
    shown("a price below 0", "report", "run --price -1", "Invalid value for '--price'", run_IN_run__json=RUN),
    shown("a folder that is not there", "watch", "gone --once", "gone: there is no such folder"),
    shown("a folder of something else", "watch", "here --once", "here: holds a.txt and not a run", here_IN_a__txt="x"),
    shown("an evaluation", "watch", "e --once", "e: is the folder of an evaluation", e_IN_results__json="{}"),
    shown("a price in words", "watch", "run --once --price much", "Invalid value for '--price'", run_IN_run__json=RUN),
]  # fmt: skip

ANSWERS = [
    Case("rejected: a recipe that is not there", ("nope: there is no such file of rows, nor a recipe of that name",), ("generate", "tiny", "--prompts", "nope", "--as-rejected", "--out", "o.jsonl")),
    Case("rejected: over the rows", ("rows.jsonl: is the file of rows; name another file for the pairs",), ("generate", "tiny", "--prompts", "rows.jsonl", "--as-rejected", "--out", "rows.jsonl")),
    Case("rejected: of answers judged", ("r.yaml: is a recipe for kto; chosen answers are the rows of one for sft",), ("generate", "tiny", "--prompts", "r.yaml", "--as-rejected", "--out", "o.jsonl"), JUDGED),
    Case("answers of a reward model's recipe", ("r.yaml",), ("generate", "tiny", "--prompts", "r.yaml", "--as-rejected", "--out", "o.jsonl"), REWARD),
]  # fmt: skip

CASES = [*TASKS, *PAGES, *ANSWERS]
