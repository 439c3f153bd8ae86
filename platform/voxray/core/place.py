"""`Place`: how far a stage has come, on which rates, temperatures and loss weights may depend."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a stage stands: updates done before this one, of how many; epochs done, of how many."""

    step: int
    num_steps: int
    epoch: int
    num_epochs: int


BEGINNING = Place(0, 1, 0, 1)
