"""Specs: `name(key=value, ...)` with literals only, in suites, cards and on the command line."""

from __future__ import annotations

import ast
import re
from typing import Any, NamedTuple

from robustbench_med.errors import SpecError


class Spec(NamedTuple):
    """A registry name, or FILE.py:FUNCTION, and its keyword parameters."""

    name: str
    parameters: dict[str, Any]

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.parameters.items())
        return f"{self.name}({inside})" if inside else self.name


def parse(text: str) -> Spec:
    """Return the name and parameters written in `text`.

    Values are Python literals; a quotient of numbers such as `2/255` is one too.

    Args:
        text: a name, or a name and its parameters in brackets.

    Raises:
        SpecError: `text` is not `name` or `name(key=value, ...)`.

    >>> parse("pgd(eps=2/255, steps=40)").parameters["steps"]
    40
    """
    head, bracket, _ = text.partition("(")
    name = head.strip()
    # a function in a file, whose path may hold any character but a bracket
    if not re.fullmatch(r"[A-Za-z_][\w.:/-]*|.+\.py:[A-Za-z_]\w*", name):
        raise SpecError(f"expected name or name(key=value, ...), got {text!r}")
    if not bracket:
        return Spec(name, {})
    try:
        call = ast.parse("_" + text[len(head) :].strip(), mode="eval").body
    except SyntaxError:
        raise SpecError(
            f"expected name(key=value, ...) with balanced brackets, got {text!r}"
        ) from None
    named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    if (
        not isinstance(call, ast.Call)
        or not named
        or call.args
        or any(k.arg is None for k in call.keywords)
    ):
        raise SpecError(f"expected keyword parameters only, name(key=value, ...), got {text!r}")
    return Spec(name, {str(k.arg): literal(k.value, text) for k in call.keywords})


class Call(NamedTuple):
    """A name with positional and keyword parameters, one step of a chain."""

    name: str
    values: tuple[Any, ...]
    parameters: dict[str, Any]

    def __str__(self) -> str:
        inside = [*map(repr, self.values), *(f"{k}={v!r}" for k, v in self.parameters.items())]
        return f"{self.name}({', '.join(inside)})"


def parse_chain(text: str) -> tuple[Call, ...]:
    """Return the steps written in `text`, in their order.

    Args:
        text: `name(value, key=value, ...)`, several of them joined by commas.

    Raises:
        SpecError: `text` is no such chain.

    >>> [str(step) for step in parse_chain("window(40, 400), resize(224, 224)")]
    ['window(40, 400)', 'resize(224, 224)']
    """
    form = f"expected steps like window(40, 400), resize(224, 224), got {text!r}"
    try:
        steps = ast.parse(f"({text.strip()},)", mode="eval").body
    except (SyntaxError, ValueError):
        raise SpecError(form) from None
    if not isinstance(steps, ast.Tuple) or not steps.elts:
        raise SpecError(form)
    calls = []
    for step in steps.elts:
        if not isinstance(step, ast.Call) or not isinstance(step.func, ast.Name):
            raise SpecError(form)
        if any(key.arg is None for key in step.keywords):
            raise SpecError(form)
        values = tuple(literal(value, text) for value in step.args)
        parameters = {str(key.arg): literal(key.value, text) for key in step.keywords}
        calls.append(Call(step.func.id, values, parameters))
    return tuple(calls)


def number(value: object) -> float:
    """Return `value` as a float; `"2/255"` is a quotient.

    Raises:
        SpecError: `value` is not a number.

    >>> round(number("2/255"), 6)
    0.007843
    """
    try:
        parsed = literal(ast.parse(str(value), mode="eval").body, str(value))
    except (SyntaxError, SpecError):
        parsed = None
    if isinstance(parsed, bool) or not isinstance(parsed, int | float):
        raise SpecError(f"expected a number such as 0.01 or 2/255, got {value!r}")
    return float(parsed)


def literal(node: ast.expr, text: str) -> Any:  # noqa: ANN401 - a literal is any plain value
    """Return the value of a literal; a quotient of numbers such as `2/255` is one too.

    Raises:
        SpecError: it is none; the message quotes `text`.
    """
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        above, below = literal(node.left, text), literal(node.right, text)
        if not all(isinstance(v, int | float) for v in (above, below)) or not below:
            raise SpecError(f"expected a quotient of two numbers, got {text!r}")
        return above / below
    if isinstance(node, ast.List):
        return [literal(part, text) for part in node.elts]
    if isinstance(node, ast.Call | ast.Name):
        raise SpecError(f"expected literal values (numbers, strings, lists), got {text!r}")
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise SpecError(
            f"expected literal values (numbers, strings, lists), got {text!r}"
        ) from None
