"""Which parameters are trained, and which BatchNorm keeps its statistics."""

import pytest
import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.train.config import ParameterOptions, TrainingConfig
from voxray.train.optimisation.parameters import choose_trainable, matches, options_of, train_mode

FREEZE = ParameterOptions(freeze=True)
THAW = ParameterOptions(freeze=False)


class Net(nn.Module):
    """A backbone of two blocks, the second with a BatchNorm that has no parameters, and a head."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        second = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))
        self.backbone = nn.ModuleDict({"block0": first, "block1": second})
        self.head = nn.Linear(4, 2)

    def forward(self, x_BI: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone["block1"](self.backbone["block0"](x_BI)))


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


ALL = {name for name, _ in Net().named_parameters()}
HEAD = {"head.weight", "head.bias"}
BLOCK1 = {"backbone.block1.0.weight", "backbone.block1.0.bias"}


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (TrainingConfig(), ALL),
        (TrainingConfig(trainable=("head",)), HEAD),
        (TrainingConfig(trainable=("head.*",)), HEAD),
        (TrainingConfig(trainable=("head.bias", "backbone.block1")), {"head.bias"} | BLOCK1),
        (TrainingConfig(trainable=("*.block1.*",)), BLOCK1),
        (TrainingConfig(parameters={"backbone": FREEZE}), HEAD),
        (TrainingConfig(parameters={"backbone": FREEZE, "backbone.block1": THAW}), HEAD | BLOCK1),
        (TrainingConfig(parameters={"backbone.block1": THAW, "backbone": FREEZE}), HEAD),
        (
            TrainingConfig(parameters={"backbone": FREEZE, "*.bias": ParameterOptions(learning_rate=1.0)}),
            HEAD,
        ),
        (TrainingConfig(trainable=("backbone",), parameters={"backbone.block0": FREEZE}), BLOCK1),
    ],
)
def test_globs_choose_what_is_trained(training, expected):
    model = Net()
    choose_trainable(model, training)
    assert trained(model) == expected


def test_the_next_stage_chooses_anew():
    model = Net()
    choose_trainable(model, TrainingConfig(trainable=("head",)))
    choose_trainable(model, TrainingConfig())
    assert trained(model) == ALL


def test_what_the_model_froze_itself_stays_frozen_in_every_stage():
    model = Net()
    model.backbone.requires_grad_(False)
    choose_trainable(model, TrainingConfig(trainable=("head.bias",)))
    choose_trainable(model, TrainingConfig())
    assert trained(model) == HEAD


def test_a_glob_that_matches_nothing_is_an_error_that_names_the_nearest():
    training = TrainingConfig(trainable=("haed", "backbone"), parameters={"backbone.blokc1.*": FREEZE})
    with pytest.raises(InputError) as caught:
        choose_trainable(Net(), training)
    first, second = caught.value.problems
    assert "training.trainable: 'haed' matches no parameter" in first
    assert "head" in first.partition("there is")[2]
    assert "training.parameters: 'backbone.blokc1.*'" in second
    assert "backbone.block1" in second.partition("there is")[2]


def test_nothing_left_to_train_is_an_error_unless_the_fit_is_in_closed_form():
    frozen = {"*": FREEZE}
    with pytest.raises(InputError, match="nothing is left to train"):
        choose_trainable(Net(), TrainingConfig(parameters=frozen))
    model = Net()
    choose_trainable(model, TrainingConfig(parameters=frozen, stepper="closed_form"))
    assert trained(model) == set()


def test_options_of_a_parameter_come_from_the_last_glob_that_sets_them():
    options = options_of(
        "a.b.weight",
        {
            "a": ParameterOptions(learning_rate=1.0, weight_decay=0.1),
            "a.b": ParameterOptions(learning_rate=2.0),
            "c": ParameterOptions(weight_decay=9.0),
        },
    )
    assert options == ParameterOptions(learning_rate=2.0, weight_decay=0.1)


def test_a_glob_names_a_module_whole_and_not_the_start_of_a_name():
    assert matches("block1.weight", "block1")
    assert not matches("block10.weight", "block1")
    assert matches("block10.weight", "block1*")
    assert not matches("Head.weight", "head")


def test_frozen_batchnorm_keeps_its_statistics_and_the_rest_learns_them():
    torch.manual_seed(0)
    model = Net()
    choose_trainable(model, TrainingConfig(parameters={"backbone.block0": FREEZE}))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    train_mode(model)
    model(torch.randn(16, 3))
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert moved == {f"backbone.block1.1.{name}" for name in statistics}


def test_batchnorm_without_parameters_is_frozen_with_the_block_around_it():
    model = Net()
    choose_trainable(model, TrainingConfig(trainable=("head",)))
    train_mode(model)
    assert {name for name, module in model.named_modules() if not module.training} == {
        "backbone.block0.1",
        "backbone.block1.1",
    }
    choose_trainable(model, TrainingConfig())
    train_mode(model)
    assert all(module.training for module in model.modules())
