"""`Section`: the frozen pydantic base of every config class. Imports nothing of ours."""

from collections.abc import Iterable

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails

# A name becomes a folder's or a job's: no separator, no leading dot (`..`, hidden folders), short enough for
# every file system. Empty stands for a default.
NAME_PATTERN = r"^([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})?$"


class Section(BaseModel, extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False):
    """One section of an experiment. Unknown keys, NaN and infinities are refused; values never change."""


def errors_at(problems: Iterable[tuple[tuple[int | str, ...], str]]) -> ValidationError:
    """Return the error that a section's validator raises for keys below it: (their path, a sentence) each."""
    details = [
        InitErrorDetails(type="value_error", loc=path, input=None, ctx={"error": ValueError(text)})
        for path, text in problems
    ]
    return ValidationError.from_exception_data("config", details)
