"""Marks of turns, parts and rows: are they trained, and how much."""

import pytest
import yaml
from one_form import assistant, parts, read, said, user

from hybrid_ft.finetune.data.labels import chosen_by
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.data_section import Source


@pytest.mark.parametrize("name", ["train", "training", "trainable", "weight", "loss", "loss_weight", "loss_scale"])
def test_a_mark_has_many_names_and_places(name: str) -> None:
    for off, on in ((False, True), (0, 1), (0.0, 1.0)):
        turns = [user("q"), assistant("a", **{name: off}), user("r"), assistant("b", **{name: on})]
        shared = [said("human", "q"), said("gpt", "a", **{name: off}), said("gpt", "b", **{name: on})]
        of_parts = [user("q"), assistant(parts("a", "b", **{name: off})), assistant(parts("c", **{name: on}))]
        for values in ({"messages": turns}, {"conversations": shared}, {"messages": of_parts}):
            found = read(values)
            assert found.untrained == {1} and found.unused == set()
            assert read(values | {name: on}).untrained == {1} == read(values | {name: str(on)}).untrained
            for mark in (off, str(off)):
                with pytest.raises(BadRow, match=f"{name}: got .*; leave such rows out, with without: ") as bad:
                    read(values | {name: mark})
                assert bad.value.kind == "training flag"
                without = yaml.safe_load(f"{{{str(bad.value).split('with without: {')[1].split('}')[0]}}}")
                chosen = chosen_by(Source(path="x", without=without), "x")
                assert chosen is not None and not chosen.takes({name: mark})
                assert chosen.takes({}) and chosen.takes({name: on})


@pytest.mark.parametrize("name", ["mask", "masked", "loss_mask", "loss_masks", "ignore_loss", "train_detail"])
def test_a_mark_that_means_now_this_now_that_is_refused(name: str) -> None:
    for values, where in (
        ({"messages": [user("q"), assistant("a", **{name: 1})]}, f"messages[1].{name}: got 1"),
        ({"messages": [user("q"), assistant(parts("a", **{name: 1}))]}, f"messages[1].content[0].{name}: got 1"),
        ({"prompt": "q", "completion": "a", name: 1}, f"{name}: got 1"),
    ):
        with pytest.raises(BadRow) as bad:
            read(values)
        assert str(bad.value).startswith(where) and "train: true or false" in str(bad.value)
        assert read({"prompt": "q", "completion": "a", name: None}).messages


def test_weights_of_turns_parts_and_rows() -> None:
    turns = [user("q"), assistant("a", weight=0.5), user("r"), assistant("b", loss=1), assistant("c", loss_scale=0)]
    assert read({"messages": turns}).weights == {1: [(None, 0.5)], 4: [(None, 0.0)]}
    half = read({"messages": turns, "weight": "0.5"})
    assert half.weights == {1: [(None, 0.25)], 3: [(None, 0.5)], 4: [(None, 0.0)]} and half.untrained == {4}
    assert half.noticed["turns_with_weights"] == 2 and half.whole() != read({"messages": turns}).whole()
    assert read({"prompt": "q", "completion": "a", "weight": 0.25, "system": "s"}).weights == {2: [(None, 0.25)]}
    several = [*parts("ab", train=False), *parts("cde"), *parts("f", weight=0.5)]
    made = read({"messages": [user("q"), assistant(several)]})
    assert made.weights == {1: [(0, 1.0), (2, 0.0), (5, 1.0), (6, 0.5), (None, 0.5)]} and made.untrained == set()
    thought = [{"type": "thinking", "thinking": "t", "weight": 0.1}, *parts("a")]
    call = [{"type": "tool_call", "tool_call": {"name": "f", "arguments": {}}, "train": False}]
    made = read({"messages": [user("q"), assistant([*thought, *call]), assistant("a")]})
    assert made.weights == {1: [(0, 0.1), (1, 1.0), (None, 0.0)]}
