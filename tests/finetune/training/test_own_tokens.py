"""The parts of a team's processes are its micro-batch, once; what cannot be shared is refused by name."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import transformers
from datasets import Dataset
from run_helpers import losses
from safetensors import safe_open
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training.own_tokens import check_heads, own_answers, own_pack
from hybrid_ft.finetune.training.packs import FILLER, collate_with_rows, packs_dataset
from hybrid_ft.hybrid_model.checkpoint.save import save
from hybrid_ft.hybrid_model.families.known import FAMILIES


def teams(size):
    return [Team(size, place) for place in range(size)]


def pack(*rows, filler=False):
    """Rows of (id, label, weight) as one batch."""
    columns = {
        name: [[token[at] for token in row] for row in rows]
        for at, name in enumerate(("input_ids", "labels", "weights"))
    }
    packed = packs_dataset(Dataset.from_dict(columns), [[FILLER] if filler else list(range(len(rows)))])
    collate = partial(collate_with_rows, DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))
    return collate([packed[0]])


ROWS = (
    [(3, -100, 1.0), (4, -100, 1.0), (5, 5, 0.5), (6, 6, 1.0)],
    [(7, -100, 1.0), (8, 8, 0.25)],
    [(9, -100, 1.0), (3, -100, 1.0), (4, -100, 1.0), (5, -100, 1.0), (6, 6, 0.75)],
)


@pytest.mark.parametrize("size", [2, 3, 5, 11])
def test_each_label_of_a_pack_is_met_once_with_the_token_before_it(size):
    found, ids, positions = [], [], []
    for team in teams(size):
        part = own_pack(pack(*ROWS), team)
        own = part["input_ids"][0]
        ids += own.tolist()
        positions += part["position_ids"][0].tolist()
        assert part["layout"].spread.rank == team.place and part["layout"].lengths == (4, 2, 5)
        assert len(part["keep_positions"]) == part["labels"].shape[1] == part["weights"].shape[1]
        # what TRL's head makes of it: the last hidden state and the first label are left out
        before, labels = own[part["keep_positions"][:-1]], part["labels"][0, 1:]
        weights = part["weights"][0, 1:]
        found += [(int(b), int(n), float(w)) for b, n, w in zip(before, labels, weights, strict=True) if n != -100]
    assert ids == [token for row in ROWS for token, *_ in row]
    assert positions == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4]
    assert found == [(4, 5, 0.5), (5, 6, 1.0), (7, 8, 0.25), (5, 6, 0.75)]


def test_every_process_has_a_token_and_a_place():
    """Of a pack of two tokens, and of one without labels."""
    parts = [own_pack(pack(ROWS[1]), team) for team in teams(5)]
    assert [part["input_ids"].tolist() for part in parts] == [[[7]], [[8]], [[0]], [[0]], [[0]]]
    assert [part["labels"][0, 1:].tolist() for part in parts] == [[8], [-100], [-100], [-100], [-100]]
    assert {part["layout"].lengths for part in parts} == {(2, 3)}
    for part in [own_pack(pack(*ROWS, filler=True), team) for team in teams(3)]:
        assert part["labels"].tolist() == [[-100, -100]] and part["keep_positions"].tolist() == [0, 0]
        assert part["rows"] == []


def test_a_process_of_its_own_has_its_batch_as_it_is():
    batch, pairs = pack(*ROWS), {"answers": object()}
    assert own_pack(batch, Team()) is batch and own_answers(pairs, Team()) == pairs


def config(family):
    kind, sizes = next(iter(family.tiny.items()))
    return transformers.CONFIG_MAPPING[kind](**sizes)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_another_family_is_refused_by_name(family):
    check_heads(config(family), 1)
    if family.shares_heads:
        check_heads(config(family), 2)
        return
    with pytest.raises(InputError, match="^train.sequence_parallel: got 2; the mixers of ") as caught:
        check_heads(config(family), 2)
    assert family.name in str(caught.value) and "Olmo Hybrid" in str(caught.value) and caught.value.status == 2


def test_more_processes_than_heads_are_refused():
    of_three = transformers.OlmoHybridConfig(num_attention_heads=6, linear_num_key_heads=3, linear_num_value_heads=6)
    check_heads(of_three, 3)
    with pytest.raises(InputError, match="^train.sequence_parallel: got 4; must be at most 3, the heads of this model"):
        check_heads(of_three, 4)


@pytest.fixture
def of_five_heads(tmp_path, steady_base, tiny_tokenizer):
    config = transformers.OlmoHybridConfig.from_pretrained(steady_base)
    for name in ("num_attention_heads", "num_key_value_heads", "linear_num_key_heads", "linear_num_value_heads"):
        setattr(config, name, 5)
    config.hidden_size = 40
    config.save_pretrained(tmp_path / "shape")
    save(hybrid_ft.load(tmp_path / "shape", from_scratch=True, seed=1), tmp_path / "base", tiny_tokenizer)
    return tmp_path / "base"


def checkpointed(output: Path) -> dict[str, list[tuple[str, list[int]]]]:
    """Of each file of the last checkpoint the tensors in it, but those of random states, of which
    each process has one."""
    found: dict[str, list[tuple[str, list[int]]]] = {}
    for file in sorted((output / "checkpoints" / "checkpoint-4").iterdir()):
        found[file.name] = []
        if file.suffix == ".safetensors" and file.name != "random_state.safetensors":
            with safe_open(file, framework="pt") as opened:
                found[file.name] = [(name, opened.get_slice(name).get_shape()) for name in sorted(opened.keys())]
    return found


@pytest.mark.slow
def test_four_processes_take_the_steps_of_one_and_two_go_on(tmp_path, of_five_heads):
    """By ``hybrid-ft launch``, in pieces: 5 heads as 2, 1, 1, 1, then as 3, 2; the checkpoints are the same files."""
    rows = [json.dumps({"prompt": f"ab{n}?", "completion": "cd" * (n % 9 + 1)}) for n in range(26)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "r.yaml").write_text(
        f"model: {{path: {of_five_heads}}}\n"
        "data: {sources: [{path: rows.jsonl}], eval: {count: 6}, max_length: 100}\n"
        "train: {tokens_per_step: 240, batch_tokens: 120, steps: 4, learning_rate: 1e-3, warmup: 0, schedule: constant}\n"
    )

    def run(processes: int, *keys: str) -> None:
        command = [sys.executable, "-m", "hybrid_ft.cli", "launch", "r.yaml", f"--processes={processes}", *keys]
        done = subprocess.run(
            command, check=False, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            timeout=1200,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    run(1, "output=one")
    run(4, "output=shared", "train.sharded=true", "train.sequence_parallel=4", "train.steps=2")
    run(2, "output=shared", "train.sharded=true", "train.sequence_parallel=2", "--extend")
    assert len(losses(tmp_path / "one")) == 4
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "one"), rel=2e-4)
    assert checkpointed(tmp_path / "one") == checkpointed(tmp_path / "shared")
