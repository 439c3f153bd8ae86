"""The journal file of a study: opened by Optuna, mended where a killed driver left it half written."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from voxray.config.errors import InputError, RunError
from voxray.tune.config import ObjectiveConfig

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

JOURNAL = "journal.log"


def begin_journal(folder: Path, objectives: Sequence[ObjectiveConfig]) -> "Study":
    """Return the study in `folder`, a new one where there is none. The caller holds the study's lock."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    mend_journal(folder / JOURNAL)
    return optuna.create_study(
        study_name=folder.name,
        storage=_storage(folder / JOURNAL),
        directions=["maximize" if objective.mode == "max" else "minimize" for objective in objectives],
        load_if_exists=True,
    )


def read_journal(folder: Path) -> "Study":
    """Return the study that a folder holds. Raises InputError where there is none, or it is broken."""
    import optuna

    file = folder / JOURNAL
    if not file.is_file():
        raise InputError(f"{folder} is no study: it has no {JOURNAL}; name a folder that `voxray tune` wrote")
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        return optuna.load_study(study_name=None, storage=_storage(file))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"{file} cannot be read as an Optuna journal: {error or 'no study in it'}"
        ) from error


def _storage(file: Path) -> "BaseStorage":
    from optuna.storages.journal import JournalStorage

    from voxray.tune.study.journal_file import JournalFile

    return JournalStorage(JournalFile(str(file)))


def mend_journal(journal: Path) -> None:
    """Undo what a killed driver may have left; only the holder of the study's lock may call this.

    A last line without an end would swallow the next one, and Optuna would wait 30 s for a lock left behind.
    Raises RunError when the journal cannot be written.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    try:
        with journal.open("rb+") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
    except OSError as error:
        raise RunError(f"{journal} cannot be written: {error.strerror}") from error
