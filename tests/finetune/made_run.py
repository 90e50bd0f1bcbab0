"""A run's folder as training leaves it, with harmless texts or hostile ones."""

import json
import math
from pathlib import Path
from typing import Any

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</pre></title></style><script src=//evil.example/x.js></script>",
    "{{ 7 * 7 }}{% for x in y %}",
    "javascript:alert(1)\u202e\x1b[31m\x00\ud800",
    "&lt;b&gt; <svg/onload=alert(1)> <style>*{display:none}</style>",
]


def made_run(place: Path, hostile: bool = False, steps: int = 30, **recipe: Any) -> Path:
    """A run's folder as training leaves it."""
    place.mkdir(parents=True)
    texts = HOSTILE if hostile else ["one two three", "four five six"]
    identity = {"version.torch": "2.0", "version.hybrid-ft": "0.1"}
    record = {
        "stage": "sft",
        "identity": identity,
        "processes": 1,
        "device": texts[0],
        "started": "2026-01-01T00:00:00+00:00",
        "before": {"held_out": {"loss": 2.5}},
        "finished": {
            "at": "2026-01-01T01:00:00+00:00",
            "step": steps,
            "results": ["model"],
            "held_out": {"loss": 1.25},
        },
        "data": {
            "summary": [*texts, f"/data/{'a_long_name' * 12}.jsonl: 3 rows"],
            "account": {
                "sources": [
                    {
                        "source": texts[0],
                        "rows_read": 4000,
                        "rows_kept": 38,
                        "rows_taken": 38,
                        "dropped": {texts[-1]: {"rows": 2, "first": [f"{texts[0]}:3"]}},
                    }
                ],
                "train": {"length": {"shortest": 3, "median": 40, "95_percent": 90, "longest": 120, "mean": 44.5}},
            },
        },
    }
    (place / "run.json").write_text(json.dumps(record))
    (place / "recipe.yaml").write_text(
        json.dumps({"model": {"path": "tiny"}, "train": {"learning_rate": 0.1}} | recipe)
    )
    lines = [
        {
            "step": step,
            "loss": 3 / step,
            "learning_rate": 1e-3,
            "tokens": 100 * step,
            "tokens_per_s": 50.0,
            "seconds": 2.0,
        }
        | {"memory": 2**30, "grad_norm": math.nan if step == 3 else 1.0}
        for step in range(1, steps + 1)
    ]
    held = [{"step": steps, "eval_loss": 1.25}]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines + held) + '{"step": 3')
    for when, right in (("before", 2), ("after", 28)):
        rows = [
            {
                "origin": f"held:{n}",
                "question": f"{texts[0]} asked {n}",
                "answer": f"{texts[n % len(texts)]} {when}",
                "reference": texts[0],
                "exact": n < right,
            }
            for n in range(30)
        ]
        (place / f"answers-{when}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sample = {"prompt": texts[0], "answer": f"{texts[-1]} {when}"}
        (place / f"samples-{when}.jsonl").write_text(json.dumps(sample) + "\n")
    return place
