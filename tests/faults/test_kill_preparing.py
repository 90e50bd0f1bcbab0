"""kill -9 while rows become tokens, or a file: nothing half made is taken for whole, and the next start
equals a whole one."""

import json
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest
import xxhash

ROWS = 3600  # enough for processes beside the first to encode some
RECIPE = """model: {{path: {base}}}
data: {{sources: [{{path: {rows}}}], max_length: 200, on_bad_row: skip, max_dropped: 0.1, cache: false{more}}}
"""


def half_made(cache: Path) -> str | None:
    """What of the kept tokens bears its final name and is not whole."""
    for entry in cache.glob("[0-9a-f]*"):
        known = json.loads((entry / "manifest.json").read_bytes())["files"]
        if known.keys() | {"manifest.json"} != {file.name for file in entry.iterdir()}:
            return f"{entry}: files {sorted(file.name for file in entry.iterdir())}"
        for name, (size, found) in known.items():
            content = (entry / name).read_bytes()
            if (len(content), xxhash.xxh3_128(content).hexdigest()) != (size, found):
                return f"{entry / name} is not what the manifest says"
        pa.ipc.open_stream(str(entry / "rows.arrow")).read_all()
    return None


@pytest.mark.faults
@pytest.mark.parametrize(("name", "full"), [("kept", 60), ("stream", 40)])
def test_killed_while_rows_are_prepared(harness, tiny_base, count, chance, faults_row, name, full):
    """Up to three times in a row."""
    place = harness.place / f"prepare-{name}"
    place.mkdir()
    made = [
        {"prompt": f"q{n} {n * n}?", "completion": f"{n * 7} " * (n % 9) + "a" if n % 50 else None} for n in range(ROWS)
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    more = ", streaming: true, shuffle_buffer: 500, eval: {fraction: 0.1}" if name == "stream" else ""
    recipe = place / "r.yaml"
    steps = "train: {steps: 9}\n" if name == "stream" else ""
    recipe.write_text(RECIPE.format(base=tiny_base, rows=place / "rows.jsonl", more=more) + steps)

    def start(folder: Path):
        keep = [f"data.cache={folder / 'cache'}"] if name == "kept" else []
        return harness.start_command(["data", str(recipe), *keep, "--out", str(folder / "rows.parquet")])

    whole = harness.folder()
    child = start(whole)
    assert child.wait() == 0, child.screen
    seconds, wanted = time.monotonic() - child.began, (whole / "rows.parquet").read_bytes()
    told = child.stdout.read_text().replace(str(whole), "")
    assert half_made(whole / "cache") is None
    kills: list[float] = []

    def trial(number: int) -> str | None:
        draw, folder = chance(number), harness.folder()
        out = folder / "rows.parquet"
        for _ in range(draw.randint(1, 3)):
            kills.append(draw.uniform(0, seconds))
            child = start(folder)
            time.sleep(kills[-1])
            child.kill(signal.SIGKILL)
            if child.wait() not in (0, -signal.SIGKILL):
                return f"exit status {child.status}\n{child.screen}"
            if wrong := half_made(folder / "cache"):
                return wrong
            if out.exists() and out.read_bytes() != wanted:
                return "a file that is not whole bears its name"
        child = start(folder)
        if child.wait() != 0 or child.stdout.read_text().replace(str(folder), "") != told:
            return f"another account\n{child.screen}"
        left = [place.name for place in (folder / "cache").glob("*")]
        if len(left) != (name == "kept"):
            return f"left behind among the kept tokens: {left}"
        return None if out.read_bytes() == wanted else "other rows"

    trials = count(full)
    failures = harness.each(range(trials), trial)
    faults_row(
        f"kill -9 while rows are prepared, {name}",
        "no half-made file or entry; the next start's rows and account identical",
        trials,
        failures,
        f"{len(kills)} kills",
    )
    assert not failures, "\n".join(failures[:10])
