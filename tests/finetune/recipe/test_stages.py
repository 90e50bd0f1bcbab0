"""Files of stages: what each stage's recipe becomes, and every mistake on its own line."""

import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.stages import load_stages

SFT = "model: {path: tiny}\ndata: {sources: [{path: rows.jsonl}]}\ntrain: {steps: 2}\n"
ALL = """\
stages:
  - sft: sft.yaml
  - dpo:
      data: {sources: [{path: rows.jsonl}]}
      train: {steps: 2}
      dpo: {pairs_per_step: 3}
  - export: {dtype: bfloat16}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "sft.yaml").write_text(SFT)
    return tmp_path


def write(text: str) -> str:
    Path("all.yaml").write_text(text)
    return "all.yaml"


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as refused:
        load_stages(write(text), overrides)
    assert refused.value.status == 2
    return str(refused.value).splitlines()


def test_each_stage_starts_from_the_folder_that_the_one_before_makes() -> None:
    sft, dpo, export = load_stages(write(ALL)).stages
    assert (sft.kind, dpo.kind, export.kind) == ("sft", "dpo", "export")
    assert sft.recipe and dpo.recipe
    assert (sft.recipe.model.path, dpo.recipe.model.path) == ("tiny", "runs/all/1-sft/model")
    assert (sft.recipe.output, dpo.recipe.output, str(export.folder)) == tuple(
        f"runs/all/{name}" for name in ("1-sft", "2-dpo", "3-export")
    )
    assert (dpo.recipe.dpo is not None, export.recipe, export.dtype) == (True, None, "bfloat16")


def test_adapters_are_merged_for_the_next_stage() -> None:
    sft, dpo, _ = load_stages(write(ALL), ["sft.model.lora={}"]).stages
    assert sft.recipe and sft.recipe.model.lora and sft.recipe.model.lora.merge
    assert dpo.recipe and dpo.recipe.model.path == "runs/all/1-sft/merged"
    (last,) = load_stages(write("stages: [{sft: sft.yaml}]\n"), ["sft.model.lora={}"]).stages
    assert last.recipe and last.recipe.model.lora and not last.recipe.model.lora.merge


def test_an_adapter_is_handed_on_unmerged() -> None:
    """The base stays the first stage's; the adapter need not be there yet."""
    handed = ALL.replace("  - dpo:\n", "  - dpo:\n      model: {adapter: previous}\n")
    sft, dpo, _ = load_stages(write(handed), ["sft.model.lora={}"]).stages
    assert sft.recipe and sft.recipe.model.lora and not sft.recipe.model.lora.merge
    assert dpo.recipe and (dpo.recipe.model.path, dpo.recipe.model.adapter) == ("tiny", "runs/all/1-sft/adapter")
    assert dpo.recipe.model.lora and dpo.recipe.model.lora.merge  # the export wants whole weights
    kept, _, _ = load_stages(write(handed), ["sft.model.lora={merge: true}"]).stages
    assert kept.recipe and kept.recipe.model.lora and kept.recipe.model.lora.merge
    added, _, _ = load_stages(write(ALL), ["sft.model.lora={}", "dpo.model.adapter=previous"]).stages
    assert added.recipe and added.recipe.model.lora and not added.recipe.model.lora.merge
    merged, whole, _ = load_stages(write(handed), ["sft.model.lora={}", "dpo.model.adapter=null"]).stages
    assert merged.recipe and merged.recipe.model.lora and merged.recipe.model.lora.merge
    assert whole.recipe and (whole.recipe.model.path, whole.recipe.model.adapter) == ("runs/all/1-sft/merged", None)


LATER = (
    "  - {kind}: {{model: {{adapter: {adapter}}}, data: {{sources: [{{path: rows.jsonl}}]}}, train: {{steps: 2}}}}\n"
)
ADAPTED = "stages:\n" + LATER.format(kind="sft", adapter="null, path: tiny, lora: {}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages:\n" + LATER.format(kind="sft", adapter="previous, path: tiny"), "and no stage comes before this one"),
        (
            ADAPTED.replace("lora: {}", "lora: null") + LATER.format(kind="dpo", adapter="previous"),
            "give it model.lora",
        ),
        (ADAPTED + "  - export: {}\n" + LATER.format(kind="dpo", adapter="previous"), "the stage before is an export"),
        (
            ADAPTED + LATER.format(kind="dpo", adapter="runs/old/adapter"),
            "must be previous, for the adapter of the stage",
        ),
        (
            ADAPTED + LATER.format(kind="reward", adapter="previous"),
            "has no head that scores; set model.merge_adapter: true",
        ),
        (
            ADAPTED.replace("sft:", "reward:") + LATER.format(kind="reward", adapter="previous, merge_adapter: true"),
            "leave model.merge_adapter out",
        ),
        (
            ADAPTED
            + LATER.format(kind="dpo", adapter="previous, merge_adapter: true, lora: {merge: true}")
            + LATER.format(kind="sft", adapter="previous"),
            "leaves its model whole (model.merge_adapter)",
        ),
    ],
)
def test_an_adapter_that_cannot_be_handed_on_is_refused(text: str, said: str) -> None:
    (line,) = mistakes(text)
    assert line.startswith("all.yaml:") and "model.adapter: got " in line and said in line, line


