"""`voxray predict`: a trained model's predictions for every row of a split, as Parquet."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict")(predict)


def predict(
    run: Annotated[Path, typer.Argument(help="a run, RUN/best, RUN/last, a checkpoint or an export")],
    out: Annotated[Path, typer.Argument(help="the Parquet file to write; it must not exist")],
    data: Annotated[
        str | None, typer.Option(metavar="DATASET", help="another prepared dataset than the run's")
    ] = None,
    split: Annotated[Literal["val", "test", "train"], typer.Option(help="which rows")] = "val",
    images: Annotated[
        bool, typer.Option("--images", help="draw the task's figures into OUT.html beside it")
    ] = False,
) -> None:
    """Write RUN's predictions for all rows of a split into OUT: sample_id, group_id, the task's columns."""
    from voxray.train.trained.output import refuse_existing

    page = out.with_name(f"{out.name}.html")
    refuse_existing(out)
    if images:
        refuse_existing(page)
    from voxray.train.trained.load import load
    from voxray.train.trained.predictions import predict as predict_rows

    trained = load(run)
    if images:
        from voxray.report.predicted import require_figures

        require_figures(trained.config.task, trained.rows(split, data).store)
    written = predict_rows(trained, out, split, data)
    weights = f"{trained.checkpoint.name}{', averaged weights' if trained.is_averaged else ''}"
    print(f"{out}: {written.num_rows} rows of {written.dataset} · {split} ({weights})")
    if images:
        from voxray.report.predicted import write_images_page

        config = trained.config.model_dump(mode="json")
        write_images_page(page, config, out, Path(written.dataset), split, weights)
        print(f"{page}: the task's figures of them")
