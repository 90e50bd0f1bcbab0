"""A process that has imported everything and computed nothing: it forks a child per run, so that a run starts at once.

One JSON object a line on standard input, one answer a line on standard output: ``{"start": {...}}`` gives the pid of
a child that does what ``hybrid-ft ARGUMENTS`` does; ``{"reap": pid}`` gives its wait status once it has ended. Only
``reap`` takes a dead child away, so that its pid stands for nobody else until then.
"""

import gc
import importlib
import json
import os
import signal
import sys
from typing import Any

MODULES = (
    "hybrid_ft.finetune.training.sft.stage",
    "hybrid_ft.finetune.training.dpo.stage",
    "hybrid_ft.finetune.training.kto.stage",
    "hybrid_ft.finetune.training.reward.stage",
    "transformers.models.olmo_hybrid.modeling_olmo_hybrid",
    "torch._dynamo",  # by torch.utils.checkpoint and the optimizers, on first use
)


def enter_child(wanted: dict[str, Any]) -> None:
    """The child's own side of the fork, up to the program's first line."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP):  # a shell's background jobs ignore some, and their children too
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in ((0, os.devnull), (1, wanted["stdout"]), (2, wanted["stderr"])):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(*end, closefd=False) for end in ((0, "r"), (1, "w"), (2, "w", 1)))
    os.environ |= wanted["environment"]
    os.chdir(wanted["cwd"])
    sys.argv = ["hybrid-ft", *wanted["arguments"]]
    for name, options in wanted["inject"].items():
        getattr(importlib.import_module("injections"), name)(**options)
    if wanted["paused"]:
        os.kill(os.getpid(), signal.SIGSTOP)


def serve() -> None:
    """Answers until the input ends. Comes back in every child, whose command line stands in sys.argv."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what an import may print is no answer
    with os.fdopen(answers, "w", buffering=1) as out:
        print("ready", file=out)
        alive: set[int] = set()
        for line in iter(sys.stdin.readline, ""):
            request = json.loads(line)
            if "start" in request:
                pid = os.fork()
                if pid == 0:
                    enter_child(request["start"])
                    return
                alive.add(pid)
                print(pid, file=out)
            else:
                print(os.waitpid(request["reap"], 0)[1], file=out)
                alive.discard(request["reap"])
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
    sys.exit(0)


if __name__ == "__main__":
    from hybrid_ft import cli

    for name, value in cli.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for module in MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a child would otherwise copy every page on its first collection
    serve()
    # the way out of a program that was started by its name, its exit handlers included
    sys.exit(cli.main())
