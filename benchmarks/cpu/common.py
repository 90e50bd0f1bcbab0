"""Shared by the CPU benchmarks: machine, alternating runs, peak memory, base, records."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hybrid_ft

RESULTS = Path(__file__).resolve().parents[1] / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help="append the result as JSON lines")
    return made


def one_quiet_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def processor() -> str:
    """The CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.machine()


def append(out: Path | None, *records: Mapping[str, Any]) -> None:
    """JSON lines at the end of ``out``, where one is given."""
    if out is not None:
        out.parent.mkdir(exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


def spread(values: list[float], digits: int = 2) -> str:
    """Median, least and most."""
    median, least, most = (f"{of(values):.{digits}f}" for of in (statistics.median, min, max))
    return f"{median} ({least} to {most})"


@dataclass
class Taken:
    """Seconds of every turn of one side."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def in_turns(sides: Mapping[str, Callable[[], object]], turns: int) -> dict[str, Taken]:
    """Each side once a turn, so that a slow minute of the machine is every side's."""
    taken = {name: Taken() for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            cpu, wall = time.process_time(), time.perf_counter()
            side()
            taken[name].cpu.append(time.process_time() - cpu)
            taken[name].wall.append(time.perf_counter() - wall)
    return taken


def ratios(theirs: Taken, ours: Taken) -> list[float]:
    """How many times as fast ours is, turn by turn, in CPU seconds."""
    return [slow / fast for slow, fast in zip(theirs.cpu, ours.cpu, strict=True)]


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes that a call adds, at its peak, to what is allocated before it."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes the present size
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


class Moved(TorchDispatchMode):
    """``bytes`` that operations besides products read and write, by what is dispatched within.

    ``free``: names of products, and of what moves nothing. Of an addmm the term that is added counts: mm has none.
    """

    def __init__(self, free: Collection[str]) -> None:
        super().__init__()
        self.bytes, self._free = 0, free

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "addmm":
            self.bytes += args[0].nbytes
        elif name not in self._free:
            self.bytes += sum(
                leaf.nbytes for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)
            )
        return out


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def add_step_options(options: argparse.ArgumentParser, sides: tuple[str, ...], repeats: int) -> None:
    options.add_argument("--tokenizer", required=True, help="a tokenizer folder or hub name")
    options.add_argument("--chat-template", default="olmo-instruct", help="a name, or a .jinja file")
    options.add_argument("--model", default="tiny", help="shape: tiny, 190M, 1B, or a folder with a config.json")
    options.add_argument("--repeats", type=int, default=repeats)
    options.add_argument("--memory-of", choices=sides, help=argparse.SUPPRESS)
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)


def model_section(options: argparse.Namespace) -> dict[str, Any]:
    """The part of a recipe that is the same for every step."""
    return {
        "path": options.model,
        "from_scratch": True,
        "tokenizer": options.tokenizer,
        "chat_template": options.chat_template,
    }


def random_base(options: argparse.Namespace, tokenizer: Any, folder: Path) -> Path:
    """A checkpoint with random weights and the tokenizer's vocabulary, the same for every side."""
    base = folder / "base"
    if not base.exists():
        words = -(-len(tokenizer) // 64) * 64
        hybrid_ft.load(options.model, from_scratch=True, vocab_size=words).save_pretrained(base)
    return base


def ready(trainer: transformers.Trainer) -> transformers.Trainer:
    trainer.create_optimizer_and_scheduler(1000)
    return trainer


def run_step_benchmark(
    options: argparse.Namespace,
    side: Callable[[argparse.Namespace, Path, str], Callable[[], object]],
    measure: Callable[[argparse.Namespace, Path], None],
) -> None:
    """``side`` makes one side's step by its name; with ``--memory-of`` this process measures
    that side's memory alone."""
    one_quiet_thread()
    if options.memory_of:
        step = side(options, options.work, options.memory_of)
        step()
        print(peak_memory(step))
        return
    with tempfile.TemporaryDirectory() as work:
        measure(options, Path(work))


def memory_of(name: str, work: Path) -> int:
    """Peak over weights, gradients and optimizer state, in a fresh process that gives every tensor back at once."""
    command = [sys.executable, *sys.argv, "--memory-of", name, "--work", str(work)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])
