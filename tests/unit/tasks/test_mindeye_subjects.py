"""MindEye2's shared-subject form: each row by its subject's own map, padding without effect."""

import numpy as np
import pytest
import torch
from torch import nn

from mindeye_rows import NUM_VOXELS, SMALL, mindeye_rows, mindeye_task
from voxray.config.errors import InputError
from voxray.tasks.mindeye.config import Config
from voxray.tasks.mindeye.model import MindEye
from voxray.tasks.mindeye.shared_subject import SubjectMaps, subject_places

SUBJECT = torch.tensor([2, 0, 2, 1, 0])


def test_each_row_goes_through_its_subjects_map() -> None:
    torch.manual_seed(0)
    maps, voxels = SubjectMaps(7, 4, 3), torch.randn(5, 7)
    found = maps(voxels, SUBJECT)
    for row, subject in enumerate(SUBJECT.tolist()):
        torch.testing.assert_close(found[row], maps.linears[subject](voxels[row]))


def test_a_subject_without_rows_has_gradients_of_zero() -> None:
    """DDP waits for every parameter's gradient."""
    torch.manual_seed(0)
    maps = SubjectMaps(7, 4, 4)
    maps(torch.randn(5, 7), SUBJECT).sum().backward()
    for subject, linear in enumerate(maps.linears):
        assert isinstance(linear, nn.Linear)
        assert linear.weight.grad is not None
        assert bool(linear.weight.grad.any()) == (subject < 3)


def test_zeros_behind_a_subjects_voxels_change_nothing() -> None:
    """The same output and gradients as a map of the subject's own five voxels."""
    torch.manual_seed(0)
    maps, voxels = SubjectMaps(7, 4, 1), torch.randn(3, 5)
    padded = torch.cat([voxels, torch.zeros(3, 2)], 1)
    own = nn.Linear(5, 4)
    linear = maps.linears[0]
    assert isinstance(linear, nn.Linear)
    own.load_state_dict({"weight": linear.weight[:, :5].detach(), "bias": linear.bias.detach()})
    found, wanted = maps(padded, torch.zeros(3, dtype=torch.int64)), own(voxels)
    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    assert linear.weight.grad is not None
    torch.testing.assert_close(linear.weight.grad[:, :5], own.weight.grad)
    assert not linear.weight.grad[:, 5:].any()


def test_subjects_are_found_by_name_and_padding_by_none() -> None:
    valid = torch.tensor([True, True, False])
    assert subject_places(["b", "a", ""], valid, ("a", "b")).tolist() == [1, 0, 0]
    with pytest.raises(InputError, match=r"model\.subjects names a, b, and a row is of 'c'; name all"):
        subject_places(["b", "c", ""], valid, ("a", "b"))
    assert subject_places(np.array(["b"], object).tolist(), valid[:1], ("b",)).dtype == torch.int64


VALUES = {
    "model": {**SMALL, "subjects": ["subj01", "subj02"], "subject_dim": 16},
    "objective": {"mixco_fraction": 0.0},
}


def test_voxel2clip_is_shared_and_comes_after_the_maps() -> None:
    torch.manual_seed(0)
    task = mindeye_task(VALUES)
    model = task.build_model().eval()
    assert isinstance(model, MindEye)
    assert model.subjects is not None
    assert model.voxel2clip.first.linear.in_features == 16
    columns = mindeye_rows(4, 0) | {"valid": np.ones(4, bool), "position": np.arange(4)}
    columns["subject"][1] = "subj02"
    batch = task.collate(columns)
    voxels, subject = task.example_inputs(batch)
    assert (voxels.shape, subject.tolist()) == ((4, NUM_VOXELS), [0, 1, 0, 0])
    with torch.no_grad():
        found = model(voxels, subject)["embedding"]
        for row, place in enumerate(subject.tolist()):
            wanted = model.voxel2clip(model.subjects.linears[place](voxels[row : row + 1]))[0]
            torch.testing.assert_close(found[row], wanted[0])


def test_frozen_they_stay_as_they_are() -> None:
    values = {**VALUES, "model": {**VALUES["model"], "combine_models": False}}
    model = mindeye_task(values).build_model()
    assert isinstance(model, MindEye)
    assert model.subjects is not None
    assert not any(parameter.requires_grad for parameter in model.subjects.parameters())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": VALUES["model"]}, "do not mix; with model.subjects set mixco_fraction=0"),
        ({"model": {"subjects": ["a", "a"]}, "objective": {"mixco_fraction": 0}}, "named twice"),
        ({**VALUES, "model": {**VALUES["model"], "low_level": {"enabled": True}}}, "voxels of one subject"),
    ],
)
def test_what_does_not_fit_together(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate(values)
