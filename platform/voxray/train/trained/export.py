"""`voxray export`: a trained model as a folder that `voxray.load` reads, or a file for other programs."""

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from voxray.config.errors import InputError, RunError
from voxray.train.checkpoints.files import VERSION, read_manifest, write_file, write_manifest, write_tensors
from voxray.train.trained.dataset_facts import FILE_NAME as FACTS_FILE
from voxray.train.trained.example import example_batch
from voxray.train.trained.load import Trained
from voxray.train.trained.output import refuse_existing, whole

Format = Literal["safetensors", "pt", "torch_export", "onnx"]
SUFFIXES: dict[str, Format] = {".pt": "pt", ".pth": "pt", ".pt2": "torch_export", ".onnx": "onnx"}
TOLERANCE = 1e-4  # largest difference, as a share of the largest output or of 1 where that is less
NUM_ROWS, OTHER_SIZES = 8, (1, 3)  # rows of the batch that is traced; sizes that are tried besides
ONE_FILE_BYTES = 1_500_000_000  # an ONNX file ends at 2 GiB: larger weights lie in OUT.data beside it

Inputs = tuple[torch.Tensor, ...]
Outputs = Sequence[torch.Tensor]
Run = Callable[[Inputs], Outputs]


@dataclass(frozen=True)
class Exported:
    """What was written, and how far the reloaded model was from ours where both were run."""

    out: Path
    format: Format
    num_bytes: int
    difference: float | None = None
    num_rows: int = 0  # of the largest batch that both ran on
    is_real: bool = True  # those rows were real ones


def format_of(out: Path, asked: Format | None) -> Format:
    """Return the format that was asked for, else the one that the name's ending says, else safetensors.

    Raises InputError where a folder would be called like a file.
    """
    chosen = asked or SUFFIXES.get(out.suffix, "safetensors")
    if chosen == "safetensors" and out.suffix == ".safetensors":
        raise InputError(f"{out}: OUT is a folder that holds model.safetensors; leave the ending out")
    return chosen


def export(
    trained: Trained, out: Path, asked: Format | None = None, data: str | Path | None = None
) -> Exported:
    """Write the model to `out`, which must not exist, in the format `asked` for or named by the ending.

    The traced formats (torch_export, onnx) run the model on rows of `data`, of the run's dataset, or made-up
    ones, and on fewer, before and after. Raises InputError where `out` exists, a package is missing or the
    task offers no forward pass on tensors; RunError when the model cannot be traced or what was read back
    gives other numbers.
    """
    kind = format_of(out, asked)
    refuse_existing(out)
    if kind in ("safetensors", "pt"):
        with whole(out) as path:
            (_write_folder if kind == "safetensors" else _write_pt)(trained, path)
        return Exported(out, kind, _size(out))
    if kind == "onnx":
        _require_onnx()
        refuse_existing(_data_file(out))
    batch, is_real = example_batch(trained, NUM_ROWS, data)
    inputs = trained.task.example_inputs(batch)
    model = copy.deepcopy(trained.model).cpu().eval()
    with whole(out) as path, torch.no_grad():
        run = (_write_torch_export if kind == "torch_export" else _write_onnx)(model, inputs, path, trained)
        try:
            difference = largest_difference(lambda given: tensors_of(model(*given)), run, inputs)
        except Exception as error:
            raise RunError(
                f"what was read back of {out.name} does not run on another number of rows: {_cause(error)}"
            ) from error
        if difference > TOLERANCE:
            raise RunError(
                f"what was read back of {out.name} differs from the model by {difference:.2g}, more than "
                f"{TOLERANCE:g}; it was not kept"
            )
    return Exported(out, kind, _size(out), difference, len(batch), is_real)


def largest_difference(ours: Run, theirs: Run, inputs: Inputs) -> float:
    """Return the largest difference of two models' outputs, over the largest output or 1, for several sizes.

    Infinite where they differ in number, shape, NaN or infinities.
    """
    worst = 0.0
    for num_rows in sorted({len(inputs[0]), *OTHER_SIZES}):
        given = tuple(tensor[:num_rows].contiguous() for tensor in inputs)
        expected, found = ours(given), theirs(given)
        if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
            return math.inf
        for a, b in zip(expected, found, strict=True):
            a, b = a.double(), b.double()
            gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
            scale = max(1.0, float(a[a.isfinite()].abs().max()) if a.isfinite().any() else 0.0)
            share = float(gap.max()) / scale if gap.numel() else 0.0
            worst = max(worst, share if math.isfinite(share) else math.inf)
    return worst


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Return the tensors of a model's output, in order: of one tensor, a sequence or a map of them."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in tensors_of(value)]
    return [tensor for value in output for tensor in tensors_of(value)] if output is not None else []


