"""A recipe's mistakes: all at once, a line each, with a suggestion."""

import difflib

import pytest
from recipe_files import MINIMAL, mistakes

from hybrid_ft.finetune.recipe.keys import keys
from hybrid_ft.finetune.recipe.mistakes import nearest_key
from hybrid_ft.finetune.recipe.schema import Recipe

pytestmark = pytest.mark.usefixtures("folder")


def test_all_mistakes_at_once() -> None:
    text = (
        "model:\n  path: tiny\n  lora: {targets: lm_head}\n"
        "data:\n  sources:\n    - path: rwos.jsonl\n      weight: 0\n"
        "train:\n  learnin_rate: 1e-5\n  schedule: cosin\n  epochs: '3'\n  batch_tokens: 100\n"
        "learning_rate: 1\n"
        "evaluate: {answers: 9, samples: [1]}\n"
    )
    assert mistakes(text, "train.steps=1e3", "model.lora.rnk=2") == [
        "mine.yaml:3: model.lora.targets: got 'lm_head'; must be of all-linear, attention, delta, recurrent, mlp, experts, or a union such as delta+mlp",
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
