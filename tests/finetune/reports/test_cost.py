"""What a run's steps have cost: by hand, and where nothing may be said."""

import json
from pathlib import Path

import pytest
import yaml

from hybrid_ft.cli import main
from hybrid_ft.finetune.machines.gpus import read_table
from hybrid_ft.finetune.reports.cost import cost, cost_at_end

H100 = "NVIDIA H100 80GB HBM3"


def test_a_price_that_is_given_and_one_of_the_table() -> None:
    """90 minutes on 8 GPUs are 12 hours of one."""
    run = {"device": H100, "processes": 8}
    assert cost(run, {"gpu_price": 2.5}, 5400) == "30.00 $ at 2.50 $ a GPU and hour (as given)"
    assert cost(run, {"gpu_price": 2.5}, 5400, 100) == "1,200.00 $ at 100.00 $ a GPU and hour (as given)"
    offer = read_table()["h100"].offer
    assert cost(run, {"gpu_price": None}, 5400) == f"{12 * offer.price:.2f} $ at {offer}"
    assert cost(run, {"gpu_price": 0.001}, 9) == "under 0.01 $ at 0.00 $ a GPU and hour (as given)"
    assert cost({"device": "cpu"}, {"gpu_price": 1}, 1800) == "0.50 $ at 1.00 $ a GPU and hour (as given)"


@pytest.mark.parametrize(
    "device", ["cpu", "", "NVIDIA H100 PCIe", "NVIDIA A100-PCIE-40GB", "NVIDIA RTX 4090 Laptop GPU"]
)
def test_nothing_is_invented(device: str) -> None:
    assert cost({"device": device, "processes": 1}, {}, 5400) is None


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        (H100, "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_kinds_by_the_names_of_cuda(device: str, kind: str) -> None:
    assert str(read_table()[kind].offer) in str(cost({"device": device, "processes": 1}, {}, 60))


def made(folder: Path, **recipe: float) -> Path:
    folder.mkdir()
    record = {"stage": "sft", "identity": {}, "device": "cpu", "processes": 2, "started": "2026-11-03T09:05:00+00:00"}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": {"path": "tiny"}, **recipe}))
    lines = [{"step": step, "loss": 1.0, "tokens": 10 * step, "seconds": 900.0} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_on_the_page_and_in_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes for half an hour; only where a price is given."""
    one, other = made(tmp_path / "one", gpu_price=4.0), made(tmp_path / "other")
    shown = "4.00 $ at 4.00 $ a GPU and hour (as given)"
    for run, more, said in ((one, [], shown), (other, [], None), (other, ["--price", "4"], shown)):
        assert main(["report", str(run), *more]) == 0
        page = (run / "report.html").read_text()
        assert ("cost of the steps" in page) == (said is not None) and (said is None or said in page)
        capsys.readouterr()
        assert main(["watch", str(run), "--once", *more]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert (" $ at " in text) == (said is not None) and (said is None or f"30 min 00 s in steps, {said}" in text)


def test_at_a_runs_end_what_cannot_be_read_undoes_nothing(tmp_path: Path) -> None:
    run = made(tmp_path / "run", gpu_price=4.0)
    assert cost_at_end(run) == "4.00 $ at 4.00 $ a GPU and hour (as given)"
    (run / "run.json").write_text("{")
    assert cost_at_end(run) is None
    assert cost_at_end(tmp_path / "elsewhere") is None
