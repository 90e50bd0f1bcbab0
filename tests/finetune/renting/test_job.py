"""A recipe as a job elsewhere: its command there, and what cannot be carried."""

import pytest
import yaml
from sky_tasks import command

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.renting import sky


def test_two_stages_of_a_kind_with_files_of_this_machine_are_refused(job, place):
    text = (
        (place / "all.yaml")
        .read_text()
        .replace("  - export:", "  - sft: {data: {sources: [{path: me/more}]}}\n  - export:")
    )
    (place / "twice.yaml").write_text(text)
    with pytest.raises(
        InputError, match=r"^twice\.yaml: sft\.data\.sources\.0\.path is on this machine, and an override"
    ):
        job("sky", "twice.yaml")
    (place / "parts" / "deep").mkdir()
    (place / "parts/deep/all.yaml").write_text("stages: [{sft: ../first.yaml}]\n")
    with pytest.raises(InputError, match=r"stages: '\.\./first\.yaml' must lie beside the file"):
        job("sky", "parts/deep/all.yaml")


def test_stages_that_ship_bring_nothing(job):
    task = yaml.safe_load(sky.task(job("sky", "domains/math")))
    assert list(task["file_mounts"]) == ["/copies"]
    assert command(task["run"])[2:] == ["domains/math", 'mirror="/copies/math"', "output=runs/math", "--processes", "8"]


def test_the_reference_s_cache_stays_with_the_run(job, place):
    """A folder of this machine would not be there, and another one there would go with the machine."""
    mine = job("sky", "hub.yaml", f"dpo.reference_cache={place}/cache")
    words = command(yaml.safe_load(sky.task(mine))["run"])
    at = words.index("dpo.reference_cache=null")
    assert words.index(f"dpo.reference_cache={place}/cache") < at < words.index("output=runs/hub")


def test_a_stage_without_a_reference_has_no_cache(job):
    words = command(yaml.safe_load(sky.task(job("sky", "hub.yaml", "reward.pairs_per_step=4")))["run"])
    assert not [word for word in words if "reference_cache" in word]


def test_kept_tokens_stay_beside_the_run(job, place):
    words = command(yaml.safe_load(sky.task(job("sky", "hub.yaml", f"data.cache={place}/cache")))["run"])
    assert words.index(f"data.cache={place}/cache") < words.index("data.cache=null") < words.index("output=runs/hub")


def test_what_cannot_be_brought_is_refused(job, place):
    base = place / "base"
    base.mkdir()
    (base / "config.json").symlink_to(place / "hub.yaml")
    with pytest.raises(InputError, match=r"^model\.path: 'config\.json' is a link, which is not uploaded"):
        sky.task(job("sky", "hub.yaml", "model.path=base"))
    for number in range(120):
        (place / f"many-{number}.jsonl").touch()
    with pytest.raises(InputError, match=r"^data\.sources\.0\.path: 'many-\*\.jsonl' matches 120 files"):
        job("sky", "hub.yaml", "data.sources.0.path=many-*.jsonl")
