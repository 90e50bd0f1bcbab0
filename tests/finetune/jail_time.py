"""How long programs in a jail may take."""

ENOUGH = 120.0
"""seconds for what must come to its end, on a machine that does other things too"""
