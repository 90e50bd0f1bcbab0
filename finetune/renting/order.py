"""What is asked of a rented machine, and what cannot be asked together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybrid_ft.errors import InputError, did_you_mean, shown

Place = Literal["sky", "hf", "slurm"]

PLACES: dict[str, str] = {
    "sky": "a SkyPilot task, a managed job",
    "hf": "a Hugging Face Job",
    "slurm": "a Slurm batch script",
}
_ONLY = {
    "spot": ("sky",),
    "nodes": ("slurm",),
    "time": ("hf", "slurm"),
    "restarts": ("hf", "slurm"),
    "bucket": ("sky", "hf"),
    "package": ("sky", "hf"),
    "image": ("sky", "hf"),
    "secret": ("sky", "hf"),
}
"""The options that not every place has."""
_WHY = {
    ("hf", "spot"): "Hugging Face Jobs has no spot machines",
    ("slurm", "spot"): "a cluster's partitions decide; add a line to the file",
    ("sky", "nodes"): "its machines share no disk that all processes see",
    ("hf", "nodes"): "a job there is one machine",
    ("sky", "time"): "a managed job ends with the run",
    ("sky", "restarts"): "SkyPilot does not count them",
    ("slurm", "bucket"): "the runs lie on the cluster's own disk",
    ("slurm", "package"): "the job uses the environment that this command runs in",
    ("slurm", "image"): "the job uses the environment that this command runs in",
    ("slurm", "secret"): "sbatch hands the environment on",
}
_NEEDED = {
    ("sky", "gpu"): "such as h100",
    ("hf", "gpu"): "such as h200",
    (
        "sky",
        "bucket",
    ): "the machine's disk goes with it, and the run's mirror must stay: a bucket such as s3://my-runs, or --mirror",
    (
        "hf",
        "bucket",
    ): "the job's disk goes with it, and the run's mirror must stay: a bucket of yours such as me/runs, or --mirror",
    ("hf", "time"): "without a limit a job there ends after 30 minutes: such as 12h",
    ("slurm", "time"): "the run is told to save before the limit: such as 12h",
}
_BUCKETS = {
    "sky": (re.compile(r"(s3|gs|r2|nebius|oci)://[a-z0-9][\w.-]*(/[\w.-]+)*/?", re.ASCII), "such as s3://my-runs"),
    "hf": (re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII), "owner/name, such as me/runs"),
}
HUB_BUCKETS = "hf://buckets/"
_TIME = re.compile(r"([1-9][0-9]{0,4})([mhd])", re.ASCII)
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_LONGEST_NOTICE = 1200


@dataclass(frozen=True)
class Order:
    """A command's options as they were given; None and empty where they were not.

    gpus      of one machine
    nodes     machines
    time      the limit: a number and m, h or d
    bucket    what holds the copies of runs
    package   what is installed there: a wheel's file, or a requirement that pip knows
    image     a container's image; with no ``package`` it has the program already
    mirror    where the run is copied to; in place of a folder of a bucket; sky, hf
    secret    names of environment variables; their values are never written
    restarts  how often the job goes on by itself after status 75 (slurm), or is started again (hf)
    """

    place: str
    gpu: str | None = None
    gpus: int = 1
    nodes: int | None = None
    spot: bool = False
    time: str | None = None
    bucket: str | None = None
    package: str | None = None
    image: str | None = None
    secret: tuple[str, ...] = ()
    restarts: int | None = None
    write: Path | None = None
    mirror: str | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a place that is not known and options that it does not have, or needs."""
        if not self.place:
            raise InputError(f"--on: must be given, one of {', '.join(PLACES)}")
        if self.place not in PLACES:
            raise InputError(
                f"--on: {shown(self.place)} must be one of {', '.join(PLACES)}{did_you_mean(self.place, PLACES)}"
            )
        for option, value in vars(self).items():
            if value == "":
                raise InputError(f"--{option}: must not be empty; leave the option out, or say what it is to be")
        for option, places in _ONLY.items():
            value = getattr(self, option)
            given = value is not None and value is not False and value != ()
            if given and self.place not in places:
                raise InputError(f"--{option}: not with --on {self.place}; {_WHY[self.place, option]}")
        for (place, option), why in _NEEDED.items():
            elsewhere = option == "bucket" and self.mirror is not None
            if place == self.place and getattr(self, option) is None and not elsewhere:
                raise InputError(f"--{option}: must be given with --on {place}; {why}")
        if self.bucket is not None:
            form, example = _BUCKETS[self.place]
            if not form.fullmatch(self.bucket.removeprefix(HUB_BUCKETS)):
                raise InputError(f"--bucket: {shown(self.bucket)} must be a bucket for --on {self.place}, {example}")
        if self.mirror is not None and self.bucket is not None:
            raise InputError("--mirror: not with --bucket, which is a mirror too; leave one of them out")
        for name in self.secret:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise InputError(
                    "--secret: must be the name of an environment variable, such as HF_TOKEN, not its value"
                )
        if self.image is not None and not re.fullmatch(r"[\w][\w./:@-]*", self.image, re.ASCII):
            raise InputError(
                f"--image: {shown(self.image)} must be the name of a container's image, such as me/hybrid-ft:1"
            )
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise InputError(f"--time: {shown(self.time)} must be a whole number and m, h or d, such as 90m or 12h")

    @property
    def seconds(self) -> int:
        """The time limit."""
        match = _TIME.fullmatch(self.time or "")
        assert match is not None  # checked when the order was made, and asked for only where it must be given
        return int(match[1]) * _SECONDS[match[2]]

    @property
    def notice(self) -> int:
        """Seconds before the limit at which the run is told to save and end: 20 minutes, a quarter of a short limit."""
        return min(_LONGEST_NOTICE, self.seconds // 4)

    @property
    def hub_bucket(self) -> str:
        """``owner/name`` of a bucket on the hub."""
        return (self.bucket or "").removeprefix(HUB_BUCKETS)
