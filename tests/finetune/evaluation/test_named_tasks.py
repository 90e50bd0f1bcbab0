"""The tasks that a command names, with its changes to them."""

from pathlib import Path

from hybrid_ft.finetune.evaluation import named_tasks


def test_changes_are_for_all_tasks_or_for_one(place: Path) -> None:
    files = ["exact.yaml", "choice.yaml"]
    changes = ["exact:max_new_tokens=3", "choice:shots=1", "about=x"]
    tasks = {name: task for name, task, _ in named_tasks.named_tasks(files, (), changes, "", False)}
    assert tasks["exact"].max_new_tokens == 3 and tasks["choice"].shots == 1
    assert {task.about for task in tasks.values()} == {"x"}
    changes = ["exact:samples=2", "exact:temperature=1"]
    assert named_tasks.named_tasks(files, (), changes, "", False)[0][1].samples == 2
