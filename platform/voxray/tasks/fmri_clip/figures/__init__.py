"""What a person wants to look at: recall over K, what predictions find, voxels in the brain, the layers'
weights. No torch.
"""

from voxray.core.figures import Figure, RunView, TrainingView
from voxray.tasks.fmri_clip.figures.layers import layer_figures
from voxray.tasks.fmri_clip.figures.retrieval import retrieval_figures
from voxray.tasks.fmri_clip.figures.voxels import voxel_figures


def figures(run: RunView) -> list[Figure]:
    """Return the figures of one evaluated split: recall over K, pictures that predictions find, voxels."""
    return [*retrieval_figures(run), *voxel_figures(run)]


def training_figures(training: TrainingView) -> list[Figure]:
    """Return how the layers' weights changed; nothing for a run in which they did not."""
    return layer_figures(training)
