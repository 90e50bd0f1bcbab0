"""Python searches for garbage rarely while rows are prepared, and as before afterwards."""

import gc

import pytest

from hybrid_ft.finetune.data import prepare as module
from hybrid_ft.finetune.data.rare_collections import NEW_OBJECTS, rare_collections


@pytest.mark.parametrize(("before", "inside"), [(700, NEW_OBJECTS), (10 * NEW_OBJECTS, 10 * NEW_OBJECTS), (0, 0)])
def test_within_the_block_alone(before, inside):
    known = gc.get_threshold()
    try:
        gc.set_threshold(before, 11, 12)
        with pytest.raises(RuntimeError), rare_collections():
            assert gc.get_threshold() == (inside, 11, 12)
            raise RuntimeError
        assert gc.get_threshold() == (before, 11, 12)
    finally:
        gc.set_threshold(*known)


def test_rows_are_prepared_so(recipe, tokenizer, write_rows, monkeypatch):
    seen = []
    real = module.mix_sources
    monkeypatch.setattr(module, "mix_sources", lambda *given: seen.append(gc.get_threshold()[0]) or real(*given))
    module.prepare(recipe(write_rows([{"prompt": "q", "completion": "a"}])), tokenizer)
    assert seen == [NEW_OBJECTS] and gc.get_threshold()[0] != NEW_OBJECTS
