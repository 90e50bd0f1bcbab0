"""Bad recipes, files of stages, overrides, templates, column mappings and command lines."""

import os
from pathlib import Path
from typing import Any

from refusals import JUDGED, PAIRS, RECIPE, REWARD, ROW, Case, lines

SOURCES = "{sources: [{path: rows.jsonl}], max_length: 256"


def changed(name: str, old: str, new: str, *says: str, **more: Any) -> Case:
    assert old in RECIPE
    return Case(f"recipe: {name}", says, recipe=RECIPE.replace(old, new), **more)


def of_train(name: str, keys: str, *says: str, **more: Any) -> Case:
    return changed(name, "{steps: 1}", f"{{{keys}}}", *says, **more)


def whole(name: str, text: Any, *says: str, **more: Any) -> Case:
    return Case(f"recipe: {name}", says, recipe=text, **more)


def overridden(name: str, *overrides: str, says: str, **more: Any) -> Case:
    return Case(f"override: {name}", (says,), ("sft", "r.yaml", *overrides), **more)


def command(name: str, *arguments: str, says: str, **more: Any) -> Case:
    return Case(f"command: {name}", (says,), arguments, **more)


def templated(name: str, template: Any, *says: str, **more: Any) -> Case:
    recipe = RECIPE.replace("path: tiny", "path: tiny, chat_template: t.jinja")
    return Case(f"template: {name}", says, recipe=recipe, files={"t.jinja": template}, **more)


def mapped(name: str, mapping: Any, *says: str, **more: Any) -> Case:
    recipe = RECIPE.replace("path: rows.jsonl", "path: rows.jsonl, columns: c.yaml")
    return Case(f"columns: {name}", says, recipe=recipe, files={"c.yaml": mapping}, **more)


def staged(name: str, text: Any, *says: str, **more: Any) -> Case:
    return Case(f"stages: {name}", says, ("run", "s.yaml"), files=more.pop("files", {}) | {"s.yaml": text}, **more)


def file_in_the_way(path: Path) -> None:
    path.write_text("mine")


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

