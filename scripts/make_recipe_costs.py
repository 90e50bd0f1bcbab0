"""Writes into domain recipes' headers what a run costs: tokens, and hours by plan.

python scripts/make_recipe_costs.py          # or: make docs

Prices move by the day and are left to the command. The sets are on the hub, so their tokens are estimated: rows as
published, tokens of a row from the sizes of the files at four characters a token, or as said beside them. The mix is
the recipe's own rule: every source to its share of the trained tokens, and the one that is used up first ends it.
"""

from __future__ import annotations

import re
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

from transformers import Qwen3_5TextConfig

from hybrid_ft.finetune.machines.gpus import read_table
from hybrid_ft.finetune.planning import view
from hybrid_ft.finetune.planning.estimate import case
from hybrid_ft.finetune.planning.plan import PlannedModel
from hybrid_ft.finetune.planning.work import work_of
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.shipped import RECIPES, recipe_names
from hybrid_ft.hybrid_model.families.presets import preset_config

FILES = [name for name in recipe_names() if name.startswith("domains/") and name.count("/") == 2]
WIDTH = 118
KINDS = ("h100", "h200", "b200")
"""GPUs, the smaller first: the first that holds the recipe alone is named."""


@dataclass(frozen=True)
class Set:
    """Rows, and a row's tokens: of the prompt, and of what is trained (of a pair, both answers)."""

    rows: int
    prompt: int
    trained: int


SETS = {
    # 9.8 MB of train.json; the answers are an option and a letter
    ("GBaker/MedQA-USMLE-4-options-hf", None): Set(10_178, 225, 15),
    # 721 bytes a row with names of subjects; two thirds have one right option
    ("openlifescienceai/medmcqa", None): Set(120_000, 85, 120),
    # a twentieth of 211,269; the labelled rows have 318 and 50 tokens, counted
    ("qiaojin/PubMedQA", "pqa_artificial"): Set(10_563, 345, 60),
    # five hundredths of 2,152,112; 1.7 billion tokens in all, of which two thirds are taken to be trained
    ("allenai/Dolci-Instruct-SFT", None): Set(107_600, 270, 520),
    # 58.2 MB
    ("FreedomIntelligence/medical-o1-reasoning-SFT", "en"): Set(19_704, 110, 620),
    # thoughts of some thousands of tokens; those past max_length are left out
    ("simplescaling/s1K-1.1", None): Set(900, 120, 8_000),
    # 203 MB with the code that each problem was made from
    ("ise-uiuc/Magicoder-OSS-Instruct-75K", None): Set(75_197, 250, 300),
    # 90 MB of Parquet with seeds and concepts
    ("bigcode/self-oss-instruct-sc2-exec-filter-50k", None): Set(50_661, 90, 260),
    # 396 MB, each question there twice
    ("meta-math/MetaMathQA", None): Set(395_000, 65, 130),
    # texts cut at 512 characters and five holdings
    ("coastalcph/lex_glue", "case_hold"): Set(45_000, 440, 60),
    # answers of "none" mostly
    ("coastalcph/lex_glue", "unfair_tos"): Set(5_532, 115, 4),
    ("coastalcph/lex_glue", "ledgar"): Set(60_000, 200, 5),
    # pages of about 700 words with their tables
    ("hf://datasets/TableQAKit/FinQA_retrieval/train.json", None): Set(6_251, 1_000, 20),
    # six questions a table
    ("next-tat/TAT-QA", None): Set(2_201, 480, 90),
    # the functions at hand are most of a row
    ("Salesforce/xlam-function-calling-60k", None): Set(60_000, 330, 60),
    # 655 MB
    ("THUDM/LongAlign-10k", None): Set(9_888, 16_300, 200),
    # counted
    ("datasets/quickstart/train.jsonl", None): Set(6_000, 50, 45),
    # 3.18 MB, the schema in the system text
    ("NousResearch/hermes-function-calling-v1", "json_mode_singleturn"): Set(1_241, 450, 190),
    # 24 of 27 intents; answers of about 600 characters
    ("bitext/Bitext-customer-support-llm-chatbot-training-dataset", None): Set(23_900, 40, 150),
    # many scripts, whose words are several tokens
    ("CohereLabs/aya_dataset", None): Set(202_000, 90, 200),
    ("allenai/coconot", "original"): Set(11_477, 30, 150),
    ("allenai/coconot", "pref"): Set(927, 30, 300),
    # five fiftieths of 259,922; a hundred pairs of Tulu 3's set have 301 and 669 tokens, counted
    ("allenai/Dolci-Instruct-DPO", None): Set(25_992, 300, 670),
    ("TsinghuaC3I/UltraMedical-Preference", None): Set(109_353, 200, 900),
    # of 38,459, about a quarter on code and a fifth multilingual, ties left out
    ("nvidia/HelpSteer3", "preference"): Set(7_500, 700, 1_000),
    # counted
    ("datasets/quickstart/preferences.jsonl", None): Set(3_000, 45, 84),
}


