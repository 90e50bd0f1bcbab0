"""An adapter merged into a base, as the command does it, and the logits of what comes of it."""

import torch

from hybrid_ft.hybrid_model.checkpoint.config import read_config
from hybrid_ft.hybrid_model.checkpoint.merge import Merge
from hybrid_ft.hybrid_model.checkpoint.save import write_config


def merged(base, adapter, out, dtype=None):
    merge = Merge(adapter, base, read_config(base), dtype)
    out.mkdir()
    merge.write(out)
    write_config(merge.config, out)
    merge.verify(out)
    return merge


def logits(model, vocabulary=61):
    tokens = torch.randint(vocabulary, (1, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens, use_cache=False).logits
