"""Training that starts from an adapter: checked, opened, trained further."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from hybrid_ft.errors import InputError, one_line
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG, WEIGHTS, check_adapter, read_adapter, read_config
from hybrid_ft.hybrid_model.checkpoint.config import lasting_name
from hybrid_ft.hybrid_model.checkpoint.new_tokens import resize

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def check_base(folder: Path, base: str) -> None:
    """Refuse an adapter in ``folder`` that names a base other than ``base``, a folder, hub name or preset.

    A base of the same shapes and other weights would be trained without an error. A folder that is gone from where the
    adapter says it lay counts as moved.
    """
    named, given = (lasting_name(str(name)) for name in (read_config(folder)["base_model_name_or_path"], base))
    both = os.path.isdir(named), os.path.isdir(given)
    same = os.path.samefile(named, given) if all(both) else named == given or os.path.isabs(named)
    if not same:
        raise InputError(
            f"model.adapter: {folder / CONFIG} says that its base is {named}, model.path is {given}; an adapter goes on with "
            "the base that it was trained on"
        )


def open_adapter(model: PreTrainedModel, folder: Path, *, trained: bool = False, dropout: float = 0.0) -> PeftModel:
    """The model with the adapter in ``folder``, its vocabulary as large as the adapter's; everything else is frozen.

    trained: to be trained further, in float32, with that ``dropout``.
    Raises InputError for an adapter that is not LoRA that PEFT can go on with, or not for this model.
    """
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    from hybrid_ft.hybrid_model.adapter_weights import train_in_float32
    from hybrid_ft.hybrid_model.layers.lora_linear import add_by_one_product

    adapter = read_adapter(folder)
    resize(model, check_adapter(folder, adapter, model.config))
    adapter.config.lora_dropout = dropout
    try:
        opened = PeftModel.from_pretrained(model, str(folder), config=adapter.config, is_trainable=trained)
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: the adapter does not fit {adapter.base} ({one_line(error)[:200]})") from None
    add_by_one_product(opened)
    if trained:
        train_in_float32(opened)
        # again: what is trained whole was rounded to the base's dtype
        set_peft_model_state_dict(opened, load_file(folder / WEIGHTS))
    return opened
