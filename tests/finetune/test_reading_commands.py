"""Commands that only read files answer without torch, transformers or anything else heavy."""

import json
import subprocess
import sys
from pathlib import Path

from made_run import made_run

from hybrid_ft.cli import COMMANDS
from hybrid_ft.finetune.evaluation.files import RESULTS
from hybrid_ft.finetune.evaluation.measure import METHOD, Measure
from hybrid_ft.finetune.evaluation.statistics import Interval

HEAVY = ("accelerate", "datasets", "numpy", "pandas", "peft", "pyarrow", "torch", "transformers", "trl")


def test_reading_commands_import_nothing_heavy(tmp_path: Path) -> None:
    """Each command's help, the recipes, and the state, curves and report of a run, of stages and of an evaluation."""
    stages, evaluation = tmp_path / "stages", tmp_path / "evaluation"
    made_run(stages / "1-sft")
    (stages / "pipeline.json").write_text('{"stages": {}, "finished": true}')
    for model in ("base", "1-sft"):
        line = {"source": "rows.jsonl", "origin": "rows.jsonl:1", "answer": model, "reference": "a", "exact": False}
        (stages / f"answers-{model}.jsonl").write_text(json.dumps(line) + "\n")
    evaluation.mkdir()
    shares = [Interval(0.5, 0.4, 0.6)] * 2
    measure = Measure("gsm8k", "number", 10, shares, [Interval(0.1, -0.1, 0.3)])
    table = {"models": ["a", "b"], "method": METHOD, "measures": [measure.as_dict()], "examples": []}
    (evaluation / RESULTS).write_text(json.dumps(table))

    names = [command.__name__.removesuffix("_stages") for command in COMMANDS]
    calls = [["--version"], ["--help"], *([name, "--help"] for name in names), ["recipes"]]
    calls += [["status", str(stages)], ["status", str(stages / "1-sft")], ["watch", str(stages), "--once"]]
    calls += [["report", str(place)] for place in (stages, stages / "1-sft", evaluation)]
    program = (
        "import sys\nfrom hybrid_ft.cli import main\n"
        f"for call in {calls!r}:\n"
        "    status = main(call)\n"
        f"    found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    print(f'{call}: status {status}, imported {found}', file=sys.stderr)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    said = [f"{call}: status 0, imported []" for call in calls]
    assert run.stderr.splitlines() == said
    assert all((place / "report.html").is_file() for place in (stages, stages / "1-sft", evaluation))
