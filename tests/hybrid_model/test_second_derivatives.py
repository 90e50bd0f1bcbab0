"""Second derivatives are refused: without an error they would lack all that passes through a kernel."""

import ast
from pathlib import Path

import pytest
import torch

import hybrid_ft

ROW = torch.tensor([[5, 9, 33, 60, 12, 7, 8]])


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.linear_attn.q_proj.weight"])
def test_a_gradient_is_not_differentiated_again(name: str) -> None:
    """The head is tied to the embedding, and is reached past the kernels too."""
    model = hybrid_ft.load("tiny")
    weight = model.get_parameter(name)
    loss = model(ROW, labels=ROW).loss
    with pytest.raises(RuntimeError, match="create_graph=True: second derivatives of this model are not formed here"):
        torch.autograd.grad(loss, weight, create_graph=True)
    (first,) = torch.autograd.grad(model(ROW, labels=ROW).loss, weight)
    assert first.any()


def test_every_hand_written_backward_refuses() -> None:
    """Sums and exchanges between processes are made of themselves, and can be differentiated again."""
    root = Path(hybrid_ft.__file__).parent
    files = [path for folder in ("kernels", "hybrid_model", "finetune") for path in (root / folder).rglob("*.py")]
    found = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(base).endswith(("autograd.Function", "Differentiated")) for base in node.bases
            ):
                for one in node.body:
                    if isinstance(one, ast.FunctionDef) and one.name == "backward":
                        found[node.name] = [ast.unparse(mark) for mark in one.decorator_list]
    assert len(found) > 8
    assert sorted(name for name, marks in found.items() if "first_order" not in marks) == ["_AllToAll", "_Sum"]
