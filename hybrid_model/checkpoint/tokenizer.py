"""A checkpoint's tokenizer: read, and held against the model's embedding."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from hybrid_ft.errors import InputError, one_line
from hybrid_ft.hybrid_model.checkpoint.config import (
    BUNDLED,
    DAMAGED,
    FOREIGN,
    find_folder,
    json_object,
    read_config,
)
from hybrid_ft.hybrid_model.families.known import is_known
from hybrid_ft.hybrid_model.families.presets import PRESETS

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a preset (the bundled one), a folder or a name on the hub.

    Raises InputError where it has none, and for a file of it that is damaged.
    """
    name = str(path)
    folder = BUNDLED if name in PRESETS else find_folder(name, revision)
    whole = folder / "tokenizer.json"
    if (folder / "config.json").exists() and is_known(json_object(folder / "config.json").get("model_type")):
        read_config(folder)  # transformers reads it for a tokenizer too, and complains of it less well
    for file in (folder / file for file in (*_FILES, "config.json")):
        if file.exists() and "model" not in json_object(file) and file == whole:
            raise InputError(f"{whole}: holds no tokenizer (key model is missing); {DAMAGED}")
    if not whole.exists() and not any(folder.glob("vocab.*")) and not any(folder.glob("*.model")):
        raise InputError(
            f"{whole}: missing; a tokenizer lies beside its model, or in a folder that model.tokenizer names"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except StrictDataclassError as error:
        raise InputError(f"{folder / 'config.json'}: {one_line(error)}") from None
    except Exception as error:
        # the tokenizers library raises bare exceptions for what it cannot read
        if type(error) is Exception or isinstance(error, OSError | ValueError | KeyError | AttributeError | TypeError):
            raise InputError(f"tokenizer {name}: cannot be read ({one_line(error)}); {DAMAGED}") from None
        raise
    for key in [key for key in tokenizer.init_kwargs if key.startswith(FOREIGN)]:
        del tokenizer.init_kwargs[key]  # an export would hand them on
    return tokenizer


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    name: str = "the tokenizer",
    fix: str = "use the model's own tokenizer",
    leaving_out: Collection[str] = (),
) -> None:
    """Refuse a tokenizer that can make ids beyond the model's embedding; ``name`` and ``fix`` go into the message.

    ``leaving_out``: tokens that the model will get rows for.
    """
    needed = 1 + max((id for token, id in tokenizer.get_vocab().items() if token not in leaving_out), default=-1)
    if needed > config.vocab_size:
        raise InputError(f"{name} needs an embedding of {needed:,} rows, the model's has {config.vocab_size:,}; {fix}")
