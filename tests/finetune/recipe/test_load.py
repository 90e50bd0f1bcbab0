"""A right recipe resolves; a wrong one is refused with every mistake on its own line."""

import difflib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.keys import keys
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.mistakes import nearest_key
from hybrid_ft.finetune.recipe.schema import Recipe

MINIMAL = "model: {path: tiny}\ndata:\n  sources:\n    - path: rows.jsonl\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: an empty one with a data file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    return tmp_path


def write(text: str, name: str = "mine.yaml") -> str:
    Path(name).write_text(text)
    return name


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as refused:
        load_recipe(write(text), overrides)
    assert refused.value.status == 2
    return str(refused.value).splitlines()


def test_minimal_recipe_resolves() -> None:
    recipe = load_recipe(write(MINIMAL))
    assert recipe.output == "runs/mine"
    assert recipe.train.learning_rate == 2.5e-5
    assert recipe.train.betas == [0.9, 0.95]
    assert recipe.data.eval.wanted is False


def test_lora_has_its_own_learning_rate() -> None:
    assert load_recipe(write(MINIMAL), ["model.lora={}"]).train.learning_rate == 2e-4
    assert load_recipe(write(MINIMAL), ["model.lora={}", "train.learning_rate=1e-6"]).train.learning_rate == 1e-6


def test_resolved_recipe_reads_back_the_same() -> None:
    text = MINIMAL + "evaluate:\n  samples: ['1e-5', 'no', \"two\\nlines\", 'café: #1']\ntrain:\n"
    recipe = load_recipe(write(text), ["model.lora.rank=8", "data.eval.count=3", "data.sources.0.weight=0.1"])
    again = load_recipe(write(recipe.to_yaml(), "resolved.yaml"))
    assert again == recipe


def test_overrides_reach_everywhere() -> None:
    recipe = load_recipe(
        write(MINIMAL),
        [
            "train.steps=5",
            "train.steps=7",
            "data.sources.0.split=test",
            "model.lora.rank=4",
            "evaluate.samples=[a, b: c]"[:-6] + "]",
        ],
    )
    assert (recipe.train.steps, recipe.data.sources[0].split) == (7, "test")
    assert recipe.model.lora is not None and recipe.model.lora.rank == 4
    assert recipe.evaluate.samples == ["a"]


def test_all_mistakes_at_once() -> None:
    text = (
        "model:\n  path: tiny\n  lora: {targets: lm_head}\n"
        "data:\n  sources:\n    - path: rwos.jsonl\n      weight: 0\n"
        "train:\n  learnin_rate: 1e-5\n  schedule: cosin\n  epochs: '3'\n  batch_tokens: 100\n"
        "learning_rate: 1\n"
        "evaluate: {answers: 9, samples: [1]}\n"
    )
    assert mistakes(text, "train.steps=1e3", "model.lora.rnk=2") == [
        "mine.yaml:3: model.lora.targets: got 'lm_head'; must be of all-linear, attention, delta, recurrent, mlp, or a union such as delta+mlp",
        "mine.yaml:6: data.sources.0.path: got 'rwos.jsonl'; there is no such data file; did you mean rows.jsonl?",
        "mine.yaml:7: data.sources.0.weight: got 0; must be greater than 0",
        "mine.yaml:9: unknown key train.learnin_rate; did you mean train.learning_rate?",
        "mine.yaml:10: train.schedule: got 'cosin'; must be 'linear', 'cosine' or 'constant'; did you mean cosine?",
        "mine.yaml:11: train.epochs: got '3'; must be a number; write it without quotes",
        "mine.yaml:12: train.batch_tokens: got 100; must be at least data.max_length (4096) when rows are packed",
        "mine.yaml:13: unknown key learning_rate; did you mean train.learning_rate?",
        "mine.yaml:14: evaluate.samples.0: got 1; must be a string; put it in quotes",
        "mine.yaml:14: evaluate.answers: got 9; needs held-out rows; set data.eval.fraction, data.eval.count or data.eval.sources",
        "override model.lora.rnk: unknown key model.lora.rnk; did you mean model.lora.rank?",
        "override train.steps: got 1000.0; must be a whole number; write 1000",
    ]


