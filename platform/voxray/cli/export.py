"""`voxray export`: a trained model for `voxray.load` elsewhere, or for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    run: Annotated[Path, typer.Argument(help="a run, RUN/best, RUN/last, a checkpoint or an export")],
    out: Annotated[Path, typer.Argument(help="the folder (safetensors) or file to write; it must not exist")],
    format: Annotated[
        Literal["safetensors", "pt", "torch_export", "onnx"] | None,
        typer.Option(
            help="default: by OUT's ending (.pt, .pt2, .onnx), else safetensors: a folder with the config"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="rows to trace and check with, where the run's dataset is gone"),
    ] = None,
) -> None:
    """Write RUN's model to OUT, read it back and, for torch_export and onnx, print the largest difference."""
    from voxray.train.trained.output import refuse_existing

    refuse_existing(out)
    from voxray.train.trained.export import OTHER_SIZES, TOLERANCE, format_of
    from voxray.train.trained.export import export as export_model
    from voxray.train.trained.load import load

    kind = format_of(out, format)
    done = export_model(load(run, device="cpu"), out, kind, data)
    print(f"{out}: {kind}, {done.num_bytes / 1e6:.2f} MB")
    if done.difference is not None:
        sizes = ", ".join(map(str, OTHER_SIZES))
        rows = f"{'real' if done.is_real else 'made-up'} rows, in batches of {done.num_rows}, {sizes}"
        print(
            f"read back and run on {rows}: largest difference {done.difference:.2g} (allowed {TOLERANCE:g})"
        )
