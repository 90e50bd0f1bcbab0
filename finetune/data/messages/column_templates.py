"""Jinja2 templates over a row's columns: sandboxed, bounded, strict."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import jinja2
from jinja2 import StrictUndefined, UndefinedError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hybrid_ft.errors import one_line, shown
from hybrid_ft.finetune.data.limits import MEMORY, RENDER_ERRORS, SECONDS, TookTooLong, limited
from hybrid_ft.finetune.data.sources.rows import BadRow, repr_number

RUNAWAY_COLUMNS = "runaway template of columns"
"""The kind of a row on which a template ran into one of these limits."""

_MISSING_NAME = re.compile(r"'([^']+)' is undefined")


Kind = TypeVar("Kind", bound=nodes.Node)


class _NoText(Exception):
    """A value that a template puts in and that is neither a string nor a number."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def _as_text(value: Any) -> Any:
    """What a template puts in: strings as they are, numbers, true and false as JSON writes them."""
    if isinstance(value, str):
        return value
    if isinstance(value, jinja2.Undefined):
        return str(value)  # raises UndefinedError
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr_number(value)
    raise _NoText(value)


def _tojson(value: Any, indent: int | None = None) -> str:
    """An object as it stands in its row: Jinja2's own filter sorts the keys and writes ``<``, ``&``
    and ``'`` as escapes."""
    if isinstance(value, jinja2.Undefined):
        return str(value)  # raises UndefinedError
    return json.dumps(value, ensure_ascii=False, indent=indent)


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined,
    finalize=_as_text,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["tojson"] = _tojson
_ENVIRONMENT.globals = {name: _ENVIRONMENT.globals[name] for name in ("range", "namespace", "dict")}


class ColumnTemplate:
    """A template, ready to be filled in. ``columns``: those it reads; ``optional``: those of them that it asks whether
    they are there (``is defined``, ``default``).

    ``{{ row["a column"] }}`` reaches a column whose name is not a word. Raises ValueError for what Jinja2 cannot parse.
    """

    def __init__(self, source: str) -> None:
        try:
            with limited(SECONDS, MEMORY):  # what is constant in it is worked out here
                tree = _ENVIRONMENT.parse(source)
                self._render = _ENVIRONMENT.from_string(source).render
                undeclared = meta.find_undeclared_variables(tree)
        except (TookTooLong, MemoryError):
            raise ValueError(f"got {shown(source)}; takes more than {SECONDS:g} s or 1 GB to be read") from None
        except RecursionError:
            raise ValueError(f"got {shown(source)}; nested too deep") from None
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"got {shown(source)}; must be a Jinja2 template ({one_line(error.message)})") from None
        by_name = {
            str(item.arg.value)
            for item in tree.find_all(nodes.Getitem)
            if isinstance(item.node, nodes.Name) and item.node.name == "row" and isinstance(item.arg, nodes.Const)
        }
        self.columns = (undeclared - {"row"}) | by_name
        # a choice by what is there may name columns of which a file has only one
        choices: list[nodes.CondExpr | nodes.If] = [*tree.find_all(nodes.CondExpr), *tree.find_all(nodes.If)]
        asked: list[nodes.Node] = [
            choice
            for choice in choices
            if any(test.name in ("defined", "undefined") for test in _of(nodes.Test, choice.test))
        ]
        asked += [item.node for item in tree.find_all(nodes.Filter) if item.name in ("default", "d") and item.node]
        self.optional = {name.name for part in asked for name in _of(nodes.Name, part)}

    def __call__(self, values: Mapping[str, Any]) -> str:
        """The text for a row. Raises BadRow. What is put in is never read as a template."""
        try:
            with limited(SECONDS, MEMORY):
                return self._render({"row": values, **values})
        except _NoText as error:
            raise self._no_text(error.value, values) from None
        except UndefinedError as error:
            reason = one_line(error)
            name = _MISSING_NAME.fullmatch(reason)
            found = ", ".join(map(str, list(values)[:8])) or "none"
            text = f"column {name[1]} is missing (found {found})" if name else f"{reason}; the template asks for it"
            raise BadRow("column missing", text) from None
        except (TookTooLong, MemoryError) as error:
            used = f"{SECONDS:g} s" if isinstance(error, TookTooLong) else f"{MEMORY // 2**30} GB of memory"
            raise BadRow(RUNAWAY_COLUMNS, f"the template of columns takes more than {used} on this row") from None
        except RENDER_ERRORS as error:
            text = f"the template of columns fails on this row ({one_line(error, 160)})"
            raise BadRow("template of columns", text) from None

    def _no_text(self, value: Any, values: Mapping[str, Any]) -> BadRow:
        name = next((name for name in sorted(self.columns) if name in values and values[name] is value), "a value")
        if value is None:
            return BadRow("null content", f"{name} is null; give its text, or write what stands there instead")
        ways: dict[type, str] = {list: "| join(', ')", dict: "| tojson"}
        fix = f"write how it becomes text, such as {{{{ {name} {ways[type(value)]} }}}}" if type(value) in ways else ""
        return BadRow("wrong type", f"{name}: got {shown(value)}; {fix or 'must be a string or a number'}")


def _of(kind: type[Kind], node: nodes.Node) -> list[Kind]:
    """The nodes of a kind in a part of a template, the part itself included."""
    return [node] if isinstance(node, kind) else list(node.find_all(kind))


def is_template(text: str) -> bool:
    """Whether a text is a template, and not the name of a column."""
    return "{{" in text or "{%" in text


def condition(expression: str) -> ColumnTemplate:
    """A template that is blank where a Jinja2 expression is false, a blank string, or about a column
    that is not there."""
    test = "{% if w is defined and (w | trim if w is string else w) %}x{% endif %}"
    return ColumnTemplate(f"{{% set w = ({expression}) %}}{test}")