def configs(folder: Path) -> dict[str, Path]:
    """Folders with the two bases' configs: a plan reads no weights. Qwen3.5 4B's text model by its published shape."""
    qwen = Qwen3_5TextConfig(
        vocab_size=248_320,
        hidden_size=2560,
        intermediate_size=9216,
        num_hidden_layers=32,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=256,
        linear_num_key_heads=16,
        linear_num_value_heads=32,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        tie_word_embeddings=True,
    )
    found = {}
    for name, config in (("olmo", preset_config("7B")), ("qwen", qwen)):
        found[name] = folder / name
        config.save_pretrained(found[name])
    return found


def tokens_of(recipe: Recipe) -> int:
    """Of an epoch, to two digits."""
    sets, takes = [], []
    for source in recipe.data.sources:
        path = (
            source.path
            if "/datasets/quickstart/" not in source.path
            else "datasets/quickstart/" + Path(source.path).name
        )
        found = SETS[path, source.name]
        sets.append(found)
        takes.append(min(source.count or found.rows, found.rows))
    weights = [source.weight or 0.0 for source in recipe.data.sources]
    rows: list[float] = list(takes)
    if any(weights):
        unit = [found.trained if recipe.data.weight_by == "tokens" else 1 for found in sets]
        whole = min(take * each / weight for take, each, weight in zip(takes, unit, weights, strict=True))
        rows = [whole * weight / each for weight, each in zip(weights, unit, strict=True)]
    total = sum(count * (found.prompt + found.trained) for count, found in zip(rows, sets, strict=True))
    return int(float(f"{total:.1e}"))


class Costs:
    """``of(name)``: a recipe's sentence. Shapes of models are read once."""

    def __init__(self, folder: Path) -> None:
        self._folders = configs(folder)
        self._models: dict[tuple[str, str], PlannedModel] = {}

    def of(self, name: str) -> str:
        """Raises LookupError where none of the GPUs holds the recipe."""
        kind = "dpo" if name.endswith("/dpo") else "sft"
        base = "qwen" if "qwen" in name else "olmo"
        changes = [f"model.path={self._folders[base]}", "model.tokenizer=null"]
        changes += ["model.chat_template_kwargs=null"] if base == "qwen" else []
        recipe = load_recipe(name, changes, stage=kind)  # type: ignore[arg-type]
        lora = recipe.model.lora
        assert lora is not None
        key = (base, f"{lora.rank} {lora.targets}")
        model = self._models[key] = self._models.get(key) or PlannedModel.of(recipe)
        tokens = tokens_of(recipe)
        work = work_of(recipe, model.config, None, "", tokens, 1)
        table = read_table(None)
        for gpu in KINDS:
            found = case(recipe, model.shape, work, table[gpu], 1, model.save)
            if found.fits and found.seconds is not None:
                break
        else:
            raise LookupError(f"{name}: none of {', '.join(KINDS)} holds it")
        epochs = recipe.train.epochs
        text = f"Costs: about {millions(tokens)} tokens an epoch"
        text += f", {millions(tokens * epochs)} in all" if epochs != 1 else " and in all"
        text += f"; {view.hours(found.seconds)} of training on one {table[gpu].name} by hybrid-ft plan --gpu {gpu} "
        text += f"--tokens {tokens}. Reckoned, not measured: the tokens of a row are estimates. "
        return text + "hybrid-ft data counts them."


def millions(tokens: float) -> str:
    return f"{tokens / 1e6:,.0f} million" if tokens >= 1e7 else f"{tokens / 1e6:,.1f} million"


def with_costs(text: str, sentence: str) -> str:
    """A recipe's text with this paragraph of its header, in the place of an older one or before what follows it."""
    text = re.sub(r"(?m)^# Costs:(?:.*\n)(?:# (?!(?:Published|Mind):).*\n)*", "", text)
    # a prose header must not be taken for a key, nor a command be broken
    lines = textwrap.wrap(sentence, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    place = re.search(r"(?m)^(?:# Published:|# Mind:|model:)", text)
    assert place is not None
    return text[: place.start()] + "\n".join(lines) + "\n" + text[place.start() :]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        costs = Costs(Path(folder))
        for name in FILES:
            path = RECIPES / f"{name}.yaml"
            text = path.read_text()
            made = with_costs(text, costs.of(name))
            if made != text:
                path.write_text(made)


if __name__ == "__main__":
    main()
