"""A model's files under the names that its family was released with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hybrid_ft.hybrid_model.families.known import family_of

if TYPE_CHECKING:
    import torch


class ReleasedFiles:
    """To be named before a class of transformers'."""

    def save_pretrained(
        self: Any,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """transformers' own; under the released names, where transformers would write others."""
        if (released := family_of(self.config).released) is not None:
            state_dict = released.named(self.state_dict() if state_dict is None else state_dict, self.config)
            kwargs["save_original_format"] = False
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)  # type: ignore[misc]
