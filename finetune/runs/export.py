"""A run's result: written, reopened and compared before it bears its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybrid_ft.errors import NUMERICS, InputError
from hybrid_ft.finetune.runs import storage, weights
from hybrid_ft.finetune.runs.atomic import publish
from hybrid_ft.hybrid_model.adapter_weights import as_plain_lora
from hybrid_ft.hybrid_model.adapters import adapted_names
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG, WEIGHTS
from hybrid_ft.hybrid_model.checkpoint.config import lasting_name
from hybrid_ft.hybrid_model.checkpoint.generation_config import GenerationDefaults
from hybrid_ft.hybrid_model.checkpoint.load import open_plain
from hybrid_ft.hybrid_model.checkpoint.new_tokens import resize
from hybrid_ft.hybrid_model.checkpoint.save import save, verify
from hybrid_ft.hybrid_model.checkpoint.torch_functions import torch_functions
from hybrid_ft.hybrid_model.families.family import is_scorer
from hybrid_ft.hybrid_model.quantised import known_to_peft, quantise

# float32 sums in another order; the same weights through transformers' own layers stay well below these
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@dataclass
class Exporter:
    """Writes results into ``folder``, each with the tokenizer, its chat template, and how answers end and are sampled.

    ``base``: the folder, hub name or preset that a LoRA adapter is to be opened on; ``revision``: of a hub name;
    ``quantize``: how the base was kept while the adapter was trained.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    defaults: GenerationDefaults
    base: str
    revision: str | None = None
    quantize: str | None = None

    def whole(self, model: PreTrainedModel, name: str = "model") -> Path:
        """All weights in the released layout; what was saved is opened in plain transformers and must agree.

        Raises InputError for weights that are not finite, and where the disk fails.
        """
        self._refuse_not_finite(model)
        with self._staged(name) as staged:
            model.config.use_cache = self.defaults.use_cache
            save(model, staged, self.tokenizer)
            if not is_scorer(model.config):
                self.defaults.config.save_pretrained(staged)
            verify(staged, model)
        return self.folder / name

    def adapter(self, model: PeftModel, name: str = "adapter") -> Path:
        """The adapter in PEFT's format; it is opened with PEFT on the base in plain transformers and must agree.

        Raises InputError for weights that are not finite, and where the disk fails.
        """
        self._refuse_not_finite(model)
        with self._staged(name) as staged:
            base = lasting_name(self.base)
            plain = open_plain(base, self.revision, model.dtype, is_scorer(model.config))
            vocabulary = model.get_input_embeddings().weight.shape[0]
            grown = plain.get_input_embeddings().weight.shape[0] != vocabulary
            tensors, config = as_plain_lora(
                model, get_peft_model_state_dict(model, save_embedding_layers=grown), model.peft_config["default"]
            )
            config.base_model_name_or_path, config.revision = base, self.revision
            config.target_modules, config.inference_mode = set(adapted_names(model)), True
            # a tied head and its embedding are one tensor, which safetensors does not write twice
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, staged / WEIGHTS, {"format": "pt"})
            config.save_pretrained(str(staged))
            _sort_targets(staged / CONFIG)
            self.tokenizer.save_pretrained(str(staged))
            if is_scorer(model.config):
                plain.config.pad_token_id = model.config.pad_token_id
            else:
                self.defaults.config.save_pretrained(staged)
            resize(plain, vocabulary)
            if self.quantize:
                quantise(plain, self.quantize, model.dtype)
            with known_to_peft(plain, self.quantize):
                opened = PeftModel.from_pretrained(plain, str(staged))
            _agree(opened, model, staged, self.quantize)
        return self.folder / name

    @contextmanager
    def _staged(self, name: str) -> Iterator[Path]:
        """A folder to fill, which then bears its name; nothing is left of it where that fails."""
        staged = self.folder / f".staging-{name}"
        shutil.rmtree(staged, ignore_errors=True)
        with storage.saving(self.folder / name):
            try:
                staged.mkdir()
                yield staged
                publish(staged, self.folder / name)
            finally:
                shutil.rmtree(staged, ignore_errors=True)

    def _refuse_not_finite(self, model: torch.nn.Module) -> None:
        if not weights.are_finite(model.parameters()):
            raise InputError(
                f"{self.folder}: the result has weights that are not finite, so it is not saved; "
                "lower train.learning_rate in a new output",
                NUMERICS,
            )


def _sort_targets(path: Path) -> None:
    """PEFT holds the names as a set and writes them in another order each time."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("target_modules", "target_parameters"):
        config[key] = sorted(config[key]) if config.get(key) is not None else None
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _agree(opened: PeftModel, trained: PeftModel, folder: Path, quantize: str | None = None) -> None:
    """The two give the same logits."""
    error = relative_error(opened, trained)
    # int8 rounds what a product reads to 7 bits, where a last bit may fall to the other side
    dtype = torch.bfloat16 if quantize == "int8" else next(trained.parameters()).dtype
    if not error <= _TOLERANCE[dtype]:
        raise RuntimeError(
            f"{folder}: what was saved gives other logits in plain transformers (relative error {error:.2e})"
        )


@torch.no_grad()
def relative_error(other: PreTrainedModel | PeftModel, trained: PeftModel) -> float:
    """How far the other model's logits of a made-up row are from the trained one's, in relative L2."""
    was_training, device = trained.training, next(trained.parameters()).device
    vocabulary = trained.get_input_embeddings().weight.shape[0]
    # a reward model gives one number a row
    row = torch.randint(
        vocabulary, (8 if is_scorer(trained.config) else 1, 48), generator=torch.Generator().manual_seed(0)
    ).to(device)
    other, dtype = other.to(device).eval(), next(trained.parameters()).dtype
    # what is trained whole is in float32, on a base that is not
    half = torch.autocast(device.type, dtype, cache_enabled=False) if dtype == torch.bfloat16 else nullcontext()
    with torch_functions(), half:
        here = trained.eval()(input_ids=row, use_cache=False).logits.float()
        there = other(input_ids=row, use_cache=False).logits.float()
    trained.train(was_training)
    return float((here - there).norm() / here.norm())
