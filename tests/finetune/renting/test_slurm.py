"""The batch script, run with stand-ins for srun and scontrol: one launch a machine, statuses passed on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hybrid_ft.finetune.renting import slurm

# srun gives the highest status of its tasks
SRUN = """\
printf '%s\\n' "$@" > "$OUT/srun"
while [ "${1#--}" != "$1" ]; do shift; done
worst=0
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node "$@"
    status=$?
    [ $status -gt $worst ] && worst=$status
done
[ -z "$SCANCEL" ] || kill -TERM $PPID
exit $worst
"""
SCONTROL = """\
echo "$*" >> "$OUT/scontrol"
[ "$1" != show ] || printf 'node-a\\nnode-b\\n'
[ "$1" != requeue ] || exit ${REQUEUE:-0}
"""
PROGRAM = """\
printf '%s\\n' "$@" > "$OUT/launch-$SLURM_NODEID"
code=STATUS_$SLURM_NODEID
exit ${!code}
"""


@pytest.fixture
def ran(job, tmp_path, monkeypatch):
    """``ran(statuses, **environment)``: exit status and screen of the script of so many machines."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("py'thon", PROGRAM)):
        (tools / name).write_text(f"#!/bin/bash\n{text}")
        (tools / name).chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tools / "py'thon"))

    def run(*statuses: int, **environment: str) -> tuple[int, str]:
        file = tmp_path / "job.sbatch"
        file.write_text(slurm.script(job("slurm", "mine.yaml", "evaluate.samples=[it's $HOME]", nodes=len(statuses))))
        subprocess.run(["bash", "-n", file], check=True)
        given = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "OUT": str(tmp_path),
            "SLURM_JOB_ID": "41234",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_NUM_NODES": str(len(statuses)),
            "SLURM_CPUS_PER_TASK": "32",
        }
        given |= {f"STATUS_{number}": str(status) for number, status in enumerate(statuses)} | environment
        done = subprocess.run(
            ["bash", file], env=given, cwd="/", capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    return run


def requeued(place: Path) -> bool:
    calls = place / "scontrol"
    return calls.exists() and "requeue 41234" in calls.read_text()


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ((0,), 0),
        ((2,), 2),
        ((5,), 5),
        ((137,), 137),
        ((75,), 75),
        ((0, 0), 0),
        ((75, 75), 75),
        ((2, 75), 2),
        ((75, 1), 1),
    ],
)
def test_the_status_of_the_run_is_the_job_s(ran, tmp_path, statuses, status):
    """An error of one machine wins over the 75 of the others, which would be tried for ever."""
    assert ran(*statuses)[0] == status
    assert requeued(tmp_path) == (status == 75)


def test_one_machine_needs_no_meeting(ran, tmp_path, place):
    ran(0)
    launched = (tmp_path / "launch-0").read_text().splitlines()
    assert launched == [
        "-m", "hybrid_ft.cli", "launch", str(place / "mine.yaml"), "evaluate.samples=[it's $HOME]", "--processes", "4",
    ]  # fmt: skip
    assert "--cpus-per-task=32" in (tmp_path / "srun").read_text().splitlines()
    assert not (place / "hacked").exists()


def test_several_machines_meet_at_the_first(ran, tmp_path):
    ran(0, 0)
    for rank in (0, 1):
        launched = (tmp_path / f"launch-{rank}").read_text().splitlines()
        assert launched[-6:] == ["--nodes", "2", "--rendezvous", "node-a:21234", "--node-rank", str(rank)]


def test_scancel_is_the_end(ran, tmp_path):
    assert ran(75, SCANCEL="1") == (75, "")
    assert not requeued(tmp_path)


def test_restarts_have_an_end(ran, tmp_path):
    status, screen = ran(75, SLURM_RESTART_COUNT="100")
    assert status == 75 and "after 100 restarts" in screen and not requeued(tmp_path)


def test_a_cluster_that_does_not_requeue_is_said(ran):
    status, screen = ran(75, REQUEUE="1")
    assert status == 75 and "could not be queued again" in screen


def test_what_is_asked_of_the_cluster(job):
    lines = slurm.script(job("slurm", nodes=2, gpu="H100", time="90m", restarts=0)).splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert {"nodes=2", "gpus-per-node=h100:4", "time=0-01:30:00", "signal=TERM@1200", "requeue"} <= asked
    assert "gpus-per-node=4" in slurm.script(job("slurm"))
    assert lines.index("#SBATCH --requeue") < next(n for n, line in enumerate(lines) if line and line[0] != "#")
    assert shutil.which("bash")
