"""Writes a dataset, a run and a study as the trainer and the search do, and parses a report's page."""

import copy
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.storages.journal import JournalFileBackend, JournalStorage

from voxray.core.schema import TEXT, Column, Schema
from voxray.data.manifest import SHARD_FOLDER, Manifest, Recipe, Source, SplitCounts, write_manifest
from voxray.data.shards import write_shard
from voxray.report.build import report
from voxray.tasks.cxr_memory.config import LABELS, Config

NUM_ROWS, SIDE = 60, 64


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make_dataset(folder: Path) -> Path:
    """Write a dataset with one validation shard; row i's image holds the grey value i in its corner."""
    columns = {
        "sample_id": Column(TEXT),
        "patient_id": Column(TEXT),
        "image": Column("uint8", (1, SIDE, SIDE)),
        "labels": Column("float32", (len(LABELS),), names=LABELS),
    }
    schema = Schema(columns, group="patient_id")
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    lungs = 200 - 130 * (np.exp(-(((abs(x) - 0.42) / 0.28) ** 2) - (y / 0.7) ** 2))
    labels = make_labels()
    rows = []
    for i in range(NUM_ROWS):
        image = np.clip(lungs + np.random.default_rng(i).normal(0, 8, lungs.shape), 0, 255).astype(np.uint8)[
            None
        ]
        image[0, 0, 0] = i
        rows.append(
            {"sample_id": sample_id(i), "patient_id": f"p{i // 3}", "image": image, "labels": labels[i]}
        )
    (folder / SHARD_FOLDER).mkdir(parents=True)
    shards = [
        write_shard(folder / SHARD_FOLDER / f"val-{k}.arrow", part, schema, "val")
        for k, part in enumerate((rows[:40], rows[40:]))
    ]
    counts = {"val": SplitCounts(NUM_ROWS, NUM_ROWS // 3)}
    recipe = Recipe("cxr_memory", "0.1.0", {})
    write_manifest(folder, Manifest(schema, tuple(shards), counts, {}, Source("raw", "0"), recipe))
    return folder


def sample_id(i: int) -> str:
    return f"{i:08d}_000.png"


def make_labels() -> np.ndarray:
    """Return labels [NUM_ROWS, 14]; the last class has no positive, and one row is unknown."""
    labels = (np.random.default_rng(0).random((NUM_ROWS, len(LABELS))) < 0.2).astype(np.float32)
    labels[:, -1] = 0
    labels[5] = np.nan
    return labels


def make_scores() -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 1, (NUM_ROWS, len(LABELS)))
    return 1 / (1 + np.exp(-(1.5 * np.nan_to_num(make_labels()) - 1.5 + noise)))


def log_records() -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(10, 250, 10):
        where = {"stage": "main", "epoch": step // 24, "step": step, "time_s": 4 + step * 0.12}
        records.append(
            {
                "kind": "step",
                **where,
                "train/loss": 0.25 + 0.45 * math.exp(-step / 80) + 0.02 * math.sin(step),
            }
            | {"learning_rate": 3e-3 * 0.5 * (1 + math.cos(math.pi * step / 240))}
            | {"samples_per_s": 400 + 20 * math.sin(step), "data_wait_share": 0.03 + 0.01 * math.cos(step)}
        )
        if step % 24 == 0 or step % 30 == 0:
            area = 0.82 - 0.3 * math.exp(-step / 70)
            per_class = [area + 0.01 * k for k in range(13)] + [None]
            records.append(
                {"kind": "epoch", **where, "train/loss": 0.3, "val/loss": 0.3 + 0.3 * math.exp(-step / 60)}
                | {"val/auroc": area, "val/num_defined": 13.0, "val/auroc_per_class": per_class}
            )
    best = max(record["val/auroc"] for record in records if record["kind"] == "epoch")
    for rank in range(2):
        records.append(
            {"kind": "rank", "rank": rank, "world_size": 2, "rows": 3840, "host": "box", "pid": 100 + rank}
        )
    end = {"kind": "end", "status": "finished", "best": {"metric": "val/auroc", "value": best, "step": 240}}
    return [*records, {**end, "time_s": 34.5}]


def make_run(folder: Path, dataset: Path) -> Path:
    config = Config(
        experiment_name="dev_fast",
        description="A small run\non synthetic radiographs.",
        hypothesis="A small network sees the textures.",
        expected="AUROC above the linear floor.",
        tags=("demo", "cxr"),
        data={"path": str(dataset)},
        scale={"num_workers": 2},
    ).model_dump(mode="json")
    sources = {
        "training.batch_size": "experiments/cxr_memory/dev_fast.yaml:12",
        "scale.num_workers": "command line",
    }
    write_json(
        folder / "config.json", {"config": config, "sources": sources | {"training.epochs": "default"}}
    )
    write_json(
        folder / "provenance.json",
        {
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "uncommitted_diff": "uncommitted.diff",
            "lock_sha256": "ab" * 32,
            "versions": {"torch": "2.14.1", "ray": "2.60.0"},
            "command": ["voxray", "train", "dev_fast", "scale.num_workers=2"],
            "started": "2026-01-02T03:04:05+00:00",
        },
    )
    records = log_records()
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name in ("step-00000180", "step-00000240"):
        write_json(folder / "checkpoints" / name / "MANIFEST.json", {"version": 1})
        (folder / "checkpoints" / name / "model.safetensors").write_bytes(bytes(1_500_000))
    (folder / "checkpoints" / "step-00000999").mkdir()
    best = {"checkpoint": "step-00000240", "metric": "val/auroc", "value": records[-1]["best"]["value"]}
    write_json(folder / "checkpoints" / "best.json", best)
    return folder


def add_evaluation(run: Path) -> dict[str, Any]:
    """Write an evaluation with a floor, and the predictions; return the evaluation."""
    table = [
        {
            "label": name,
            "positives": 20 - k,
            "auroc": 0.9 - 0.02 * k,
            "low": 0.8 - 0.02 * k,
            "high": 0.97 - 0.01 * k,
        }
        | {"floor": 0.62 - 0.01 * k}
        for k, name in enumerate(LABELS[:-1])
    ]
    table.append(dict.fromkeys(("auroc", "low", "high", "floor")) | {"label": LABELS[-1], "positives": 0})
    evaluation = {
        "split": "val",
        "checkpoint": "step-00000240",
        "num_rows": NUM_ROWS,
        "num_groups": NUM_ROWS // 3,
        "metrics": {"loss": 0.3123, "auroc": 0.7812, "auroc_per_class": [row["auroc"] for row in table]},
        "intervals": {"auroc": [0.7311, 0.8222]},
        "table": table,
        "floor": {"auroc": 0.5634},
    }
    write_json(run / "evaluation_val.json", evaluation)
    labels = [[None if math.isnan(v) else float(v) for v in row] for row in make_labels()]
    columns = {
        "sample_id": [sample_id(i) for i in range(NUM_ROWS)],
        "group_id": [f"p{i // 3}" for i in range(NUM_ROWS)],
        "scores": pa.array(make_scores().tolist(), pa.list_(pa.float32())),
        "labels": pa.array(labels, pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), run / "predictions_val.parquet")
    return evaluation


SPACE = {
    "training.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "model.hidden_dim": {"choice": [64, 128, 256]},
    "training.schedule": {"choice": ["constant", "cosine"]},
    "model.dropout": {"uniform": [0.0, 0.5]},
}


def make_study(folder: Path, num_trials: int = 8) -> Path:
    """Write a study that the learning rate decides; trial 2 crashed, trial 4 was cut short once."""
    folder.mkdir(parents=True)
    space = {
        "experiment_name": folder.name,
        "description": "Which learning rate?",
        "tags": ["quick"],
        "objective": {"metric": "val/auroc", "mode": "max"},
        "search": {"trials": num_trials, "space": copy.deepcopy(SPACE)},
    }
    saved = {
        "space": space,
        "experiment": "experiments/cxr_memory/dev_fast.yaml",
        "started": "2026-01-02T03:04:05",
    }
    write_json(folder / "study.json", saved | {"config": Config().model_dump(mode="json")})
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=folder.name,
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=3),
    )
    for index in [*range(num_trials), *([4] if num_trials > 4 else [])]:
        _run_trial(study, index, cut_short=index == 4 and len(study.trials) == 4)
    write_json(folder / "trials" / "0000" / "config.json", {"config": {}})
    (folder / "best.yaml").write_text("task: cxr_memory\ntraining:\n  learning_rate: 0.003\n")
    return folder


