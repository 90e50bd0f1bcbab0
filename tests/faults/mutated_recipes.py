"""Recipes with something wrong in them."""

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from mutations import paths_in
from recipe_rules import RULES

from hybrid_ft.finetune.recipe.schema import PREFERENCE, Recipe
from hybrid_ft.finetune.recipe.yaml_file import dump_yaml

WHOLE = Recipe.model_validate(
    {
        "model": {"path": "tiny", "lora": {}},
        "data": {"sources": [{"path": "rows.jsonl", "weight": 1.0}], "eval": {"count": 2}},
        "evaluate": {"samples": ["hello"], "every": 3},
        "output": "runs/x",
    }
).model_dump(exclude={"kto", "reward"})
SFT = {key: value for key, value in WHOLE.items() if key not in PREFERENCE}
DPO = Recipe.model_validate(SFT | {"dpo": {}}).model_dump(exclude=set(PREFERENCE) - {"dpo"})
KTO = Recipe.model_validate(SFT | {"kto": {}}).model_dump(exclude=set(PREFERENCE) - {"kto"})
REWARD = Recipe.model_validate(SFT | {"reward": {}, "evaluate": {"every": 3}}).model_dump(
    exclude=set(PREFERENCE) - {"reward"}
)

VALUES = st.sampled_from(
    [None, True, False, 0, 1, -1, 2**64, 10**299, 1e-5, 1e308, float("inf"), float("nan"), "", "no", "012", "x" * 300, "~/x",
     "../../etc/passwd", "\x1b[31m", "a\nb", [], [[]], [None], {}, {"a": {}}, [{"path": "rows.jsonl"}] * 2, {"path": 1}, "tiny", "7B", "/dev/null"]
) | st.text(max_size=10)  # fmt: skip
KEYS = st.sampled_from(
    ["path", "sources", "eval", "lora", "train", "weight", "every", "", "0", "a.b", "\n", "ключ", "x" * 200]
)
PIECES = [
    b"",
    b":",
    b"\t",
    b"- ",
    b"[",
    b"\n",
    b"\xff",
    b"&a ",
    b"*a",
    b"!!x ",
    b"'",
    b"{",
    b"#",
    b"\x00",
    b"  ",
    b"---\n",
]
MORE_PIECES = [*PIECES, b"\r", b"\r\n", b"\xe2\x80\xa8", b"\xc2\x85", b"\xef\xbb\xbf", b'"', b"|", b"? ", b"%YAML 3\n"]  # fmt: skip


# what the reader completes, or turns into another path
FILLED = ("learning_rate", "loss", "beta", "output", "path", "tokenizer", "chat_template", "columns", "reference_cache")
# what is right or wrong whatever other keys hold
FREE = [
    f"train.{key}"
    for key in ["epochs", "steps", "learning_rate", "schedule", "warmup", "weight_decay", "betas", "max_grad_norm"]
]
FREE += [f"train.{key}" for key in ("seed", "save_every", "keep", "log_every", "loader_workers", "sharded")]
FREE += ["data.on_long_row", "data.on_bad_row", "data.max_dropped", "data.seed", "data.sources.*.count", "model.dtype"]
FREE += ["model.lora.rank", "model.lora.alpha", "model.lora.merge", "evaluate.answers", "evaluate.max_new_tokens"]

