"""What went wrong when a pretrained network was to be loaded or fetched, as one sentence with the mend."""

from collections.abc import Iterator
from pathlib import Path

_CAUSES = {
    "GatedRepoError": "is gated: ask for access on its page in the hub, then log in by `hf auth login`, or "
    "set HF_TOKEN",
    "RepositoryNotFoundError": "is not in the hub, or private: check its name, and log in by `hf auth login` "
    "or set HF_TOKEN",
    "RevisionNotFoundError": "has no such revision in the hub: name a branch, a tag or a commit that it has",
    "OfflineModeIsEnabled": "is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: unset that, or "
    "{copy}",
    "LocalEntryNotFoundError": "is not on this machine, and the hub cannot be reached: go online once, or "
    "{copy}",
    "TransportError": "is not on this machine, and the hub cannot be reached: go online once, or {copy}",
    "EntryNotFoundError": "lacks a file that such a network has: check that it is of the right kind",
}


def loading_problem(model_id: str, error: BaseException, copy: str = "name the folder of a copy") -> str:
    """Return why `model_id` (a hub's id, or a folder) cannot be loaded, and what to do; `copy` says how one
    uses a copy that came another way.
    """
    names = [kind.__name__ for cause in _chain(error) for kind in type(cause).__mro__]
    for name, said in _CAUSES.items():
        if name in names and not Path(model_id).is_dir():
            return f"'{model_id}' {said.format(copy=copy)}"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"'{model_id}' cannot be loaded: {reason}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
