"""What lies in the place at any moment is a run that can go on, whatever fails on the way there."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

from fsspec.implementations.local import LocalFileSystem

from hybrid_ft.finetune.mirror.place import Place
from hybrid_ft.finetune.runs.mirror_account import account
from hybrid_ft.finetune.runs.status import status
from tests.finetune.mirror.conftest import steps

REMOVALS = [f"remove checkpoints/checkpoint-1/{name}" for name in ("sub/state.json", "weights.safetensors")]


class Broken(Exception):
    pass


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


def test_a_connection_that_was_lost_is_made_anew(run, tmp_path, monkeypatch):
    """By ssh it does not come back by itself; until the machine answers again the run goes on."""
    opened = []

    def open_one(text, **options):
        if len(opened) == 1:
            opened.append(None)
            raise OSError("no route to host")
        files = LocalFileSystem(skip_instance_cache=True)
        files.ftp = SimpleNamespace(get_channel=lambda: SimpleNamespace(settimeout=lambda seconds: None))
        opened.append(files)
        return files, str(tmp_path / "there")

    monkeypatch.setattr("hybrid_ft.finetune.mirror.place.url_to_fs", open_one)
    mine = run(where="ssh://me@machine/there")
    mine.begin()
    mine.mirror.begin(None)
    mine.save(1)
    mine.wait()

    def lost(*arguments, **options):
        raise EOFError

    for name in ("cat_file", "pipe_file", "put_file", "find"):
        monkeypatch.setattr(opened[0], name, lost)
    mine.save(2)
    mine.wait()
    assert steps(str(tmp_path / "there")) == [2], mine.said
    assert len(opened) >= 3 and opened[1] is None
    assert [text.split()[1] for text in mine.said if text.startswith("mirror ")][-2:] == [
        "ssh://me@machine/there",
        "caught",
    ]


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


def test_a_start_that_went_on_keeps_the_best_there(run, place):
    """Also before its first save, and where the place was chosen after the best was saved."""
    mine = run()
    mine.begin()
    mine.mirror.begin(None)
    mine.save(1, best=1)
    mine.wait()
    newest = mine.save(2, best=1)
    mine.wait()
    again = run()
    again.mirror.begin(newest)
    again.wait()
    assert steps(place) == [2, 1]
    Place(place).remove_folder("checkpoints/checkpoint-1")
    again = run()
    again.mirror.begin(newest)
    again.wait()
    assert steps(place) == [2, 1]


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
        assert go.wait(120)
        put(file, name)

    monkeypatch.setattr(mine.mirror.place, "put", slow)
    mine.begin()
    mine.mirror.begin(None)
    first = mine.save(1)
    assert at_it.wait(120)
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
