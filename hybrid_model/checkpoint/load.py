"""Load, save and verify a checkpoint. Weights come from safetensors files alone, and no code comes with them."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.olmo_hybrid import OlmoHybridConfig
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.weight_files import check_weight_files, released_shapes
from hybrid_ft.hybrid_model.families.olmo_hybrid.model import OlmoHybridForCausalLM
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import PRESETS, TINY, preset_config

BUNDLED = Path(__file__).parents[1] / "tiny"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DOWNLOAD = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_PATIENCE = 5.0  # seconds within which the hub must answer; what is in the cache is then opened from there
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MOST_LAYERS = 1000  # transformers lists the kinds of all layers; a million take it a quarter of a minute
# Names of code that transformers would fetch and run for such a model, here or where an export is opened.
_FOREIGN = ("auto_map", "_attn_implementation", "attn_implementation", "trust_remote_code", "use_kernels", "custom_")
_DAMAGED = "it is damaged, copy it again"
# relative L2 between two implementations' logits in float32; a wrong norm eps alone moves them by 0.38
_TOLERANCE = 1e-4


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    from_scratch: bool = False,
    vocab_size: int | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> OlmoHybridForCausalLM:
    """A hybrid from a folder, a name on the Hugging Face hub, or a preset (tiny, 190M, 1B, 7B), in eval mode.

    dtype defaults to the checkpoint's own. ``A_log`` and ``dt_bias`` are float32 in any case. A config whose
    ``rope_parameters`` are null, hold a null ``rope_theta`` or are absent gives a model without rope.
    from_scratch gives random weights, the same for the same seed, and leaves the global generator as it was;
    vocab_size then replaces the config's. Of the presets only tiny comes with weights.

    Raises InputError for a folder that is not a whole checkpoint of this architecture.
    """
    name = str(path)
    if vocab_size is not None and not from_scratch:
        raise InputError(f"model {name}: vocab_size can be chosen with from_scratch only; the weights have their own")
    if from_scratch and name in PRESETS:
        config = preset_config(name)
    else:
        if name in PRESETS and name != TINY:
            raise InputError(f"model {name} is a shape without weights; set from_scratch: true or name a checkpoint")
        folder = _folder(name, revision, weights=not from_scratch)
        config = read_config(folder)
    wanted = _dtype(dtype, config)
    if from_scratch:
        if vocab_size is not None:
            config.vocab_size = vocab_size
            _drop_tokens_outside(config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = OlmoHybridForCausalLM._from_config(config, dtype=wanted).eval()
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("A_log", "dt_bias")):
                parameter.data = parameter.data.float()
    else:
        check_weight_files(folder, config)
        check_end_tokens(folder, config)
        model, info = OlmoHybridForCausalLM.from_pretrained(
            folder, config=config, dtype=wanted, use_safetensors=True, output_loading_info=True
        )
        assert not any(info.values()), info
        check_finite(folder, model)
    return model if device is None else model.to(device)


def read_config(folder: Path) -> OlmoHybridConfig:
    """The config of a checkpoint folder, rope only where it is asked for by a number.

    transformers turns null and absent into a theta of 10,000; the released weights were trained without rope and say
    so by null. Raises InputError for a file that is missing or of another architecture.
    """
    path = folder / "config.json"
    if not path.exists():
        adapter = (folder / "adapter_config.json").is_file()
        hint = "it holds a LoRA adapter: merge it first" if adapter else "a checkpoint has one beside its weights"
        raise InputError(f"{path}: missing; {hint}")
    raw = json_object(path)
    kind = raw.get("model_type")
    if kind != "olmo_hybrid":
        raise InputError(f"{path}: model_type is {kind!r}; this project trains olmo_hybrid")
    if isinstance(layers := raw.get("num_hidden_layers"), int) and layers > _MOST_LAYERS:
        raise InputError(f"{path}: num_hidden_layers is {str(layers)[:60]}; at most {_MOST_LAYERS} are taken for meant")
    if raw.get("quantization_config"):
        raise InputError(
            f"{path}: quantization_config: quantised weights cannot be trained; name the checkpoint before it"
        )
    for key in [key for key in raw if key.startswith(_FOREIGN)]:
        del raw[key]
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(f"{path}: rope_parameters is {rope!r}; must be an object or null")
    if rope.get("rope_theta", raw.get("rope_theta")) is None:
        raw.pop("rope_scaling", None)
        raw.pop("rope_theta", None)
        raw["rope_parameters"] = {"rope_theta": None}
    try:
        return OlmoHybridConfig.from_dict(raw)
    except (StrictDataclassError, AttributeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: {_one_line(error)}") from None


def save(model: OlmoHybridForCausalLM, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Write a checkpoint that transformers and vLLM open: released tensor names, one dtype, config, generation config.

    Every tensor is written in the model's dtype, ``A_log`` and ``dt_bias`` too, because vLLM wants one dtype and the
    released checkpoint has one. (``model.save_pretrained`` keeps these two in float32, so that a resumed run is exact.)
    Raises InputError for a tokenizer that is too large for the model, before anything is written.
    """
    if tokenizer is not None:
        check_vocabulary(model, tokenizer)
    folder = Path(folder)
    dtype = model.dtype
    state_dict = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size="5GB")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if model.model.rotary_emb is None:
        config["rope_parameters"] = {"rope_theta": None}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def verify(folder: str | Path, model: OlmoHybridForCausalLM) -> float:
    """Open a saved folder as a stranger would, with plain transformers, and compare it with the model in memory.

    Returns the relative L2 difference of the logits of 64 tokens. Raises RuntimeError for a tensor that is missing,
    unexpected or of another shape, for logits that differ by more than two implementations may in float32, for
    rope where the model has none, and for end tokens outside the vocabulary.
    """
    folder = Path(folder)
    half = model.dtype in (torch.bfloat16, torch.float16)
    compared = torch.float32 if half else model.dtype
    plain, info = hf.OlmoHybridForCausalLM.from_pretrained(folder, dtype=compared, output_loading_info=True)
    problems = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if problems:
        raise RuntimeError(f"{folder}: transformers reports {problems}")
    _check_names(folder, model.config)
    if (plain.model.rotary_emb is None) != (model.model.rotary_emb is None):
        raise RuntimeError(f"{folder}: the saved config and the model differ in whether they have rope")
    ends = plain.generation_config.eos_token_id
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and not 0 <= end < plain.config.vocab_size:
            raise RuntimeError(f"{folder}: end token {end} is outside the vocabulary of {plain.config.vocab_size}")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(plain.config.vocab_size, (1, 64), generator=generator)
    training = model.training
    model.eval()
    with torch.no_grad():
        theirs = plain.eval()(tokens, use_cache=False).logits.double()
        # a trained model blows the rounding of half precision up to any size, so the same weights are run in float32;
        # A_log and dt_bias are rounded first, as they were in saving
        ran = copy.deepcopy(model).to(model.dtype).float() if half else model
        ours = ran(tokens.to(model.device), use_cache=False).logits.double().cpu()
    model.train(training)
    difference = float((ours - theirs).norm() / theirs.norm())
    tolerance = _TOLERANCE
    if not difference <= tolerance:
        raise RuntimeError(f"{folder}: logits differ by {difference:.1e} from the model's (at most {tolerance:.0e})")
    return difference


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a preset (the bundled one), a folder or a name on the hub.

    Raises InputError where it has none, and for a file of it that is damaged.
    """
    name = str(path)
    folder = BUNDLED if name in PRESETS else _folder(name, revision, weights=False)
    whole = folder / "tokenizer.json"
    if (folder / "config.json").exists() and json_object(folder / "config.json").get("model_type") == "olmo_hybrid":
        read_config(folder)  # transformers reads it for a tokenizer too, and complains of it less well
    for file in (folder / file for file in (*_TOKENIZER_FILES, "config.json")):
        if file.exists() and "model" not in json_object(file) and file == whole:
            raise InputError(f"{whole}: holds no tokenizer (key model is missing); {_DAMAGED}")
    if not whole.exists() and not any(folder.glob("vocab.*")) and not any(folder.glob("*.model")):
        raise InputError(
            f"{whole}: missing; a tokenizer lies beside its model, or in a folder that model.tokenizer names"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except StrictDataclassError as error:
        raise InputError(f"{folder / 'config.json'}: {_one_line(error)}") from None
    except Exception as error:
        # the tokenizers library raises bare exceptions for what it cannot read
        if type(error) is Exception or isinstance(error, OSError | ValueError | KeyError | AttributeError | TypeError):
            raise InputError(f"tokenizer {name}: cannot be read ({_one_line(error)}); {_DAMAGED}") from None
        raise
    for key in [key for key in tokenizer.init_kwargs if key.startswith(_FOREIGN)]:
        del tokenizer.init_kwargs[key]  # an export would hand them on
    return tokenizer


def find_config(path: str | Path, revision: str | None = None, *, weights: bool = False) -> OlmoHybridConfig:
    """The config of what ``load`` opens, without its weights. Raises InputError.

    ``weights``: also look at the headers of the weight files, where they lie on this machine.
    """
    name = str(path)
    if name in PRESETS:
        return preset_config(name)
    folder = _folder(name, revision, weights=False)
    config = read_config(folder)
    if weights and os.path.isdir(os.path.expanduser(name)):
        check_weight_files(folder, config)
        check_end_tokens(folder, config)
    return config


def check_vocabulary(model: OlmoHybridForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that can make ids beyond the embedding."""
    check_tokens(model.config, tokenizer)


