"""What a run writes while it is being copied."""

import json
import threading
from pathlib import Path

from hybrid_ft.finetune.mirror.place import Place
from tests.finetune.mirror.conftest import steps


def test_a_checkpoint_saved_while_small_files_go_is_not_there_without_its_metrics(run, place, monkeypatch):
    mine, put, saved = run(), Place.put, threading.Event()
    mine.begin()
    sent = mine.mirror._copying._put_small
    lines: dict[str, int] = {}

    def slow(record: bytes) -> None:
        sent(record)
        saved.wait(120)

    def listed(self: Place, file: Path, name: str) -> None:
        lines.setdefault(name.split("/")[1], (self.read("metrics.jsonl") or b"").count(b"\n"))
        put(self, file, name)

    monkeypatch.setattr(mine.mirror._copying, "_put_small", slow)
    monkeypatch.setattr(Place, "put", listed)
    mine.mirror.begin(None)
    mine.save(1)
    saved.set()
    mine.wait()
    assert lines == {"checkpoint-1": 1}


def test_a_run_that_finishes_while_small_files_go_is_not_finished_there_without_its_result(run, place, monkeypatch):
    """Nor does its record say there that something was measured whose file is not there."""
    mine, write, sent = run(), Place.write, []
    mine.begin()

    def slow(self: Place, name: str, content: bytes) -> None:
        if name == "metrics.jsonl" and not sent:
            (mine.folder.path / "answers-after.jsonl").write_text("{}\n")
            mine.finish(1)
            mine.mirror._copying.tell()
        if name == "run.json":
            there = self.listing()
            finished = bool(json.loads(content).get("finished"))
            sent.append(finished)
            assert finished <= ("model/model.safetensors" in there and "answers-after.jsonl" in there)
        write(self, name, content)

    mine.folder.metrics.write_text('{"step": 1}\n')
    monkeypatch.setattr(Place, "write", slow)
    mine.mirror.begin(None)
    mine.wait()
    assert sent == [False, True] and mine.said == []


def test_what_is_to_be_copied_stays_while_small_files_go(run, place, monkeypatch):
    """However slowly: some checkpoint gets there between any two saves."""
    mine, write, there = run(), Place.write, []
    mine.begin()
    mine.mirror.begin(None)
    mine.wait()

    def slow(self: Place, name: str, content: bytes) -> None:
        write(self, name, content)
        if name == "metrics.jsonl" and (step := content.count(b"\n")) < 6:
            for more in (1, 2, 3):
                mine.save(step + more)
        if name.endswith("manifest.json"):
            there.append(name)

    monkeypatch.setattr(Place, "write", slow)
    mine.save(1)
    mine.wait()
    assert there[0].split("/")[1] == "checkpoint-1"
    assert steps(place) == [7] and mine.said == []
