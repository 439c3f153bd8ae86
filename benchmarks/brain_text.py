"""Brain to text: what cached audio targets, length buckets and shards are worth, and a step at full shape.

Run: python benchmarks/brain_text.py [--quick] [--full] [--json FILE] [--cases targets,padding,read]. Cases:

* `targets`: an update (forward, backward, AdamW) whose audio targets are columns of the batch, beside one
  that synthesizes the batch's sentences and runs the tower first, as upstream's did. Both networks are tiny
  ones, so the real ratio is larger; the targets of both ways are compared before the clock runs.
* `padding`: the share of delivered bins that are padding, of batches of 64 trials from 4 days, with length
  buckets and without them, over an epoch of 45 days.
* `read`: trials per second from our shards, bucketed, beside upstream's way: a dataset whose item is a whole
  batch, trials of 4 days read one by one from HDF5 files and padded, in a DataLoader (batch_size=None) with
  as many worker processes, which stay, as ours has threads. The same trials, each once per epoch, in turn,
  the page cache warm; the sums of what was delivered are compared. Medians of the rounds after the first.
* `--full` alone: timed updates of the phoneme baseline at T15's size (45 days, 512 features, 5 × 768 units,
  64 trials of 544 bins), on a GPU in bf16 where there is one.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from voxray.core.batch import EpochRequest
from voxray.core.experiment import load_experiment
from voxray.core.schema import Column, Schema
from voxray.data.source import batch_rules, open_source
from voxray.nn.speech import Speech, Tower
from voxray.tasks.brain_text.config import BrainTextDataConfig, Config
from voxray.tasks.brain_text.data import BrainTextBatch
from voxray.tasks.brain_text.speech import Lexicon
from voxray.tasks.brain_text.synth import sentence_text
from voxray.tasks.brain_text.task import BrainText
from voxray.testing.datasets import write_dataset
from voxray.train.optimisation.optim import build_optimizer

# Shapes: B trials of a batch, T time bins, F features, A audio tokens.
MEDIAN_BINS, SPREAD, LEAST_BINS, MOST_BINS = 540, 0.35, 150, 1500
BATCH, DAYS_PER_BATCH, THREADS = 64, 4, 2
FULL_DAYS, FULL_FEATURES, FULL_BINS = 45, 512, 544
SHARDS = 4  # that a dataset is cut into, at least
WARM_UP = 2
SEED = 1


def schema_of(num_features: int, audio_dim: int | None = None) -> Schema:
    """Return the columns of trials of so many features, with audio targets of a width where there are any."""
    columns = {
        "sample_id": Column("text"),
        "group": Column("text"),
        "session": Column("text"),
        "day": Column("int32"),
        "neural": Column("float32", (None, num_features), ragged=True),
        "phonemes": Column("int32", (None,), ragged=True),
        "text": Column("text"),
    }
    if audio_dim is not None:
        columns["audio"] = Column("float32", (None, audio_dim), ragged=True)
    return Schema(columns, group="group")


def trial(index: int, num_bins: int, num_features: int) -> np.ndarray:
    """Return the features of a trial [T, F], by its number."""
    return np.random.default_rng([SEED, index]).standard_normal((num_bins, num_features), np.float32)


def lengths(num: int) -> np.ndarray:
    """Return log-normal lengths in bins, about as the synthetic recordings of full size have them."""
    drawn = MEDIAN_BINS * np.exp(SPREAD * np.random.default_rng(SEED).standard_normal(num))
    return np.clip(drawn, LEAST_BINS, MOST_BINS).astype(int)


def text_of(index: int) -> str:
    """Return a sentence of the synthetic lexicon."""
    lexicon = Lexicon(50)
    words = np.random.default_rng([SEED, index]).choice(len(lexicon.words), 4)
    return sentence_text([lexicon.words[word] for word in words])


def record(case: str, ours: float, peer: float | None, unit: str, better: str) -> dict[str, Any]:
    """Return a benchmark's record."""
    ratio = None if peer is None else ours / peer
    return {
        "benchmark": "brain_text",
        "case": case,
        "ours": ours,
        "peer": peer,
        "unit": unit,
        "ratio": ratio,
        "better": better,
    }