def _run_trial(study: optuna.Study, index: int, *, cut_short: bool) -> None:
    trial = study.ask()
    trial.set_user_attr("index", index)
    rate = trial.suggest_float("training.learning_rate", 1e-4, 1e-2, log=True)
    width = trial.suggest_categorical("model.hidden_dim", [64, 128, 256])
    trial.suggest_categorical("training.schedule", ["constant", "cosine"])
    dropout = trial.suggest_float("model.dropout", 0.0, 0.5)
    if index == 2:
        trial.set_user_attr("reason", "train/loss is nan at step 7")
    if index == 2 or cut_short:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial, 0.8 - 0.08 * abs(math.log10(rate / 2e-3)) + 0.0001 * width - 0.03 * dropout)


class Page(HTMLParser):
    """A page, parsed: what a reader sees, and what a browser would run or fetch."""

    VOID = frozenset(("meta", "img", "br", "hr", "input", "link"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw = text
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.data: list[Any] = []
        self.visible: list[str] = []
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.visible).split())

    def plots(self, title: str) -> dict[str, Any]:
        """Return the plotly figure below the heading `title`."""
        return dict(zip(self.plot_titles, self.data, strict=False))[title]

    @property
    def plot_titles(self) -> list[str]:
        labels = [
            attrs.get("aria-label") or "" for tag, attrs in self.elements if attrs.get("class") == "plot"
        ]
        return [label.partition(". ")[0] for label in labels]

    def table(self, first_column: str, second_column: str) -> list[list[str]]:
        """Return the cells of the table whose header begins with these names, header left out."""
        return next(rows[1:] for rows in self.tables if rows[0][:2] == [first_column, second_column])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)
        if tag == "script" and "type" in self.elements[self._last("script")][1]:
            self.data.append(json.loads(self.scripts.pop()))

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            self.scripts[-1] += data
        elif inside != "style":
            self.visible.append(data)
        if inside in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if inside == "h2":
            self.headings[-1] += data

    def _last(self, tag: str) -> int:
        return max(i for i, (name, _) in enumerate(self.elements) if name == tag)


def page_of(*folders: Path) -> Page:
    """Write the report of folders and parse it."""
    return Page(report(folders).read_text(encoding="utf-8"))
