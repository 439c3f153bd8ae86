"""The weights of the layers over training, from the log."""

from voxray.core.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Figure, TrainingView
from voxray.core.log_plots import log_line, over_updates, thinned

PREFIX = "layers/"
_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY)


def layer_figures(training: TrainingView) -> list[Figure]:
    """Return one line per target; none where the weights are fixed, which a line would not tell."""
    if not (training.config.get("objective") or {}).get("learn_layer_weights"):
        return []
    steps = [record for record in training.log if record.get("kind") == "step"]
    names = dict.fromkeys(key for record in steps for key in record if key.startswith(PREFIX))
    lines = [
        log_line(key.removeprefix(PREFIX), steps, key, color, f"{key.removeprefix(PREFIX)} %{{y:.3f}}")
        for key, color in zip(names, _COLORS * len(names), strict=False)
    ]
    shown = [line for line in lines if line is not None]
    if not shown:
        return []
    plot = over_updates(shown, "weight", steps, from_zero=True)
    caption = "Weights of the targets in the cosine term, a softmax that is trained; they add up to 1."
    return [Figure("Weights of the layers", caption + thinned(steps), plot, wide=False)]