# --- an update
# ------------------------------------------------------------------------------------------------------------


def task_of(values: dict[str, Any], num_features: int, num_days: int, audio_dim: int | None) -> BrainText:
    """Return the task of a config for trials of so many features and days."""
    sessions = [f"day{day:02d}" for day in range(num_days)]
    trained_on = {"day": {"sessions": sessions}}
    return BrainText(Config.model_validate(values), trained_on, schema_of(num_features, audio_dim))


def batch_of(task: BrainText, bins_B: np.ndarray, num_features: int, num_days: int) -> BrainTextBatch:
    """Return a batch of trials of so many bins, spread over the days."""
    num = len(bins_B)
    neural_BTF = np.zeros((num, int(bins_B.max()), num_features), np.float32)
    for index, num_bins in enumerate(bins_B.tolist()):
        neural_BTF[index, :num_bins] = trial(index, num_bins, num_features)
    names = np.array([f"trial_{index:04d}" for index in range(num)], dtype=object)
    phonemes_BL = np.random.default_rng(SEED).integers(1, 40, (num, 20)).astype(np.int32)
    return task.collate(
        {
            "sample_id": names,
            "group": names,
            "session": np.array([f"day{index % num_days:02d}" for index in range(num)], dtype=object),
            "day": np.zeros(num, np.int32),
            "text": np.array([text_of(index) for index in range(num)], dtype=object),
            "neural": neural_BTF,
            "neural.length": bins_B,
            "phonemes": phonemes_BL,
            "phonemes.length": np.full(num, 20),
            "valid": np.ones(num, bool),
            "position": np.arange(num),
        }
    )


