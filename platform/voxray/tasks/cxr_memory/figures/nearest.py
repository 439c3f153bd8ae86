"""The memories that an image gets back: the slots that the trained model retrieves, and their origins.

Shapes: B images, k retrieved slots, M slots, K findings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxray.config.errors import InputError, RunError
from voxray.core.figures import Figure, Predictions, RunView, SplitRows, Tile
from voxray.tasks.cxr_memory.config import LABELS
from voxray.tasks.cxr_memory.figures.images import Take, extremes, image_lines, png, unknown_png

TITLE = "Nearest memories"
NUM_EACH = 2  # hits, and misses
MAX_SLOTS = 3  # shown of what is retrieved: with the image itself they fill a row of the page
NUM_HELD = 3  # findings named of what a slot holds
CAPTION = (
    "What the memory bank gives the model for a few of the images above. A slot is no image but a blend of "
    "the features of all training images that were written there; the picture is the one with the largest "
    "share in it. Of memory.top_k retrieved slots up to three are shown; all their weights add up to 100 %, "
    "and the weighted sum is added to the image's own features."
)


@dataclass(frozen=True)
class Slots:
    """What was retrieved for B images: slot, weight, cosine, and of each slot its origin's id and share
    [B, k], and the share of each finding that it holds [B, k, K], NaN where that is not known.
    """

    slot_Bk: np.ndarray
    weight_Bk: np.ndarray
    cosine_Bk: np.ndarray
    origin_Bk: np.ndarray
    share_Bk: np.ndarray
    held_BkK: np.ndarray


def nearest_figures(run: RunView, predictions: Predictions, take: Take) -> list[Figure]:
    """Return a row of pictures for each of a few hits and misses; one sentence where the trained model or
    the training images cannot be read, and nothing for a run without a bank.
    """
    chosen = _chosen(predictions)
    if run.load is None or run.open_train is None or not chosen or not _has_bank(run.config):
        return []
    ids = [predictions.sample_id[row] for row, _, _ in chosen]
    try:
        model = run.load().model
        if model.bank is None:  # the stage that the weights come from has none
            return []
        images = np.stack(list(take(ids)["image"]))
        slots = _retrieved(model, images)
        if slots is None:
            return [Figure(TITLE, "They are not shown: the memory bank is empty.")]
        origins = _origins(run.open_train(), slots)
    except (InputError, RunError) as error:
        return [Figure(TITLE, f"They are not shown: {error}")]
    figures = []
    for number, (row, label, kind) in enumerate(chosen):
        own = Tile(png(images[number]), "The image", image_lines(predictions, row))
        probability = f"p = {predictions.scores_NK[row, label]:.2f}"
        title = f"{TITLE}: {LABELS[label].replace('_', ' ')}, a {kind} ({probability})"
        tiles = (own, *_slot_tiles(slots, number, origins))
        figures.append(Figure(title, CAPTION if number == 0 else "", tiles=tiles))
    return figures


def _chosen(predictions: Predictions) -> list[tuple[int, int, str]]:
    """Return row, finding and kind of the first hits and misses of the figures above, each row once."""
    present_NK = predictions.labels_NK == 1
    hits = extremes(predictions.scores_NK, present_NK)[:NUM_EACH]
    misses = [pair for pair in extremes(-predictions.scores_NK, present_NK) if pair not in hits][:NUM_EACH]
    return [(*pair, "hit") for pair in hits] + [(*pair, "miss") for pair in misses]


def _has_bank(config: Mapping[str, Any]) -> bool:
    """Tell whether any stage of a run uses a bank, from the config alone: loading a model takes seconds."""
    places = [config, *(config.get("stages") or [])]
    return any((place.get("memory") or {}).get("use_memory") for place in places)


def _retrieved(model: Any, image_BCHW: np.ndarray) -> Slots | None:
    """Return what the model's bank gives for images; None while it is empty."""
    import torch

    from voxray.tasks.cxr_memory.memory_bank import nearest

    bank = model.bank
    if not int(bank.state.count):
        return None
    features: list[torch.Tensor] = []
    hook = bank.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        with torch.no_grad():
            model(torch.from_numpy(image_BCHW))
            slot_Bk, weight_Bk = nearest(bank.state, features[0], bank.config)
    finally:
        hook.remove()
    cosine_Bk = torch.cosine_similarity(features[0][:, None], bank.memory_MD[slot_Bk], dim=2)
    held_MK = bank.label_MK / bank.known_MK
    of_slots = [values[slot_Bk] for values in (bank.origin_M, bank.share_M, held_MK)]
    parts = (slot_Bk, weight_Bk, cosine_Bk, *of_slots)
    return Slots(*(part.numpy() for part in parts))


def _origins(train: SplitRows, slots: Slots) -> dict[int, Mapping[str, np.ndarray]]:
    """Return the columns of the training images that the shown slots come from, by their row id; those that
    are not in the split are left out.
    """
    from voxray.tasks.cxr_memory.data import row_id

    wanted = {int(origin) for origin in slots.origin_Bk[:, :MAX_SLOTS][slots.weight_Bk[:, :MAX_SLOTS] > 0]}
    found = {key: sample for sample in train.sample_ids if (key := row_id(sample)) in wanted}
    if not found:
        return {}
    columns = train(list(found.values()))
    return {key: {n: columns[n][i] for n in ("sample_id", "image", "labels")} for i, key in enumerate(found)}


def _slot_tiles(slots: Slots, number: int, origins: Mapping[int, Mapping[str, np.ndarray]]) -> Iterator[Tile]:
    for rank, weight in enumerate(slots.weight_Bk[number, :MAX_SLOTS]):
        if weight <= 0:  # fewer slots than top_k count
            continue
        title = f"weight {weight:.1%}, cosine {slots.cosine_Bk[number, rank]:.3f}"
        origin = origins.get(int(slots.origin_Bk[number, rank]))
        place = f"{slots.share_Bk[number, rank]:.0%} of slot {slots.slot_Bk[number, rank]}"
        held = f"The slot holds: {_held(slots.held_BkK[number, rank])}"
        if origin is None:
            lines = (f"{place} is a training image that the dataset no longer has", held)
            yield Tile(unknown_png(), title, lines)
            continue
        labels = ", ".join(LABELS[k] for k in np.flatnonzero(origin["labels"] == 1)) or "none known"
        lines = (
            f"{place} is this training image",
            held,
            f"The image's labels: {labels}",
            str(origin["sample_id"]),
        )
        yield Tile(png(origin["image"]), title, lines)


def _held(share_K: Sequence[float] | np.ndarray) -> str:
    """Return the largest shares of findings in words."""
    shares = np.nan_to_num(np.asarray(share_K, dtype=float))
    top = [k for k in np.argsort(-shares, kind="stable")[:NUM_HELD] if shares[k] >= 0.005]
    return ", ".join(f"{LABELS[k]} {shares[k]:.0%}" for k in top) or "no known finding"