def test_duplicate_keys_and_schema_mistakes_together() -> None:
    assert mistakes(MINIMAL + "train:\n  steps: 1\n  steps: 2\n  kep: 1\n") == [
        "mine.yaml:7: key train.steps is given twice (first on line 6); keep one",
        "mine.yaml:8: unknown key train.kep; did you mean train.keep?",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {sources: [{path: rows.jsonl}]}\n", "mine.yaml: model is missing"),
        ("model: {}\ndata: {sources: [{path: rows.jsonl}]}\n", "mine.yaml:1: model.path is missing: a preset (tiny"),
        (
            "model: tiny\ndata: {sources: [{path: rows.jsonl}]}\n",
            "mine.yaml:1: model: got 'tiny'; must be a mapping of keys, such as {path: 'tiny'}",
        ),
        ("model: {path: tiny}\ndata:\n", "mine.yaml:2: data.sources is missing"),
        (
            "model: {path: tiny}\ndata:\n  sources: []\n",
            "mine.yaml:3: data.sources: got an empty list; must have at least 1 item",
        ),
        (
            "model: {path: tiny}\ndata:\n  sources: rows.jsonl\n",
            "mine.yaml:3: data.sources: got 'rows.jsonl'; must be a list",
        ),
        ("model: {path: tiny}\ndata:\n  sources:\n    - split: x\n", "mine.yaml:4: data.sources.0.path is missing"),
        (MINIMAL.replace("tiny", "''"), "mine.yaml:1: model.path: got ''; must not be empty"),
        (MINIMAL.replace("tiny", "7B"), "mine.yaml:1: model.path: got 7B, a shape without weights"),
        (MINIMAL.replace("tiny", "7B, from_scratch: true"), "mine.yaml:1: model.tokenizer: must be set; the preset 7B"),
        (
            MINIMAL.replace("tiny", "./nowhere"),
            "mine.yaml:1: model.path: got './nowhere'; there is no such model folder",
        ),
        (
            MINIMAL.replace("tiny", "tiny, lora: {layers: [-1]}"),
            "mine.yaml:1: model.lora.layers.0: got -1; must be greater than or equal to 0",
        ),
        (
            MINIMAL.replace("tiny", "tiny, from_scratch: true, lora: {}"),
            "mine.yaml:1: model.lora: needs trained weights",
        ),
        (MINIMAL.replace("tiny", "tiny, revision: abc"), "mine.yaml:1: model.revision: got 'abc'; only a hub name"),
        (
            MINIMAL.replace("tiny", "tiny, chat_template: olmo"),
            "mine.yaml:1: model.chat_template: got 'olmo'; must be a shipped name (olmo-instruct) or a .jinja file",
        ),
        (
            MINIMAL.replace("rows.jsonl", "https://example.com/rows"),
            "mine.yaml:4: data.sources.0.path: got 'https://example.com/rows'; there is no such",
        ),
        (
            MINIMAL + "      name: x\n",
            "mine.yaml:5: data.sources.0.name: got 'x'; only a hub dataset or a folder has configurations",
        ),
        (MINIMAL + "      columns: nope\n", "mine.yaml:5: data.sources.0.columns: got 'nope'; must be a shipped name"),
        (
            MINIMAL + "      weight: 2\n    - path: rows.jsonl\n",
            "mine.yaml:6: data.sources.1: must have a weight, because another",
        ),
        (
            MINIMAL + "  eval: {fraction: 0.1, count: 5}\n",
            "mine.yaml:5: data.eval.count: got 5; give fraction or count",
        ),
        (
            MINIMAL + "  eval: {fraction: 0.1, sources: [{path: rows.jsonl}]}\n",
            "mine.yaml:5: data.eval.sources: got a list of 1; give sources",
        ),
        (MINIMAL + "  packing: yes\n", "mine.yaml:5: data.packing: got 'yes'; must be true or false"),
        (MINIMAL + "train: {warmup: .inf}\n", "mine.yaml:5: train.warmup: got inf; must be "),
        (MINIMAL + "train: {warmup: 100}\n", "mine.yaml:5: train.warmup: got 100; must be less than 1"),
        (MINIMAL + "train: {betas: [0.9]}\n", "mine.yaml:5: train.betas: got a list of 1; must have at least 2 items"),
        (MINIMAL + "train: {seed: true}\n", "mine.yaml:5: train.seed: got true; must be a whole number"),
        (
            MINIMAL + "train: {trackers: [mlflow]}\n",
            "mine.yaml:5: train.trackers.0: got 'mlflow'; must be 'tensorboard', 'trackio' or 'wandb'",
        ),
        (MINIMAL + "evaluate: {every: 5}\n", "mine.yaml:5: evaluate.every: got 5; needs held-out rows"),
        (MINIMAL + "  eval: {count: -1}\nevaluate: {every: 5, answers: 2}\n", "mine.yaml:5: data.eval.count: got -1"),
        (MINIMAL + "output: rows.jsonl\n", "mine.yaml:5: output: got 'rows.jsonl', which is a file"),
    ],
)
def test_one_mistake_one_line(text: str, said: str) -> None:
    found = mistakes(text)
    assert len(found) == 1, found
    assert found[0].startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps", "override 'train.steps': must be key=value"),
        ("=5", "override '=5': must be key=value"),
        ("train..steps=5", "override 'train..steps=5': must be key=value"),
        ("train.steps=abc", "override train.steps: got 'abc'; must be a whole number"),
        ("train.stps=5", "override train.stps: unknown key train.stps; did you mean train.steps?"),
        ("steps=5", "override steps: unknown key steps; did you mean train.steps?"),
        (
            "data.sources.1.path=x",
            "override data.sources.1.path: data.sources has no item '1'; must be 0",
        ),
        ("model.path.x=1", "override model.path.x: model.path is 'tiny', which has no key 'x'"),
        ("train.seed.x=1", "override train.seed.x: train.seed: got a mapping with x; must be a whole number"),
        (
            "data.sources=[{path: gone.jsonl}]",
            "override data.sources: data.sources.0.path: got 'gone.jsonl'; there is no such data file",
        ),
        ("train.betas=[1", "override train.betas: not YAML"),
        (
            "model.gradient_checkpointing=foo",
            "override model.gradient_checkpointing: got 'foo'; must be true or false or 'selective'",
        ),
        (
            "model.checkpointed_layers=atuo",
            "override model.checkpointed_layers: got 'atuo'; must be a whole number or 'auto'; did you mean auto?",
        ),
    ],
)
def test_mistaken_override(override: str, said: str) -> None:
    found = mistakes(MINIMAL, override)
    assert len(found) == 1, found
    assert found[0].startswith(said)