def step_times(
    task: BrainText, batches: Callable[[], BrainTextBatch], rounds: int, device: torch.device
) -> list[float]:
    """Return the seconds of updates, each with a batch from `batches`, after some that are not counted."""
    torch.manual_seed(0)
    model = task.build_model().to(device).train()
    (stage,) = task.config.resolved_stages()
    optimizer = build_optimizer(model, stage.training, device)
    seconds: list[float] = []
    for index in range(WARM_UP + rounds):
        started = time.perf_counter()
        seen = task.augment(batches().to(device), index)
        counts = task.normalizers(seen, stage)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            terms = task.loss(model, seen, stage)
        torch.stack([term.weight * term.sum / counts[name] for name, term in terms.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[WARM_UP:]


def with_targets(batch: BrainTextBatch, speech: Speech, tower: Tower) -> BrainTextBatch:
    """Return the batch with the audio tokens of its sentences, computed now."""
    audio = tower({"speech": speech({"text": batch.text})["speech"]})["audio"]
    rows = [torch.from_numpy(tokens_AD) for tokens_AD in audio]
    num_audio_B = torch.tensor([len(row) for row in rows])
    return replace(batch, audio_BAD=pad_sequence(rows, batch_first=True), num_audio_B=num_audio_B)


def measure_targets(num_trials: int, rounds: int) -> list[dict[str, Any]]:
    """Time updates with cached targets, and with synthesizer and tower inside."""
    device, num_features, num_days = torch.device("cpu"), 64, 8
    speech, tower = Speech("tiny", "", "float32", "cpu"), Tower("tiny", "", "float32", "cpu")
    probe = tower(speech({"text": [text_of(0)]}))["audio"][0]
    model = {"n_units": 256, "n_layers": 2, "llm": {"source": "tiny"}}
    values = {"model": model, "objective": {"alpha": 1.0, "beta": 1.0}}
    task = task_of(values, num_features, num_days, probe.shape[1])
    plain = batch_of(task, lengths(num_trials) // 2, num_features, num_days)
    cached = with_targets(plain, speech, tower)
    again = with_targets(plain, speech, tower)
    assert cached.audio_BAD is not None
    assert again.audio_BAD is not None
    assert torch.equal(cached.audio_BAD, again.audio_BAD), "the same targets both ways"
    ours = statistics.median(step_times(task, lambda: cached, rounds, device))
    peer = statistics.median(step_times(task, lambda: with_targets(plain, speech, tower), rounds, device))
    print(
        f"  update of {num_trials} trials: cached targets {ours:.3f} s, made in the step {peer:.3f} s, "
        f"{peer / ours:.2f} times as long (tiny networks)",
        flush=True,
    )
    return [record("update, cached audio targets", ours, peer, "s", "lower")]


def measure_full(steps: int) -> list[dict[str, Any]]:
    """Time updates of the phoneme baseline at T15's size."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_experiment("brain_text/ctc_baseline").config.model_dump(mode="json")
    task = task_of(config, FULL_FEATURES, FULL_DAYS, None)
    batch = batch_of(task, np.full(BATCH, FULL_BINS), FULL_FEATURES, FULL_DAYS)
    seconds = step_times(task, lambda: batch, steps, device)
    median = statistics.median(seconds)
    print(
        f"  full shape, {steps} updates of {BATCH} trials on {device.type}: median {median:.3f} s, "
        f"{min(seconds):.3f} to {max(seconds):.3f}",
        flush=True,
    )
    return [record(f"update at full shape, {device.type}", median, None, "s", "lower")]


# --- reading
# ------------------------------------------------------------------------------------------------------------


class Features:
    """The features of all trials, each made when it is asked for."""

    def __init__(self, bins_N: np.ndarray, num_features: int) -> None:
        """Keep the lengths."""
        self._bins_N, self._num_features = bins_N, num_features

    def __getitem__(self, index: int) -> np.ndarray:
        """Return a trial [T, F]."""
        return trial(index, int(self._bins_N[index]), self._num_features)


def write_trials(out: Path, bins_N: np.ndarray, num_features: int, num_days: int) -> Path:
    """Write trials as a prepared dataset, the days one after the other."""
    num = len(bins_N)
    names = np.array([f"trial_{index:05d}" for index in range(num)], dtype=object)
    days_N = np.arange(num) * num_days // num
    columns: dict[str, Any] = {
        "sample_id": names,
        "group": names,
        "session": np.array([f"day{day:02d}" for day in days_N], dtype=object),
        "day": days_N.astype(np.int32),
        "neural": Features(bins_N, num_features),
        "phonemes": [np.ones(1, np.int32)] * num,
        "text": np.array([""] * num, dtype=object),
    }
    return write_dataset(out, schema_of(num_features), {"train": columns}, max(1, num // SHARDS))


def batches(dataset: Path, bucketed: bool) -> Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Return what yields the batches of an epoch, features [B, T, F] and lengths, as a training run reads."""
    config = BrainTextDataConfig(
        path=str(dataset),
        transport="local",
        read_threads=THREADS,
        group_by="session",
        groups_per_batch=DAYS_PER_BATCH,
        bucket_by="neural" if bucketed else "",
    )
    source, rules = open_source(str(dataset), config), batch_rules(config, training=True)

    def epoch(number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for columns in source.batches(EpochRequest("train", BATCH, seed=SEED, epoch=number, rules=rules)):
            valid_B = np.asarray(columns["valid"])
            yield columns["neural"], np.where(valid_B, columns["neural.length"], 0)

    return epoch


def measure_padding(num: int) -> list[dict[str, Any]]:
    """Compare the share of padding with and without length buckets."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_trials(Path(folder) / "dataset", lengths(num), 1, FULL_DAYS)
        waste: list[float] = []
        for bucketed in (True, False):
            delivered, real = 0, 0
            for neural_BTF, bins_B in batches(dataset, bucketed)(0):
                delivered += neural_BTF.shape[0] * neural_BTF.shape[1]
                real += int(bins_B.sum())
            waste.append(1 - real / delivered)
    print(
        f"  padding of {num} trials: {waste[0]:.1%} with length buckets, {waste[1]:.1%} without", flush=True
    )
    return [record("share of padding, length buckets", waste[0], waste[1], "share", "lower")]


class Upstream(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Whole batches: trials of a few days, read one by one from the days' HDF5 files and padded."""

    def __init__(self, files: list[Path], num_trials: int) -> None:
        """Draw the epoch's batches: each trial once, the days of a batch in equal parts."""
        rng, per_day = np.random.default_rng(SEED), -(-BATCH // DAYS_PER_BATCH)
        shares: list[list[tuple[Path, list[int]]]] = []
        for file in files:
            order = rng.permutation(num_trials)
            parts = [order[start : start + per_day].tolist() for start in range(0, num_trials, per_day)]
            shares.append([(file, part) for part in parts])
        turns = [share for turn in zip(*shares, strict=True) for share in turn]
        self._batches = [
            turns[start : start + DAYS_PER_BATCH] for start in range(0, len(turns), DAYS_PER_BATCH)
        ]

    def __len__(self) -> int:
        """Return how many batches there are."""
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [B, T, F] and lengths."""
        rows: list[torch.Tensor] = []
        for file, trials in self._batches[index]:
            with h5py.File(file, "r") as opened:
                rows += [
                    torch.from_numpy(np.asarray(opened[f"trial_{t:04d}/input_features"])) for t in trials
                ]
        return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def write_files(folder: Path, bins_N: np.ndarray, num_features: int, num_days: int) -> list[Path]:
    """Write the same trials as T15 has them, a file a day."""
    files: list[Path] = []
    per_day = len(bins_N) // num_days
    for day in range(num_days):
        files.append(folder / f"day{day:02d}.hdf5")
        with h5py.File(files[-1], "w") as file:
            for place in range(per_day):
                index = day * per_day + place
                features_TF = trial(index, int(bins_N[index]), num_features)
                file[f"trial_{place:04d}/input_features"] = features_TF
    return files


def measure_read(num_days: int, num_per_day: int, rounds: int) -> list[dict[str, Any]]:
    """Read the same trials both ways in turn."""
    num, bins_N = num_days * num_per_day, lengths(num_days * num_per_day)
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    waste: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = write_trials(folder / "dataset", bins_N, FULL_FEATURES, num_days)
        upstream = Upstream(write_files(folder, bins_N, FULL_FEATURES, num_days), num_per_day)
        loader = DataLoader(
            upstream, batch_size=None, shuffle=True, num_workers=THREADS, persistent_workers=True
        )
        ours = batches(dataset, bucketed=True)
        ways = {"ours": lambda epoch: ours(epoch), "peer": lambda epoch: iter(loader)}
        for epoch in range(rounds + 1):
            sums: dict[str, float] = {}
            for way, begin in ways.items():
                started = time.perf_counter()
                seen, total, delivered = 0, 0.0, 0
                for neural_BTF, bins_B in begin(epoch):
                    seen += int((bins_B > 0).sum())
                    total += float(torch.as_tensor(neural_BTF).sum(dtype=torch.float64))
                    delivered += neural_BTF.shape[0] * neural_BTF.shape[1]
                took = time.perf_counter() - started
                assert seen == num, f"{way} delivered {seen} of {num} trials"
                sums[way], waste[way] = total, 1 - int(bins_N.sum()) / delivered
                if epoch:
                    rates[way].append(num / took)
            assert np.isclose(sums["ours"], sums["peer"], rtol=0, atol=1e-3), "the same trials both ways"
    ours_rate, peer_rate = (statistics.median(values) for values in rates.values())
    print(
        f"  shards {ours_rate:.0f} trials/s with {waste['ours']:.1%} padding, HDF5 in a DataLoader "
        f"{peer_rate:.0f} with {waste['peer']:.1%}, ratio {ours_rate / peer_rate:.2f}",
        flush=True,
    )
    return [
        record("trials read", ours_rate, peer_rate, "trials/s", "higher"),
        record("share of padding, trials read", waste["ours"], waste["peer"], "share", "lower"),
    ]


def main() -> None:
    """Measure the cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few trials, few rounds")
    parser.add_argument("--full", action="store_true", help="time updates at T15's size instead; minutes")
    parser.add_argument("--steps", type=int, default=20, help="updates that --full times")
    parser.add_argument("--cases", default="targets,padding,read", help="only these")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.full:
        records = measure_full(options.steps)
    else:
        records = []
        if "targets" in options.cases:
            records += measure_targets(*((4, 2) if options.quick else (16, 10)))
        if "padding" in options.cases:
            records += measure_padding(2000 if options.quick else 8000)
        if "read" in options.cases:
            days, per_day, rounds = (4, 64, 2) if options.quick else (8, 96, 5)
            records += measure_read(days, per_day, rounds)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