def check_tokens(config: OlmoHybridConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """The same by a model's config, before it is loaded."""
    size = config.vocab_size
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= size:
        raise InputError(
            f"the tokenizer has ids up to {largest}, the model's embedding {size} rows; use the model's own tokenizer"
        )


def check_end_tokens(folder: Path, config: OlmoHybridConfig) -> None:
    """Refuse a generation config that is damaged, or whose end tokens are no tokens of the model."""
    path = folder / "generation_config.json"
    if not path.exists():
        return
    ends = json_object(path).get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and (type(end) is not int or not 0 <= end < config.vocab_size):
            rule = f"must be ids below {config.vocab_size}, the model's vocabulary"
            raise InputError(f"{path}: eos_token_id is {str(ends)[:60]!r}; {rule}")


def check_finite(folder: Path, model: torch.nn.Module) -> None:
    """Refuse weights that are not finite: one such number makes every loss none, and then the rows would be blamed."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise InputError(f"{folder}: tensor {name} holds values that are not finite; take another checkpoint")


def _check_names(folder: Path, config: OlmoHybridConfig) -> None:
    """The files hold the released names and no others: transformers reads more than vLLM does."""
    from safetensors import safe_open

    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    differing = names.symmetric_difference(released_shapes(config))
    if differing:
        raise RuntimeError(f"{folder}: tensor names differ from the released layout: {sorted(differing)[:4]}")


def _dtype(dtype: torch.dtype | str | None, config: OlmoHybridConfig) -> torch.dtype:
    if dtype is None:
        dtype = config.dtype or torch.float32
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise InputError(f"dtype {dtype!r} is none of {', '.join(_DTYPES)}")
        dtype = _DTYPES[dtype]
    return dtype


def _drop_tokens_outside(config: OlmoHybridConfig) -> None:
    """A smaller vocabulary may not have the preset's special tokens; the caller sets its tokenizer's."""
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name)
        if isinstance(value, int) and value >= config.vocab_size:
            setattr(config, name, None)


def _folder(name: str, revision: str | None, weights: bool) -> Path:
    """Where the checkpoint lies on this machine, downloaded if it is a hub name."""
    if name == TINY:
        return BUNDLED
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{name}: is a file; name the folder that it lies in")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"{name}: no such folder; name a preset ({', '.join(PRESETS)}), a folder or owner/name")
    return _download(name, revision, weights)


def _download(name: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = _DOWNLOAD if weights else [pattern for pattern in _DOWNLOAD if "safetensors" not in pattern]
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=patterns, etag_timeout=_PATIENCE)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at {revision}" if revision else ""
        raise InputError(f"{name}{at}: no such folder here, and the hub says: {_one_line(error)}", 3) from None
    return Path(found)


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError for a file that is damaged."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; it must be a file")
    try:
        raw = path.read_bytes()
        value = json.loads(raw.decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        reason = f"not JSON ({_one_line(error)})" if raw.strip() else "the file is empty"
        raise InputError(f"{path}: {reason}; {_DAMAGED}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; {_DAMAGED}")
    return value


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())[:300]
