"""Makes docs/recipe.md from the recipe's schema: every key, its default, range, example and meaning.

python scripts/make_recipe_docs.py           # or: make docs
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hybrid_ft.finetune.recipe.keys import Free, sections
from hybrid_ft.finetune.recipe.losses import LOSSES
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.stages import StagesFile
from hybrid_ft.finetune.recipe.yaml_file import flow

_LIMITS = ("gt", "ge", "lt", "le", "min_length", "max_length")
_WITHOUT_END = 10**9
"""A limit that only stops what no machine could do."""

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"

HEAD = """\
# Recipes

A recipe is one YAML file that says what a run does. Two sections are needed, `model` and `data`; everything else has a
default.

```yaml
{minimal}```

    hybrid-ft data mine.yaml                        # what would be trained on; trains nothing
    hybrid-ft sft mine.yaml                         # train; the same command resumes a run that was stopped
    hybrid-ft sft mine.yaml train.steps=100 model.lora.rank=8    # any key can be set on the command line
    hybrid-ft recipes                               # the recipes that ship; `hybrid-ft sft quickstart/sft` runs one

A recipe is checked before anything heavy is loaded. Every mistake is named at once, with file, line and the key that
was probably meant, and nothing is written:

    error: mine.yaml:7: unknown key train.learnin_rate; did you mean train.learning_rate?

- **Paths** are taken from the current directory, else from the recipe's folder, else from the files that ship.
- **`null`**, or a key with nothing after it, can be given where a table below says so; an empty section means its
  defaults.
- **YAML** is read by YAML 1.2's rules: `1e-5` is a number, `no` is a string. Tags, anchors and aliases are refused.
- **Secrets** do not belong in a recipe. The hub and trackers read HF_TOKEN, WANDB_API_KEY and so on from the
  environment; nothing in a recipe is expanded.
- The run's folder holds `recipe.yaml`, the recipe with every default written out. It reads back as the same recipe.
- Keys marked ↻ may change between two starts of the same run. Any other change is refused, unless
  `--accept-changes` is given.

## A full example

Preference tuning of adapters, held-out pairs and samples:

```yaml
{full}```
"""

MINIMAL = """\
model:
  path: tiny                        # the small base that ships; or a folder, or a hub name
data:
  sources:
    - path: data/train.jsonl        # {"prompt": ..., "completion": ...} or {"messages": [...]} on each line
"""

FULL = """\
model:
  path: allenai/Olmo-Hybrid-Instruct-SFT-7B
  tokenizer: allenai/olmo-3-tokenizer-instruct-dev
  chat_template: olmo-instruct
  gradient_checkpointing: true
  lora:
    targets: all-linear
    rank: 32
    alpha: 64
    merge: true                     # also as one model, for serving
data:
  sources:
    - path: allenai/Dolci-Instruct-DPO
      weight: 0.9
    - path: data/mine.jsonl         # {"prompt": ..., "chosen": ..., "rejected": ...} on each line
      weight: 0.1
  eval:
    count: 200                      # kept from training, split by prompt
  max_length: 16384
  on_long_row: cut
dpo:
  loss: sigmoid_norm
  beta: 5
  pairs_per_step: 32
train:
  epochs: 1
  batch_tokens: 32768               # of one micro-batch; the longest pair, its prompt counted once, must fit
  learning_rate: 1.0e-5
  schedule: linear
  warmup: 0.1
  save_every: 200
  trackers: [tensorboard]
evaluate:
  every: 100
  load_best: true
  samples:
    - Explain what a hybrid language model is.
output: runs/mine
"""

LOSS_TABLE = """\
### Losses

Names and computations are TRL's. r is an answer's log-ratio of trained model and reference, delta the chosen answer's
r minus the rejected one's. A loss per token needs a beta of about 1, the others about 0.1: with a sum over hundreds
of tokens a larger beta saturates, and is refused.

| `dpo.loss` | What it minimises (paper on arXiv) | Per token | Default `beta` | `label_smoothing` | First value |
|---|---|---|---|---|---|
"""

STAGES = """\
# Files of stages

`hybrid-ft run all.yaml` runs stages in order, each from the model of the one before. A finished stage is not
repeated. If its recipe or files have changed, it is done again, and so are all after it.

```yaml
{stages}```

A stage's recipe is a file beside this one, a shipped recipe's name, or the recipe itself. From the second stage on its
`model.path`, `revision`, `tokenizer` and `from_scratch` are replaced by the model of the stage before. The adapter of
a stage is merged for the next one, unless that says `model.adapter: previous`. Keys on the command line begin with the
stage: `hybrid-ft run all.yaml sft.train.steps=100 dpo.dpo.beta=2 output=runs/b`.
"""

STAGES_EXAMPLE = """\
stages:
  - sft: sft.yaml
  - dpo:
      data:
        sources:
          - path: data/pairs.jsonl
      dpo:
        beta: 5
  - export:
      dtype: bfloat16
evaluate:
  sources:
    - data/held-out.jsonl
  max_new_tokens: 64
