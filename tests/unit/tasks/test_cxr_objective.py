"""The chest X-ray task's objective: which loss a stage has, how it is reduced, what a split's numbers are."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import average_precision_score, label_ranking_loss, roc_auc_score
from typer.testing import CliRunner

from saved_run import begin_run, save_weights
from summed_step import Logits, LogitsTask, first_step, rows
from voxray.cli.main import app
from voxray.config.errors import InputError
from voxray.core.batch import EpochRequest
from voxray.core.evaluation import Evaluation, Rows, Sum
from voxray.core.experiment import default_config
from voxray.losses.asl import asl
from voxray.losses.bce import bce
from voxray.losses.focal import focal
from voxray.tasks.cxr_memory.config import LABELS, AslConfig, Config
from voxray.tasks.cxr_memory.task import CxrMemory
from voxray.testing.datasets import write_dataset
from voxray.testing.sources import ArraySource
from voxray.testing.spawn import spawn
from voxray.train.evaluate import evaluate_split
from voxray.train.gradient import total_counts
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder
from voxray.train.trained.evaluate_run import evaluate_run
from voxray.train.trained.load import load

CPU = torch.device("cpu")


def config(**values: Any) -> Config:
    own = {"model": {"backbone": "test_resnet", "dropout": 0.0}, "logging": {"log_every_n_steps": 1}}
    return Config.model_validate(own | values)


def task_of(**objective: Any) -> CxrMemory:
    return CxrMemory(config(objective=objective))


def objective_of(path: str, value: Any) -> Any:
    """Read the value as `voxray train` reads it."""
    return default_config("cxr_memory", {path: value}, "the test").config


# --- which loss
def test_a_loss_that_there_is_not_is_told_when_the_config_is_read() -> None:
    with pytest.raises(
        InputError, match=r"objective\.loss.*'asll' is no loss; did you mean 'asl'\? there is asl"
    ):
        objective_of("objective.loss", "asll")
    with pytest.raises(
        InputError, match=r"stages\.0\.objective\.loss.*'focl' is no loss; did you mean 'focal'"
    ):
        objective_of("stages", [{"objective": {"loss": "focl"}}])
    with pytest.raises(InputError, match=r"objective\.metrics.*'f1' is no metric.*macro_f1, accuracy"):
        objective_of("objective.metrics", ["f1"])
    with pytest.raises(InputError, match="there is a metric 'auroc' already"):
        objective_of("objective.metrics", ["mine:auroc"])


def test_a_function_that_cannot_be_used_is_told_before_a_run_begins() -> None:
    with pytest.raises(InputError, match="'no_such_module:loss' cannot be imported"):
        task_of(loss="no_such_module:loss")
    with pytest.raises(InputError, match=r"objective\.metrics: 'math:pi' is no function but float"):
        task_of(metrics=["math:pi"])
    task = task_of(loss="torch.nn.functional:binary_cross_entropy_with_logits")  # it returns the mean
    with pytest.raises(InputError, match=r"returned shape \[\] for logits \[4, 14\].*reduction='none'"):
        summed(task, rows(4, 0))


def batch_of(task: CxrMemory, columns: dict[str, np.ndarray]) -> Any:
    source = ArraySource({"train": columns})
    return task.collate(next(iter(source.batches(EpochRequest("train", len(columns["labels"]), seed=0)))))


def summed(task: CxrMemory, columns: dict[str, np.ndarray]) -> torch.Tensor:
    (term,) = task.loss(Logits(), batch_of(task, columns), task.config.resolved_stages()[0]).values()
    return term.sum


@pytest.mark.parametrize(
    ("objective", "function"),
    [
        ({}, bce),
        ({"loss": "asl"}, asl),
        ({"loss": "asl", "asl": {"gamma_neg": 2, "clip": 0}}, lambda x, y: asl(x, y, gamma_neg=2, clip=0)),
        ({"loss": "focal", "focal": {"alpha": 0.5}}, lambda x, y: focal(x, y, alpha=0.5)),
        ({"loss": "voxray.losses.focal:focal"}, focal),
    ],
)
def test_training_and_validation_have_the_loss_that_the_config_names(objective, function) -> None:
    task, columns = task_of(**objective), rows(30, 1)
    known = ~torch.tensor(columns["labels"]).isnan()
    logits = Logits()(torch.empty(30)).detach()
    expected = function(logits[known], torch.tensor(columns["labels"])[known]).sum()
    torch.testing.assert_close(summed(task, columns).detach(), expected, rtol=1e-5, atol=1e-5)
    stage = task.config.resolved_stages()[0]
    merged = evaluate_split(task, Logits(), ArraySource({"val": columns}), "val", stage, CPU)
    assert task.summarize(merged)["loss"] == pytest.approx(expected.item() / int(known.sum()), rel=1e-5)


# --- reduction
def test_a_sum_is_divided_by_one_over_all_workers_and_micro_batches() -> None:
    task = task_of(reduction="sum", loss="asl")
    stage = task.config.resolved_stages()[0]
    micro_batches = [batch_of(task, rows(4, seed)) for seed in range(3)]
    assert {name: int(count) for name, count in total_counts(task, micro_batches, stage).items()} == {
        "asl": 1
    }
    known = sum(int((~batch.labels_BK.isnan()).sum()) for batch in micro_batches)
    assert int(total_counts(task_of(), micro_batches, stage)["bce"]) == known


def test_the_gradient_of_a_sum_is_the_sums_on_one_and_on_two_workers(tmp_path: Path) -> None:
    columns = rows(12, 0)
    labels = torch.tensor(columns["labels"])
    model = Logits()
    values = asl(model(torch.empty(12)), labels.nan_to_num())[~labels.isnan()]
    for reduction, whole in (("mean", values.mean()), ("sum", values.sum())):
        (gradient,) = torch.autograd.grad(whole, model.logit_K, retain_graph=True)
        folders = [tmp_path / f"{reduction}{workers}" for workers in (1, 2)]
        first_step(str(folders[0]), reduction)
        if reduction == "sum":
            spawn(2, first_step, str(folders[1]), reduction)
        for folder in filter(Path.exists, folders):
            (record,) = [r for r in RunFolder(folder).records() if r["kind"] == "step"]
            assert record["train/loss"] == pytest.approx(whole.item(), rel=1e-5)
            assert record["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4, abs=1e-6)


# --- stages
def test_a_later_stage_has_its_own_loss_and_its_own_keys(tmp_path: Path) -> None:
    stages = [
        {"name": "one", "steps": 2},
        {"name": "two", "steps": 2, "objective": {"loss": "asl", "asl": {"gamma_neg": 2.0}}},
    ]
    run_config = config(stages=stages, training={"batch_size": 8, "learning_rate": 1e-12})
    second = run_config.resolved_stages()[1].config
    assert isinstance(second, Config)
    assert second.objective.asl == AslConfig(gamma_neg=2.0)
    run = RunFolder(tmp_path)

    val = rows(16, 1)
    fit(
        LogitsTask(run_config),
        ArraySource({"train": rows(16, 0), "val": val}),
        run_config,
        run,
        lambda _: None,
        CPU,
    )
    labels = torch.tensor(val["labels"])
    known, logits = ~labels.isnan(), Logits()(torch.empty(16)).detach()
    expected = [
        function(logits, labels.nan_to_num())[known].mean().item()
        for function in (bce, lambda x, y: asl(x, y, gamma_neg=2.0))
    ]
    epochs = [record for record in run.records() if record["kind"] == "epoch"]
    assert [epoch["val/loss"] for epoch in epochs] == pytest.approx(expected, rel=1e-5)


def test_a_stages_keys_are_checked_too() -> None:
    with pytest.raises(ValidationError, match="no loss"):
        config(stages=[{"objective": {"loss": "hinge"}}])
    with pytest.raises(ValidationError, match="clip"):
        config(stages=[{"objective": {"asl": {"clip": 2.0}}}])


# --- metrics
def rows_of(merged: Evaluation) -> Rows:
    assert merged.rows is not None
    return merged.rows


def merged_of(columns: dict[str, np.ndarray], seed: int = 0) -> Evaluation:
    scores = np.random.default_rng(seed).random(columns["labels"].shape).astype(np.float32)
    own = {"scores": scores, "labels": columns["labels"]}
    loss = Sum(torch.tensor(1.0), torch.tensor(2.0))
    return Evaluation({"loss": loss}, Rows(list(columns["sample_id"]), list(columns["patient_id"]), own))


def test_means_are_over_the_classes_that_have_both_positives_and_negatives() -> None:
    task, columns = task_of(), rows(60, 2)
    merged = merged_of(columns)
    summary: dict[str, Any] = task.summarize(merged)
    scores, labels = rows_of(merged).columns["scores"], columns["labels"]
    for name, reference in (("auroc", roc_auc_score), ("ap", average_precision_score)):
        per_class = summary[f"{name}_per_class"]
        known = [~np.isnan(labels[:, k]) for k in range(len(LABELS))]
        expected = [reference(labels[known[k], k], scores[known[k], k]) for k in range(len(LABELS) - 2)]
        assert per_class[:-2] == pytest.approx(expected)
        assert all(math.isnan(value) for value in per_class[-2:])  # all present; never present
        assert summary[name] == pytest.approx(np.mean(expected))
    assert summary["num_defined"] == len(LABELS) - 2
    assert set(task.metric_names()) == {name for name, value in summary.items() if isinstance(value, float)}


def test_intervals_of_both_lie_around_the_values() -> None:
    task, merged = task_of(), merged_of(rows(80, 3))
    summary: dict[str, Any] = task.summarize(merged)
    intervals = task.intervals(merged, seed=0)
    for name in ("auroc", "ap"):
        ((low, high),) = intervals[name]
        assert low < summary[name] < high
        of_classes = intervals[f"{name}_per_class"]
        for value, (low, high) in zip(summary[f"{name}_per_class"][:-2], of_classes[:-2], strict=True):
            assert low < value < high
        assert all(math.isnan(end) for ends in of_classes[-2:] for end in ends)


def test_more_metrics_by_name_and_by_reference() -> None:
    columns = rows(50, 4)
    columns["labels"] = np.nan_to_num(columns["labels"])
    merged = merged_of(columns)
    task = task_of(metrics=["accuracy", "macro_f1", "sklearn.metrics:label_ranking_loss"])
    scores = rows_of(merged).columns["scores"]
    summary: dict[str, Any] = task.summarize(merged)
    assert summary["accuracy"] == pytest.approx(((scores > 0.5) == (columns["labels"] == 1)).mean())
    assert 0 < summary["macro_f1"] < 1
    assert summary["label_ranking_loss"] == pytest.approx(label_ranking_loss(columns["labels"], scores))
    assert {"accuracy", "macro_f1", "label_ranking_loss"} <= set(task.metric_names())
    with pytest.raises(InputError, match=r"'sklearn.metrics:label_ranking_loss' cannot take labels .* NaN"):
        task.summarize(merged_of(rows(50, 4)))


def test_a_split_is_evaluated_alone_and_never_augmented() -> None:
    """Upstream's test metrics came from randomly flipped and turned images (DOMAINS.md S4.d)."""

    class Refusing(CxrMemory):
        def augment(self, batch, key):
            raise AssertionError("evaluation augments")

    task = Refusing(config(), {"image": {"mean": 0.5, "std": 0.29}})
    model = task.build_model().eval()
    splits = {"train": rows(20, 0), "val": rows(18, 5), "test": rows(14, 6)}
    stage = task.config.resolved_stages()[0]
    for split in ("val", "test"):
        merged = evaluate_split(task, model, ArraySource(splits), split, stage, CPU)
        assert rows_of(merged).sample_id == list(splits[split]["sample_id"])
        with torch.inference_mode():
            expected = model(torch.tensor(splits[split]["image"])).sigmoid()
        np.testing.assert_allclose(rows_of(merged).columns["scores"], expected, rtol=1e-5, atol=1e-6)


