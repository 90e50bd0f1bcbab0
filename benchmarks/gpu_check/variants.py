"""The same launch with other settings, to choose between on a GPU."""

from __future__ import annotations

from recording import Launch

# kernel: (warps, stages or None where it has none, most registers or None)
CHOICES: dict[str, list[tuple[int, int | None, int | None]]] = {
    "weights_kernel": [(4, None, 128), (4, None, None), (8, None, None)],
    "forward_kernel": [(4, 2, None), (4, 3, None), (4, 1, None)],
    "backward_kernel": [(4, 2, None), (8, 2, None), (8, 3, None)],
    "summary_kernel": [(4, 2, None), (4, 3, None)],
    "summary_backward_kernel": [(8, 2, None), (4, 2, None), (4, 3, None)],
    "query_kernel": [(4, 3, None), (4, 2, None), (8, 3, 128), (8, 3, None)],
    "key_kernel": [(4, 3, None), (4, 2, None), (8, 3, None)],
}


def variants(launch: Launch) -> list[tuple[str, Launch]]:
    """With the words that name each; the launch as it is where there is nothing to choose."""
    choices = CHOICES.get(launch.name)
    if choices is None:
        return [("", launch)]
    return [(words(*choice), changed(launch, *choice)) for choice in choices]


def words(warps: int, stages: int | None, registers: int | None) -> str:
    parts = [f"{warps} warp{'s' * (warps != 1)}"]
    parts += [f"{stages} stage{'s' * (stages != 1)}"] if stages else []
    return ", ".join(parts + ([f"{registers} registers"] if registers else []))


def changed(launch: Launch, warps: int, stages: int | None, registers: int | None) -> Launch:
    import triton.language as tl

    args, options = list(launch.args), launch.options | {"num_warps": warps}
    options.pop("maxnreg", None)
    if registers:
        options["maxnreg"] = registers
    if "STAGES" in options:
        options["STAGES"] = stages
    for i, x in enumerate(args):
        if hasattr(x, "STAGES"):
            args[i] = x._replace(STAGES=tl.constexpr(stages))
    return launch._replace(args=tuple(args), options=options)


def as_launched(launch: Launch) -> str:
    """The words for the settings that it has."""
    import triton.language as tl

    stages = launch.options.get("STAGES")
    for x in launch.args:
        stages = getattr(x, "STAGES", stages)
    stages = stages.value if isinstance(stages, tl.constexpr) else stages
    return words(launch.options.get("num_warps", 4), stages, launch.options.get("maxnreg"))
