"""The reference's log-probabilities: computed once, kept in pieces, bound to what they were computed from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.training import reference_cache as reference
from hybrid_ft.finetune.training.reference_cache import (
    ReferenceCache,
    digests_of,
    reference_key,
    weights_digest,
    with_reference,
)

KEY = {"weights": "sha256:aa", "pairs": "sha256:bb", "chat_template": "sha256:cc", "dtype": "float32"}


class Counting:
    """Stands for the model: a pair's values are sums over its tokens; counts what it is asked for."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.pairs, self.stop_after = 0, stop_after

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        self.pairs += len(pairs)
        if self.stop_after is not None and self.pairs > self.stop_after:
            raise KeyboardInterrupt
        sides = [[-float(sum(pair[f"{side}_ids"])) / 7 for pair in pairs] for side in ("chosen", "rejected")]
        return torch.tensor(sides[0]), torch.tensor(sides[1])


def values_of(pairs: Any) -> list[tuple[float, float]]:
    chosen, rejected = Counting()(list(pairs))
    return list(zip(chosen.tolist(), rejected.tolist(), strict=True))


def fill(folder: Path, pairs: Any, compute: Any, key: dict[str, str] = KEY, say: Any = lambda text: None) -> Any:
    digests = digests_of(pairs)
    return with_reference(pairs, digests, ReferenceCache(folder, key).fill(pairs, digests, 200, compute, say))


def assert_filled(rows: Any, pairs: Any) -> None:
    found = list(zip(rows["ref_chosen_logps"], rows["ref_rejected_logps"], strict=True))
    assert found == values_of(pairs)
    assert rows["row"][:] == list(range(len(pairs)))


def test_computed_once(tmp_path: Path, make_pairs: Any) -> None:
    pairs, compute = make_pairs(30), Counting()
    assert_filled(fill(tmp_path, pairs, compute), pairs)
    assert compute.pairs == 30
    assert_filled(fill(tmp_path, pairs, compute), pairs)
    assert_filled(fill(tmp_path, pairs.shuffle(seed=1), compute), pairs.shuffle(seed=1))
    assert compute.pairs == 30


def test_goes_on_where_it_stopped(tmp_path: Path, make_pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PIECE", 8)
    pairs, cut = make_pairs(30), Counting(stop_after=20)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, pairs, cut)
    compute = Counting()
    assert_filled(fill(tmp_path, pairs, compute), pairs)
    assert compute.pairs == 30 - 16
    assert len(list(tmp_path.glob("pairs-*.safetensors"))) == 4


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_damaged_piece_is_computed_anew(
    tmp_path: Path, make_pairs: Any, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr(reference, "PIECE", 8)
    pairs, said = make_pairs(20), []
    fill(tmp_path, pairs, Counting())
    piece = tmp_path / "pairs-00001.safetensors"
    data = bytearray(piece.read_bytes())
    data[-1] ^= 1
    piece.write_bytes(bytes(data) if harm == "flip" else bytes(data[:-9]))
    if harm == "delete":
        piece.unlink()
    compute = Counting()
    assert_filled(fill(tmp_path, pairs, compute, say=said.append), pairs)
    assert compute.pairs == 8
    assert said == [f"{piece}: missing or damaged; its pairs are computed anew"]
    assert_filled(fill(tmp_path, pairs, compute), pairs)
    assert compute.pairs == 8


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("weights", "the base's weights differ (weights was sha256:aa..., is sha256:zz...)"),
        ("pairs", "the pairs differ"),
        ("chat_template", "the chat template differ"),
        ("dtype", "dtype differ (dtype was float32, is zz)"),
    ],
)
def test_another_reference_is_refused_by_name(tmp_path: Path, make_pairs: Any, name: str, called: str) -> None:
    pairs = make_pairs(4)
    fill(tmp_path, pairs, Counting())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = KEY | {name: "zz" if name == "dtype" else "sha256:zz"}
    for use in (ReferenceCache(tmp_path, other).check, lambda: fill(tmp_path, pairs, Counting(), other)):
        with pytest.raises(InputError) as error:
            use()
        assert error.value.status == 2 and called in str(error.value) and str(tmp_path) in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="holds thesis.txt and no reference.json"):
        ReferenceCache(tmp_path, KEY).check()
    (tmp_path / "reference.json").write_text("{")
    with pytest.raises(InputError, match="reference.json is damaged; delete the folder"):
        ReferenceCache(tmp_path, KEY).check()


