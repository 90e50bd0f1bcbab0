"""Bad model folders, tokenizers and adapters: a copy of the bundled base with one thing wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from refusals import OF_MODEL, PAIRS, Case
from safetensors.torch import load, save_file

WEIGHTS = "model.safetensors"
A_TENSOR = "model.layers.0.mlp.up_proj.weight"
Damage = Callable[[Path], None]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Not mapped from the file, which will be written over."""
    return load((folder / WEIGHTS).read_bytes())


def with_json(file: str, **changes: Any) -> Damage:
    """Keys of a JSON file changed; a value ``...`` takes the key away."""

    def damage(folder: Path) -> None:
        raw = json.loads((folder / file).read_text())
        raw |= {key: value for key, value in changes.items() if value is not ...}
        for key in [key for key, value in changes.items() if value is ...]:
            raw.pop(key, None)
        (folder / file).write_text(json.dumps(raw))

    return damage


def with_config(**changes: Any) -> Damage:
    return with_json("config.json", **changes)


def with_bytes(file: str, content: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / file
        path.write_bytes(content(path.read_bytes() if path.exists() else b""))

    return damage


def without(*files: str) -> Damage:
    def damage(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return damage


def with_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = tensors_of(folder)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def sharded(damage: Callable[[Path, dict[str, str]], None]) -> Damage:
    """The weights in two files with an index, then damaged; ``damage`` may change the index."""

    def made(folder: Path) -> None:
        tensors = tensors_of(folder)
        names = sorted(tensors)
        index = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
        for file in sorted(set(index.values())):
            save_file({name: tensors[name] for name in names if index[name] == file}, folder / file)
        (folder / WEIGHTS).unlink()
        damage(folder, index)
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))

    return made


def header(text: bytes, length: int | None = None) -> Callable[[bytes], bytes]:
    return lambda _: (len(text) if length is None else length).to_bytes(8, "little") + text


def with_template(template: Any) -> Damage:
    """The tokenizer's own template as its config has it; the file beside it would come first."""

    def damage(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        with_json("tokenizer_config.json", chat_template=template)(folder)

    return damage


def of_model(name: str, damage: Damage, *says: str, **more: Any) -> Case:
    return Case(f"model: {name}", says, recipe=OF_MODEL, model=damage, **more)


def asked(name: str, damage: Damage, *says: str, **more: Any) -> Case:
    """The same folder given to chat."""
    return Case(f"asked: {name}", says, ("chat", "model"), recipe=OF_MODEL, model=damage, **more)


def adapter(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None] | None = None) -> Damage:
    """The folder becomes an adapter of the bundled base, ``change`` being made to its config and weights."""

    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "config.json").unlink()
        module = "base_model.model.model.layers.0.mlp.up_proj"
        tensors = {f"{module}.lora_A.weight": torch.zeros(2, 128), f"{module}.lora_B.weight": torch.zeros(352, 2)}
        config = {"peft_type": "LORA", "base_model_name_or_path": "tiny", "r": 2, "lora_alpha": 4}
        config |= {"target_modules": ["up_proj"], "task_type": "CAUSAL_LM"}
        if change:
            change(config, tensors)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "adapter_model.safetensors")

    return damage


def configured(**changes: Any) -> Damage:
    return adapter(lambda config, _: config.update(changes))


def of_adapter(name: str, damage: Damage, *says: str, **more: Any) -> Case:
    return Case(f"adapter: {name}", says, ("chat", "model"), model=damage, **more)


def renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


def pickled(folder: Path) -> None:
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def by_another_name(folder: Path) -> None:
    torch.save(tensors_of(folder), folder / WEIGHTS)


