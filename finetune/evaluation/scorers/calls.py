"""Calls of functions in an answer, compared as sets of names and arguments."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from hybrid_ft.finetune.evaluation.scorers.records import equal

Call = tuple[str, dict[str, Any]]

_MARKED = re.compile(r"<(tool_call|function_calls?)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([\w.-]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([\w.-]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_FENCED = re.compile(r"\A\s*```\w*\s*\n(.*?)```\s*\Z", re.DOTALL)
_WORDS = {"true": True, "false": False, "null": None}


def calls(answer: str, wanted: list[Call]) -> dict[str, float]:
    """Whether an answer makes exactly the wanted calls, in any order; where none is wanted, that it makes none.

    calls      functions and arguments
    functions  the functions' names alone
    """
    given = calls_in(answer)
    left = list(wanted)
    for name, arguments in given:
        same = next((one for one in left if one[0] == name and equal(one[1], arguments)), None)
        if same is not None:
            left.remove(same)
    right = not left and len(given) == len(wanted)
    names = sorted(name for name, _ in given) == sorted(name for name, _ in wanted)
    return {"calls": float(right), "functions": float(names)}


def calls_in(text: str) -> list[Call]:
    """Calls as JSON objects, as Python calls, or in tags of functions and parameters; [] for an answer in words."""
    marked = [match[2] for match in _MARKED.finditer(text)]
    fenced = _FENCED.match(text)
    found: list[Call] = []
    for part in marked or [fenced[1] if fenced else text]:
        found += _tagged(part) or _of_json(part) or _of_python(part)
    return found


def of_messages(tool_calls: list[dict[str, Any]]) -> list[Call]:
    """Those of a message as chat templates take it."""
    return [(call["function"]["name"], dict(call["function"].get("arguments") or {})) for call in tool_calls]


def _tagged(text: str) -> list[Call]:
    return [
        (function[1], {name: _value(value) for name, value in _PARAMETER.findall(function[2])})
        for function in _FUNCTION.finditer(text)
    ]


def _value(text: str) -> Any:
    """A parameter's text as the JSON that it is, else as text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _of_json(text: str) -> list[Call]:
    """One object, a list of them, or one a line; arguments may be JSON as text."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            values = [json.loads(line) for line in lines] if len(lines) > 1 else []
        except (ValueError, RecursionError):
            return []
    found = []
    for value in values if isinstance(values, list) else [values]:
        inner = value.get("function", value) if isinstance(value, dict) else None
        inner = inner if isinstance(inner, dict) else value
        name = inner.get("name") if isinstance(inner, dict) else None
        if not isinstance(name, str):
            return []
        arguments = inner.get("arguments", inner.get("parameters")) or {}
        arguments = _value(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict):
            return []
        found.append((name, arguments))
    return found


def _of_python(text: str) -> list[Call]:
    """``f(a=1)``, several on lines of their own or in a list. Words that happen to parse are no calls."""
    try:
        body = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: list[Call] = []
    for statement in body:
        if not isinstance(statement, ast.Expr):
            return []
        value = statement.value
        for node in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if not isinstance(node, ast.Call) or node.args or any(word.arg is None for word in node.keywords):
                return []
            try:
                found.append((ast.unparse(node.func), {str(word.arg): _literal(word.value) for word in node.keywords}))
            except (ValueError, RecursionError):
                return []
    return found


def _literal(node: ast.expr) -> Any:
    """A constant, also with JSON's true, false and null in it. Raises ValueError for anything else."""

    class Words(ast.NodeTransformer):
        """Puts Python's constants in the place of JSON's names."""

        def visit_Name(self, name: ast.Name) -> ast.expr:
            return ast.Constant(_WORDS[name.id]) if name.id in _WORDS else name

    value = ast.literal_eval(Words().visit(node))
    return list(value) if isinstance(value, tuple) else value
