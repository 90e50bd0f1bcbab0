"""The command export, and the logits of what it wrote."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hybrid_ft import cli


def export(*arguments: Any) -> int:
    return cli.main(["export", *map(str, arguments)])


def logits(folder: Path, **how: Any) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, **how).eval()
    with torch.no_grad():
        return model(torch.arange(4, 60)[None], use_cache=False).logits.double()
