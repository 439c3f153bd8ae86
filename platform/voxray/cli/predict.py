"""`voxray predict`: a trained model's predictions for every row of a split, as Parquet or tensors; with
`--images` what a person can look at too.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from voxray.cli.arguments import EXTRA_ARGUMENTS, overrides_from
from voxray.config.errors import InputError

if TYPE_CHECKING:
    from voxray.core.pictures import PictureMaker
    from voxray.train.trained.load import Trained
    from voxray.train.trained.predictions import Predicted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict", context_settings=EXTRA_ARGUMENTS)(predict)


def predict(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="a run, RUN/best, RUN/last, a checkpoint or an export")],
    out: Annotated[Path, typer.Argument(help="the Parquet or .pt file to write; it must not exist")],
    data: Annotated[
        str | None, typer.Option(metavar="DATASET", help="another prepared dataset than the run's")
    ] = None,
    split: Annotated[Literal["val", "test", "train"], typer.Option(help="which rows")] = "val",
    images: Annotated[
        bool,
        typer.Option(
            "--images",
            help="draw the task's figures into OUT.html beside it, or make pictures into OUT_images",
        ),
    ] = False,
) -> None:
    """Write RUN's predictions for all rows of a split into OUT: sample_id, group_id, the task's columns.
    [key=value …] are of sections that training does not read: decoding.num_beams=5, generation.num_images=4.
    """
    from voxray.train.trained.output import refuse_existing

    overrides = overrides_from(context.args)
    refuse_existing(out)
    if images:
        _refuse_images(out)
    elif of_pictures := [word for word in overrides if word.startswith("generation.")]:
        raise InputError(f"{of_pictures[0]} says how pictures are made; add --images")
    from voxray.train.trained.load import load
    from voxray.train.trained.predictions import predict as predict_rows

    trained = load(run, overrides=overrides)
    maker = _maker(trained, split, data) if images else None
    written = predict_rows(trained, out, split, data)
    weights = f"{trained.checkpoint.name}{', averaged weights' if trained.is_averaged else ''}"
    print(f"{out}: {written.num_rows} rows of {written.dataset} · {split} ({weights})")
    if maker is not None:
        _make_pictures(maker, trained, written, split, weights)
    elif images:
        from voxray.report.predicted import write_images_page

        config = trained.config.model_dump(mode="json")
        write_images_page(_page(out), config, out, Path(written.dataset), split, weights)
        print(f"{_page(out)}: the task's figures of them")


def _page(out: Path) -> Path:
    return out.with_name(f"{out.name}.html")


def _refuse_images(out: Path) -> None:
    """Raise InputError where something that --images writes is there already."""
    from voxray.train.trained.output import refuse_existing
    from voxray.train.trained.pictures import pictures_folder

    refuse_existing(_page(out))
    refuse_existing(pictures_folder(out))
    if out.suffix in (".pt", ".pth"):
        raise InputError(f"--images draws from Parquet; name OUT {out.with_suffix('.parquet').name}")


def _maker(trained: "Trained", split: str, data: str | None) -> "PictureMaker | None":
    """Return what makes the task's pictures; None where figures stand for them. Raises InputError for a task
    that has neither, before anything is predicted.
    """
    maker = trained.task.picture_maker(trained.device)
    if maker is None:
        from voxray.report.predicted import require_figures

        require_figures(trained.config.task, trained.rows(split, data).store)
    return maker


def _make_pictures(
    maker: "PictureMaker", trained: "Trained", written: "Predicted", split: str, weights: str
) -> None:
    """Make pictures of the predictions in a file, and a page that shows them."""
    from voxray.report.page import Card, number
    from voxray.report.pictures import write_pictures_page
    from voxray.report.rows import open_rows
    from voxray.train.trained.pictures import pictures_folder, write_pictures
    from voxray.train.trained.predictions import read_columns

    source = trained.rows(split, written.dataset)
    take = open_rows(Path(written.dataset), split) if source.store.is_local else None
    pictures = maker(read_columns(written.out), take)
    folder, page = pictures_folder(written.out), _page(written.out)
    num = write_pictures(folder, pictures)
    cards = (
        Card("rows", number(len(pictures.rows)), f"of {number(written.num_rows)}, split {split}"),
        Card("checkpoint", weights),
    )
    write_pictures_page(page, trained.config.task, written.out, cards, pictures)
    print(f"{folder}: {num} pictures of {len(pictures.rows)} rows; {page} shows them")
    for note in pictures.notes:
        print(note)