def test_previous_is_of_files_of_stages() -> None:
    Path("sft.yaml").write_text(SFT.replace("path: tiny", "path: tiny, adapter: previous"))
    with pytest.raises(
        InputError, match=r"sft\.yaml:1: model\.adapter: got previous, which is the adapter of the stage"
    ):
        load_recipe("sft.yaml")


def test_a_later_recipe_s_own_base_gives_way() -> None:
    Path("own.yaml").write_text(
        SFT.replace(
            "path: tiny", "path: someone/base, revision: v2, tokenizer: other/one, chat_template: olmo-instruct"
        )
    )
    _, later = load_stages(write("stages:\n  - sft: sft.yaml\n  - sft: own.yaml\n")).stages
    assert later.recipe
    model = later.recipe.model
    assert (model.path, model.revision, model.tokenizer) == ("runs/all/1-sft/model", None, None)
    assert model.chat_template == "olmo-instruct"


def test_overrides_reach_their_stages() -> None:
    found = load_stages(
        write(ALL + "evaluate: {sources: [rows.jsonl]}\n"),
        [
            "sft.train.steps=7",
            "dpo.dpo.beta=2",
            "output=~/elsewhere",
            "export.dtype=float32",
            "evaluate.max_new_tokens=9",
        ],
    )
    sft, dpo, export = found.stages
    assert sft.recipe and dpo.recipe and dpo.recipe.dpo and found.questions
    assert (sft.recipe.train.steps, dpo.recipe.train.steps) == (7, 2)
    assert (dpo.recipe.dpo.beta, sft.recipe.dpo) == (2.0, None)
    assert dpo.folder == Path("~/elsewhere/2-dpo").expanduser()
    assert (export.dtype, found.questions.max_new_tokens) == ("float32", 9)


def test_every_stage_has_its_part_of_the_mirror() -> None:
    found = load_stages(write(ALL + "mirror: s3://runs/all/\n"))
    assert [stage.recipe and stage.recipe.mirror for stage in found.stages] == [
        "s3://runs/all/1-sft",
        "s3://runs/all/2-dpo",
        None,
    ]
    found = load_stages(write(ALL), ["mirror=there"])
    assert found.stages[0].recipe and found.stages[0].recipe.mirror == "there/1-sft"


def test_questions_are_sources_or_paths() -> None:
    text = (
        ALL
        + "evaluate:\n  sources:\n    - rows.jsonl\n    - {path: rows.jsonl, columns: gsm8k}\n    - someone/dataset\n"
    )
    questions = load_stages(write(text)).questions
    assert questions is not None
    assert [source.path for source in questions.sources] == ["rows.jsonl", "rows.jsonl", "someone/dataset"]
    assert (questions.max_new_tokens, questions.data.packing) == (256, False)


def test_all_mistakes_of_all_stages_at_once() -> None:
    Path("sft.yaml").write_text(SFT.replace("steps: 2", "stepps: 2, keep: 0"))
    text = ALL.replace("pairs_per_step: 3", "loss: sigmod").replace("dtype: bfloat16", "dtype: int4")
    first, *rest = mistakes(text + "evalute: {sources: [rwos.jsonl]}\n", "quant.bits=4", "sft.output=x")
    assert first.startswith("all.yaml:6: dpo.loss: got 'sigmod'; must be 'sigmoid_norm', ")
    assert first.endswith("; did you mean sigmoid?")
    assert rest == [
        "all.yaml:7: stages.2.export.dtype: got 'int4'; must be 'float32' or 'bfloat16'",
        "all.yaml:8: unknown key evalute; did you mean evaluate?",
        "override quant.bits: must begin with sft, dpo, export, evaluate, output or mirror, such as sft.train.steps=3",
        "override sft.output: a stage's folder lies in that of the file; set output",
        "sft.yaml:3: train.keep: got 0; must be greater than or equal to 1",
        "sft.yaml:3: unknown key train.stepps; did you mean train.steps?",
    ]


