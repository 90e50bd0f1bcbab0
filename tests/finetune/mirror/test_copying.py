"""What lies in the place at any moment is a run that can go on, whatever fails on the way there."""

import json
import re
import threading
from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.mirror.files import saved_steps, small_files
from hybrid_ft.finetune.mirror.place import Place
from hybrid_ft.finetune.runs.mirror_account import account, behind
from hybrid_ft.finetune.runs.status import status

REMOVALS = [f"remove checkpoints/checkpoint-1/{name}" for name in ("sub/state.json", "weights.safetensors")]


class Broken(Exception):
    pass


def steps(place: str) -> list[int]:
    return saved_steps(Place(place).listing())


def test_the_newest_and_the_best_are_there_and_nothing_else(run, place):
    mine = run()
    mine.begin()
    mine.mirror.begin(None)
    for step in (1, 2, 3):
        mine.save(step, best=1)
        mine.wait()
    assert steps(place) == [3, 1]
    assert {name.split("/")[1] for name in Place(place).listing() if name.startswith("checkpoints/")} == {
        "checkpoint-1",
        "checkpoint-3",
    }
    assert Place(place).read("metrics.jsonl") == (mine.folder.path / "metrics.jsonl").read_bytes()
    assert account(mine.folder.path) == {"place": Place(place).name, "step": 3, "fault": None, "whole": False}
    mine.finish(3)
    mine.wait()
    assert Place(place).read("model/model.safetensors") == b"result"
    assert json.loads(Place(place).read("run.json"))["finished"]["step"] == 3
    assert account(mine.folder.path)["whole"] is True


def test_the_manifest_comes_last_and_only_then_do_older_ones_go(run, place, monkeypatch):
    done: list[str] = []
    mine = run()
    there = mine.mirror.place
    for name in ("put", "write", "remove", "remove_folder"):
        real = getattr(there, name)

        def recorded(*arguments, name=name, real=real):
            done.append(f"{name} {arguments[0] if name in ('write', 'remove', 'remove_folder') else arguments[1]}")
            return real(*arguments)

        monkeypatch.setattr(there, name, recorded)
    mine.begin()
    mine.mirror.begin(None)
    mine.save(1)
    mine.wait()
    done.clear()
    mine.save(2)
    mine.wait()
    of_folders = [line for line in done if "checkpoint-" in line]
    assert set(of_folders[:2]) == {
        "put checkpoints/checkpoint-2/weights.safetensors",
        "put checkpoints/checkpoint-2/sub/state.json",
    }
    assert of_folders[2:] == [
        "write checkpoints/checkpoint-2/manifest.json",
        "remove checkpoints/checkpoint-1/manifest.json",
        "remove_folder checkpoints/checkpoint-1",
        *(line for line in of_folders if line in REMOVALS),
    ]
    assert done.index("write metrics.jsonl") < done.index("write checkpoints/checkpoint-2/manifest.json")


def test_every_request_may_fail_once(run, place, monkeypatch):
    """Each operation of the place in turn raises before or after it is done; the end is always the same."""
    operations = ("read", "write", "put", "listing", "remove", "remove_folder")
    failed: list[str] = []
    seen: set[tuple[str, str]] = set()
    mine = run()
    there = mine.mirror.place
    mine.begin()
    for name in operations:
        real = getattr(there, name)

        def shaky(*arguments, name=name, real=real):
            key = (name, str(arguments[:2]))
            if key not in seen:
                seen.add(key)
                failed.append(name)
                if len(failed) % 2:
                    real(*arguments)
                raise Broken(f"{name} broke")
            return real(*arguments)

        monkeypatch.setattr(there, name, shaky)
    mine.mirror.begin(None)
    for step in (1, 2):
        mine.save(step)
        mine.wait()
    mine.finish(2)
    mine.wait()
    assert set(failed) == set(operations)
    assert steps(place) == [2]
    other = run("other")
    other.mirror.look()
    assert other.mirror.fetch(None).name == "checkpoint-2"
    assert "mirror    caught up" in mine.said and any("is behind (Broken: " in text for text in mine.said)


def test_while_a_checkpoint_is_copied_it_stays_on_the_disk_and_of_those_that_wait_the_newest_is_next(
    run, place, monkeypatch
):
    mine = run()
    go, at_it = threading.Event(), threading.Event()
    put = mine.mirror.place.put

    def slow(file: Path, name: str) -> None:
        at_it.set()
        assert go.wait(10)
        put(file, name)

    monkeypatch.setattr(mine.mirror.place, "put", slow)
    mine.begin()
    mine.mirror.begin(None)
    first = mine.save(1)
    assert at_it.wait(10)
    mine.save(2)
    mine.save(3)
    assert first.is_dir() and not first.with_name("checkpoint-2").exists()
    found = status(mine.folder.path)
    assert "the last save is step 3; the mirror" in found.text and "has no checkpoint and lacks step 3" in found.text
    go.set()
    mine.wait()
    assert steps(place) == [3]
    with mine.mirror.running():
        pass
    assert not first.exists()


def test_a_checkpoint_that_is_gone_from_the_disk_is_passed_over(run, place, monkeypatch):
    mine = run()
    put = mine.mirror.place.put

    def vanishing(file: Path, name: str) -> None:
        if file.parent.name == "checkpoint-1":
            from hybrid_ft.finetune.runs.atomic import remove

            remove(file.parent)
        put(file, name)

    monkeypatch.setattr(mine.mirror.place, "put", vanishing)
    mine.begin()
    mine.mirror.begin(None)
    mine.save(1)
    mine.wait()
    assert steps(place) == []
    mine.save(2)
    mine.wait()
    assert steps(place) == [2]


