"""What a person wants to look at of MindEye: how its two terms compare, and the temperature. No torch."""

from voxray.core.figures import BLUE, VERMILLION, Figure, RunView, TrainingView
from voxray.core.log_plots import log_line, over_updates, thinned


def figures(run: RunView) -> list[Figure]:
    """Return nothing: retrieval is in the table of metrics, with its intervals."""
    return []


def training_figures(training: TrainingView) -> list[Figure]:
    """Return the ratio of the two terms and the temperature over the updates, where a run has them."""
    steps = [record for record in training.log if record.get("kind") == "step"]
    ratio = log_line("alpha · mse / nce", steps, "mse_to_nce", BLUE, "%{y:.3g}")
    tau = log_line("temperature", steps, "tau", VERMILLION, "%{y:.4f}")
    found: list[Figure] = []
    if ratio is not None:
        plot = over_updates([ratio], "ratio", steps)
        plot["layout"]["yaxis"]["type"] = "log"
        caption = "The prior's weighted error over the contrastive term, in the update that is logged."
        found.append(Figure("The two terms", caption + thinned(steps), plot, wide=False))
    if tau is not None:
        plot = over_updates([tau], "temperature", steps, from_zero=True)
        first = next((record["step"] for record in steps if record.get("mixco") == 0), None)
        told = (
            "no voxels are mixed" if first == steps[0]["step"] else f"voxels are mixed before update {first}"
        )
        if first is None:
            told = "voxels are mixed throughout"
        caption = f"Temperature of the contrastive term; {told}."
        found.append(Figure("Temperature", caption + thinned(steps), plot, wide=False))
    return found
