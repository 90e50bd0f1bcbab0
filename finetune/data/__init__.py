"""A recipe's data: files to conversations, chat template, tokens with labels, packs, and the account of all that."""

from hybrid_ft.finetune.data.prepare import Prepared, prepare

__all__ = ["Prepared", "prepare"]
