"""Names of the files that evaluations keep."""

RESULTS = "results.json"
"""The table's file, beside the answers."""
SUITE_FOLDER = "suite"
"""In a run's folder: answers by step and task, and the table."""
HARD_ROWS = "hard-rows.jsonl"
"""In a run's folder: the rows of highest loss."""