def larger_tokenizer(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    token = {"id": 5000, "content": "<far>", "special": True, "single_word": False}
    raw["added_tokens"].append(token | {"lstrip": False, "rstrip": False, "normalized": False})
    raw["model"]["vocab"]["<far>"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def nothing(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def not_finite(value: float) -> Damage:
    return with_tensors(lambda tensors: tensors[A_TENSOR].view(-1)[5:6].fill_(value))


CONFIGS = [
    of_model("an empty folder", nothing, "model"),
    of_model("no config", without("config.json"), "model/config.json: missing"),
    of_model("an empty config", with_bytes("config.json", lambda _: b""), "model/config.json: the file is empty"),
    of_model("a config cut short", with_bytes("config.json", lambda whole: whole[:80]), "model/config.json: not JSON"),
    of_model("a config that is a list", with_bytes("config.json", lambda _: b"[]"), "model/config.json: not a JSON object"),
    of_model("a config nested without end", with_bytes("config.json", lambda _: b"[" * 100_000), "model/config.json: not JSON"),
    of_model("a config not UTF-8", with_bytes("config.json", lambda _: b'{"a": "\xe9"}'), "model/config.json: not JSON"),
    of_model("another architecture", with_config(model_type="llama"), "model/config.json: model_type is 'llama'"),
    of_model("no architecture", with_config(model_type=...), "model/config.json: model_type is 'None'"),
    of_model("an architecture that is a list", with_config(model_type=["olmo_hybrid"]), "model"),
    of_model("layers in words", with_config(num_hidden_layers="4"), "model/config.json: "),
    of_model("no layers", with_config(num_hidden_layers=0, layer_types=[]), "model"),
    of_model("layers below 0", with_config(num_hidden_layers=-1), "model"),
    of_model("a million layers", with_config(num_hidden_layers=10**6, layer_types=...), "model/config.json: num_hidden_layers is 1000000"),
    of_model("kinds of layers that are too few", with_config(layer_types=["full_attention"]), "model"),
    of_model("an unknown kind of layer", with_config(layer_types=["mamba"] * 4), "model"),
    of_model("kinds of layers in a text", with_config(layer_types="linear"), "model"),
    of_model("a width of 0", with_config(hidden_size=0), "model"),
    of_model("a width below 0", with_config(hidden_size=-128), "model"),
    of_model("another width", with_config(hidden_size=64), "model/model.safetensors: tensor", "its config.json asks for"),
    of_model("a width without end", with_config(hidden_size=10**12), "model"),
    of_model("heads that do not divide", with_config(num_attention_heads=7), "model"),
    of_model("no heads", with_config(num_attention_heads=0), "model"),
    of_model("a vocabulary below 0", with_config(vocab_size=-1), "model"),
    of_model("a small vocabulary", with_config(vocab_size=512), "model"),
    of_model("an activation that is none", with_config(hidden_act="import os"), "model"),
    of_model("rope in words", with_config(rope_parameters="yes"), "model/config.json: rope_parameters is 'yes'"),
    of_model("rope of an unknown type", with_config(rope_parameters={"rope_theta": 1e4, "rope_type": "nope"}), "model"),
    of_model("a theta in words", with_config(rope_parameters={"rope_theta": "x"}), "model"),
    of_model("a number type that is none", with_config(dtype="float7"), "model"),
    of_model("quantised weights", with_config(quantization_config={"quant_method": "bitsandbytes"}), "model/config.json: quantization_config"),
]  # fmt: skip

FILES = [
    of_model("no weights", without(WEIGHTS), "model: no model.safetensors"),
    of_model("pickled weights", pickled, "model: no model.safetensors", "safetensors files only"),
    of_model("pickled weights by another name", by_another_name, "model/model.safetensors: "),
    of_model("empty weights", with_bytes(WEIGHTS, lambda _: b""), "model/model.safetensors: 0 bytes end before"),
    of_model("weights cut short", with_bytes(WEIGHTS, lambda whole: whole[:-1000]), "model/model.safetensors: ", "is damaged, copy it again"),
    of_model("weights cut in the header", with_bytes(WEIGHTS, lambda whole: whole[:100]), "cut short, copy it again"),
    of_model("weights with more behind", with_bytes(WEIGHTS, lambda whole: whole + b"x"), "model/model.safetensors: ", "is damaged"),
    of_model("zeros", with_bytes(WEIGHTS, lambda whole: bytes(len(whole))), "model/model.safetensors: "),
    of_model("a header of a terabyte", with_bytes(WEIGHTS, header(b"{}", 2**40)), "model/model.safetensors: "),
    of_model("a header that is no JSON", with_bytes(WEIGHTS, header(b"hello")), "not a safetensors file"),
    of_model("a header that is a list", with_bytes(WEIGHTS, header(b"[]")), "not a safetensors file"),
    of_model("a header nested without end", with_bytes(WEIGHTS, header(b"[" * 100_000)), "not a safetensors file"),
    of_model("an empty header", with_bytes(WEIGHTS, header(b"{}")), "model: "),
    of_model("a large header", with_bytes(WEIGHTS, header(b'{"a":"' + b"x" * 2**25 + b'"}')), "larger than any model's"),
    of_model("weights in a folder", lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir())[1], "model: no model.safetensors"),
    of_model("a tensor missing", with_tensors(lambda tensors: tensors.pop(A_TENSOR)), f"tensor {A_TENSOR} is missing (1 of"),
    of_model("a tensor too many", with_tensors(lambda tensors: tensors.update(more=torch.zeros(2))), "tensor more is not part of the model"),
    of_model("a tensor of another shape", with_tensors(lambda tensors: tensors.update({A_TENSOR: torch.zeros(3, 3)})), f"tensor {A_TENSOR} has shape [3, 3]"),
    of_model("a tensor of integers", with_tensors(lambda tensors: tensors.update({A_TENSOR: tensors[A_TENSOR].int()})), f"tensor {A_TENSOR} is I32"),
    of_model("a tensor by another name", with_tensors(lambda tensors: renamed(tensors, A_TENSOR, "x")), f"tensor {A_TENSOR} is missing"),
    of_model("NaN", not_finite(float("nan")), f"tensor {A_TENSOR} holds values that are not finite", loads=True),
    of_model("infinity", not_finite(float("inf")), f"tensor {A_TENSOR} holds values that are not finite", loads=True),
    of_model("a shard missing", sharded(lambda folder, _: (folder / "model-00002-of-00002.safetensors").unlink()), "model/model-00002-of-00002.safetensors: missing"),
    of_model("a shard cut short", sharded(lambda folder, _: with_bytes("model-00001-of-00002.safetensors", lambda whole: whole[:-9])(folder)), "model/model-00001-of-00002.safetensors: "),
    of_model("an index to elsewhere", sharded(lambda _, index: index.update({A_TENSOR: "../../x.safetensors"})), "missing, but"),
    of_model("an index to the wrong shard", sharded(lambda _, index: index.update(dict.fromkeys(index, "model-00001-of-00002.safetensors"))), "is missing, but"),
    of_model("an index that is no JSON", lambda folder: (folder / f"{WEIGHTS}.index.json").write_text("{") and None, "not an index of weight files"),
    of_model("an index that is a list", lambda folder: (folder / f"{WEIGHTS}.index.json").write_text("[]") and None, "not an index of weight files"),
    of_model("an index of numbers", lambda folder: (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": 1}}') and None, "model"),
    of_model("an empty index", lambda folder: (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {}}') and None, "model"),
    Case("model: a shard missing, for pairs", ("missing, but",), ("dpo", "r.yaml"), PAIRS.replace("tiny", "model"), model=sharded(lambda folder, _: (folder / "model-00002-of-00002.safetensors").unlink())),
]  # fmt: skip

TOKENIZERS = [
    of_model("no tokenizer", without("tokenizer.json", "tokenizer_config.json"), "model/tokenizer.json: missing"),
    of_model("a tokenizer cut short", with_bytes("tokenizer.json", lambda whole: whole[:500]), "model/tokenizer.json: not JSON"),
    of_model("a tokenizer without a model", with_json("tokenizer.json", model=...), "model/tokenizer.json: holds no tokenizer"),
    of_model("a tokenizer whose model is null", with_json("tokenizer.json", model=None), "tokenizer"),
    of_model("a tokenizer of an unknown kind", with_json("tokenizer.json", model={"type": "Nope", "vocab": {}}), "tokenizer model: cannot be read"),
    of_model("a tokenizer with an empty vocabulary", with_json("tokenizer.json", model={"type": "BPE", "vocab": {}, "merges": []}), "model"),
    of_model("a tokenizer with added tokens in a text", with_json("tokenizer.json", added_tokens="x"), "tokenizer model: cannot be read"),
    of_model("a larger tokenizer", larger_tokenizer, "model.path: the tokenizer of model needs an embedding of 5,001 rows"),
    of_model("a tokenizer's config that is a list", with_bytes("tokenizer_config.json", lambda _: b"[]"), "model/tokenizer_config.json: not a JSON object"),
    of_model("a template that is a number", with_template(5), "template"),
    of_model("templates by name without a default", with_template([{"name": "a", "template": "x"}]), "model.chat_template"),
    of_model("no template", with_template(...), "model.chat_template: the tokenizer has none"),
    of_model("an empty template", with_template(""), "model.chat_template"),
    of_model("an end token that is a number", with_json("tokenizer_config.json", eos_token=5), "tokenizer"),
    asked("no config", without("config.json"), "model/config.json: missing"),
    asked("weights cut short", with_bytes(WEIGHTS, lambda whole: whole[:-1000]), "model/model.safetensors: "),
    asked("pickled weights", pickled, "model: no model.safetensors"),
    asked("a larger tokenizer", larger_tokenizer, "the tokenizer needs an embedding of 5,001 rows"),
    asked("no template", with_template(...), "its tokenizer has no chat template"),
    asked("templates by name without a default", with_template([{"name": "a", "template": "x"}]), "chat template"),
    asked("NaN", not_finite(float("nan")), "not finite", loads=True),
    asked("a generation config cut short", with_bytes("generation_config.json", lambda whole: whole[:20]), "model/generation_config.json: not JSON"),
    asked("a generation config that is a list", with_bytes("generation_config.json", lambda _: b"[]"), "model/generation_config.json: not a JSON object"),
    asked("an end token in words", with_json("generation_config.json", eos_token_id="end"), "model/generation_config.json: eos_token_id"),
    asked("an end token out of range", with_json("generation_config.json", eos_token_id=[1, 99999]), "model/generation_config.json: eos_token_id"),
]  # fmt: skip

ADAPTERS = [
    of_adapter("no weights", lambda folder: (adapter()(folder), without("adapter_model.safetensors")(folder))[1], "adapter_model.safetensors is missing"),
    of_adapter("weights cut short", lambda folder: (adapter()(folder), with_bytes("adapter_model.safetensors", lambda whole: whole[:-9])(folder))[1], "model/adapter_model.safetensors: "),
    of_adapter("a config cut short", lambda folder: (adapter()(folder), with_bytes("adapter_config.json", lambda whole: whole[:9])(folder))[1], "model/adapter_config.json: not JSON"),
    of_adapter("another kind", configured(peft_type="IA3"), "model/adapter_config.json: must be LoRA"),
    of_adapter("no base", configured(base_model_name_or_path=None), "model/adapter_config.json: must be LoRA and name its base model"),
    of_adapter("a base that is not there", configured(base_model_name_or_path="/no/such/base"), "/no/such/base: no such folder"),
    of_adapter("a base of the hub", configured(base_model_name_or_path="no-such-owner/no-such-base"), "no-such-owner/no-such-base", status=(3,)),
    of_adapter("a base that is an adapter", configured(base_model_name_or_path="model"), "model/config.json: missing"),
    of_adapter("a rank in words", configured(r="two"), "model/adapter_config.json: r is 'two'"),
    of_adapter("an alpha that is null", configured(lora_alpha=None), "model/adapter_config.json: lora_alpha is 'None'"),
    of_adapter("a pattern without end", configured(rank_pattern={"(a+)+$": 2}), "rank_pattern must hold numbers by module names"),
    of_adapter("another's layers", adapter(lambda _, tensors: renamed(tensors, "layers.0", "layers.9")), "adapts nothing that the base has"),
    of_adapter("another rank", adapter(lambda config, _: config.update(r=4)), "model"),
    of_adapter("another width", adapter(lambda _, tensors: tensors.update({name: torch.zeros(2, 64) for name in tensors if "lora_A" in name})), "has shape [2, 64], the base's weight"),
    of_adapter("half of a pair", adapter(lambda _, tensors: tensors.pop(next(name for name in tensors if "lora_B" in name))), "lora_B"),
    of_adapter("weights of something else", adapter(lambda _, tensors: renamed(tensors, "lora_", "other_")), "holds no LoRA weights"),
    of_adapter("NaN", adapter(lambda _, tensors: [tensor.fill_(float("nan")) for tensor in tensors.values()]), "not finite", loads=True),
    of_adapter("other weights too", configured(modules_to_save=["lm_head"]), "model/adapter_config.json: modules_to_save names lm_head, and adapter_model.safetensors does not hold"),
    Case("adapter: as a base to train", ("model/config.json: missing; it holds an adapter; a recipe goes on with it by model.adapter: ",), recipe=OF_MODEL, model=adapter()),
]  # fmt: skip

CASES = [*CONFIGS, *FILES, *TOKENIZERS, *ADAPTERS]
