"""`Section`: the frozen pydantic base of every config class. Imports nothing of ours."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of an experiment file. Unknown keys are refused; values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
