"""kill -9 of merge, export, push, score and generate: the same command again leaves the files of one that nothing
disturbed."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import Harness, differing, digest

COMMANDS = ("merge", "export", "int8", "gguf", "push", "score", "generate")
MADE_WHOLE = ("merge", "export", "int8", "gguf")
PACKAGES = {"int8": "torchao"}
"""What the conversion needs; it does not come with the tests."""


@dataclass(frozen=True)
class Use:
    """``arguments`` of the command in a new folder, where all that it writes goes, and what stands in for a network."""

    harness: Harness
    arguments: Callable[[Path], list[Any]]
    prepare: Callable[[Path], object] = lambda place: None
    hub: bool = False

    def start(self, place: Path, inject: dict[str, Any] | None = None) -> Any:
        inject = (inject or {}) | ({"local_hub": {"folder": str(place / "hub")}} if self.hub else {})
        return self.harness.start_command([str(one) for one in self.arguments(place)], inject)

    def begun(self) -> Path:
        place = self.harness.folder()
        self.prepare(place)
        return place

    def finish(self, place: Path) -> str:
        child = self.start(place)
        assert child.wait() == 0, f"exit status {child.status}\n{child.screen}"
        return str(child.screen)


@pytest.fixture(scope="session")
def uses(harness: Harness, every_job: Any, tiny_base: Path) -> dict[str, Use]:
    """Each on a model of many files, so that there is something to go on from."""
    runs = {name: harness.whole(every_job[name]).output for name in ("sft-lora", "reward-lora")}
    sharded, adapter = harness.place / "sharded", harness.place / "adapter"
    made = Use(harness, lambda _: ["export", tiny_base, sharded, "--to", "transformers", "--shard-size", "20kB"])
    made.finish(harness.place)
    shutil.copytree(runs["sft-lora"] / "adapter", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(sharded)}))
    pairs = every_job["reward-lora"].recipe.with_name("pairs.jsonl")
    prompts = harness.place / "prompts.txt"
    prompts.write_text("".join(f"{number} + {number}?\n" for number in range(1200)))
    for_gguf = bytes_base(harness.place / "for-gguf")

    def own_model(place: Path) -> None:
        shutil.copytree(sharded, place / "model")
        (place / "hub").mkdir()

    return {
        "merge": Use(harness, lambda place: ["merge", adapter, place / "out"]),
        "export": Use(
            harness, lambda place: ["export", sharded, place / "out", "--to", "transformers", "--dtype", "bfloat16"]
        ),
        "int8": Use(harness, lambda place: ["export", sharded, place / "out", "--to", "int8"]),
        "gguf": Use(harness, lambda place: ["export", for_gguf, place / "out", "--to", "gguf", "--type", "q8_0"]),
        "generate": Use(
            harness,
            lambda place: [
                *("generate", tiny_base, "--prompts", prompts, "--out", place / "answers.jsonl"),
                *("--max-new-tokens", "2"),
            ],
        ),
        "push": Use(harness, lambda place: ["push", place / "model", "someone/mine"], own_model, hub=True),
        "score": Use(
            harness,
            lambda place: ["score", runs["reward-lora"] / "adapter", "--rows", pairs, "--out", place / "scores.jsonl"],
        ),
    }


def bytes_base(folder: Path) -> Path:
    """A random LFM2 with a tokenizer of bytes: llama.cpp knows both."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from hybrid_ft.hybrid_model.families.known import family_of_type

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>")
    sizes = dict(family_of_type("lfm2").tiny["lfm2"]) | {"vocab_size": len(tokenizer), "eos_token_id": 256}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("lfm2", **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed() -> Callable[[Use], tuple[dict[str, str], float, list[str]]]:
    """``undisturbed(use)``: the digests of its files, its duration in seconds, its operations on files;
    made on first use."""
    made: dict[int, tuple[dict[str, str], float, list[str]]] = {}

    def of(use: Use) -> tuple[dict[str, str], float, list[str]]:
        if id(use) not in made:
            place, began = use.begun(), time.monotonic()
            use.finish(place)
            seconds, log = time.monotonic() - began, use.harness.place / f"operations-{id(use)}"
            assert use.start(use.begun(), {"log_operations": {"file": str(log)}}).wait() == 0
            made[id(use)] = left_in(place), seconds, log.read_text().splitlines()
        return made[id(use)]

    return of


def left_in(place: Path) -> dict[str, str]:
    """Digests of all files but those that a killed process staged under hidden names, which nothing reads."""
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(place)): digest(path.read_bytes())
        for path in files
        if not re.fullmatch(r"\..*\.\d+|\.conversion", path.name)
    }


@pytest.mark.faults
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(harness, uses, undisturbed, count, chance, faults_row, name):
    """Up to three times in a row, then once more to its end; half of the kills come at an operation on files."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    use, kills = uses[name], []
    whole, seconds, operations = undisturbed(use)

    def trial(number: int) -> str | None:
        draw, place, told = chance(number), use.begun(), []
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(operations))
            late = draw.uniform(0, seconds)
            child = use.start(place, {"die_at_operation": {"number": at}} if number % 2 else None)
            if not number % 2:
                time.sleep(late)
                child.kill(signal.SIGKILL)
            told.append(operations[at] if number % 2 else f"{late:.3f} s")
            if child.wait() not in (0, -signal.SIGKILL, 2):
                return f"killed at {told}: exit status {child.status}\n{child.screen}"
            if child.status == 2 and f"{place / 'out'}: is there already" not in child.screen:
                return f"killed at {told}: {child.screen}"
        kills.extend(told)
        if name in MADE_WHOLE and (place / "out").exists():
            assert not (place / "out.part").exists()
        else:
            use.finish(place)
        wrong = differing(left_in(place), whole)
        return f"killed at {told}: differs in {wrong}" if wrong else None

    failures = harness.each(range(count(40)), trial)
    faults_row(
        f"kill -9 of {name} at random moments and file operations",
        "the same command leaves the same files",
        count(40),
        failures,
        f"{len(kills)} kills",
    )
    assert not failures, "\n".join(failures[:10])
