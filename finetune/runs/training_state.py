"""Optimizer, schedule and random state in a checkpoint, without pickle.

Every tensor is whole and lies under its parameter's name, so the files do not tell how many processes trained, nor
whether they had the model in pieces. Learning rates, betas and the like are not kept: the recipe has them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs import device
from hybrid_ft.finetune.runs.processes import Processes, whole

RANDOM, SCHEDULE = "random_state.safetensors", "scheduler.json"
FIRST_OPTIMIZER = "optimizer-00001.safetensors"
PIECE = 2 * 10**9
"""Bytes of one file of the optimizer: files are listed and hashed side by side."""


def save_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, folder: Path, processes: Processes
) -> None:
    """All processes together; number 0 writes."""
    piece: dict[str, torch.Tensor] = {}
    number, size = 1, 0
    for name, parameter in _trained(model):
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):
            found = whole(value)
            if processes.main:
                piece[f"{name}.{key}"] = found.detach().cpu().contiguous()
                size += found.numel() * found.element_size()
        if size >= PIECE:
            save_file(piece, folder / f"optimizer-{number:05}.safetensors")
            piece, number, size = {}, number + 1, 0
    if processes.main and (piece or number == 1):
        save_file(piece, folder / f"optimizer-{number:05}.safetensors")


def load_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module, folder: Path) -> None:
    """Put the saved moments where they were. Raises InputError for a tensor that is missing, left over or of another
    shape."""
    place: dict[str, Path] = {}
    for file in sorted(folder.glob("optimizer-*.safetensors")):
        with _reading(file), safe_open(file, framework="pt") as opened:
            place |= dict.fromkeys(opened.keys(), file)
    if not place and (folder / FIRST_OPTIMIZER).is_file():
        return  # saved when no step had been taken yet: the first ones were skipped
    names = getattr(optimizer, "state_names", lambda parameter: ("exp_avg", "exp_avg_sq", "step"))
    for name, parameter in _trained(model):
        state = {}
        for key in names(parameter):
            file = place.pop(f"{name}.{key}", Path())
            if file == Path():
                raise InputError(
                    f"{folder}: the optimizer's {key} of {name} is missing; the run cannot go on from here"
                )
            with _reading(file), safe_open(file, framework="pt") as opened:
                value = opened.get_tensor(f"{name}.{key}")
            if key != "step":
                if value.shape != parameter.shape:
                    shapes = f"{list(value.shape)} in this checkpoint, {list(parameter.shape)} in the model"
                    raise InputError(f"{folder}: the optimizer's {key} of {name} is {shapes}")
                value = value.to(parameter.device)
                if isinstance(parameter, DTensor):
                    value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
            state[key] = value
        optimizer.state[parameter] = state
    if place:
        raise InputError(f"{folder}: {min(place)} is not of this model, but in the optimizer's files")


def save_schedule(schedule: Any, folder: Path) -> None:
    """How many steps were taken; the rates follow from that and the recipe."""
    (folder / SCHEDULE).write_text(json.dumps({"steps": schedule.last_epoch}) + "\n", encoding="utf-8")


def load_schedule(schedule: Any, folder: Path) -> None:
    """Move a fresh schedule to the step that was saved: its rates are the recipe's."""
    with _reading(folder / SCHEDULE):
        steps = int(json.loads((folder / SCHEDULE).read_text(encoding="utf-8"))["steps"])
    rates = [base * rate(steps) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    schedule.load_state_dict({"last_epoch": steps, "_step_count": steps + 1, "_last_lr": rates, "lr_lambdas": []})
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def save_random(folder: Path, processes: Processes) -> None:
    """The state of every process, in one file."""
    states = processes.gather(_random_state())
    if processes.main:
        named = {f"{rank}.{name}": value for rank, state in enumerate(states) for name, value in state.items()}
        save_file(named, folder / RANDOM)


def load_random(folder: Path, rank: int) -> None:
    """This process's state; where fewer processes saved, that of number 0."""
    with _reading(folder / RANDOM):
        saved = load_file(folder / RANDOM)
        rank = rank if f"{rank}.torch" in saved else 0
        _set_random({name.partition(".")[2]: value for name, value in saved.items() if name.startswith(f"{rank}.")})


def _set_random(state: dict[str, torch.Tensor]) -> None:
    *words, gauss_kept = state["python"].tolist()
    gauss = float(state["python_gauss"])
    random.setstate((3, tuple(words), gauss if gauss_kept else None))
    keys, position, kept = state["numpy"][:-2].numpy().astype(np.uint32), *state["numpy"][-2:].tolist()
    np.random.set_state(("MT19937", keys, position, kept, float(state["numpy_gauss"])))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.is_gpu():
        torch.cuda.set_rng_state(state["cuda"])


def _random_state() -> dict[str, torch.Tensor]:
    """Python's and numpy's are Mersenne twisters with one normal number kept; their words as int64."""
    _, words, gauss = random.getstate()
    twister: Any = np.random.get_state(legacy=True)
    _, keys, position, kept, number = twister
    state = {
        "python": torch.tensor([*words, gauss is not None], dtype=torch.int64),
        "python_gauss": torch.tensor(gauss or 0.0, dtype=torch.float64),
        "numpy": torch.tensor([*keys.tolist(), position, kept], dtype=torch.int64),
        "numpy_gauss": torch.tensor(number, dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state()} if device.is_gpu() else {})


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raises InputError for what the digests of a manifest do not show: it may have been made of a
    file that was damaged."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{file}: is damaged; the run cannot go on from here") from error


def _trained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
