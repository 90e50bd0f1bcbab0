"""Post-training for models that mix recurrent layers with attention.

This folder, the repository's root, is the package ``hybrid_ft``. pytest may import the file a second
time under the clone folder's name, so it has no side effect but the idempotent one below.
"""

import os as _os
import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from hybrid_ft.hybrid_model.checkpoint.load import load as load
    from hybrid_ft.hybrid_model.lay_flat import lay_flat as lay_flat

__version__ = "0.1.0"


def _is_checkout(entry: str) -> bool:
    """Whether a ``sys.path`` entry is a checkout of this repository."""
    here = entry or _os.curdir
    return all(_os.path.isdir(_os.path.join(here, folder)) for folder in ("hybrid_model", "kernels", "recipes"))


# `python -m`, `torchrun -m` and `accelerate launch -m` put the working directory first on sys.path.
# In a checkout, kernels/ and datasets/ would then hide Hugging Face's packages of those names.
_sys.path[:] = sorted(_sys.path, key=_is_checkout)


def __getattr__(name: str) -> object:
    """``load`` and ``lay_flat``, imported on first use: torch and transformers take seconds."""
    if name == "load":
        from hybrid_ft.hybrid_model.checkpoint.load import load

        return load
    if name == "lay_flat":
        from hybrid_ft.hybrid_model.lay_flat import lay_flat

        return lay_flat
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
