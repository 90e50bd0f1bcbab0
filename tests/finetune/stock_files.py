"""Tasks of lm_eval's over a few rows, and the command that evaluates on them."""

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from hybrid_ft.finetune.evaluation import evaluate
from hybrid_ft.finetune.evaluation.evaluate import Wanted

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


def run(models: list[str], tasks: list[str], **wanted: Any) -> tuple[int, str]:
    screen = io.StringIO()
    wanted = {"tasks": tasks, "out": Path("out")} | wanted
    return evaluate.run(models, Wanted(**wanted), Console(file=screen, width=200)), screen.getvalue()


def measured() -> dict[tuple[str, str], Any]:
    return {(one["task"], one["name"]): one for one in json.loads(Path("out/results.json").read_text())["measures"]}
