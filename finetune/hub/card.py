"""A model card from a run's own record: base, data, recipe and results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import hybrid_ft
from hybrid_ft.errors import InputError, masked
from hybrid_ft.finetune.evaluation.kept_answers import measures, read_lines
from hybrid_ft.finetune.hub.bundle import Kind, hub_name
from hybrid_ft.finetune.recipe.hub_files import HUB_FILES, hub_dataset
from hybrid_ft.finetune.recipe.stage_kinds import PREFERENCE, STAGE_KINDS
from hybrid_ft.hybrid_model.checkpoint.config import json_object

# Of the machine that trained, not of the model.
_LEFT_OUT = (
    ("output",),
    ("data", "cache"),
    ("train", "trackers"),
    ("train", "loader_workers"),
    *((name, "reference_cache") for name in PREFERENCE),
)
_LIBRARY = {"model": "transformers", "adapter": "peft", "gguf": "gguf"}
_RELATION = {"model": "finetune", "adapter": "adapter", "gguf": "quantized"}
_USE = {
    "model": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto", device_map="auto")
```""",
    "adapter": """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoPeftModelForCausalLM.from_pretrained("{name}", dtype="auto", device_map="auto")
```""",
    "gguf": """```
llama-cli -hf {name}
```""",
}

_USE_OF_SCORES = {
    "model": """A reward model: it gives each conversation one score.

```python
import hybrid_ft
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = hybrid_ft.load("{name}", dtype="bfloat16")
```""",
    "adapter": """An adapter that makes a reward model of its base; `hybrid-ft merge {name} OUT` makes one model of both.""",
}


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says: its record, its recipe as plain data, and its answers before and after."""

    record: dict[str, Any]
    recipe: dict[str, Any]
    answers: list[list[dict[str, Any]]]

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Raises InputError for a folder that holds no finished run."""
        if not (folder / "run.json").is_file() or not (folder / "recipe.yaml").is_file():
            raise InputError(f"{folder}: must be a run's folder, with run.json and recipe.yaml")
        record = json_object(folder / "run.json")
        if not isinstance(record.get("finished"), dict):
            raise InputError(f"{folder}: this run is not finished; let the same command end it first")
        try:
            recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            recipe = None
        if not isinstance(recipe, dict) or not isinstance(recipe.get("model"), dict):
            raise InputError(f"{folder / 'recipe.yaml'}: is damaged; restore it")
        files = [folder / f"answers-{when}.jsonl" for when in ("before", "after")]
        answers = [read_lines(file) for file in files] if all(file.is_file() for file in files) else [[], []]
        return cls(record, recipe, answers)

    @property
    def identity(self) -> dict[str, Any]:
        return self.record.get("identity") or {}

    @property
    def base(self) -> str:
        return str(self.recipe["model"]["path"])

    def on_hub(self, key: str, value: str) -> str | None:
        """A value of the recipe if it was a name of the hub: in the identity a local file stands as its digest."""
        return hub_name(value) if self.identity.get(key) == value else None

    @property
    def method(self) -> str:
        lora = self.recipe["model"].get("lora")
        how = f"LoRA of rank {lora['rank']} on {lora['targets']}" if lora else "all weights"
        stage = str(self.record.get("stage"))
        return f"{STAGE_KINDS[stage].title if stage in STAGE_KINDS else stage}, {how}"


def make_card(
    name: str, kind: Kind, base: str | None, run: RunRecord | None, license_id: str | None, scores: bool = False
) -> str:
    """The text of ``README.md``. ``base``: the hub's name where the folder itself says it; what is not known is said to
    be so. ``scores``: of a reward model."""
    on_hub = base or (run.on_hub("model.path", run.base) if run else None)
    local = f"`{Path(run.base).name}`, a local folder" if run else "a base that is not recorded"
    shown = f"[{on_hub}](https://huggingface.co/{on_hub})" if on_hub else local
    parts = [_front_matter(kind, on_hub, run, license_id, scores), f"# {name.rpartition('/')[2]}", ""]
    how = f"by {run.method} " if run else ""
    parts += [f"Made of {shown} {how}with hybrid-ft {hybrid_ft.__version__}.", "", "## Use", ""]
    use = _USE_OF_SCORES if scores else _USE
    parts += [use[kind].format(name=name), "", "## Base", "", f"{shown}", "", "## Data", ""]
    parts += [*(_data(run) if run else ["Not recorded: no run's folder was named."]), "", "## Results", ""]
    parts += [*(_results(run) if run else ["Not measured."]), "", "## Training", ""]
    parts += [*(_training(run) if run else ["Not recorded."]), ""]
    return masked("\n".join(parts))


