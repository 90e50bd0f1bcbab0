"""Whether a chat template writes texts without ever looking at them.

A template that does not compare, cut, count or change a text writes every row of the same shape alike, so that a row
need not be rendered to know how. It is found out by running a copy of the template in which each operation that could
look at a value asks first whether a text's stand-in is in it. Truth (``{% if message.content %}``) does not count as a
look: neither a text nor its stand-in is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.environment import Environment, Template
from transformers.utils.chat_template_utils import _compile_jinja_template

from hybrid_ft.finetune.data.limits import MEMORY, RENDER_ERRORS, SECONDS, TookTooLong, limited

_TEXT, _DEEP, _WRITTEN = "looks_at_text", "looks_at_value", "writes_value"
"""The checks: refuse a text, refuse whatever holds one, refuse what is not text and holds one."""
_OF_TYPES = frozenset(
    [
        *("boolean", "callable", "defined", "false", "float", "integer", "iterable"),
        *("mapping", "none", "number", "sequence", "string", "true", "undefined"),
    ]
)
"""Tests that ask what a value is, not what it says."""
_PASSING = frozenset(["default", "d", "string"])
"""Filters that hand a text on as it is."""
_STRIPPING = frozenset(["strip", "lstrip", "rstrip"])
"""Methods that take white space away, which stands around a stand-in as around its text."""
_OF_LISTS = frozenset(["first", "last", "length", "count", "list", "reverse"])
_BY_ATTRIBUTE = frozenset(["selectattr", "rejectattr"])
_CHANGING = frozenset(["strftime_now", "lipsum", "cycler", "joiner", "self", "caller", "varargs", "kwargs"])
"""Names of what differs from one call to the next, or brings in what is not seen here."""
_KNOWN = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.NSRef, nodes.Tuple, nodes.List),
    *(nodes.Dict, nodes.Pair, nodes.Keyword, nodes.CondExpr, nodes.And, nodes.Or, nodes.Not, nodes.Concat, nodes.Add),
    *(
        nodes.If,
        nodes.For,
        nodes.Macro,
        nodes.Assign,
        nodes.AssignBlock,
        nodes.With,
        nodes.Scope,
        nodes.ScopedEvalContextModifier,
    ),
    *(nodes.Break, nodes.Continue, nodes.ExprStmt, nodes.Operand, nodes.Slice, nodes.Neg, nodes.Pos),
    *(nodes.CallBlock, nodes.ExtensionAttribute),  # {% generation %}
)


class _Looked(BaseException):
    """Not an Exception: templates go on after some of those."""


class Unread:
    """A template beside its copy that tells. ``stand_in``: what stands in every text's stand-in and nowhere else."""

    def __init__(self, text: str, stand_in: str) -> None:
        self._stand_in = stand_in
        environment: Environment = _compile_jinja_template(text).environment
        tree = environment.parse(text)
        self._copy: Template | None = None
        try:
            _watch(tree)
        except _Looked:
            return
        self._copy = environment.from_string(tree, globals=self._checks())

    def writes(self, text: str, messages: list[dict[str, Any]], **given: Any) -> bool:
        """Whether the template, given these messages of stand-ins, writes ``text`` and looks at none of them."""
        if self._copy is None:
            return False
        try:
            with limited(SECONDS, MEMORY):
                return self._copy.render(messages=messages, tools=None, documents=None, **given) == text
        except (_Looked, TookTooLong, MemoryError, *RENDER_ERRORS):
            return False

    def _checks(self) -> dict[str, Callable[[Any], Any]]:
        def unless(wrong: Callable[[Any], bool]) -> Callable[[Any], Any]:
            def check(value: Any) -> Any:
                if wrong(value):
                    raise _Looked
                return value

            return check

        return {
            _TEXT: unless(lambda value: isinstance(value, str) and self._holds(value)),
            _DEEP: unless(self._holds),
            _WRITTEN: unless(lambda value: not isinstance(value, str) and self._holds(value)),
        }

    def _holds(self, value: Any) -> bool:
        """Whether a value has a text in it; so, too, for one that cannot be looked through."""
        if isinstance(value, str):
            return self._stand_in in value
        if isinstance(value, Mapping):
            return any(map(self._holds, (*value.keys(), *value.values())))
        if isinstance(value, list | tuple):
            return any(map(self._holds, value))
        return not (value is None or isinstance(value, bool | int | float | Undefined))


