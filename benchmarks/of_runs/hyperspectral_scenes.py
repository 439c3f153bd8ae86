"""A trained run on a real scene beside what needs no network, on one split, with 95 % intervals by block.

Run: python benchmarks/of_runs/hyperspectral_scenes.py RUN [--split val|test] [--components K] [--beside RUN]
[--json FILE].

Of a reconstruction: the mean spectrum, K principal components of the training spectra (default: as many as a
token's features), and with --beside another run, e.g. of `spectral_autoencoder`. Of a probe or a fine-tuned
encoder: logistic regression and an SVM (RBF) on raw spectra. The difference to each is resampled with the
same blocks on both sides.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import voxray
from voxray.config.errors import InputError
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


def evaluated(run: str, split: str) -> tuple[Any, list[str], np.ndarray]:
    """Return a run, and its rows' groups and numbers [N, F] on a split, by sample id."""
    trained = voxray.load(run, "cpu")
    merged = evaluate_split(
        trained.task, trained.model, trained.rows(split), split, trained.stage, trained.device
    )
    assert isinstance(trained.task, Hyperspectral)
    assert merged.rows is not None
    return trained, merged.rows.group_id, merged.rows.columns["numbers"]


def beside(run: str, split: str, task: Hyperspectral) -> np.ndarray:
    """Return another run's numbers. Raises InputError where it is not scored on the same voxels."""
    other, _, numbers_NF = evaluated(run, split)
    keys = ("patch_size", "mask_ratio", "mask_strategy", "head")
    for key in keys:
        own, theirs = getattr(task.config.model, key), getattr(other.task.config.model, key)
        if own != theirs:
            raise InputError(f"--beside {run}: model.{key} is {theirs}, not {own}; give both runs the same")
    return numbers_NF


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--components", type=int)
    parser.add_argument("--beside", help="another run, scored on the same voxels")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trained, group_id, numbers = evaluated(options.run, options.split)
    task = trained.task
    rules = batch_rules(task.config.data, training=False)
    train, held_out = (trained.rows(name).read_split(name, rules) for name in ("train", options.split))
    order = np.argsort(held_out["sample_id"].astype(str), kind="stable")
    names = METRICS[task.config.model.head]
    weights_RN = scores.resampled(group_id, seed=0)

    def metrics(numbers_NF: np.ndarray, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        found = torch.from_numpy(numbers_NF)
        if task.config.model.head == "segmentation":
            return scores.class_summary(found, weights)
        widths = scores.reconstruction_widths(task.grid.groups * task.grid.bands)
        return scores.reconstruction_summary(scores.unpacked(found, widths), weights)

    once = scores.one_weight(len(order))
    ours, ours_R = (metrics(numbers, weights) for weights in (once, weights_RN))
    records: list[dict[str, Any]] = []
    found = floors(task, train, held_out, options.components)
    peers = {name: numbers_NF[order] for name, numbers_NF in found.items()}
    if options.beside:
        peers[Path(options.beside).name] = beside(options.beside, options.split, task)
    for floor_name, numbers_NF in peers.items():
        theirs, theirs_R = (metrics(numbers_NF, weights) for weights in (once, weights_RN))
        for name in names:
            own, other = float(ours[name][0]), float(theirs[name][0])
            low, high = scores.interval_of(ours_R[name] - theirs_R[name])[0]
            print(
                f"{name:17} ours {own:9.4g}   {floor_name} {other:9.4g}   difference {own - other:+.3g} "
                f"[{low:+.3g}, {high:+.3g}]"
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