def test_what_did_not_arrive_whole_gets_no_manifest(run, place, monkeypatch):
    mine = run()
    put, short = mine.mirror.place.put, [True]

    def cut(file: Path, name: str) -> None:
        if short and file.name == "weights.safetensors":
            short.clear()
            file.with_suffix(".cut").write_bytes(file.read_bytes()[:-1])
            put(file.with_suffix(".cut"), name)
            file.with_suffix(".cut").unlink()
        else:
            put(file, name)

    monkeypatch.setattr(mine.mirror.place, "put", cut)
    mine.begin()
    mine.mirror.begin(None)
    mine.save(1)
    mine.wait()
    assert any("weights.safetensors has 5,000 bytes there" in text for text in mine.said)
    assert steps(place) == [1]


def test_the_end_waits_and_says_what_is_missing(run, place, monkeypatch):
    mine, name = run(), Place(place).name
    mine.begin()

    def refused(*arguments):
        raise PermissionError("Forbidden for hf_ABCDEFGHIJKLMNOPQRSTUVWX1")

    with monkeypatch.context() as patched:
        patched.setattr("hybrid_ft.finetune.mirror.mirror.IDLE_SECONDS", 0.1)
        with mine.mirror.running():
            mine.mirror.begin(None)
            mine.save(1)
            mine.wait()
            patched.setattr(mine.mirror.place, "put", refused)
            mine.save(2)
            mine.finish(2)
    lacks = f"the mirror {name} has step 1 and lacks step 2 and the result (PermissionError: Forbidden for ***)"
    assert mine.said[-1] == f"{lacks}; the same command goes on copying"
    assert mine.mirror.status() == 75
    found = status(mine.folder.path)
    assert (found.code, found.text) == (
        75,
        f"{mine.folder.path}: finished at step 2; {lacks}; the same command goes on copying",
    )
    again = run()
    again.mirror.look()
    with again.mirror.running():
        again.mirror.end()
    assert again.mirror.status() == 0 and status(again.folder.path).code == 0
    assert steps(place) == [2] and Place(place).read("model/model.safetensors") == b"result"


def test_a_later_start_takes_the_place_over_and_the_earlier_one_stops_copying(run, place):
    mine = run()
    mine.begin(rate=1)
    mine.mirror.begin(None)
    mine.save(1)
    mine.wait()
    later = run("later")
    later.mirror.look()
    assert later.mirror.fetch(None) is not None
    later.mirror.begin(None)
    later.wait()
    mine.save(2)
    copying = mine.mirror._copying
    copying.tell()
    assert not copying.wait(10, 10) and copying.taken
    assert any("was taken over by a start on" in text and "the run goes on" in text for text in mine.said)
    assert steps(place) == [1]
    later.save(3)
    later.wait()
    assert steps(place) == [3]


def test_two_runs_do_not_share_a_place(run, place, tmp_path):
    mine = run()
    mine.begin(rate=1)
    mine.mirror.begin(None)
    mine.save(1)
    mine.wait()
    other = run("other", str(tmp_path / "elsewhere"))
    other.begin(rate=1)
    other.folder.note(mirrored_as="another")
    again = run("other")
    with pytest.raises(InputError, match=re.escape(f"{Path(place).name} holds another run; give another mirror")):
        again.mirror.look()
    fresh = run("fresh")
    fresh.mirror.look()
    with pytest.raises(InputError, match=r"mirror: .* belongs to another run: rate was 1, is 2; give another mirror"):
        fresh.folder.check({"rate": 2})


def test_a_place_that_was_cleared_is_filled_again(run, place):
    mine = run()
    mine.begin()
    mine.mirror.begin(None)
    mine.save(1)
    mine.wait()
    for name in Place(place).listing():
        Place(place).remove(name)
    mine.save(2)
    mine.wait()
    assert steps(place) == [2] and Place(place).read("run.json") is not None


def test_small_files_leave_out_checkpoints_results_hidden_files_and_links(tmp_path):
    for name in (
        "run.json",
        "metrics.jsonl",
        ".lock",
        ".mirror.json",
        "reference/a.safetensors",
        "model/x",
        "adapter/x",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoints/checkpoint-1").mkdir(parents=True)
    (tmp_path / "checkpoints/checkpoint-1/x").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "run.json")
    assert small_files(tmp_path) == ["metrics.jsonl", "reference/a.safetensors", "run.json"]


@pytest.mark.parametrize(
    ("known", "saved", "finished", "text"),
    [
        ({"step": 4}, 4, False, ""),
        ({"step": None}, 0, False, ""),
        ({"step": 4, "whole": True}, 4, True, ""),
        ({"step": None, "fault": "X: y"}, 3, False, "the mirror p has no checkpoint and lacks step 3 (X: y)"),
        ({"step": 4, "whole": False}, 4, True, "the mirror p has step 4 and lacks the result"),
        ({"step": 2, "whole": False}, 4, True, "the mirror p has step 2 and lacks step 4 and the result"),
    ],
)
def test_how_far_behind(known, saved, finished, text):
    assert behind({"place": "p"} | known, saved, finished) == text
