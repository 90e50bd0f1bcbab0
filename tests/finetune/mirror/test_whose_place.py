"""A place belongs to one run, and to its latest start."""

import re
from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.mirror.place import Place
from tests.finetune.mirror.conftest import steps


def test_what_another_start_has_saved_there_is_not_removed(run, place, monkeypatch):
    """A machine that was believed lost wakes up between its last look and its removal of what is old."""
    mine, listing = run(), Place.listing
    mine.begin()
    mine.mirror.begin(None)
    mine.save(1)
    mine.wait()

    def asleep(self: Place, under: str = "") -> dict[str, int]:
        if under == "checkpoints":
            with monkeypatch.context() as awake:
                awake.setattr(Place, "listing", listing)
                other = run("other")
                other.mirror.look()
                other.mirror.claim()
                other.folder.note(mirrored_as=mine.mirror._copying.run)
                other.folder.checkpoints.mkdir()
                other.mirror._copying = None
                other.mirror.begin(None)
                for step in (2, 3):
                    other.save(step)
                other.wait()
        return listing(self, under)

    monkeypatch.setattr(Place, "listing", asleep)
    mine.save(2)
    mine.mirror._copying.wait(120, 120)
    assert steps(place) == [3] and mine.mirror._copying.taken


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
    assert not copying.wait(120, 120) and copying.taken
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
