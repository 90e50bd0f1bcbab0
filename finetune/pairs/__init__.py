"""A recipe's pairs: preference sets to a shared prompt and two answers in tokens, and the account of that."""

from hybrid_ft.finetune.pairs.prepare import PreparedPairs, prepare_pairs

__all__ = ["PreparedPairs", "prepare_pairs"]
