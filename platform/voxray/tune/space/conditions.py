"""`when:`: with which values of earlier keys a key is drawn; else it keeps the experiment's value."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from voxray.config.errors import InputError
from voxray.config.expression import Expression, parse_expression
from voxray.tune.space.config import Distribution

When = Mapping[str, Any] | str
KEY = "key"  # key('stages.1.epochs'): a path that an expression cannot spell


def holds(when: When, drawn: Mapping[str, Any]) -> bool:
    """Return whether a condition holds for what was drawn so far; with an undrawn key it does not."""
    return all(key in drawn for key in names(when)) and may_hold(when, drawn)


def may_hold(when: When, values: Mapping[str, Any]) -> bool:
    """Return whether a condition can hold, given some values; what is not given is left open."""
    if not when:
        return True
    if isinstance(when, str):
        if any(key not in values for key in names(when)):
            return True
        return bool(evaluated(parsed(when, "when"), lambda name: values[name]))
    return all(key not in values or _same(values[key], one) for key, one in when.items())


def names(when: When) -> tuple[str, ...]:
    """Return the keys that a condition looks at."""
    if not when:
        return ()
    return keys_of(parsed(when, "when")) if isinstance(when, str) else tuple(when)


def parsed(text: str, where: str, functions: Sequence[str] = ()) -> Expression:
    """Parse an expression of keys. Raises InputError that quotes it."""
    return parse_expression(text, where, (KEY, *functions))


def keys_of(expression: Expression) -> tuple[str, ...]:
    """Return the keys that an expression names, as a name or by key('…')."""
    return tuple(dict.fromkeys([*expression.names, *expression.arguments(KEY)]))


def evaluated(
    expression: Expression,
    values: Callable[[str], Any],
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> Any:
    """Return an expression's value, `values` giving that of a key."""
    return expression.evaluate(values, {KEY: values, **(functions or {})})


def _same(value: Any, wanted: Any) -> bool:
    """Return whether a value is the one that is wanted, or one of them; true is not 1."""
    if isinstance(wanted, list | tuple) and not isinstance(value, list | tuple):
        return any(_same(value, one) for one in cast("Sequence[Any]", wanted))
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def condition_problems(space: Mapping[str, Distribution], place: Callable[[str], str]) -> list[str]:
    """Return what is wrong with the conditions of a space; `place` gives where a key is declared."""
    problems: list[str] = []
    order = list(space)
    for path, entry in space.items():
        try:
            looked_at = names(entry.when)
        except InputError as error:
            problems += [f"{place(path)}: {path}: {text}" for text in error.problems]
            continue
        for key in looked_at:
            problem = _key_problem(space, order, path, key)
            if not problem and isinstance(entry.when, Mapping):
                problem = _value_problem(space[key], key, entry.when[key])
            if problem:
                problems.append(f"{place(path)}: {path}: when: {problem}")
    return problems


def _key_problem(space: Mapping[str, Distribution], order: list[str], path: str, key: str) -> str:
    if key == path:
        return f"{key} waits for itself; name an earlier key"
    if key not in space:
        near = difflib.get_close_matches(key, space, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(order)}"
        return f"{key} is not in search.space; {hint}"
    if order.index(key) < order.index(path):
        return ""
    if path in _waits_for(space, key):
        return f"a cycle: {path} waits for {key}, and {key} for {path}; take one of the two conditions out"
    return f"{key} is drawn later; move it above {path}"


def _waits_for(space: Mapping[str, Distribution], path: str) -> set[str]:
    """Return the keys that a key waits for, directly or by others."""
    found: set[str] = set()
    left = [path]
    while left:
        for key in names(space[left.pop()].when):
            if key in space and key not in found:
                found.add(key)
                left.append(key)
    return found


def _value_problem(entry: Distribution, key: str, wanted: Any) -> str:
    """Return what is said of a value that the key never has."""
    values: Sequence[Any] | None = {"choice": entry.choice, "fixed": (entry.fixed,)}.get(entry.kind)
    if values is None:
        return ""
    for one in cast("Sequence[Any]", wanted) if isinstance(wanted, list | tuple) else (wanted,):
        if not any(_same(value, one) for value in values):
            return f"{key} is never {one!r}; it is one of {', '.join(map(repr, values))}"
    return ""