ONE = "must be one of sft, dpo, kto, reward, export with what it needs, such as {sft: mine.yaml}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages: sft.yaml\n", "all.yaml:1: stages: got 'sft.yaml'; must be a list"),
        ("stages: []\n", "all.yaml:1: stages: got an empty list; must have at least 1 item"),
        ("stages:\n", "all.yaml:1: stages: got null; must be a list"),
        ("output: x\n", "all.yaml: stages is missing"),
        (SFT, "all.yaml: stages is missing: this is a recipe; run it with hybrid-ft sft"),
        (
            "stages:\n  - export: {}\n",
            "all.yaml:2: stages.0: got export; the first stage must train: sft, dpo, kto or reward",
        ),
        (
            "stages:\n  - sft: sft.yaml\n  - dop: {}\n",
            "all.yaml:3: unknown key stages.1.dop; did you mean stages.1.dpo?",
        ),
        (
            "stages:\n  - sft: sft.yaml\n  - rlo: {}\n",
            "all.yaml:3: unknown key stages.1.rlo; must be one of sft, dpo, kto, reward, export",
        ),
        ("stages:\n  - sft: sft.yaml\n  - dpo\n", f"all.yaml:3: stages.1: got 'dpo'; {ONE}"),
        (
            "stages:\n  - reward: sft.yaml\n  - sft: sft.yaml\n",
            "all.yaml:3: stages.1: got sft after reward, whose model writes nothing; let reward be the last",
        ),
        ("stages:\n  - {}\n", f"all.yaml:2: stages.0: got an empty mapping; {ONE}"),
        ("stages:\n  - {sft: sft.yaml, export: {}}\n", f"all.yaml:2: stages.0: got a mapping with sft, export; {ONE}"),
        ("stages:\n  - sft: sft.yaml\n  - export: {to: x}\n", "all.yaml:3: unknown key stages.1.export.to"),
        ("stages:\n  - sft: sft.yaml\n  - export: 8\n", "all.yaml:3: stages.1.export: got 8; must be a mapping"),
        ("stages:\n  - sft: nowhere.yaml\n", "nowhere.yaml: no such recipe file"),
        ("stages:\n  - sft: 3\n", "all.yaml:2: stages.0.sft: got 3; must be a recipe or the name of its file"),
        (
            "stages:\n  - sft: sft.yaml\nmodle: x\n",
            "all.yaml:3: unknown key modle; must be one of stages, evaluate, output",
        ),
        ("stages:\n  - sft: sft.yaml\noutput: 3\n", "all.yaml:3: output: got 3; must be a string"),
        (
            "stages:\n  - sft: sft.yaml\nstages:\n  - sft: sft.yaml\n",
            "all.yaml:3: key stages is given twice (first on line 1)",
        ),
        (
            "stages:\n  - sft: sft.yaml\nevaluate: {sources: [rows.jsonl], max_new_token: 3}\n",
            "all.yaml:3: unknown key evaluate.max_new_token; did you mean evaluate.max_new_tokens?",
        ),
        ("stages:\n  - sft: sft.yaml\nevaluate: {max_new_tokens: 3}\n", "all.yaml:3: evaluate.sources is missing"),
        (
            "stages:\n  - sft: sft.yaml\nevaluate:\n  sources:\n    - no.jsonl\n",
            "all.yaml:5: evaluate.sources.0.path: got 'no.jsonl'; there is no such data file",
        ),
        ("stages:\n  - sft: {model: {path: tiny}}\n", "all.yaml:2: data is missing"),
    ],
)
def test_one_mistake_one_line(text: str, said: str) -> None:
    found = mistakes(text)
    assert found[0].startswith(said), found
    assert len(found) == 1


def test_a_file_of_stages_is_not_a_recipe() -> None:
    with pytest.raises(InputError, match=r"all.yaml:1: stages: this file holds stages; run it with hybrid-ft run"):
        load_recipe(write(ALL))


def test_reading_the_stages_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hybrid_ft.finetune.recipe.stages import load_stages; load_stages('all.yaml');"
        "assert not {'torch', 'transformers', 'datasets', 'trl', 'numpy', 'rich'} & set(sys.modules)"
    )
    write(ALL)
    subprocess.run([sys.executable, "-c", code], check=True)
