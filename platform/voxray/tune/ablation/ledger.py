"""`CellLedger`: the cells of an ablation as a ledger that Tune's searcher drives.

What is done is read from the cells' own folders, <storage.path>/<task>/cells/<key>: the key is the hash
of all that decides a cell's result (`cells.cell_key`), so a cell is trained once, whichever ablation asks
for it, and one that was cut short goes on from its newest checkpoint. A cell that failed keeps its reason
and is tried again by the next command.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from voxray.config.errors import InputError
from voxray.config.provenance import write_provenance
from voxray.train.run_folder import RunFolder
from voxray.tune.ablation.cells import Ablation, Cell
from voxray.tune.ablation.data_check import note_data
from voxray.tune.ablation.evaluation import FAILURE_FILE, CellState, note_failure, read_cell
from voxray.tune.config import ObjectiveConfig
from voxray.tune.job import Job, Run
from voxray.tune.ledger import Suggestion, TrialRow

POLL_S = 2.0


class CellLedger:
    """Cells by index. One that another process trains now is left to it, and `elsewhere` until it lets go.

    A cell is held by a lock beside its folder from when it is next in line until it has ended.
    """

    def __init__(self, ablation: Ablation) -> None:
        """Read what is done."""
        self.ablation = ablation
        self.objectives: Sequence[ObjectiveConfig] = ablation.objectives
        self.elsewhere: set[int] = set()
        self._rows: dict[int, TrialRow] = {}
        self._settled: dict[int, CellState] = {}
        self._locks: dict[int, FileLock] = {}
        self._running: dict[int, float] = {}  # when it began
        for cell in ablation.cells:
            self._settle(cell)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle as nothing: Tune writes its searcher down, which voxray never reads back."""
        return {}

    def cell(self, index: int) -> Cell:
        """Return a cell by its index."""
        return self.ablation.cells[index]

    def folder(self, index: int) -> Path:
        """Return a cell's RUN folder, absolute."""
        return self.ablation.cell_folder(self.cell(index))

    def state(self, cell: Cell) -> CellState:
        """Return what the cell's folder tells; of one that is done, what it told then."""
        return self._settled.get(cell.index) or self._read(cell)

    def _read(self, cell: Cell) -> CellState:
        return read_cell(self.ablation.cell_folder(cell), self.objectives, self.ablation.config.value)

    def left(self) -> list[int]:
        """Return the cells that are not done, wherever they are trained."""
        return [cell.index for cell in self.ablation.cells if cell.index not in self._rows]

    def is_elsewhere(self, index: int) -> bool:
        """Whether another process trains the cell now."""
        if index in self._locks or index in self._rows or not _lock_file(self.folder(index)).exists():
            return False
        is_free = self._hold(index)
        self._let_go(index)
        return not is_free

    def remaining(self) -> list[int]:
        """Return the cells that are neither done, running nor elsewhere; the first is held for us."""
        pending = [cell.index for cell in self.ablation.cells if self._is_pending(cell.index)]
        held = [index for index in pending if index in self._locks]
        for index in pending if not held else ():
            if not self._hold(index):
                self.elsewhere.add(index)
            elif self._settle(self.cell(index)):  # another process has finished it since
                self._let_go(index)
            else:
                held = [index]
                break
        return [*held, *(index for index in pending if index not in held and self._is_pending(index))]

    def _is_pending(self, index: int) -> bool:
        return index not in self._rows and index not in self._running and index not in self.elsewhere

    def ask(self, index: int) -> Suggestion:
        """Begin a cell, which `remaining` named first."""
        assert index in self._locks, f"cell {index} is not held"
        self._running[index] = time.monotonic()
        (self.folder(index) / FAILURE_FILE).unlink(missing_ok=True)
        return Suggestion(index, self.cell(index).values)

    def job(self, suggestion: Suggestion, executor: Literal["inline", "gang", "train"]) -> Job:
        """Write the cell's config and where it comes from; return the cell as its actor gets it."""
        resolved = self.ablation.run_config(self.cell(suggestion.index))
        run = RunFolder(self.folder(suggestion.index))
        run.write_config(resolved.config, resolved.sources)
        write_provenance(run.path, is_one_of_many=True)
        if not run.log_file.exists():
            note_data(run.path, resolved.config)
        return Job(suggestion.index, (Run(run.path, resolved.config),), executor)

    def report(self, index: int, record: Mapping[str, Any]) -> None:
        """Keep nothing: the run's own log has the same numbers."""

    def finish(self, index: int, job: Job) -> TrialRow:
        """End a cell whose run has ended by itself; it fails when no evaluation has finite scores."""
        self._refresh(index)
        state = self._read(self.cell(index))
        if state.state != "done":
            return self.crash(index, f"its log ends as {state.state}, though its training returned")
        return self._end(index, state)

    def crash(self, index: int, reason: str) -> TrialRow:
        """End a cell that failed; the next command tries it again."""
        note_failure(self.folder(index), reason)
        self._refresh(index)
        return self._end(index, CellState("failed", reason=reason))

    def _refresh(self, index: int) -> None:
        from voxray.train.mirror import refresh

        refresh(self.ablation.plan.base.config.storage.path, self.folder(index))

    def stop(self, index: int) -> TrialRow:
        """End a cell that was stopped from outside, as no scheduler does; the next command tries it again."""
        return self.crash(index, "it was stopped before its end")

    def cut_short(self) -> list[int]:
        """Let go of all that runs and is held. Return the indices of what ran."""
        indices = sorted(self._running)
        self._running.clear()
        for index in list(self._locks):
            self._let_go(index)
        return indices

    def rows(self) -> list[TrialRow]:
        """Return what is done, by index."""
        return [self._rows[index] for index in sorted(self._rows)]

    def wait_for_others(self) -> list[TrialRow]:
        """Wait until another process lets go of a cell `elsewhere`; return those that it has finished."""
        while True:
            freed = [index for index in sorted(self.elsewhere) if self._hold(index)]
            for index in freed:
                self.elsewhere.discard(index)
                self._settle(self.cell(index))
                self._let_go(index)
            if freed:
                return [self._rows[index] for index in freed if index in self._rows]
            time.sleep(POLL_S)

    def _settle(self, cell: Cell) -> bool:
        """Take over a cell that its folder calls done; return whether it is."""
        state = self._read(cell)
        if state.state == "done":
            self._rows[cell.index], self._settled[cell.index] = self._row(cell, state), state
        return state.state == "done"

    def _row(self, cell: Cell, state: CellState) -> TrialRow:
        began = self._running.get(cell.index)
        return TrialRow(
            index=cell.index,
            state="complete" if state.scores else "fail",
            scores=state.scores,
            step=state.step,
            seconds=state.seconds if began is None else time.monotonic() - began,
            values=cell.values,
            reason=state.reason,
        )

    def _end(self, index: int, state: CellState) -> TrialRow:
        row = self._rows[index] = self._row(self.cell(index), state)
        self._settled[index] = state
        self._running.pop(index, None)
        self._let_go(index)
        return row

    def _hold(self, index: int) -> bool:
        if index in self._locks:
            return True
        folder = self.folder(index)
        lock = FileLock(_lock_file(folder), timeout=0, thread_local=False)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            return False
        except OSError as error:
            raise InputError(f"{folder.parent} cannot be written: {error.strerror}") from error
        self._locks[index] = lock
        return True

    def _let_go(self, index: int) -> None:
        lock = self._locks.pop(index, None)
        if lock is not None:
            lock.release()


def fetch_cells(ablation: Ablation) -> None:
    """Where `storage.path` is a URL, fetch what tells whether a cell is done. Raises InputError where the
    store cannot be reached.
    """
    from voxray.train.mirror import Mirror

    for cell in ablation.cells:
        if mirror := Mirror.of(ablation.plan.base.config.storage.path, ablation.cell_folder(cell)):
            mirror.open(checkpoints=False)


def _lock_file(cell_folder: Path) -> Path:
    return cell_folder.with_suffix(".lock")