SYNTAX = [
    whole("empty", "", "r.yaml: is empty; a recipe must be a mapping"),
    whole("comments alone", "# model:\n", "r.yaml: is empty; a recipe must be a mapping"),
    whole("a list", "- a\n", "r.yaml: holds a list of 1; a recipe must be"),
    whole("a text", "hello\n", "r.yaml: holds 'hello'; a recipe must be"),
    whole("a number", "5\n", "r.yaml: holds 5; a recipe must be"),
    whole("two documents", RECIPE + "---\n" + RECIPE, "r.yaml:5: a second document starts here"),
    whole("a tab", "model:\n\tpath: tiny\n", "r.yaml:2: a tab cannot indent YAML"),
    whole("a bracket left open", "model: {path: tiny\ndata: x\n", "r.yaml:2: not YAML"),
    whole("a quote left open", "model: 'tiny\n", "not YAML"),
    whole("a colon too many", "model: path: tiny\n", "r.yaml:1: not YAML"),
    whole("JSON with a comment", '{"model": {"path": "tiny"}} // x\n', "r.yaml:1: "),
    whole("NUL", RECIPE + "\0", "r.yaml:5: control character 0x0"),
    whole("an escape code", RECIPE + "a: '\x1b[31m'\n", "r.yaml:5: control character 0x1b"),
    whole("not UTF-8", RECIPE.encode() + b"a: \xe9\n", "r.yaml:5: byte 0xe9 is not UTF-8"),
    whole("UTF-16", RECIPE.encode("utf-16"), "r.yaml:1: byte 0xff is not UTF-8"),
    whole("binary", bytes(range(256)), "r.yaml:"),
    whole("large", "a: " + "x" * 100_000, "r.yaml: larger than 64 kB"),
    whole("nested without end", "a: " + "[" * 30_000, "r.yaml:1: nested more than 16 deep"),
    whole("nested in mappings", "".join(" " * depth + "a:\n" for depth in range(200)), "nested more than 16 deep"),
    whole("a key twice", RECIPE + "train: {steps: 2}\n", "r.yaml:5: key train is given twice (first on line 3)"),
    whole("a tag", RECIPE + "a: !!python/object/apply:os.system ['touch ran']\n", "r.yaml:5: tag !!python/object/apply:os.system is not allowed", complaints=2),
    whole("a tag of one's own", RECIPE.replace("tiny", "!env tiny"), "r.yaml:1: tag !env is not allowed"),
    whole("an anchor", RECIPE.replace("tiny", "&a tiny"), "r.yaml:1: anchor &a is not allowed"),
    whole("an alias", RECIPE.replace("tiny", "*a"), "r.yaml:1: alias *a is not allowed", complaints=2),
    whole("a bomb of aliases", "a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "r.yaml:1: anchor &a is not allowed", complaints=12),
    whole("a merge key", "a: &a {path: tiny}\nmodel:\n  <<: *a\n", "r.yaml:1: anchor &a is not allowed", complaints=6),
    whole("a list as a key", "? [a, b]\n: c\n", "r.yaml:1: a key must be a plain string"),
]  # fmt: skip

KEYS = [
    of_train("an unknown key", "learning_rat: 1e-5", "r.yaml:3: unknown key train.learning_rat; did you mean train.learning_rate?"),
    of_train("a key of others", "num_train_epochs: 3", "did you mean train.epochs?"),
    of_train("code to trust", "trust_remote_code: true", "r.yaml:3: unknown key train.trust_remote_code"),
    changed("code to trust in the model", "path: tiny", "path: tiny, trust_remote_code: true", "r.yaml:1: unknown key model.trust_remote_code"),
    changed("a tokenizer that is not there", "path: tiny", "path: tiny, tokenizer: nowhere", "model.tokenizer: nowhere: no such folder"),
    changed("plugins", "output: run", "output: run\nplugins: [os]", "r.yaml:5: unknown key plugins"),
    changed("a secret's key", "output: run", "output: run\nhub_token: abcdefghijkl", "r.yaml:5: unknown key hub_token"),
    changed("no model", "model: {path: tiny}\n", "", "r.yaml: model is missing"),
    changed("an empty model", "{path: tiny}", "", "r.yaml:1: model.path is missing"),
    changed("a model without a path", "path: tiny", "dtype: auto", "r.yaml:1: model.path is missing"),
    changed("no data", f"data: {SOURCES}}}\n", "", "data is missing"),
    changed("no sources", "[{path: rows.jsonl}]", "[]", "r.yaml:2: data.sources: got an empty list"),
    changed("sources are a text", "[{path: rows.jsonl}]", "rows.jsonl", "r.yaml:2: data.sources: got 'rows.jsonl'; must be a list"),
    changed("a source is a text", "{path: rows.jsonl}", "rows.jsonl", "r.yaml:2: data.sources.0: got 'rows.jsonl'", "such as {path: 'rows.jsonl'}"),
    changed("a section is a list", "{steps: 1}", "[steps]", "r.yaml:3: train: got a list of 1"),
    of_train("a rate in quotes", 'learning_rate: "1e-5"', "write it without quotes"),
    of_train("a rate of words", "learning_rate: fast", "r.yaml:3: train.learning_rate: got 'fast'; must be a number"),
    of_train("a rate below 0", "learning_rate: -1e-5", "r.yaml:3: train.learning_rate: got -1e-05"),
    of_train("a rate of 0", "learning_rate: 0", "train.learning_rate: got 0"),
    of_train("a rate above 1", "learning_rate: 100", "train.learning_rate: got 100"),
    of_train("a rate that is no number", "learning_rate: .nan", "train.learning_rate: got nan; must be a number"),
    of_train("an infinite rate", "learning_rate: .inf", "train.learning_rate: got inf"),
    of_train("a rate that overflows", "learning_rate: 1e999", "train.learning_rate: got inf"),
    of_train("a leading zero", "steps: 012", "train.steps: got '012'; must be a whole number"),
    of_train("minutes", "steps: 12:30", "train.steps: got '12:30'"),
    of_train("a date", "steps: 2024-01-01", "train.steps: got '2024-01-01'"),
    of_train("an underscore", "steps: 1_000", "train.steps: got '1_000'"),
    of_train("a fraction of a step", "steps: 1.5", "train.steps: got 1.5; must be a whole number"),
    of_train("a whole float", "steps: 2.0", "must be a whole number; write 2"),
    of_train("no steps", "steps: 0", "train.steps: got 0"),
    of_train("a step below 0", "steps: -1", "train.steps: got -1"),
    of_train("true", "steps: true", "train.steps: got true"),
    of_train("no, the word", "trackers: no", "train.trackers: got 'no'; must be a list"),
    of_train("an unknown tracker", "trackers: [mlflow]", "train.trackers.0: got 'mlflow'"),
    of_train("a schedule that is none", "schedule: cosin", "did you mean cosine?"),
    of_train("one beta", "betas: [0.9]", "train.betas: got a list of 1"),
    of_train("no seed", "seed: -1", "train.seed: got -1"),
    of_train("a large seed", "seed: 99999999999", "train.seed: got 99999999999"),
    of_train("a huge number", f"steps: {'9' * 400}", "train.steps: got"),
    of_train("epochs without end", "epochs: 1e9", "train.epochs: got 1000000000.0"),
    of_train("packs too small", "batch_tokens: 8", "r.yaml:3: train.batch_tokens: got 8; must be at least data.max_length"),
    changed("yes for true", SOURCES, SOURCES + ", packing: yes", "data.packing: got 'yes'; must be true or false"),
    changed("a length of 1", "max_length: 256", "max_length: 1", "data.max_length: got 1"),
    changed("a length past all", "max_length: 256", "max_length: 1e9", "data.max_length: got 1000000000.0"),
    changed("a number for a path", "path: rows.jsonl", "path: 5", "data.sources.0.path: got 5; must be a string"),
    changed("an empty path", "path: rows.jsonl", "path: ''", "data.sources.0.path: got ''; must not be empty"),
    changed("an unexpanded variable", "path: rows.jsonl", "path: '${DATA}/rows.jsonl'", "got '${DATA}/rows.jsonl'; there is no such data file"),
    changed("an interpolation", "path: rows.jsonl", "path: '${oc.env:HOME}'", "got '${oc.env:HOME}'; there is no such data file"),
    changed("an unknown format", "path: rows.jsonl", "path: rows.jsonl, format: xml", "data.sources.0.format: got 'xml'"),
    changed("another format", "path: rows.jsonl", "path: rows.jsonl, format: alpaca", "rows.jsonl:1: format alpaca needs"),
    changed("an unknown mapping", "path: rows.jsonl", "path: rows.jsonl, columns: gsm9k", "did you mean gsm8k?"),
    changed("a split of a file", "path: rows.jsonl", "path: rows.jsonl, revision: main", "only a hub dataset has one"),
    changed("a weight of 0", "path: rows.jsonl", "path: rows.jsonl, weight: 0", "data.sources.0.weight: got 0"),
    changed("shares of nothing", SOURCES, SOURCES + ", weight_by: tokens", "data.weight_by: got tokens; no source has a weight"),
    changed("two ways to hold out", SOURCES, SOURCES + ", eval: {count: 1, fraction: 0.5}", "give fraction or count, not both"),
    changed("all held out", SOURCES, SOURCES + ", eval: {count: 100}", "data.eval.count"),
    changed("answers to nothing", "output: run", "output: run\nevaluate: {answers: 3}", "r.yaml:5: evaluate.answers: got 3; needs held-out rows"),
    changed("an empty sample", "output: run", "output: run\nevaluate: {samples: ['']}", "evaluate.samples.0: got ''; must not be empty"),
    changed("an output below a file", "output: run", "output: rows.jsonl/run", "output: "),
    changed("an output that is a file", "output: run", "output: rows.jsonl", "r.yaml:4: output: got 'rows.jsonl', which is a file"),
    changed("an output in use", "output: run", "output: other", "output: ", "give another output", files={"other/thesis.txt": "mine"}),
    changed("an output of a device", "output: run", "output: /dev/null", "r.yaml:4: output: got '/dev/null'"),
    changed("an output in /proc", "output: run", "output: /proc/run", "output: cannot write in /proc/run", status=(2, 5)),
    changed("an output that is a link to nothing", "output: run", "output: link", "output", files={"link": lambda path: path.symlink_to("/nowhere/at/all")}, status=(2, 5)),
    changed("a mirror of no kind", "output: run", "output: run\nmirror: s4://a/b", "mirror: 's4://a/b' must be a folder or s3://"),
    changed("a mirror in the output", "output: run", "output: run\nmirror: run/m", "mirror: run/m and output run must not lie in one another"),
    changed("a mirror around the output", "output: run", "output: run\nmirror: .", "mirror: . and output run must not lie in one another"),
    changed("a mirror in use", "output: run", "output: run\nmirror: other", "mirror: other holds thesis.txt", files={"other/thesis.txt": "mine"}),
    changed("a mirror that is a file", "output: run", "output: run\nmirror: rows.jsonl", "mirror: rows.jsonl cannot be", status=(2, 3)),
    changed("a mirror with a password", "output: run", "output: run\nmirror: 'ssh://me:abcdefgh@host/m'", "r.yaml:5: mirror: holds a secret"),
    changed("a mirror whose package is missing", "output: run", "output: run\nmirror: 'az://runs/m'", "mirror: az://runs/m needs a package that is not installed; pip install adlfs", status=(3,)),
    changed("an output too long", "output: run", f"output: {'x' * 300}", "output: ", status=(2, 5)),
    changed("an unknown preset", "path: tiny", "path: tny", "tny", status=(2, 3)),
    changed("a shape", "path: tiny", "path: 7B", "r.yaml:1: model.path: got 7B, a shape without weights"),
    changed("a model's address", "path: tiny", "path: 'https://huggingface.co/a/b'", "r.yaml:1: model.path", "there is no such model folder"),
    changed("a model folder that is not there", "path: tiny", "path: ./models/mine", "r.yaml:1: model.path: got './models/mine'; there is no such model folder"),
    changed("a hub's model without a network", "path: tiny", "path: no-such-owner/no-such-model", "no-such-owner/no-such-model", status=(3,)),
    changed("a hub's data without a network", "path: rows.jsonl", "path: no-such-owner/no-such-set", "no-such-owner/no-such-set", status=(3,)),
    changed("adapters on nothing", "path: tiny", "path: tiny, from_scratch: true, lora: {}", "r.yaml:1: model.lora: needs trained weights"),
    changed("adapters of nothing", "path: tiny", "path: tiny, lora: {targets: lm_head}", "model.lora.targets: got 'lm_head'"),
    changed("adapters on layers that hold nothing of the set", "path: tiny", "path: tiny, lora: {targets: delta, layers: [3]}", "model.lora.layers: got [3]; none of them has what model.lora.targets: delta names"),
    changed("adapters of rank 0", "path: tiny", "path: tiny, lora: {rank: 0}", "model.lora.rank: got 0"),
    changed("adapters of a module that is not there", "path: tiny", "path: tiny, lora: {modules: [q_prj]}", "model.lora.modules: 'q_prj' names no module"),
    changed("adapters of a convolution", "path: tiny", "path: tiny, lora: {modules: [conv1d]}", "conv1d, which cannot be adapted: a convolution"),
    changed("a template's own argument", "path: tiny", "path: tiny, chat_template_kwargs: {messages: []}", "r.yaml:1: model.chat_template_kwargs.messages: got an empty list; a chat template has messages from elsewhere"),
    changed("an argument that the template does not use", "path: tiny", "path: tiny, chat_template_kwargs: {enable_thinkin: true}", "model.chat_template_kwargs.enable_thinkin: got true; chat template (the tokenizer's own) does not use it"),
    changed("a word for reasoning", "sources:", "reasoning: keep, sources:", "r.yaml:2: data.reasoning: got 'keep'"),
    changed("a new token twice", "path: tiny", "path: tiny, new_tokens: [zzz, zzz]", "r.yaml:1: model.new_tokens.1: got 'zzz' twice"),
    changed("a new token that is there", "path: tiny", "path: tiny, new_tokens: [a]", "model.new_tokens: 'a' is a token of the tokenizer already"),
    changed("a broken pattern", "path: tiny", "path: tiny, lora: {modules: ['(q']}", "r.yaml:1: model.lora.modules.0: got '(q'"),
    changed("an adapted module trained whole", "path: tiny", "path: tiny, lora: {modules_to_save: [mlp.up_proj]}", "up_proj, which is adapted; it can be one of the two"),
    changed("a start that is none", "path: tiny", "path: tiny, lora: {init: loftq}", "r.yaml:1: model.lora.init: got 'loftq'"),
    changed("LoRA+ of nothing", "steps: 1", "steps: 1, loraplus_ratio: 4", "r.yaml:3: train.loraplus_ratio: got 4; it is LoRA's"),
    changed("a number type that is none", "path: tiny", "path: tiny, dtype: float8", "model.dtype: got 'float8'"),
    changed("a template's name", "path: tiny", "path: tiny, chat_template: olmo-instrct", "did you mean olmo-instruct?"),
    changed("a section for pairs", "output: run", "output: run\ndpo: {}", "r.yaml:5: dpo: this recipe is for pairs"),
    Case("recipe: an unknown loss", ("dpo.loss: got 'sigmod'", "did you mean sigmoid?"), ("dpo", "r.yaml"), PAIRS.replace("{pairs_", "{loss: sigmod, pairs_")),
    Case("recipe: a large beta", ("r.yaml:5: dpo.beta: got 5",), ("dpo", "r.yaml"), PAIRS.replace("{pairs_", "{loss: sigmoid, beta: 5, pairs_")),
    Case("recipe: a beta of 0", ("r.yaml:5: dpo.beta: got 0",), ("dpo", "r.yaml"), PAIRS.replace("{pairs_", "{beta: 0, pairs_")),
    Case("recipe: accumulation for pairs", ("r.yaml:3: train.accumulation: got 2",), ("dpo", "r.yaml"), PAIRS.replace("{steps: 1}", "{steps: 1, accumulation: 2}")),
    overridden("shared tokens of padded rows", "train.sequence_parallel=2", "data.packing=false", says="train.sequence_parallel: got 2; needs packed rows"),
    of_train("tokens shared by more than there are", "steps: 1, sequence_parallel: 2", "train.sequence_parallel: got 2; must divide the number of processes (1)"),
    changed("a section for judged answers", "output: run", "output: run\nkto: {}", "r.yaml:5: kto: this recipe is for judged answers"),
    changed("a section for scores", "output: run", "output: run\nreward: {}", "r.yaml:5: reward: this recipe is for a reward model"),
    Case("recipe: answers of scores", ("evaluate.answers: got 3; a reward model writes no answers",), ("reward", "r.yaml"), REWARD.replace("max_length", "eval: {count: 1}, max_length") + "evaluate: {answers: 3}\n"),
    Case("recipe: samples of scores", ("evaluate.samples: got a list of 1; a reward model writes no answers",), ("reward", "r.yaml"), REWARD + "evaluate: {samples: [hm]}\n"),
    Case("recipe: scores from scratch", ("model.from_scratch: got true; a reward model needs",), ("reward", "r.yaml"), REWARD.replace("path: tiny", "path: tiny, from_scratch: true")),
    Case("recipe: new tokens for scores", ("model.new_tokens: got a list of 1; no model that it is to score",), ("reward", "r.yaml"), REWARD.replace("path: tiny", "path: tiny, new_tokens: [<x>]")),
    Case("recipe: scores drawn by nothing", ("reward.center_rewards_coefficient: got 0",), ("reward", "r.yaml"), REWARD.replace("{pairs_", "{center_rewards_coefficient: 0, pairs_")),
    Case("recipe: two stages", ("r.yaml:6: kto: got dpo and kto",), ("data", "r.yaml"), PAIRS + "kto: {}\n"),
    Case("recipe: a KL term of one row", ("r.yaml:5: kto.rows_per_step: got 1",), ("kto", "r.yaml"), JUDGED.replace("step: 2", "step: 1")),
    Case("recipe: no weight at all", ("kto.undesirable_weight: got 0",), ("kto", "r.yaml"), JUDGED.replace("{rows_", "{desirable_weight: 0, undesirable_weight: 0, rows_")),
    Case("recipe: an unknown loss of kto", ("r.yaml:5: kto.loss: got 'apo'",), ("kto", "r.yaml"), JUDGED.replace("{rows_", "{loss: apo, rows_")),
    Case("recipe: dropout beside kto", ("model.lora.dropout: got 0.1",), ("kto", "r.yaml"), JUDGED.replace("path: tiny", "path: tiny, lora: {dropout: 0.1}")),
    Case("recipe: several mistakes", ("r.yaml:1: model.dtype", "r.yaml:3: train.steps", "r.yaml:4: output"), recipe=RECIPE.replace("tiny", "tiny, dtype: x").replace("steps: 1", "steps: x").replace("output: run", "output: 5"), complaints=3),
]  # fmt: skip

OVERRIDES = [
    overridden("an unknown key", "train.stps=3", says="override train.stps: unknown key train.stps; did you mean train.steps?"),
    overridden("no value", "train.steps", says="override 'train.steps': must be key=value"),
    overridden("no key", "=3", says="override '=3': must be key=value"),
    overridden("an empty part", "train..steps=3", says="must be key=value"),
    overridden("a wrong value", "train.steps=many", says="override train.steps: got 'many'; must be a whole number"),
    overridden("a key below a text", "output.x=3", says="override output.x: output is 'run', which has no key 'x'"),
    overridden("a source too far", "data.sources.7.path=x", says="data.sources has no item '7'; must be 0"),
    overridden("a source by name", "data.sources.first.path=x", says="data.sources has no item 'first'"),
    overridden("broken YAML", "train.betas=[0.9", says="override train.betas: not YAML"),
    overridden("a tag", "model.path=[!!python/name:os.system x]", says="is not allowed"),
    overridden("an alias", "train.betas=[*a]", says="alias *a is not allowed"),
    overridden("a control character", "output=a\x1b[31mb", says="override output: character 0x1b is not allowed"),
    overridden("half a character", "output=a\udce9b", says="override output: character 0xdce9 is not allowed"),
    overridden("a line end", "output=a\nb", says="override output: got 'a\\nb', which holds a line end"),
    overridden("a section for a value", "train=3", says="override train: got 3; must be a mapping of keys"),
]  # fmt: skip

COMMANDS = [
    command("no recipe", "sft", says="Missing argument 'RECIPE'"),
    command("a recipe that is not there", "sft", "gone.yaml", says="gone.yaml: no such recipe file"),
    command("a recipe nearly there", "sft", "quickstart/sf", says="did you mean quickstart/sft?"),
    command("a folder", "sft", ".", says=".: is a folder; give a recipe file"),
    command("a recipe's address", "sft", "https://example.com/r.yaml", says="no such recipe file"),
    command("a pipe", "sft", "pipe.yaml", says="pipe.yaml: no such recipe file", files={"pipe.yaml": os.mkfifo}),
    command("an unknown command", "sfr", "r.yaml", says="No such command 'sfr'"),
    command("an unknown option", "sft", "r.yaml", "--steps", "3", says="No such option: --steps"),
    command("an empty name", "sft", "", says="error: "),
    command("data of a file of stages", "data", "quickstart", says="stages: this file holds stages"),
    command("a recipe as stages", "run", "r.yaml", says="r.yaml: stages is missing: this is a recipe"),
    command("scores of a language model", "score", "tiny", "--rows", "p.jsonl", says="tiny: holds a language model, which gives no scores", files={"p.jsonl": "{}"}),
    command("prompts that are not there", "generate", "tiny", "--prompts", "gone.txt", says="gone.txt: cannot be read (No such file or directory)"),
    command("prompts in a folder", "generate", "tiny", "--prompts", "p.txt", says="p.txt: cannot be read (Is a directory)", files={"p.txt": lambda path: path.mkdir()}),
    command("prompts in a pipe", "generate", "tiny", "--prompts", "p.txt", says="p.txt: is neither a file nor", files={"p.txt": os.mkfifo}),
    command("prompts of another kind", "generate", "tiny", "--prompts", "p.csv", says="p.csv: must end in .txt", files={"p.csv": "x"}),
    command("no prompts", "generate", "tiny", "--prompts", "p.txt", says="p.txt: holds no prompt", files={"p.txt": "\n\n"}),
    command("prompts not UTF-8", "generate", "tiny", "--prompts", "p.txt", says="p.txt:2: byte 0xe9 is not UTF-8", files={"p.txt": b"a\n\xe9\n"}),
    command("prompts in UTF-16", "generate", "tiny", "--prompts", "p.txt", says="p.txt:1: is UTF-16", files={"p.txt": "a".encode("utf-16")}),
    command("a NUL byte in a prompt", "generate", "tiny", "--prompts", "p.jsonl", says="p.jsonl:1: holds a NUL byte", files={"p.jsonl": '{"prompt": "a\0"}'}),
    command("a prompt that is no object", "generate", "tiny", "--prompts", "p.jsonl", says="p.jsonl:1: must be an object", files={"p.jsonl": "[1]\n"}),
    command("a prompt that is a number", "generate", "tiny", "--prompts", "p.jsonl", says='p.jsonl:1: "prompt" must be a string', files={"p.jsonl": '{"prompt": 5}\n'}),
    command("a prompt twice", "generate", "tiny", "--prompts", "p.jsonl", says="p.jsonl:1: key 'prompt' is given twice", files={"p.jsonl": '{"prompt": "a", "prompt": "b"}\n'}),
    command("NaN beside a prompt", "generate", "tiny", "--prompts", "p.jsonl", says="p.jsonl:1: NaN is not a JSON number", files={"p.jsonl": '{"prompt": "a", "x": NaN}\n'}),
    command("half a character in a prompt", "generate", "tiny", "--prompts", "p.jsonl", says="p.jsonl:1: ", files={"p.jsonl": '{"prompt": "\\ud800"}\n'}),
    command("prompts nested without end", "generate", "tiny", "--prompts", "p.jsonl", says="p.jsonl:1: ", files={"p.jsonl": "[" * 100_000}),
    command("a conversation that is answered", "generate", "tiny", "--prompts", "p.jsonl", says="p.jsonl:1: messages must end on a turn that waits for an answer", files={"p.jsonl": lines(ROW)}),
    command("a conversation with an image", "generate", "tiny", "--prompts", "p.jsonl", says="p.jsonl:1: messages[0].content[0]", files={"p.jsonl": lines({"messages": [{"role": "user", "content": [{"type": "image"}]}]})}),
    command("an unknown role", "generate", "tiny", "--prompts", "p.jsonl", says="p.jsonl:1: messages[0].role", files={"p.jsonl": lines({"messages": [{"role": "bard", "content": "x"}]})}),
    command("answers into a folder that is not there", "generate", "tiny", "--prompts", "p.txt", "--out", "no/where.jsonl", says="no/where.jsonl: its folder does not exist", files={"p.txt": "x"}),
    command("answers over the prompts", "generate", "tiny", "--prompts", "p.jsonl", "--out", "p.jsonl", says="p.jsonl: is the file of prompts", files={"p.jsonl": '{"prompt": "x"}\n'}),
    command("a temperature below 0", "generate", "tiny", "--prompts", "p.txt", "--temperature", "-1", says="Invalid value for '--temperature'"),
    command("a temperature that is no number", "generate", "tiny", "--prompts", "p.txt", "--temperature", "nan", says="--temperature", files={"p.txt": "x"}),
    command("a chat with nothing", "chat", "gone/model/folder", says="gone/model/folder: no such folder"),
    command("a chat with a file", "chat", "rows.jsonl", says="rows.jsonl: is a file"),
    command("a chat with an address", "chat", "https://example.com/m", says="https://example.com/m: no such folder"),
]  # fmt: skip

TEMPLATES = [
    templated("not there", lambda path: None, "r.yaml:1: model.chat_template: got 't.jinja'"),
    templated("empty", "", "model.chat_template: t.jinja does not write user and assistant turns"),
    templated("a syntax error", "{% for m in messages %}", "model.chat_template: chat template t.jinja fails on any row"),
    templated("an unknown filter", "{{ messages | nope }}", "model.chat_template: chat template t.jinja fails on any row"),
    templated("an unknown name", "{{ nothing.at.all }}", "model.chat_template: chat template t.jinja fails on any row"),
    templated("not UTF-8", b"\xff\xfe{{", "model.chat_template: t.jinja is not UTF-8"),
    templated("large", CHATML + "x" * 2**21, "model.chat_template: t.jinja is larger than"),
    templated("a fixed text", "hello", "does not write user and assistant turns as they are"),
    templated("without ends", "{% for m in messages %}{{ m.content }}{% endfor %}", "model.chat_template: t.jinja"),
    templated("tokens of others", CHATML.replace("im_end", "eot_id"), "t.jinja writes <|eot_id|>, which is not one token"),
    templated("an error of its own", "{{ raise_exception('no') }}", "fails on any row (no)"),
    templated("another file's text", "{% include '/etc/passwd' %}", "fails on any row"),
]  # fmt: skip

MAPPINGS = [
    mapped("empty", "", "c.yaml: is empty; a column mapping must be a mapping"),
    mapped("an unknown key", "signature: []\nmesages: []\n", "c.yaml:2: unknown key mesages", complaints=2),
    mapped("a tag", "about: !!python/name:os.system x\n", "c.yaml:1: tag !!python/name:os.system is not allowed", complaints=2),
    mapped("not there", lambda path: None, "r.yaml:2: data.sources.0.columns: got 'c.yaml'"),
]  # fmt: skip

STAGES = [
    staged("none", "stages: []\n", "s.yaml:1: stages: got an empty list; must have at least 1 item"),
    staged("a text", "stages: sft\n", "s.yaml:1: stages: got 'sft'; must be a list"),
    staged("an unknown stage", "stages: [{ppo: r.yaml}]\n", "s.yaml:1: unknown key stages.0.ppo; did you mean stages.0.dpo?"),
    staged("a stage without a recipe", "stages: [{sft: gone.yaml}]\n", "gone.yaml: no such recipe file"),
    staged("an unknown key", "stages: [{sft: r.yaml}]\nstage: 1\n", "s.yaml:2: unknown key stage; did you mean stages?"),
    staged("an export alone", "stages: [{export: {}}]\n", "s.yaml:1: stages.0: got export; the first stage must train"),
    staged("an export's type", "stages: [{sft: r.yaml}, {export: {dtype: int8}}]\n", "export.dtype: got 'int8'"),
    staged("a bad recipe", "stages: [{sft: r.yaml}]\n", "r.yaml:3: train.steps: got 0", recipe=RECIPE.replace("steps: 1", "steps: 0")),
    staged("a bad recipe inside", "stages:\n  - sft: {model: {path: tiny}, data: {sources: [{path: rows.jsonl}]}, train: {steps: 0}}\n", "s.yaml:2: train.steps: got 0"),
    staged("bad rows", "stages: [{sft: r.yaml}]\n", "stage 1, sft: rows.jsonl:1: messages is empty", files={"rows.jsonl": lines({"messages": []})}),
    staged("a key of questions", "stages: [{sft: r.yaml}]\nevaluate: {sources: [rows.jsonl], max_new_token: 3}\n", "s.yaml:2: unknown key evaluate.max_new_token; did you mean evaluate.max_new_tokens?"),
    staged("a section's slip", "stages: [{sft: r.yaml}]\nevalute: {}\n", "s.yaml:2: unknown key evalute; did you mean evaluate?"),
    staged("questions that are not there", "stages: [{sft: r.yaml}]\nevaluate: {sources: [gone.jsonl]}\n", "gone.jsonl"),
    staged("a key twice", "stages: [{sft: r.yaml}]\nstages: [{sft: r.yaml}]\n", "s.yaml:2: key stages is given twice"),
]  # fmt: skip

CASES = [*SYNTAX, *KEYS, *OVERRIDES, *COMMANDS, *TEMPLATES, *MAPPINGS, *STAGES]