# how a recipe writes a value, and the value
POOL: list[tuple[str, Any]] = [
    ("0", 0), ("1", 1), ("-1", -1), ("2.5", 2.5), ("1e-5", 1e-5), ("1E5", 1e5), (".5", 0.5), ("0.5", 0.5), ("1.0", 1.0),
    ("1e400", math.inf), (".nan", math.nan), (".inf", math.inf), ("-.inf", -math.inf), ("0x1f", 31), ("0o17", 15),
    ("012", "012"), ("1_000", "1_000"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("10" * 12, int("10" * 12)),
    ("true", True), ("false", False), ("yes", "yes"), ("no", "no"), ("on", "on"), ("null", None), ("~", None),
    ("'8'", "8"), ('""', ""), ("'0.5'", "0.5"), ("'null'", "null"), ('"\\x1b"', "\x1b"), ("[]", []), ("[1]", [1]),
    ("[0.9, 0.5]", [0.9, 0.5]), ("[0.9, 1]", [0.9, 1]), ("[hello]", ["hello"]), ("[null]", [None]), ("{}", {}),
    ("{a: 1}", {"a": 1}), ("[[]]", [[]]), ("tiny", "tiny"), ("linear", "linear"), ("Linear", "Linear"), ("skip", "skip"),
    ("float32", "float32"), ("delta+mlp", "delta+mlp"), ("delta+", "delta+"), ("4096", 4096), ("4294967296", 2**32),
]  # fmt: skip


def change(recipe: dict, loc: tuple, action: str, key: str, value: Any) -> None:
    node: Any = recipe
    for part in loc[:-1]:
        node = node[part]
    if not loc:
        recipe[key] = value
    elif action == "delete":
        del node[loc[-1]]
    elif action == "add" and isinstance(node, dict):
        node[key] = value
    else:
        node[loc[-1]] = value


@dataclass
class Mutated:
    """``refused``: how every complaint has to begin, as a pattern; None where nothing is known of it.

    ``holds``: a key with the value that it must have in a recipe that is accepted; ``accepted``: it must be.
    """

    how: str
    text: bytes
    overrides: list[str] = field(default_factory=list)
    refused: str | None = None
    holds: tuple[str, Any] | None = None
    accepted: bool = False


def written(value: dict[str, Any], loc: str = "", pad: str = "") -> Iterator[tuple[str, str]]:
    """A recipe's lines, each with its key; the last of a line is the key's value, where it is no section."""
    for key, inner in value.items():
        here = f"{loc}.{key}".removeprefix(".")
        if isinstance(inner, dict):
            yield here, f"{pad}{key}:"
            yield from written(inner, here, pad + "  ")
        elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
            yield here, f"{pad}{key}:"
            for index, item in enumerate(inner):
                first, *rest = written(item, f"{here}.{index}", pad + "    ")
                yield from [(first[0], f"{pad}  - {first[1].strip()}"), *rest]
        else:
            yield here, f"{pad}{key}: {json.dumps(inner)}"


def general(loc: str) -> str:
    return re.sub(r"\.\d+", ".*", loc)


def valued(loc: str) -> st.SearchStrategy[tuple[str, Any]]:
    """A value for a key: a right one, a wrong one of the same type, or any."""
    rule = RULES[general(loc)]
    right = [pair for pair in POOL if rule(pair[1])]
    types = {kind for _, value in right for kind in ((int, float) if type(value) in (int, float) else (type(value),))}
    near = [pair for pair in POOL if type(pair[1]) in types and not rule(pair[1])]
    return st.sampled_from(right or POOL) | st.sampled_from(near or POOL) | st.sampled_from(POOL)


@st.composite
def changed(draw: st.DrawFn) -> Mutated:
    recipe = copy.deepcopy(draw(st.sampled_from([SFT, DPO, KTO, REWARD])))
    for _ in range(draw(st.integers(1, 3))):
        loc = draw(st.sampled_from(paths_in(recipe)))
        action, key, value = draw(st.sampled_from(["set", "delete", "add"])), draw(KEYS), draw(VALUES)
        change(recipe, loc, action, key, copy.deepcopy(value))
    locs = st.sampled_from([".".join(map(str, loc)) for loc in paths_in(WHOLE)])
    pairs = draw(st.lists(st.tuples(locs, st.text(max_size=6)), max_size=1))
    return Mutated("values", dump_yaml(recipe).encode(errors="replace"), [f"{key}={value}" for key, value in pairs])


@st.composite
def damaged(draw: st.DrawFn) -> Mutated:
    raw = dump_yaml(draw(st.sampled_from([SFT, DPO, KTO, REWARD]))).encode()
    for _ in range(draw(st.integers(1, 4))):
        where, cut = draw(st.integers(0, len(raw))), draw(st.integers(0, 3))
        raw = raw[:where] + draw(st.sampled_from(MORE_PIECES)) + raw[where + cut :]
    return Mutated("bytes", raw)


@st.composite
def overridden(draw: st.DrawFn) -> Mutated:
    recipe = draw(st.sampled_from([SFT, DPO, KTO, REWARD]))
    raw = dump_yaml(recipe).encode()
    if draw(st.integers(0, 3)) == 0:
        return Mutated("overrides", raw, [draw(st.text(max_size=30))])
    loc = draw(st.sampled_from([loc for loc, line in written(recipe) if not line.endswith(":")]))
    shown, value = draw(valued(loc))
    right, free = RULES[general(loc)](value), general(loc) in FREE
    refused = None if right else re.escape(f"override {loc}: ")
    return Mutated("overrides", raw, [f"{loc}={shown}"], refused, (loc, value), right and free)


@st.composite
def spoiled(draw: st.DrawFn, how: str) -> Mutated:
    """One line of a whole recipe made wrong, comments and blank lines around it: the complaint's line is known."""
    lines = list(written(draw(st.sampled_from([SFT, DPO, KTO, REWARD]))))
    at = draw(st.sampled_from([index for index, (_, line) in enumerate(lines) if not line.endswith(":")]))
    loc, line = lines[at]
    head, key = line[: line.index(":")], loc.rpartition(".")[2]
    made = Mutated(how, b"")
    if how == "value":
        shown, value = draw(valued(loc))
        lines[at] = loc, f"{head}: {shown}"
        right = RULES[general(loc)](value)
        made.holds, made.accepted = (loc, value), right and general(loc) in FREE
        name = "" if right else rf"({re.escape(loc)}(\.\d+)?: |character 0x1b)"
    elif how == "unknown key":
        lines.insert(at + 1, ("", f"{head.replace('- ', '  ').removesuffix(key)}{key}_x: 1"))
        at, name = at + 1, re.escape(f"unknown key {loc}_x")
    elif how == "key twice":
        lines.insert(at + 1, ("", line.replace("- ", "  ")))
        at, name = at + 1, re.escape(f"key {loc} is given twice")
    elif how == "tab":
        lines[at] = loc, "\t" + line
        name = "a tab cannot indent YAML"
    else:
        lines[at] = loc, line + "# \udcff"
        name = "byte 0xff is not UTF-8"
    texts = [line for _, line in lines]
    for _ in range(draw(st.integers(0, 4))):
        where = draw(st.integers(0, len(texts)))
        texts.insert(
            where, draw(st.sampled_from(["", "  ", "# a comment", "#\u2028\u2029", "   # \x85", "# é\ufeff: {["]))
        )
        at += where <= at
    if name:
        made.refused = rf"r\.yaml:{at + 1}: ({name})"
    end = draw(st.sampled_from(["\n", "\r\n"]))
    made.text = (draw(st.sampled_from(["", "\ufeff"])) + end.join([*texts, ""])).encode(errors="surrogateescape")
    return made


HOW = ["value", "value", "value", "unknown key", "key twice", "tab", "byte"]
RECIPES = [changed(), damaged(), overridden(), *map(spoiled, HOW)]
"""each gives a tenth of the recipes"""
