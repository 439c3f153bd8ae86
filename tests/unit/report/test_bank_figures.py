"""The chest X-ray figures of the memory bank: the log's numbers over training, what an image gets back."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_folders import NUM_ROWS, add_evaluation, page_of, sample_id, write_json

from voxray.config.errors import InputError, RunError
from voxray.core.figures import Figure, Predictions, RunView, TrainingView
from voxray.data.manifest import load_manifest
from voxray.data.reader import ShardError
from voxray.report.rows import open_rows
from voxray.tasks.cxr_memory.config import LABELS, MemoryConfig, ModelConfig
from voxray.tasks.cxr_memory.data import row_id
from voxray.tasks.cxr_memory.figures import figures, training_figures
from voxray.tasks.cxr_memory.model import CxrClassifier

MEMORY = {"use_memory": True, "bank_size": 8, "top_k": 3}
NUM_TRAIN, SIDE = 12, 32
FILL, KEPT, AGE, HELD = (
    f"Memory bank: {name}" for name in ("fill", "rows kept", "age of its slots", "findings it holds")
)


# --- over training
def bank_log() -> list[dict[str, Any]]:
    """Return a log of two stages: 10 updates each, a bank of 8 that is full from update 6 on."""
    log: list[dict[str, Any]] = []
    for step in range(2, 21, 2):
        stage = "phase1" if step <= 10 else "phase2"
        numbers = {"bank/count": float(min(step + 2, 8)), "bank/selected": float(step % 3)}
        ages = {"bank/age_median": step / 4, "bank/age_max": float(step)}
        log.append({"kind": "step", "stage": stage, "step": step, **numbers, **ages})
        if step % 10 == 0:
            labels = [step / 100 + k / 1000 for k in range(13)] + [None]
            log.append({"kind": "epoch", "stage": stage, "step": step, **numbers, "bank/labels": labels})
    return log


def drawn(log: Sequence[Mapping[str, Any]], statistics: Mapping[str, Any] | None = None) -> dict[str, Any]:
    shown = training_figures(TrainingView({"memory": MEMORY}, log, statistics or {}))
    return {figure.title: figure.plot | {"caption": figure.caption} for figure in shown if figure.plot}


def test_fill_rows_kept_and_age_are_the_logs_numbers() -> None:
    plots = drawn(bank_log())
    filled, bound = plots[FILL]["data"]
    assert filled["x"] == list(range(2, 21, 2))
    assert filled["y"] == [4, 6, *[8] * 8]
    assert bound["y"] == [8, 8]
    assert plots[FILL]["caption"] == "Slots that hold a vector; a bank never shrinks. Full by update 6."
    assert plots[KEPT]["data"][0]["y"] == [step % 3 for step in range(2, 21, 2)]
    assert [trace["y"][-1] for trace in plots[AGE]["data"]] == [5, 20]
    assert [trace["name"] for trace in plots[AGE]["data"]] == ["median", "oldest"]


def test_a_bank_that_never_fills_says_how_far_it_came() -> None:
    plots = drawn([record for record in bank_log() if record["step"] == 2])
    assert plots[FILL]["caption"].endswith("At most 50% full in this run.")
    assert HELD not in plots


def test_findings_are_the_logs_beside_the_training_images() -> None:
    statistics = {"labels": {"positives": [5] * 14, "negatives": [15] * 13 + [0], "unknown": [80] * 14}}
    plot = drawn(bank_log(), statistics)[HELD]
    held, training = plot["data"]
    assert held["y"][9] == "Pleural Thickening"
    assert held["x"] == [10, 20]
    np.testing.assert_allclose(held["z"][3], [0.103, 0.203])
    assert np.isnan(held["z"][13]).all()
    np.testing.assert_allclose(training["z"][:, 0], [0.25] * 13 + [1.0])
    assert held["zmax"] == training["zmax"] == 1.0
    alone = drawn(bank_log())[HELD]
    assert len(alone["data"]) == 1
    assert "training images" not in alone["caption"]


def test_each_figure_marks_where_a_stage_begins() -> None:
    for plot in drawn(bank_log()).values():
        assert [(note["text"], note["x"]) for note in plot["layout"]["annotations"]] == [
            ("phase1", 2),
            ("phase2", 12),
        ]


def test_without_a_bank_nothing_is_drawn() -> None:
    assert drawn([{"kind": "step", "stage": "main", "step": 1, "train/loss": 1.0}]) == {}
    assert drawn([]) == {}


def test_the_page_shows_them_once_however_many_splits_there_are(run: Path) -> None:
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in bank_log()))
    write_json(run / "evaluation_test.json", add_evaluation(run) | {"split": "test"})
    titles = page_of(run).plot_titles
    assert [titles.count(name) for name in (FILL, KEPT, AGE, HELD)] == [1] * 4


# --- what an image gets back
class TrainRows:
    """A training split of random pictures; row i is labelled with the finding i, and has it alone."""

    def __init__(self) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (NUM_TRAIN, 1, SIDE, SIDE), np.uint8)
        self.sample_ids = [f"train-{row}.png" for row in range(NUM_TRAIN)]

    def __call__(self, sample_ids: Sequence[str], /) -> Mapping[str, np.ndarray]:
        rows = [self.sample_ids.index(sample) for sample in sample_ids]
        labels = np.eye(NUM_TRAIN, len(LABELS), dtype=np.float32)[rows]
        return {"sample_id": np.array(sample_ids, object), "image": self.images[rows], "labels": labels}


@pytest.fixture(scope="module")
def train() -> TrainRows:
    return TrainRows()


@pytest.fixture(scope="module")
def model(train: TrainRows) -> CxrClassifier:
    """A model whose bank holds the features of the first eight training images, unblended."""
    torch.manual_seed(0)
    config = ModelConfig(backbone="test_efficientnet", hidden_dim=8)
    made = CxrClassifier(config, MemoryConfig(**MEMORY), len(LABELS), 0.5, 0.25).eval()
    assert made.bank is not None
    with torch.no_grad():
        made.bank.memory_MD.copy_(features_of(made, train.images[:8]))
        made.bank.count.fill_(8)
        made.bank.origin_M.copy_(torch.tensor([row_id(sample) for sample in train.sample_ids[:8]]))
        made.bank.share_M.fill_(0.25)
        made.bank.label_MK.copy_(0.25 * torch.eye(8, len(LABELS)))
        made.bank.known_MK.fill_(0.5)
    return made


def features_of(model: CxrClassifier, images: np.ndarray) -> torch.Tensor:
    normal = (torch.from_numpy(images).float() / 255 - model.mean_C[:, None, None]) / model.std_C[
        :, None, None
    ]
    with torch.no_grad():
        return model.backbone(normal)


def view_of(model: CxrClassifier, train: TrainRows, **others: Any) -> RunView:
    """Return a view whose evaluated images are training images 0 … 5, image k labelled with finding k."""
    scores = np.full((6, len(LABELS)), 0.1)
    scores[np.arange(6), np.arange(6)] = [0.9, 0.8, 0.7, 0.3, 0.2, 0.15]
    predictions = Predictions(train.sample_ids[:6], ["p"] * 6, scores, np.eye(6, len(LABELS)))
    return RunView(
        Path(),
        {"memory": MEMORY},
        "val",
        {},
        predictions,
        **{
            "take": train,
            "load": lambda: SimpleNamespace(model=model),
            "open_train": lambda: train,
            **others,
        },
    )


def nearest_of(view: RunView) -> list[Figure]:
    return [figure for figure in figures(view) if figure.title.startswith("Nearest memories")]


def test_an_image_that_the_bank_holds_finds_itself_first(model: CxrClassifier, train: TrainRows) -> None:
    shown = nearest_of(view_of(model, train))
    assert [figure.title.partition(": ")[2] for figure in shown] == [
        "Atelectasis, a hit (p = 0.90)",
        "Consolidation, a hit (p = 0.80)",
        f"{LABELS[5]}, a miss (p = 0.15)",
        f"{LABELS[4]}, a miss (p = 0.20)",
    ]
    for figure, row in zip(shown, (0, 1, 5, 4), strict=True):
        own, first, *others = figure.tiles
        assert len(others) == 2
        for tile in (own, first):
            assert tile.lines[-1] == f"train-{row}.png"
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(tile.png))), train.images[row, 0])
        assert first.title.endswith("cosine 1.000")
        assert first.lines[0] == f"25% of slot {row} is this training image"
        assert first.lines[1] == f"The slot holds: {LABELS[row]} 50%"  # 0.25 present of 0.5 known
        assert first.lines[2] == f"The image's labels: {LABELS[row]}"


def test_weights_are_the_softmax_of_the_largest_cosines(model: CxrClassifier, train: TrainRows) -> None:
    unit = torch.nn.functional.normalize(features_of(model, train.images[:8]), dim=1)
    top = (unit[0] @ unit.T).topk(3)
    for rank, tile in enumerate(nearest_of(view_of(model, train))[0].tiles[1:]):
        weight = float(top.values.softmax(0)[rank])
        assert tile.title == f"weight {weight:.1%}, cosine {float(top.values[rank]):.3f}"
        assert tile.lines[-1] == f"train-{int(top.indices[rank])}.png"


def test_an_origin_that_is_gone_is_named_so(model: CxrClassifier, train: TrainRows) -> None:
    fewer = TrainRows()
    fewer.sample_ids = [f"other-{row}.png" for row in range(NUM_TRAIN)]
    tile = nearest_of(view_of(model, train, open_train=lambda: fewer))[0].tiles[1]
    assert tile.lines[0] == "25% of slot 0 is a training image that the dataset no longer has"


@pytest.mark.parametrize("error", [InputError("the training split is gone"), RunError("weights are damaged")])
def test_what_cannot_be_read_is_said_in_a_sentence(
    model: CxrClassifier, train: TrainRows, error: Exception
) -> None:
    def fails() -> Any:
        raise error

    for missing in ("load", "open_train"):
        (only,) = nearest_of(view_of(model, train, **{missing: fails}))
        assert only.caption == f"They are not shown: {error}"
        assert only.plot is None
        assert not only.tiles


def test_no_bank_means_no_figure_and_no_model(model: CxrClassifier, train: TrainRows) -> None:
    def unused() -> Any:
        raise AssertionError("a run without a bank loads no model")

    view = view_of(model, train, load=unused)
    assert nearest_of(RunView(**vars(view) | {"config": {"memory": {"use_memory": False}}})) == []
    # As in `voxray predict --images`, where there is no run.
    assert nearest_of(view_of(model, train, load=None)) == []
    of_a_stage = {"memory": {"use_memory": False}, "stages": [{"memory": {"use_memory": True}}]}
    assert len(nearest_of(RunView(**vars(view_of(model, train)) | {"config": of_a_stage}))) == 4


def test_an_empty_bank_says_so(train: TrainRows) -> None:
    config = ModelConfig(backbone="test_efficientnet", hidden_dim=8)
    empty = CxrClassifier(config, MemoryConfig(**MEMORY), len(LABELS), 0.5, 0.25).eval()
    (only,) = nearest_of(view_of(empty, train))
    assert only.caption == "They are not shown: the memory bank is empty."


# --- the rows themselves
def test_a_damaged_image_is_noticed_when_it_is_shown(dataset: Path) -> None:
    shard = dataset / load_manifest(dataset).shards_of("val")[0].file
    whole = shard.read_bytes()
    content = bytearray(whole)
    at = whole.index(open_rows(dataset, "val")([sample_id(17)])["image"][0, 0].tobytes())
    content[at + 100] ^= 1
    shard.unlink()
    shard.write_bytes(content)
    rows = open_rows(dataset, "val")
    assert len(rows.sample_ids) == NUM_ROWS
    with pytest.raises(ShardError, match="is damaged in rows"):
        rows([sample_id(17)])
