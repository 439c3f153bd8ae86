"""Optimisers that leave torch's compiler alone are torch's own to the last bit."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from voxray.train.optimisation.optim import _eager

RUN = """
import sys, tempfile
from pathlib import Path
import torch
from voxray.core.randomness import key
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.worker import train_here

with tempfile.TemporaryDirectory() as folder:
    rows = {"train": tiny_rows(32, 1), "val": tiny_rows(16, 2)}
    dataset = write_dataset(Path(folder) / "tiny", Tiny(TinyConfig()).schema(), rows, 40)
    config = TinyConfig.model_validate(
        {"task": "voxray.testing.tiny:Tiny", "data": {"path": str(dataset)},
         "training": {"epochs": 2, "batch_size": 8, "optimizer": sys.argv[1]}}
    )
    reported = []
    train_here(config, Path(folder) / "run", reported.append)
    assert len(reported) == 2
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_run_does_not_import_torchs_compiler(name):
    done = subprocess.run([sys.executable, "-c", RUN, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "fused": True}),
        (torch.optim.Adam, {"lr": 1e-2, "fused": False}),
        (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
    ],
)
def test_steps_states_and_hooks_are_those_of_torch(kind, values):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    heard = []
    steppers = _eager(kind)(ours.parameters(), **values), kind(theirs.parameters(), **values)
    steppers[0].register_step_post_hook(lambda *args: heard.append("after"))
    for _ in range(5):
        x = torch.randn(7, 5)
        for model, stepper in zip((ours, theirs), steppers, strict=True):
            stepper.zero_grad()
            model(x).square().mean().backward()
            stepper.step()
    assert heard == ["after"] * 5
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    state, known = (stepper.state_dict()["state"] for stepper in steppers)
    torch.testing.assert_close(state, known, rtol=0, atol=0)
    assert isinstance(steppers[0], kind)
    assert all(parameter.requires_grad for parameter in ours.parameters())
