"""Export to a checkpoint of plain transformers: another dtype, other shards."""

from __future__ import annotations

from pathlib import Path

import torch

from hybrid_ft.finetune.conversion.place import Place
from hybrid_ft.finetune.conversion.rewrite import Rewrite
from hybrid_ft.finetune.conversion.source import Result, Source, relative_logits, write_config
from hybrid_ft.finetune.runs import storage
from hybrid_ft.hybrid_model.checkpoint.load import open_plain
from hybrid_ft.hybrid_model.checkpoint.whole_merge import OPENED_WHOLE

_TOLERANCE = 1e-5
"""Of float32 logits of the same weights through the same layers."""


def export_plain(source: Source, place: Place, dtype: torch.dtype | None, shard: int) -> Result:
    """Write, read back, and where the model is small also open and run what was written."""
    rewrite = Rewrite(source.folder, source.config, dtype, shard)
    place.check_room(rewrite.bytes)
    with place.held(rewrite.identity()) as part, storage.saving(place.out, rewrite.bytes):
        rewrite.write(part)
        source.copy_small_files(part)
        write_config(part, rewrite.config(source.raw_config()))
        rewrite.verify(part)
        verified = f"every tensor read back from {len(rewrite.files)} files"
        if rewrite.parameters <= OPENED_WHOLE:
            verified += f"; logits in plain transformers within {_compare(source, part, dtype):.0e} of the source's"
        place.publish(part)
    return Result(rewrite.bytes, verified, lambda folder: open_plain(str(folder), None, dtype or source.config.dtype))


@torch.no_grad()
def _compare(source: Source, part: Path, dtype: torch.dtype | None) -> float:
    """Relative L2 difference of the logits of 64 tokens, the source's weights rounded. Raises RuntimeError."""
    expected = source.opened(torch.float32)
    found = open_plain(str(part), None, torch.float32).eval()
    written = dict(found.named_parameters())
    for name, parameter in expected.named_parameters():
        rounded = parameter if dtype is None else parameter.to(dtype).float()
        if not torch.equal(written[name], rounded) and not torch.equal(written[name], parameter):
            raise RuntimeError(f"{part}: {name} is not the source's in plain transformers")
        parameter.copy_(written[name])
    difference = relative_logits(expected, found)
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"{part}: logits differ by {difference:.1e} from the source's (at most {_TOLERANCE:.0e})")
    return difference
