"""`Section`: the frozen pydantic base of every config class. Imports nothing of ours."""

from pydantic import BaseModel


class Section(BaseModel, extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False):
    """One section of an experiment. Unknown keys, NaN and infinities are refused; values never change."""