output: runs/all
"""


def page() -> str:
    """The whole page, Markdown."""
    parts = [
        "<!-- Made by scripts/make_recipe_docs.py from finetune/recipe/schema.py; change that, then run make docs. -->\n",
        HEAD.format(minimal=MINIMAL, full=FULL),
        "## Keys\n\n" + _section(Recipe, ""),
        *_sections(Recipe, ""),
        STAGES.format(stages=STAGES_EXAMPLE),
        "## Keys of a file of stages\n\n" + _section(StagesFile, ""),
        *_sections(StagesFile, ""),
    ]
    return "\n".join(parts)


def _sections(schema: type[BaseModel], prefix: str) -> Iterator[str]:
    """The sections below one, each with its keys. One that has been described is not repeated."""
    for name, field in schema.model_fields.items():
        inner, is_list = next(sections(field.annotation), (None, False))
        key = f"{prefix}{name}{'[]' if is_list else ''}"
        if inner is None or key in ("data.eval.sources[]", "evaluate.sources[]"):
            continue
        yield f"## {key}\n\n{_section(inner, f'{key}.')}"
        if key == "dpo":
            yield _losses()
        yield from _sections(inner, f"{key}.")


def _section(schema: type[BaseModel], prefix: str) -> str:
    about = re.sub(r"\n +", "\n", schema.__doc__ or "").strip().replace("``", "`")
    rows = "".join(_row(f"{prefix}{name}", field) for name, field in schema.model_fields.items())
    return f"{about}\n\n| Key | Default | Values | Example | Meaning |\n|---|---|---|---|---|\n{rows}"


def _row(key: str, field: FieldInfo) -> str:
    free = next((mark for mark in field.metadata if isinstance(mark, Free)), None)
    mark = "" if free is None else f" ↻ unless `{free.unless}`." if free.unless else " ↻"
    cells = (f"`{key}`", _default(field), _values(field), f"`{flow(field.examples[0])}`", f"{field.description}{mark}")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "see its keys" if isinstance(value, BaseModel) else f"`{flow(value)}`"


def _values(field: FieldInfo) -> str:
    """Type and range in words: ``number, above 0 to 1, or null``."""
    kind, limits, null = _kind(field.annotation, list(field.metadata))
    words = _limited(kind, limits)
    return f"{words}, or `null`" if null or "null:" in (field.description or "") else words


def _kind(annotation: Any, limits: list[Any]) -> tuple[str, list[Any], bool]:
    """The words for a type, the limits on its values, and whether null is one of them."""
    args = get_args(annotation)
    if type(None) in args:
        kinds = [_kind(arg, limits) for arg in args if arg is not type(None)]
        return ", ".join(_limited(kind, found) for kind, found, _ in kinds), [], True
    if hasattr(annotation, "__metadata__"):
        return _kind(args[0], [*limits, *annotation.__metadata__])
    if getattr(annotation, "__origin__", None) is list:
        kind = _kind(args[0], [])[0]
        return f"list of {kind}" if "`" in kind else f"list of {kind}s", limits, False
    if getattr(annotation, "__origin__", None) is dict:
        return "mapping", [], False
    if get_origin(annotation) in (Union, types.UnionType):
        return ", ".join(_kind(arg, [])[0] for arg in args), [], False
    if args:
        return ", ".join(f"`{flow(arg)}`" for arg in args), [], False
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section", [], False
    return _WORDS.get(annotation, "recipe or file"), limits, False


_WORDS = {bool: "`true`, `false`", int: "whole number", float: "number", str: "string"}


def _limited(kind: str, limits: list[Any]) -> str:
    return ", ".join(filter(None, [kind, _range(limits, kind == "whole number")]))


def _range(limits: list[Any], whole: bool) -> str:
    """``above 0 to 1``, ``1 or more``, ``0 to below 0.5``."""
    found: dict[str, Any] = {}
    for limit in limits:
        for one in limit.metadata if isinstance(limit, FieldInfo) else [limit]:
            found |= {name: value for name in _LIMITS if (value := getattr(one, name, None)) is not None}
    if "min_length" in found and "max_length" in found:
        return f"{found['min_length']} of them"
    if whole and "lt" in found:
        found["le"] = found.pop("lt") - 1
    low = f"above {found['gt']:,}" if "gt" in found else f"{found['ge']:,}" if "ge" in found else ""
    if found.get("le") == _WITHOUT_END or not {"le", "lt"} & found.keys():
        return low if "gt" in found or not low else f"{low} or more"
    return f"{low} to " + (f"below {found['lt']:,}" if "lt" in found else f"{found['le']:,}")


def _losses() -> str:
    rows = ""
    for name, loss in LOSSES.items():
        smoothing = {"none": "no", "optional": "yes", "needed": "needed"}[loss.smoothing]
        about = re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", loss.about)
        first = "" if loss.when_equal is None else f"{loss.when_equal(loss.beta, 0.001):.4g}"
        cells = (f"`{name}`", about, "yes" if loss.normalised else "no", f"`{loss.beta:g}`", smoothing, first)
        rows += f"| {' | '.join(cells)} |\n"
    return (
        LOSS_TABLE
        + rows
        + (
            "\nThe first value is the loss before the first step, at the default beta (for exo_pair with label_smoothing\n"
            "0.001), where the model is still its own reference; a run checks it. `aot` and `aot_unpaired` sort the pairs\n"
            "of a step against each other, so that these must fit one micro-batch of one process.\n"
        )
    )


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
