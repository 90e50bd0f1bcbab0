"""A start on a fresh machine takes the newest checkpoint that is whole, and ends as the run that nothing disturbed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_helpers import Killed, killed_in

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.mirror.place import Place
from hybrid_ft.finetune.runs import checkpoints


def a_mirrored_run(run, steps=(1, 2), best=1) -> Any:
    mine = run()
    mine.begin(rate=1)
    (mine.folder.path / "answers-before.jsonl").write_text("{}\n")
    mine.mirror.begin(None)
    for step in steps:
        mine.save(step, best=best)
        mine.wait()
    return mine


def fetched(run, name="fresh") -> tuple[Any, Path | None]:
    other = run(name)
    other.mirror.look()
    newest = checkpoints.newest(other.folder.checkpoints, pytest.fail)
    return other, other.mirror.fetch(newest)


def test_the_newest_comes_with_all_that_the_run_needs(run):
    mine = a_mirrored_run(run)
    other, found = fetched(run)
    assert found == other.folder.checkpoints / "checkpoint-2"
    names = ["run.json", "metrics.jsonl", "answers-before.jsonl"]
    for name in [*names, *(f"checkpoints/checkpoint-{step}/weights.safetensors" for step in (1, 2))]:  # 1 is the best
        assert (other.folder.path / name).read_bytes() == (mine.folder.path / name).read_bytes(), name
    assert other.folder.record == mine.folder.record
    assert not (other.folder.checkpoints / checkpoints.STAGING).exists()


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "missing", "no manifest", "bad manifest", "escaping manifest"]
)
def test_what_is_not_whole_is_never_taken(run, place, damage):
    a_mirrored_run(run)
    there, top = Place(place), "checkpoints/checkpoint-2"
    weights = there.read(f"{top}/weights.safetensors")
    if damage == "truncated":
        there.write(f"{top}/weights.safetensors", weights[:-1])
    elif damage == "flipped":
        there.write(f"{top}/weights.safetensors", weights[:-1] + b"?")
    elif damage == "missing":
        there.remove(f"{top}/sub/state.json")
    elif damage == "no manifest":
        there.remove(f"{top}/manifest.json")
    elif damage == "bad manifest":
        there.write(f"{top}/manifest.json", b"{")
    else:
        listed = json.loads(there.read(f"{top}/manifest.json"))
        there.write(f"{top}/manifest.json", json.dumps(listed | {"../../x": {"size": 1, "sha256": ""}}).encode())
    other, found = fetched(run)
    assert found == other.folder.checkpoints / "checkpoint-1"
    assert checkpoints.committed(other.folder.checkpoints) == [found]
    assert damage == "no manifest" or any("it is not taken" in text for text in other.said)


def test_what_the_disk_has_is_kept_unless_the_place_is_ahead(run):
    mine = a_mirrored_run(run)
    newest = mine.folder.checkpoints / "checkpoint-2"
    again = run()
    again.mirror.look()
    assert again.mirror.fetch(newest) == newest and again.said == []
    shutil.rmtree(newest)
    again = run()
    again.mirror.look()
    assert again.mirror.fetch(mine.folder.checkpoints / "checkpoint-1") == newest


def test_a_fetch_cut_short_at_any_request_is_taken_up_again(run, monkeypatch):
    a_mirrored_run(run)

    number = 0
    while True:
        left = [number]
        other = run(f"fresh-{number}")

        def counted(*arguments, real, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*arguments)

        for name in ("read", "get"):
            real = getattr(other.mirror.place, name)
            monkeypatch.setattr(
                other.mirror.place, name, lambda *a, real=real, left=left: counted(*a, real=real, left=left)
            )
        try:
            other.mirror.look()
            other.mirror.fetch(None)
        except Killed:
            other, found = fetched(run, f"fresh-{number}")
            assert found is not None and checkpoints.fault(found) is None and found.name == "checkpoint-2"
            assert (other.folder.path / "answers-before.jsonl").exists()
            assert checkpoints.fault(found.with_name("checkpoint-1")) is None  # the best
            number += 1
            continue
        break
    assert number > 6


def test_a_finished_run_brings_its_result(run):
    mine = a_mirrored_run(run, steps=(1,))
    mine.finish(1)
    mine.wait()
    other = run("fresh")
    other.mirror.look()
    assert other.folder.finished
    with other.mirror.running():
        other.mirror.end()
    assert (other.folder.path / "model/model.safetensors").read_bytes() == b"result"
    assert sorted(path.name for path in (other.folder.path / "model").iterdir()) == ["model.safetensors"]
    assert not other.folder.checkpoints.exists()
    assert other.mirror.status() == 0 and other.mirror.up_to_date


def test_a_place_that_does_not_answer(run, monkeypatch):
    """Where nothing has begun the run might be there, so nothing begins; a run that is here goes on."""
    mine, fresh, again = a_mirrored_run(run), run("fresh"), run()
    monkeypatch.setattr(Place, "read", lambda self, name: (_ for _ in ()).throw(TimeoutError("no answer")))
    with pytest.raises(InputError, match=r"mirror: .* cannot be read \(TimeoutError: no answer\)") as error:
        fresh.mirror.look()
    assert error.value.status == ENVIRONMENT
    again.mirror.look()
    newest = mine.folder.checkpoints / "checkpoint-2"
    assert again.mirror.fetch(newest) == newest and "no answer" in again.said[0]


def test_a_place_that_holds_something_else(run, place):
    Place(place).write("thesis.txt", b"mine")
    with pytest.raises(InputError, match="holds thesis.txt and is not the mirror of a run"):
        run().mirror.look()


@pytest.mark.parametrize("where", ["run", "run/mirror", "."])
def test_a_folder_that_is_the_runs_own(tmp_path, run, where):
    with pytest.raises(InputError, match="must not lie in one another"):
        run("run", str(tmp_path / where))


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_fresh_machine_ends_bit_for_bit_as_the_uninterrupted_run(start, monkeypatch, place, lora):
    """The first machine is lost in the middle of the run with all that it had."""
    from run_helpers import LORA

    from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

    sections = {"model": LORA} if lora else {}
    whole = start("whole", **sections)
    with killed_in(monkeypatch, PackedSFTTrainer, 4):
        start("lost", mirror=place, **sections)
    shutil.rmtree(whole.folder.with_name("lost"))
    again = start("fresh", mirror=place, **sections)
    assert f"fetched checkpoint-4 from {Place(place).name}" in again.screen
    assert again.metrics() == whole.metrics()
    names = [path.relative_to(whole.folder) for path in whole.folder.glob("*/*.safetensors")]
    assert names
    for name in [*names, Path("checkpoints/checkpoint-6/optimizer-00001.safetensors")]:
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    for name in names:
        assert Place(place).read(str(name)) == (whole.folder / name).read_bytes()
