"""Training that starts from an adapter: checked, opened, trained further."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from hybrid_ft.errors import InputError, one_line
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG, check_adapter, read_adapter, read_config
from hybrid_ft.hybrid_model.checkpoint.config import lasting_name

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


def continue_lora(model: PreTrainedModel, folder: Path, dropout: float) -> PeftModel:
    """The model with the adapter in ``folder`` to be trained further, everything else frozen.

    Raises InputError for an adapter that is not plain LoRA, or not for this model.
    """
    from peft import PeftModel

    adapter = read_adapter(folder)
    check_adapter(folder, adapter, model.config)
    adapter.config.lora_dropout = dropout
    try:
        return PeftModel.from_pretrained(model, str(folder), config=adapter.config, is_trainable=True)
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: the adapter does not fit {adapter.base} ({one_line(error)[:200]})") from None
