"""What stands for a model's weights and tokenizer where answers are kept."""

from __future__ import annotations

from pathlib import Path

from hybrid_ft.finetune.runs.identity import digest_of, with_contents
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG, read_adapter
from hybrid_ft.hybrid_model.checkpoint.config import find_folder


def model_digest(path: str) -> str:
    """Of a model's or an adapter's files, the base's with it; of a hub name its commit."""
    folder = Path(path).expanduser()
    if not (folder / CONFIG).is_file():
        return digest_of(with_contents({"path": str(find_folder(path, weights=True))}))[7:]
    adapter = read_adapter(folder)
    base = str(find_folder(adapter.base, adapter.revision, weights=True))
    kinds = ("adapter_model*", "*.json", "*.jinja")
    own = sorted({str(file) for kind in kinds for file in folder.glob(kind) if file.is_file()})
    return digest_of([with_contents({"path": file}) for file in (base, *own)])[7:]