def test_values_that_are_not_finite_are_refused(tmp_path: Path, make_pairs: Any) -> None:
    def spoilt(pairs: Any) -> Any:
        chosen, rejected = Counting()(pairs)
        return chosen, rejected * float("nan")

    with pytest.raises(InputError, match=r"pairs.jsonl:\d+: the base's log-probabilities are -.* and nan") as error:
        fill(tmp_path, make_pairs(4), spoilt)
    assert error.value.status == 4


def test_key_is_of_what_decides_and_of_nothing_else(steady_base: Path, make_pairs: Any) -> None:
    """Order and repetition of pairs, and adapters of any rank, change nothing; one token and one weight do."""
    import hybrid_ft
    from hybrid_ft.hybrid_model import adapters

    pairs = make_pairs(6)
    model = hybrid_ft.load(steady_base)
    key = reference_key(model, digests_of(pairs), "template", "float32")
    twice = digests_of(pairs.shuffle(seed=1)) + digests_of(pairs)
    assert reference_key(model, twice, "template", "float32") == key
    fewer = reference_key(model, digests_of(pairs)[:-1], "template", "float32")
    assert [name for name in key if fewer[name] != key[name]] == ["pairs"]
    for rank in (2, 8):
        adapted = adapters.add_lora(hybrid_ft.load(steady_base), rank=rank)
        assert weights_digest(adapted) == key["weights"]
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert weights_digest(model) != key["weights"]


def test_tokens_cannot_move_between_prompt_and_answer(make_pairs: Any) -> None:
    from datasets import Dataset

    rows = [
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]},
        {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]},
        {"prompt_ids": [], "chosen_ids": [1, 2, 3], "rejected_ids": [4]},
        {"prompt_ids": [1, 2], "chosen_ids": [4], "rejected_ids": [3]},
    ]
    assert len(set(digests_of(Dataset.from_list(rows)))) == 4


@pytest.mark.slow
def test_runs_share_a_cache(start_pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rate, output, loss and rank find it; other pairs and another base do not, and leave nothing behind."""
    from hybrid_ft.finetune.training.dpo.trainer import PairTrainer

    asked: list[int] = []
    compute = PairTrainer.reference
    monkeypatch.setattr(PairTrainer, "reference", lambda self, pairs: asked.append(len(pairs)) or compute(self, pairs))
    cache = {"reference_cache": str(tmp_path / "shared")}
    first = start_pairs("one", held_out=3, dpo=cache, train={"steps": 1})
    assert sum(asked) == 23 and not (first.folder / "reference").exists()
    asked.clear()
    for rank, loss in ((2, "sigmoid_norm"), (4, "ipo")):
        lora = {"lora": {"rank": rank, "alpha": 8}}
        more = {"steps": 1, "learning_rate": 1e-4 * rank}
        start_pairs(f"lora{rank}", held_out=3, dpo=cache | {"loss": loss}, train=more, model=lora)
    assert asked == []
    with pytest.raises(
        InputError, match="dpo.reference_cache: .*shared is the reference of another run: the pairs differ"
    ):
        start_pairs("other", dpo=cache, seed=5)
    with pytest.raises(InputError, match="the base's weights differ"):
        start_pairs("other", held_out=3, dpo=cache, model={"from_scratch": True, "path": first.recipe.model.path})
    assert not (tmp_path / "other").exists()


def test_pieces_hold_what_they_say(tmp_path: Path, make_pairs: Any) -> None:
    pairs = make_pairs(5)
    fill(tmp_path, pairs, Counting())
    columns = load_file(tmp_path / "pairs-00000.safetensors")
    assert columns["digests"].shape == (5, 16) and columns["digests"].dtype == torch.uint8
    assert columns["chosen"].dtype == columns["rejected"].dtype == torch.float32
    manifest = json.loads((tmp_path / "reference.json").read_text())
    assert manifest["key"] == KEY and list(manifest["pieces"]) == ["pairs-00000.safetensors"]
