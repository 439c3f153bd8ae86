"""The NIH reader: both headers, every kind of bad row, the official lists, nothing outside the folder."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom.data as examples
import pytest

from nih_folder import HEADER_2017, HEADER_2020, table_row, write_image, write_nih, write_table
from voxray.config.errors import InputError
from voxray.core.task import BadRow
from voxray.data.formats.cxr import read_radiographs
from voxray.data.formats.radiograph import decode_image
from voxray.tasks.cxr_memory.config import LABELS


def read(folder: Path, image_size: int | str = 16) -> list:
    return list(read_radiographs(folder, LABELS, image_size))


def bad(folder: Path) -> BadRow:
    (row,) = [row for row in read(folder) if isinstance(row, BadRow)]
    return row


@pytest.fixture
def one(tmp_path: Path) -> Path:
    write_image(tmp_path / "images" / "a.png")
    return tmp_path


def test_the_2017_header(one: Path) -> None:
    write_table(one, [table_row("a.png", "Effusion|Mass", 7, 3, "058Y")], HEADER_2017)
    (row,) = read(one)
    assert {LABELS[k] for k in np.flatnonzero(row["labels"])} == {"Effusion", "Mass"}
    assert row["labels"].dtype == np.float32
    assert (row["sample_id"], row["patient_id"], row["follow_up"]) == ("a.png", "7", 3)
    assert (row["view"], row["sex"], row["age_years"]) == ("PA", "M", 58.0)
    assert Path(row["path"]) == one / "images" / "a.png"
    assert row["origin"] == "Data_Entry_2017.csv row 2"
    assert "split" not in row


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_2020_header(one: Path, encoding: str) -> None:
    write_table(one, ["a.png,No Finding,0,1,58,F,AP,1024,1024,0.1,0.1"], HEADER_2020, encoding)
    (row,) = read(one)
    assert (row["labels"] == 0).all()
    assert (row["age_years"], row["sex"], row["view"]) == (58.0, "F", "AP")


def test_a_blank_finding_is_unknown_not_absent(one: Path) -> None:
    write_table(one, [table_row("a.png", "")])
    (row,) = read(one)
    assert np.isnan(row["labels"]).all()


@pytest.mark.parametrize(
    ("age", "years"),
    [("58", 58), ("058Y", 58), ("018M", 1.5), ("004D", 4 / 365.25), ("", None), ("414", None)],
)
def test_ages(one: Path, age: str, years: float | None) -> None:
    write_table(one, [table_row("a.png", age=age)])
    (row,) = read(one)
    assert np.isnan(row["age_years"]) if years is None else row["age_years"] == pytest.approx(years)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (table_row("a.png", "Efusion"), ["'Efusion'", "'Effusion'"]),
        (table_row("a.png", "No Finding|Mass"), ["No Finding", "excludes"]),
        (table_row("b.png"), ["'b.png'", "no folder"]),
        (table_row("../a.png"), ["'../a.png'", "plain file name"]),
        (table_row("/etc/hostname"), ["plain file name"]),
        (table_row("a.png", age="old"), ["Patient Age", "'old'"]),
        (table_row("a.png", visit="x"), ["Follow-up #", "'x'"]),
        (table_row("a.png", patient=""), ["'a.png'", "Patient ID"]),
        ("a.png,No Finding,0", ["too few cells", "Patient ID"]),
    ],
)
def test_bad_rows_say_where_and_why(one: Path, row: str, words: list[str]) -> None:
    write_table(one, [row])
    found = bad(one)
    assert found.origin == "Data_Entry_2017.csv row 2"
    assert all(word in found.reason for word in words), found.reason


def test_the_same_name_in_two_folders(one: Path) -> None:
    write_image(one / "more" / "a.png")
    write_table(one, [table_row("a.png")])
    assert "'images'" in bad(one).reason
    assert "'more'" in bad(one).reason


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside = write_image(tmp_path / "outside" / "a.png")
    raw = tmp_path / "raw"
    inside = write_image(raw / "b.png")
    (raw / "a.png").symlink_to(outside)
    (raw / "folder").symlink_to(outside.parent)
    (raw / "c.png").symlink_to(inside)
    write_table(raw, [table_row("a.png"), table_row("c.png")])
    assert "a.png" in bad(raw).reason
    assert [Path(row["path"]).name for row in read(raw) if not isinstance(row, BadRow)] == ["c.png"]


@pytest.mark.parametrize("column", HEADER_2017.split(",")[:7])
def test_a_missing_column_is_named(one: Path, column: str) -> None:
    write_table(one, [table_row("a.png")], HEADER_2017.replace(column, "Something Else"))
    with pytest.raises(InputError, match=f"Data_Entry_2017.csv: column '{column}'"):
        read(one)


def test_all_missing_columns_at_once(one: Path) -> None:
    write_table(one, [], "Image Index,Finding Label")
    with pytest.raises(InputError) as error:
        read(one)
    assert len(error.value.problems) == 6
    assert "is 'Finding Label' meant?" in error.value.problems[0]


def test_no_table_several_tables_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds none of the known tables.*unlabelled=true"):
        read(tmp_path)
    for name in ("Data_Entry_2017.csv", "Data_Entry_2020.csv"):
        (tmp_path / name).write_text(HEADER_2017)
    with pytest.raises(InputError, match=r"Data_Entry_2017\.csv, Data_Entry_2020\.csv"):
        read(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        read(tmp_path / "nothing")


def test_a_table_that_is_no_text(one: Path) -> None:
    (one / "Data_Entry_2017.csv").write_bytes(HEADER_2017.encode() + b"\n\xff\xfe\x00broken\n")
    with pytest.raises(InputError, match="UTF-8"):
        read(one)


def lists(folder: Path, train: list[str], test: list[str]) -> None:
    (folder / "train_val_list.txt").write_text("\n".join(train) + "\n")
    (folder / "test_list.txt").write_text("\n".join(test))


def test_the_official_lists_declare_splits_from_their_first_line_on(tmp_path: Path) -> None:
    names = write_nih(tmp_path, num_patients=2, visits=2)
    lists(tmp_path, names[:2], names[2:])
    assert [row["split"] for row in read(tmp_path)] == ["train", "train", "test", "test"]


def test_an_image_in_no_list_or_in_both(tmp_path: Path) -> None:
    names = write_nih(tmp_path, num_patients=3, visits=1)
    lists(tmp_path, names[:2], [names[1]])
    reasons = [row.reason for row in read(tmp_path) if isinstance(row, BadRow)]
    assert len(reasons) == 2
    assert names[1] in reasons[0]
    assert "both" in reasons[0]
    assert names[2] in reasons[1]
    assert "neither" in reasons[1]


def test_a_patient_in_two_declared_splits(tmp_path: Path) -> None:
    names = write_nih(tmp_path, num_patients=2, visits=2)
    lists(tmp_path, [names[0], names[2]], [names[1], names[3]])
    with pytest.raises(InputError) as error:
        read(tmp_path)
    assert len(error.value.problems) == 2
    for word in ("Data_Entry_2017.csv", "patient '0'", "row 2", "row 3", "train", "test"):
        assert word in error.value.problems[0]


def test_one_list_without_the_other(tmp_path: Path) -> None:
    names = write_nih(tmp_path, num_patients=1)
    (tmp_path / "test_list.txt").write_text("\n".join(names))
    with pytest.raises(InputError, match=r"train_val_list\.txt"):
        read(tmp_path)


@pytest.mark.parametrize(("side", "expected"), [(64, 64), (320, 224)])
def test_auto_size_never_enlarges(tmp_path: Path, side: int, expected: int) -> None:
    write_nih(tmp_path, num_patients=3, side=side)
    assert {row["image_size"] for row in read(tmp_path, "auto")} == {expected}


@pytest.mark.parametrize(("name", "rows", "size"), [("nih64", 642, 64), ("nih320", 85, 224)])
def test_the_real_sets(shared_data: Path, name: str, rows: int, size: int) -> None:
    found = read(shared_data / "cxr" / name, "auto")
    assert len(found) == rows
    assert not any(isinstance(row, BadRow) for row in found)
    assert found[0]["image_size"] == size
    positives = dict(zip(LABELS, np.sum([row["labels"] for row in found], axis=0), strict=True))
    with (shared_data / "cxr" / name / "labels.csv").open() as file:  # the same labels as 0/1 columns
        table = list(csv.DictReader(file))
    assert positives == {label: sum(row[label] == "1" for row in table) for label in LABELS}
    assert Counter(row["patient_id"] for row in found) == Counter(row["PatientId"] for row in table)


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_folder_written_by_pandas_and_pydicom(tmp_path: Path, quoting: int) -> None:
    """Quoted cells, floats for whole numbers where a cell is blank, DICOM files beside PNG."""
    table = pd.DataFrame(
        {
            "Image Index": ["a.dcm", "b.png", "c.png"],
            "Finding Labels": ["Mass|Effusion", "No Finding", None],
            "Follow-up #": [0, 1, 2],
            "Patient ID": [13, 13, 14],
            "Patient Age": [58.0, None, 61.5],
            "Patient Sex": ["M", "M", "F"],
            "View Position": ["PA", "AP", "PA"],
            "OriginalImage[Width,Height]": ["2682,2749"] * 3,
        }
    )
    table.to_csv(tmp_path / "Data_Entry_2017_v2020.csv", index=False, quoting=quoting)
    for seed, name in enumerate(table["Image Index"][1:]):
        write_image(tmp_path / name, seed)
    examples.get_testdata_file("CT_small.dcm", read=True).save_as(tmp_path / "a.dcm")
    rows = read(tmp_path, "auto")
    assert [row["patient_id"] for row in rows] == ["13", "13", "14"]
    assert [row["follow_up"] for row in rows] == [0, 1, 2]
    np.testing.assert_array_equal([row["age_years"] for row in rows], table["Patient Age"])
    assert [int(np.nansum(row["labels"])) for row in rows] == [2, 0, 0]
    assert np.isnan(rows[2]["labels"]).all()
    assert {row["image_size"] for row in rows} == {16}  # the median of 128, 16, 16
    assert decode_image(rows[0]["path"], 16).shape == (1, 16, 16)


def test_a_damaged_line_is_placed(one: Path) -> None:
    write_table(one, [table_row("a.png"), '"' + "x" * 200_000 + '"'])
    with pytest.raises(InputError, match=r"Data_Entry_2017\.csv after row 2: field larger"):
        read(one)