def test_missing_tracker_is_named() -> None:
    if subprocess.run([sys.executable, "-c", "import trackio"], capture_output=True, check=False).returncode == 0:
        pytest.skip("trackio is installed here")
    (line,) = mistakes(MINIMAL, "train.trackers=[trackio]")
    assert line == "override train.trackers: train.trackers.0: got trackio, which is not installed; pip install trackio"


def test_nothing_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    recipe = load_recipe(write(MINIMAL + "evaluate: {samples: ['${HF_TOKEN} $HF_TOKEN']}\n"))
    assert recipe.evaluate.samples == ["${HF_TOKEN} $HF_TOKEN"]


def test_a_secret_under_an_unknown_key_is_not_echoed() -> None:
    assert "hf_canary" not in "\n".join(mistakes(MINIMAL + "hub_token: hf_canary\n", "api_key=hf_canary"))


def test_paths_beside_the_recipe_and_from_the_current_directory(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "near.jsonl").write_text("{}\n")
    (folder / "sub" / "rows.jsonl").write_text("{}\n")
    text = MINIMAL + "    - path: near.jsonl\n    - path: someone/dataset\n"
    paths = [source.path for source in load_recipe(write(text, "sub/mine.yaml")).data.sources]
    assert paths == ["rows.jsonl", os.path.join("sub", "near.jsonl"), "someone/dataset"]


@pytest.mark.parametrize("name", ["nowhere.yaml", "no/such/recipe", "x" * 5000, "."])
def test_no_such_recipe(name: str) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe(name)
    assert "\n" not in str(refused.value)


def test_many_mistakes_are_cut() -> None:
    found = mistakes(MINIMAL + "".join(f"key{number}: 1\n" for number in range(500)))
    assert len(found) == 41
    assert found[-1] == "mine.yaml: and 460 more"


def test_every_key_survives_one_wrong_letter() -> None:
    """Drop each letter of each key in turn: the suggestion is the key, or another that is spelt as much alike."""
    known = sorted(dict(keys(Recipe)))
    assert {"model.lora.rank", "data.eval.sources[].path", "train.learning_rate", "output"} <= set(known)
    for key in known:
        section, _, name = key.rpartition(".")
        for index in range(len(name) if len(name) > 3 else 0):
            typo = name[:index] + name[index + 1 :]
            loc = tuple(part for part in section.replace("[]", ".0").split(".") if part)
            near = nearest_key((*(int(part) if part == "0" else part for part in loc), typo), known)
            assert near is not None, (key, typo)
            likeness = difflib.SequenceMatcher(None, typo, near.rpartition(".")[2]).ratio()
            assert near == key or likeness >= difflib.SequenceMatcher(None, typo, name).ratio() - 0.15, (
                key,
                typo,
                near,
            )


def test_loading_imports_nothing_heavy() -> None:
    """A wrong recipe must be refused within a second: torch alone takes longer."""
    Path("bad.yaml").write_text(MINIMAL + "trian: 1\n")
    code = (
        "import sys\nfrom hybrid_ft.finetune.recipe.load import load_recipe\n"
        "try: load_recipe('bad.yaml')\nexcept ValueError: pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'datasets', 'trl', 'peft', 'numpy', 'rich'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
