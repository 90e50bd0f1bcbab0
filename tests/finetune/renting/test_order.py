"""What cannot be asked of a place is one line that says why."""

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.renting.order import Order

SKY = {"gpu": "h100", "bucket": "s3://my-runs"}
HF = {"gpu": "h200", "bucket": "me/runs", "time": "12h"}


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("", {}, "--on: must be given, one of sky, hf, slurm"),
        ("slrum", {}, "--on: 'slrum' must be one of sky, hf, slurm; did you mean slurm?"),
        ("sky", SKY | {"nodes": 2}, "--nodes: not with --on sky; its machines share no disk"),
        ("sky", SKY | {"restarts": 0}, "--restarts: not with --on sky; SkyPilot does not count them"),
        ("sky", SKY | {"time": "2h"}, "--time: not with --on sky"),
        ("sky", {"gpu": "h100"}, "--bucket: must be given with --on sky; the machine's disk goes with it"),
        ("sky", {"bucket": "s3://my-runs"}, "--gpu: must be given with --on sky"),
        ("sky", SKY | {"bucket": "me/runs"}, "--bucket: 'me/runs' must be a bucket for --on sky"),
        ("sky", SKY | {"bucket": "s3://a/../b c"}, "--bucket: "),
        ("sky", SKY | {"image": "-v /:/host"}, "--image: "),
        ("hf", HF | {"spot": True}, "--spot: not with --on hf; Hugging Face Jobs has no spot machines"),
        ("hf", HF | {"nodes": 2}, "--nodes: not with --on hf"),
        ("hf", HF | {"time": None}, "--time: must be given with --on hf; without a limit a job there ends after 30"),
        ("hf", HF | {"time": "0h"}, "--time: '0h' must be a whole number and m, h or d"),
        ("hf", HF | {"time": "1:00"}, "--time: '1:00' must be"),
        ("sky", SKY | {"mirror": "s3://my-runs/mine"}, "--mirror: not with --bucket, which is a mirror too; leave"),
        ("hf", HF | {"bucket": "s3://my-runs"}, "--bucket: 's3://my-runs' must be a bucket for --on hf, owner/name"),
        ("hf", HF | {"secret": ("HF_TOKEN=abc",)}, "--secret: must be the name of an environment variable"),
        ("slurm", {"time": "1h", "bucket": "s3://a"}, "--bucket: not with --on slurm; the runs lie on"),
        ("slurm", {"time": "1h", "image": "a"}, "--image: not with --on slurm"),
        ("slurm", {}, "--time: must be given with --on slurm"),
        ("slurm", {"time": "1h", "gpu": ""}, "--gpu: must not be empty"),
        ("hf", {"gpu": "h200", "time": "1h", "mirror": ""}, "--mirror: must not be empty"),
    ],
)
def test_refused(place, options, message):
    with pytest.raises(InputError) as refused:
        Order(place, **options)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
    assert "abc" not in str(refused.value)


def test_the_run_is_told_before_the_limit():
    assert (Order("slurm", time="12h").seconds, Order("slurm", time="12h").notice) == (43200, 1200)
    assert Order("slurm", time="2d").seconds == 172800
    assert Order("slurm", time="20m").notice == 300


def test_both_ways_of_naming_a_bucket_of_the_hub():
    assert Order("hf", **HF).hub_bucket == "me/runs"
    assert Order("hf", **HF | {"bucket": "hf://buckets/me/runs"}).hub_bucket == "me/runs"