def _write_folder(trained: Trained, out: Path) -> None:
    """Write a checkpoint without the state of the training, but with what the task knows of its dataset."""
    out.mkdir()
    files = {
        "model.safetensors": write_file(
            out / "model.safetensors", partial(write_tensors, tensors=_weights(trained))
        ),
        "config.json": write_file(
            out / "config.json", lambda file: file.write(_config_text(trained).encode())
        ),
    }
    text = trained.facts.to_json().encode()
    files[FACTS_FILE] = write_file(out / FACTS_FILE, lambda file: file.write(text))
    step = read_manifest(trained.checkpoint)["step"]
    marks = {"step": step, "stage": trained.stage.index, "best": None, "ends_stage": None}
    body = {"version": VERSION, **marks, "files": files, "aliases": {}}
    write_manifest(out, body)


def _write_pt(trained: Trained, out: Path) -> None:
    """Write the guides' keys; plain values and tensors alone, so that it loads with `weights_only=True`."""
    weights = _weights(trained)
    torch.save({"model_state_dict": weights, "config": json.loads(_config_text(trained))}, out)
    back = torch.load(out, map_location="cpu", weights_only=True)["model_state_dict"]
    if back.keys() != weights.keys() or not all(torch.equal(back[name], weights[name]) for name in weights):
        raise RunError(f"what was read back of {out.name} is not what was written; it was not kept")


class _Plain(nn.Module):
    """A model whose output is a plain tuple of its tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensors_of(self.model(*inputs)))


def _write_torch_export(model: nn.Module, inputs: Inputs, out: Path, trained: Trained) -> Run:
    shapes: tuple[Any, ...] = _dynamic(inputs)
    if hasattr(model(*inputs), "_fields"):  # a named tuple's class is ours, and a reader has torch alone
        model, shapes = _Plain(model), (shapes,)
    try:
        program = torch.export.export(model, inputs, dynamic_shapes=shapes)
    except Exception as error:
        raise _not_traceable("torch_export", error) from error
    torch.export.save(program, out, extra_files={"config.json": _config_text(trained)})
    loaded = torch.export.load(out).module()
    return lambda given: tensors_of(loaded(*given))


def _write_onnx(model: nn.Module, inputs: Inputs, out: Path, trained: Trained) -> Run:
    import onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]

    try:
        program = torch.onnx.export(
            model, inputs, dynamo=True, dynamic_shapes=_dynamic(inputs), verbose=False
        )
    except Exception as error:
        raise _not_traceable("onnx", error) from error
    assert program is not None
    program.model.metadata_props["voxray.config"] = _config_text(trained)
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    program.save(str(out), external_data=num_bytes > ONE_FILE_BYTES)
    onnx.checker.check_model(str(out), full_check=True)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(given: Inputs) -> Outputs:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        return [torch.as_tensor(array) for array in session.run(None, arrays)]

    return run


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(f"format onnx needs {', '.join(missing)}; pip install 'voxray[export]'")


def _dynamic(inputs: Inputs) -> tuple[dict[int, Any], ...]:
    """Return which axes may have another size: the first, the rows."""
    rows = torch.export.Dim("rows")
    return tuple({0: rows} for _ in inputs)


def _not_traceable(kind: Format, error: Exception) -> RunError:
    return RunError(f"the model's forward cannot be traced as {kind}: {_cause(error)}")


def _cause(error: BaseException) -> str:
    """Return the first line of what an error goes back to; torch.onnx wraps that in advice of many lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _weights(trained: Trained) -> dict[str, torch.Tensor]:
    """Return the weights on the CPU, each in memory of its own: tied ones come twice, as readers expect."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in trained.model.state_dict().items()
    }


def _config_text(trained: Trained) -> str:
    return trained.config.model_dump_json(indent=1)


def _data_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.data")


def _size(out: Path) -> int:
    if out.is_dir():
        return sum(file.stat().st_size for file in out.iterdir())
    return sum(file.stat().st_size for file in (out, _data_file(out)) if file.exists())
