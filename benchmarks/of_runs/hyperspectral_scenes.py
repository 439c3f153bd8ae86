"""A trained run on a real scene beside what needs no network, on one split, with 95 % intervals by block.

Run: python benchmarks/of_runs/hyperspectral_scenes.py RUN [--split val|test] [--components K] [--json FILE].

Of a reconstruction: the mean spectrum, and K principal components of the training spectra (default: as many
as a token's features). Of a probe or a fine-tuned encoder: logistic regression and an SVM (RBF) on raw
spectra. The difference to each floor is resampled with the same blocks on both sides.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import voxray
from voxray.data.source import batch_rules
from voxray.tasks.hyperspectral import heads, scores
from voxray.tasks.hyperspectral.floor import spectra_of
from voxray.tasks.hyperspectral.task import Hyperspectral
from voxray.train.evaluate import evaluate_split

METRICS = {"none": ("mse_masked", "psnr_masked", "sam_masked"), "segmentation": scores.CLASSES}
LOWER_IS_BETTER = ("mse_masked", "sam_masked")
Columns = dict[str, np.ndarray]


def svm(train: Columns, held_out: Columns, num: int) -> np.ndarray:
    """Return the held-out rows' confusion matrices of an SVM on standardised spectra."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    known = (train["classes"] > 0) & (train["measured"] > 0)
    model = make_pipeline(StandardScaler(), SVC(C=100.0, gamma="scale"))
    model.fit(spectra_of(train["cube"])[known.ravel()], train["classes"][known])
    predicted = model.predict(spectra_of(held_out["cube"])).reshape(held_out["classes"].shape)
    truth = np.where(held_out["measured"] > 0, held_out["classes"], 0).astype(np.int64) - 1
    found = torch.from_numpy(predicted.astype(np.int64) - 1)
    return heads.row_confusion(found, torch.from_numpy(truth), num).numpy()


def floors(task: Hyperspectral, train: Columns, held_out: Columns, components: int | None) -> Columns:
    """Return each floor's numbers per row [N, F], in the order of the held-out rows."""
    config = task.config
    if config.model.head == "segmentation":
        both = {"logistic regression": task.floor(train, held_out)}
        return both | {"SVM": svm(train, held_out, config.model.num_classes)}
    found: Columns = {}
    num = components or config.model.shape.embed_dim
    for name, number in (("mean spectrum", 0), (f"{num} principal components", num)):
        own = config.model_copy(
            update={"objective": config.objective.model_copy(update={"floor_components": number})}
        )
        found[name] = type(task)(own, task.statistics, task.dataset_schema).floor(train, held_out)
    return found


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--components", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trained = voxray.load(options.run, "cpu")
    task = trained.task
    assert isinstance(task, Hyperspectral)
    rules = batch_rules(task.config.data, training=False)
    source = trained.rows(options.split)
    merged = evaluate_split(task, trained.model, source, options.split, trained.stage, trained.device)
    train, held_out = (
        trained.rows("train").read_split("train", rules),
        source.read_split(options.split, rules),
    )
    order = np.argsort(held_out["sample_id"].astype(str), kind="stable")
    assert merged.rows is not None
    names = METRICS[task.config.model.head]
    weights_RN = scores.resampled(merged.rows.group_id, seed=0)

    def metrics(numbers_NF: np.ndarray, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        found = torch.from_numpy(numbers_NF)
        if task.config.model.head == "segmentation":
            return scores.class_summary(found, weights)
        widths = scores.reconstruction_widths(task.grid.groups * task.grid.bands)
        return scores.reconstruction_summary(scores.unpacked(found, widths), weights)

    once = scores.one_weight(len(order))
    ours, ours_R = (metrics(merged.rows.columns["numbers"], weights) for weights in (once, weights_RN))
    records: list[dict[str, Any]] = []
    for floor_name, numbers_NF in floors(task, train, held_out, options.components).items():
        theirs, theirs_R = (metrics(numbers_NF[order], weights) for weights in (once, weights_RN))
        for name in names:
            own, other = float(ours[name][0]), float(theirs[name][0])
            low, high = scores.interval_of(ours_R[name] - theirs_R[name])[0]
            print(
                f"{name:17} ours {own:8.4f}   {floor_name} {other:8.4f}   difference {own - other:+.4f} "
                f"[{low:+.4f}, {high:+.4f}]"
            )
            records.append(
                {
                    "benchmark": "hyperspectral_scenes",
                    "case": f"{options.run}, {options.split}, {name} beside {floor_name}",
                    "ours": own,
                    "peer": other,
                    "unit": name,
                    "ratio": own / other,
                    "better": "lower" if name in LOWER_IS_BETTER else "higher",
                }
            )
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
