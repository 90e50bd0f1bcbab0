"""A Slurm batch script: one launch on each machine, queued again after status 75."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from hybrid_ft.errors import RESUMABLE
from hybrid_ft.finetune.renting.job import Job, check_printable
from hybrid_ft.finetune.renting.kinds import known

RESTARTS = 100
ERROR = 100
"""Added to a machine's error. srun gives the highest status, and an error must win over 75."""
CPUS, MEMORY = 8, 64
"""For each GPU: processors, and GB. A cluster's own default is one processor for the whole of a machine's processes."""

_BODY = """\
cancelled=
trap 'cancelled=1' TERM  # scancel: srun is told too, and this script waits for it

launch=(
    {launch}
)
{meet}
# On each machine. srun gives the highest of their statuses: {error} is added to an error, which must win over {resumable}.
machine='
trap : TERM
"$@"{rank}
status=$?
case $status in [1-9] | 1[0-9]) exit $((status + {error})) ;; *) exit $status ;; esac
'
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
    bash -c "$machine" machine "${{launch[@]}}"
status=$?
if [ "$status" -gt {error} ] && [ "$status" -lt $(({error} + 20)) ]; then status=$((status - {error})); fi

if [ "$status" = {resumable} ] && [ -z "$cancelled" ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
        echo "stopped with status {resumable}; queued again"
        scontrol requeue "$SLURM_JOB_ID" || echo "it could not be queued again; sbatch of the same file goes on"
    else
        echo "stopped with status {resumable} after {restarts} restarts; sbatch of the same file goes on"
    fi
fi
exit "$status"
"""
_MEET = """\
# all machines meet at the first one, at a port of this job's own
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
launch+=(--nodes "$SLURM_JOB_NUM_NODES" --rendezvous "$head:$((20000 + SLURM_JOB_ID % 20000))")
"""


def script(job: Job) -> str:
    """The text for ``sbatch``.

    Recipe, data, output and environment are used where they lie, on a disk that all nodes see.
    """
    order = job.order
    nodes = order.nodes or 1
    here = os.getcwd()
    check_printable([here, sys.executable])
    kind = f"{known(order.gpu)}:" if order.gpu else ""
    head = [
        "#!/bin/bash",
        f"#SBATCH --job-name={job.name}",
        f"#SBATCH --nodes={nodes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={kind}{order.gpus}",
        f"#SBATCH --cpus-per-task={CPUS * order.gpus}",
        f"#SBATCH --mem={MEMORY * order.gpus}G",
        f"#SBATCH --time={_clock(order.seconds)}",
        f"# the run is told to save {order.notice} seconds before the limit",
        f"#SBATCH --signal=TERM@{order.notice}",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={job.name}-%j.log",
        "",
        f"cd -- {shlex.quote(here)} || exit 3",
    ]
    given = job.given if job.file is None else str(job.file)
    launch = [sys.executable, "-m", "hybrid_ft.cli", "launch", given, *job.overrides, "--processes", str(order.gpus)]
    body = _BODY.format(
        launch="\n    ".join(shlex.quote(word) for word in launch),
        meet=_MEET if nodes > 1 else "",
        rank=' --node-rank "$SLURM_NODEID"' if nodes > 1 else "",
        resumable=RESUMABLE,
        error=ERROR,
        restarts=RESTARTS if order.restarts is None else order.restarts,
    )
    return "\n".join(head) + "\n" + body


def _clock(seconds: int) -> str:
    """D-HH:MM:SS"""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02}:{minute:02}:{second:02}"


def command(file: Path) -> list[str]:
    """What queues the job."""
    return ["sbatch", str(file)]


def start(file: Path) -> int:
    """Queue it. Returns sbatch's status."""
    return subprocess.run(command(file), check=False).returncode
