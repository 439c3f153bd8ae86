"""Hides what looks like a secret: values under telling keys, and passwords inside addresses."""

# What a YAML or JSON value holds has no static type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import re
from typing import Any

HIDDEN = "••••••"
# A last word of a key: `api_key` and `wandb.token` are secrets, `max_tokens` and `keep` are not.
_WORD = r"(?:token|secret|password|passwd|passphrase|api_?key|key|credentials?|auth)"
_KEY = re.compile(rf"(?:^|[._-]){_WORD}(?:$|[._-])", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_ASSIGNMENT = re.compile(r"^(-{0,2})([\w.-]+)=(.*)$", re.DOTALL)


def is_secret(path: str) -> bool:
    """Tell whether a dotted path, or any part of it, names a secret."""
    return _KEY.search(path) is not None


def masked(path: str, value: Any) -> Any:
    """Return `value` as it may be shown under the dotted `path`; maps and lists are masked inside."""
    if isinstance(value, dict):
        return {key: masked(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(path, inner) for inner in value]
    if value in (None, "", False, True):
        return value
    if is_secret(path):
        return HIDDEN
    return _IN_ADDRESS.sub(HIDDEN, value) if isinstance(value, str) else value


def masked_command(words: list[str]) -> list[str]:
    """Return a command's words with secret values hidden, written `key=value` or `--key value`."""
    shown: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        assignment = _ASSIGNMENT.match(word)
        if assignment is not None:
            dashes, key, value = assignment.groups()
            shown.append(f"{dashes}{key}={masked(key, value)}")
        elif before.startswith("--") and "=" not in before and not word.startswith("--"):
            shown.append(str(masked(before.lstrip("-"), word)))
        else:
            shown.append(str(masked("", word)))
    return shown


def flattened(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested maps and lists by dotted path; an empty one is a leaf itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    leaves = {
        k: v
        for key, inner in items
        for k, v in flattened(inner, f"{path}.{key}" if path else str(key)).items()
    }
    return leaves or {path: value}
