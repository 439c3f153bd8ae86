"""Small expressions over named values: filters, weights, constraints. They are parsed, never run as Python.

Dotted names, numbers, text, lists, arithmetic, comparisons, `in`, `and`, `or`, `not`, a table of functions.
The same expression works on single numbers and, element by element, on arrays.
"""

import ast
import difflib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxray.config.errors import InputError

Values = Callable[[str], Any]

# The operators are those of numbers and arrays alike.
# pyright: reportUnknownMemberType=false
_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_JOINING: dict[type[ast.AST], Callable[[Any, Any], Any]] = {ast.And: operator.and_, ast.Or: operator.or_}
_LEAST_EXCESS = 1e-300  # of a strict comparison of equals
_MAX_LENGTH = 2000  # characters: deeper nesting than a person writes is refused with it


@dataclass(frozen=True)
class Expression:
    """A parsed expression: `names` are the values that it needs, in the order they come."""

    text: str
    names: tuple[str, ...]
    _tree: ast.expr

    def evaluate(self, values: Values, functions: Mapping[str, Callable[..., Any]] | None = None) -> Any:
        """Return its value; `values` gives each name's. Errors of the operations pass through."""
        return _evaluate(self._tree, values, functions or {})

    def arguments(self, function: str) -> tuple[str, ...]:
        """Return the texts that `function` is called with, each once."""
        calls = [
            node
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function
        ]
        found = [
            argument.value for call in calls for argument in call.args if isinstance(argument, ast.Constant)
        ]
        return tuple(dict.fromkeys(text for text in found if isinstance(text, str)))

    def excess(self, values: Values, functions: Mapping[str, Callable[..., Any]] | None = None) -> float:
        """Return by how much the expression, a condition, fails; 0 or less where it holds.

        For `a <= b` and `a < b` that is a − b, for `a == b` |a − b|, for conditions joined by `and` the
        largest of theirs, for others 1.
        """

        def excess(node: ast.expr) -> float:
            if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
                return max(map(excess, node.values))
            holds = bool(_evaluate(node, values, functions or {}))
            if isinstance(node, ast.Compare):
                sides = [_evaluate(part, values, functions or {}) for part in (node.left, *node.comparators)]
                pairs = zip(node.ops, sides, sides[1:], strict=False)
                amounts = [_excess(op, left, right) for op, left, right in pairs]
                if None not in amounts:
                    amount = max(amount for amount in amounts if amount is not None)
                    return min(amount, 0.0) if holds else max(amount, _LEAST_EXCESS)
            return 0.0 if holds else 1.0

        return excess(self._tree)


def parse_expression(text: str, where: str, functions: Sequence[str] = ()) -> Expression:
    """Parse an expression that `where` (a config key) holds and that may call `functions`.

    Raises InputError that quotes the text and says what is not allowed.
    """
    try:
        assert len(text) <= _MAX_LENGTH, f"it is longer than {_MAX_LENGTH} characters"
        tree = ast.parse(text.strip(), mode="eval").body
        names: list[str] = []
        _check(tree, functions, names)
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InputError(f"{where}: '{text}' is no expression: {reason}") from None
    return Expression(text, tuple(dict.fromkeys(names)), tree)


def check_names(expression: Expression, known: Sequence[str], where: str) -> None:
    """Raise InputError, with the nearest name, where the expression uses one that is not known."""
    for name in expression.names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known) or 'none'}"
            raise InputError(f"{where}: '{expression.text}' uses '{name}', which is not there; {hint}")


def _check(node: ast.expr, functions: Sequence[str], names: list[str]) -> None:
    """Collect the names; raise ValueError for what is not allowed."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return
        case ast.Name() | ast.Attribute():
            names.append(_dotted(node))
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div()):
            for part in (node.left, node.right):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    raise ValueError("text can be compared alone")
                _check(part, functions, names)
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            _check(node.operand, functions, names)
        case ast.BoolOp() | ast.List() | ast.Tuple():
            for part in node.values if isinstance(node, ast.BoolOp) else node.elts:
                _check(part, functions, names)
        case ast.Compare():
            for part in (node.left, *node.comparators):
                _check(part, functions, names)
            for op in node.ops:
                if type(op) not in _BINARY and not isinstance(op, ast.In | ast.NotIn):
                    raise ValueError("of comparisons there are ==, !=, <, <=, >, >=, in and not in")
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in functions:
            for part in node.args:
                _check(part, functions, names)
        case ast.Call():
            raise ValueError(f"it may call {', '.join(functions) or 'no function'} alone")
        case _:
            raise ValueError(f"'{ast.unparse(node)}' is not allowed in it")


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    raise ValueError(f"'{ast.unparse(node)}' is no name")


def _evaluate(node: ast.expr, values: Values, functions: Mapping[str, Callable[..., Any]]) -> Any:
    def value(part: ast.expr) -> Any:
        return _evaluate(part, values, functions)

    match node:
        case ast.Constant():
            return node.value
        case ast.BinOp():
            return _BINARY[type(node.op)](value(node.left), value(node.right))
        case ast.UnaryOp(op=ast.USub()):
            return -value(node.operand)
        case ast.UnaryOp():
            return value(node.operand) == False  # noqa: E712 - element by element
        case ast.BoolOp():
            joined = value(node.values[0])
            for part in node.values[1:]:
                joined = _JOINING[type(node.op)](joined, value(part))
            return joined
        case ast.List() | ast.Tuple():
            return [value(part) for part in node.elts]
        case ast.Compare():
            parts = [value(part) for part in (node.left, *node.comparators)]
            results = [_compare(op, *parts[i : i + 2]) for i, op in enumerate(node.ops)]
            joined = results[0]
            for result in results[1:]:
                joined = joined & result
            return joined
        case ast.Call(func=ast.Name(id=name)):
            return functions[name](*map(value, node.args))
        case _:
            return values(_dotted(node))


def _excess(op: ast.cmpop, left: Any, right: Any) -> float | None:
    """Return left − right or its like, None where the two sides are no numbers or the comparison has none."""
    if not (isinstance(left, int | float) and isinstance(right, int | float)):
        return None
    match op:
        case ast.Lt() | ast.LtE():
            return float(left - right)
        case ast.Gt() | ast.GtE():
            return float(right - left)
        case ast.Eq():
            return float(abs(left - right))
        case _:
            return None


def _compare(op: ast.cmpop, left: Any, right: Any) -> Any:
    if not isinstance(op, ast.In | ast.NotIn):
        return _BINARY[type(op)](left, right)
    found: Any = False
    for item in right:
        found = (left == item) | found
    return found == False if isinstance(op, ast.NotIn) else found  # noqa: E712 - element by element
