"""Which files of a run go to its mirror beside checkpoints and results."""

from hybrid_ft.finetune.mirror.files import small_files


def test_small_files_leave_out_checkpoints_results_hidden_files_and_links(tmp_path):
    for name in (
        "run.json",
        "metrics.jsonl",
        ".lock",
        ".mirror.json",
        "reference/a.safetensors",
        "model/x",
        "adapter/x",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoints/checkpoint-1").mkdir(parents=True)
    (tmp_path / "checkpoints/checkpoint-1/x").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "run.json")
    assert small_files(tmp_path) == ["metrics.jsonl", "reference/a.safetensors", "run.json"]
