"""A model card says what the run's record says, and nothing of this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pushes import SECRET, Hub, front, push


def test_a_model_with_its_card(trained: Any, hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    merged = trained.folder / "merged"
    (merged / "notes.py").write_text("print()")
    before = {path.name: path.read_bytes() for path in merged.iterdir()}
    assert push(merged, "someone/tuned", "--dry-run", "--license", "apache-2.0") == 0
    out = capsys.readouterr().out
    assert "nothing was sent" in out and "left out  notes.py" in out and hub.repos == {}
    card = (merged / "README.md").read_text()
    assert front(card) == {
        "library_name": "transformers", "license": "apache-2.0", "pipeline_tag": "text-generation",
        "tags": ["hybrid-ft", "sft", "lora"],
    }  # fmt: skip
    after = json.loads((trained.folder / "run.json").read_text())
    losses = [after["before"]["held_out"]["loss"], after["finished"]["held_out"]["loss"]]
    assert f"| held-out loss | {losses[0]:.4f} | {losses[1]:.4f} |" in card and "| exact answers | 0.0% (0/2) |" in card
    assert "supervised fine-tuning (SFT), LoRA of rank 4 on all-linear" in card and "6 steps on" in card
    assert "- `rows.jsonl`, a local file" in card and "rank: 4" in card and 'from_pretrained("someone/tuned"' in card
    assert str(tmp_path) not in card and "output:" not in card and "trackers" not in card

    (merged / "README.md").write_text(card + "\nMine.\n")
    assert push(merged, "someone/tuned", "--private") == 0
    assert (
        "as it is" in (out := " ".join(capsys.readouterr().out.split()))
        and "sent https://huggingface.co/someone/tuned" in out
    )
    assert hub.repos == {"someone/tuned": True}
    sent = {name: data for name, data in hub.sent.items() if name != "README.md"}
    assert hub.sent["README.md"].decode().endswith("Mine.\n")
    assert sent == {name: data for name, data in before.items() if name not in ("notes.py", "README.md")}


def test_hub_names_are_told_from_local_ones_by_the_run_s_identity(trained: Any, hub: Hub) -> None:
    """A relative folder may look like a hub's name."""
    from hybrid_ft.finetune.runs.folder import RunFolder

    recipe = yaml.safe_load((trained.folder / "recipe.yaml").read_text())
    recipe["model"]["path"] = "runs/base"
    recipe["data"]["sources"] = [{"path": "owner/rows", "split": "train"}, {"path": "data/rows"}]
    recipe["data"]["eval"]["sources"] = [{"path": "owner/held"}]
    recipe["model"]["chat_template"] = f"/disk/me/{SECRET}.jinja"
    (trained.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder = RunFolder(trained.folder)
    folder._read()
    known = folder.record["identity"] | {"model.path": "sha256:0", "data.sources.0.path": "owner/rows"}
    folder.note(identity=known | {"data.sources.1.path": "sha256:1", "data.eval.sources.0.path": "owner/held"})
    assert push(trained.folder / "merged", "someone/tuned") == 0
    card = hub.sent["README.md"].decode()
    assert front(card)["datasets"] == ["owner/rows", "owner/held"] and "base_model" not in front(card)
    assert "Made of `base`, a local folder" in card and "- `rows`, a local file" in card
    assert "huggingface.co/datasets/owner/held), held out" in card and "path: rows" in card
    assert SECRET not in card and "/disk/me" not in card