def _front_matter(kind: Kind, base: str | None, run: RunRecord | None, license_id: str | None, scores: bool) -> str:
    from huggingface_hub import ModelCardData

    names = [run.on_hub(f"{key}.path", source["path"]) for key, source in _sources(run)] if run else []
    tags = ["hybrid-ft", *([str(run.record.get("stage"))] if run else [])]
    if run and run.recipe["model"].get("lora"):
        tags.append("lora")
    data = ModelCardData(
        base_model=base,
        base_model_relation=_RELATION[kind] if base else None,
        datasets=list(dict.fromkeys(hub_dataset(name) for name in names if name)) or None,
        library_name=_LIBRARY[kind],
        license=license_id,
        pipeline_tag="text-classification" if scores else "text-generation",
        tags=tags,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _sources(run: RunRecord) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each source with its dotted key."""
    data = run.recipe.get("data") or {}
    for key, sources in (
        ("data.sources", data.get("sources")),
        ("data.eval.sources", (data.get("eval") or {}).get("sources")),
    ):
        for index, source in enumerate(sources or []):
            yield f"{key}.{index}", source


def _data(run: RunRecord) -> Iterator[str]:
    for key, source in _sources(run):
        name = run.on_hub(f"{key}.path", source["path"])
        place = (
            f"[{name.removeprefix(HUB_FILES)}](https://huggingface.co/datasets/{hub_dataset(name)})"
            if name
            else f"`{Path(source['path']).name}`, a local file"
        )
        more = [f"{key} {source[key]}" for key in ("name", "split", "revision") if name and source.get(key)]
        held_out = ["held out"] if key.startswith("data.eval") else []
        yield f"- {', '.join([place, *more, *held_out])}"


def _results(run: RunRecord) -> list[str]:
    before = (run.record.get("before") or {}).get("held_out") or {}
    after = run.record["finished"].get("held_out") or {}
    rows: list[tuple[str, ...]] = [
        (f"held-out {key.replace('_', ' ')}", f"{before[key]:.4f}", f"{after[key]:.4f}")
        for key in after
        if key != "tokens" and isinstance(before.get(key), int | float) and isinstance(after[key], int | float)
    ]
    rows += [(name, *cells) for name, cells in measures(run.answers).items()]
    if not rows:
        return ["Not measured: the recipe had no held-out rows."]
    return ["| | base | this model |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]


def _training(run: RunRecord) -> list[str]:
    versions = {
        key.removeprefix("version."): value for key, value in run.identity.items() if key.startswith("version.")
    }
    with_versions = ", ".join(f"{name} {value}" for name, value in versions.items())
    text = yaml.safe_dump(_plain(run, run.recipe), sort_keys=False, allow_unicode=True).rstrip()
    return [
        f"{run.record['finished']['step']:,} steps on {run.record.get('device', 'an unknown device')}; {with_versions}.",
        "",
        "The recipe:",
        "",
        "```yaml",
        text,
        "```",
    ]


def _plain(run: RunRecord, value: Any, *key: str) -> Any:
    """Without what is only of this machine: names of files and folders shrink to their last part."""
    if isinstance(value, dict):
        return {name: _plain(run, inner, *key, name) for name, inner in value.items() if (*key, name) not in _LEFT_OUT}
    if isinstance(value, list):
        return [_plain(run, inner, *key, str(index)) for index, inner in enumerate(value)]
    local = str(run.identity.get(".".join(key))).startswith("sha256:")
    if isinstance(value, str) and (local or (value.startswith(("/", "~/", "./", "../")) and "\n" not in value)):
        return Path(value).name
    return value