def test_the_table_and_its_json_say_what_is_undefined(tmp_path: Path) -> None:
    sized = config(data={"prepare": {"image_size": 32}})
    path = write_dataset(
        tmp_path / "data", CxrMemory(sized).schema(), {"train": padded(60, 0), "val": padded(40, 1)}, 30
    )
    values = config(data={"path": str(path)}, training={"batch_size": 16})
    run = begin_run(tmp_path / "run", values)
    save_weights(run, values, 1, load_task(values).build_model(), is_best=True)
    result = evaluate_run(load(run.path, device="cpu"), "val", with_floor=True)
    columns = ["label", "positives", "auroc", "low", "high", "floor", "ap"]
    assert all(list(row) == columns for row in result["table"])
    assert set(result["floor"]) == set(result["metrics"]) - {"loss", "num_defined"}
    assert set(result["intervals"]) == {"auroc", "ap"}
    first = result["table"][0]
    assert first["auroc"] == result["metrics"]["auroc_per_class"][0]
    assert first["low"] <= first["auroc"] <= first["high"]
    assert first["floor"] == result["floor"]["auroc_per_class"][0]
    assert first["ap"] == result["metrics"]["ap_per_class"][0]

    printed = CliRunner().invoke(app, ["evaluate", str(run.path)], catch_exceptions=False).stdout.splitlines()
    (hernia,) = [line.split() for line in printed if line.startswith("Hernia")]
    assert hernia == ["Hernia", "0", "-", "-", "-", "-"]
    assert any(line.startswith("ap 0.") and "95 % [" in line for line in printed)
    assert "num_defined 12" in printed
    said = CliRunner().invoke(app, ["evaluate", str(run.path), "--json"], catch_exceptions=False).stdout
    nothing = dict.fromkeys(("auroc", "low", "high", "ap"))
    assert json.loads(said)[-1] == {"label": "Hernia", "positives": 0, **nothing}
    saved = json.loads((run.path / "evaluation_val.json").read_text())
    assert saved["metrics"]["ap_per_class"][-1] is None


def load_task(values: Config) -> CxrMemory:
    return CxrMemory(values, {"image": {"mean": 0.5, "std": 0.29}})


def padded(num_rows: int, seed: int) -> dict[str, np.ndarray]:
    """Rows with every column of the schema."""
    text = np.array(["PA"] * num_rows, dtype=object)
    ages = np.full(num_rows, np.nan, np.float32)
    own = {"view": text, "sex": text, "age_years": ages, "follow_up": np.zeros(num_rows, np.int32)}
    return rows(num_rows, seed) | own