def _watch(node: nodes.Node) -> None:
    """Put a check before every operation that could look at a value. Raises _Looked for what cannot be checked."""
    for child in node.iter_child_nodes():
        _watch(child)
    if isinstance(node, nodes.Compare):
        node.expr = _asked(_DEEP, node.expr)
        for operand in node.ops:
            operand.expr = _asked(_DEEP, operand.expr)
    elif isinstance(node, nodes.BinExpr) and not isinstance(node, nodes.Add | nodes.And | nodes.Or):
        node.left, node.right = _asked(_DEEP, node.left), _asked(_DEEP, node.right)
    elif isinstance(node, nodes.Getattr | nodes.Getitem):
        node.node = _asked(_TEXT, node.node)
        if isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Slice):
            node.arg = _asked(_DEEP, node.arg)
    elif isinstance(node, nodes.Output | nodes.Concat):
        node.nodes = [one if isinstance(one, nodes.TemplateData) else _asked(_WRITTEN, one) for one in node.nodes]
    elif isinstance(node, nodes.For):
        node.iter = _asked(_TEXT, node.iter)
    elif isinstance(node, nodes.Test):
        if node.name not in _OF_TYPES:
            node.node = _asked(_DEEP, node.node)
            _ask_arguments(node)
    elif isinstance(node, nodes.Filter):
        _watch_filter(node)
    elif isinstance(node, nodes.Call):
        _watch_call(node)
    elif isinstance(node, nodes.Name):
        if node.name in _CHANGING or node.name in (_TEXT, _DEEP, _WRITTEN):
            raise _Looked
    elif not isinstance(node, _KNOWN) or (isinstance(node, nodes.AssignBlock) and node.filter is not None):
        raise _Looked


def _watch_filter(node: nodes.Filter) -> None:
    if node.node is None or node.name == "random":
        raise _Looked
    if node.name in _PASSING or (node.name == "trim" and not node.args):
        node.node = _asked(_WRITTEN, node.node)
        return
    if node.name in _OF_LISTS:
        node.node = _asked(_TEXT, node.node)
    elif node.name in _BY_ATTRIBUTE and node.args and node.args[0] == nodes.Const("role"):
        node.node = _asked(_TEXT, node.node)
        node.args[1:] = [_asked(_DEEP, argument) for argument in node.args[1:]]
        return
    else:
        node.node = _asked(_DEEP, node.node)
    _ask_arguments(node)


def _watch_call(node: nodes.Call) -> None:
    called = node.node
    if isinstance(called, nodes.Name):
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise _Looked
        return  # a macro, whose body is watched too, or namespace, dict, range, raise_exception, which look at no text
    if isinstance(called, nodes.ExtensionAttribute):
        return
    if not isinstance(called, nodes.Getattr):
        raise _Looked
    if called.attr in _STRIPPING and not (node.args or node.kwargs or node.dyn_args or node.dyn_kwargs):
        assert isinstance(called.node, nodes.Call)
        called.node = called.node.args[0]  # the check that was put before it
        return
    _ask_arguments(node)


def _ask_arguments(node: nodes.Filter | nodes.Test | nodes.Call) -> None:
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        raise _Looked
    node.args = [_asked(_DEEP, argument) for argument in node.args]
    for pair in node.kwargs:
        pair.value = _asked(_DEEP, pair.value)


def _asked(check: str, node: Any) -> nodes.Call:
    call = nodes.Call(nodes.Name(check, "load"), [node], [], None, None)
    call.set_lineno(node.lineno)
    return call
