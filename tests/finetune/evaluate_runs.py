"""Three tasks, and the command that evaluates on them."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from hybrid_ft.finetune.evaluation import evaluate
from hybrid_ft.finetune.evaluation.evaluate import Wanted

TASKS = {
    "exact": "rows: rows.jsonl\nevaluator: exact\nmax_new_tokens: 6\n",
    "choice": "rows: letters.jsonl\nevaluator: choice\noptions: [a, b, cd]\nshots: 2\n",
    "loss": "rows: rows.jsonl\nevaluator: loss\n",
}


def run(models: list[str], **wanted: Any) -> tuple[int, str]:
    screen = io.StringIO()
    status = evaluate.run(
        models, Wanted(**{"tasks": list(TASKS), "out": Path("out")} | wanted), Console(file=screen, width=200)
    )
    return status, screen.getvalue()
