"""CheXpert, MIMIC-CXR-JPG and `labels.csv`, written by pandas: labels by policy, splits, views, bad rows."""

import gzip
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nih_folder import write_image
from voxray.config.errors import InputError
from voxray.core.task import BadRow
from voxray.data.formats.cxr import read_radiographs
from voxray.tasks.cxr_memory.config import LABELS

NAN = float("nan")
CHEXPERT = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
# What both collections and NIH know.
SHARED = ("Atelectasis", "Consolidation", "Pneumothorax", "Edema", "Effusion", "Pneumonia", "Cardiomegaly")
POLICIES = pytest.mark.parametrize(("uncertain", "value"), [("ignore", NAN), ("zeros", 0), ("ones", 1)])


def read(folder: Path, image_size: int | str = 16, **how: object) -> list:
    return list(read_radiographs(folder, LABELS, image_size, **how))


def bad(folder: Path) -> BadRow:
    (row,) = [row for row in read(folder) if isinstance(row, BadRow)]
    return row


def named(row: dict) -> dict[str, float]:
    """Return the labels that are known, by name."""
    return {name: float(v) for name, v in zip(LABELS, row["labels"], strict=True) if not np.isnan(v)}


def chexpert_row(path: str, **labels: float) -> dict:
    view = "" if "lateral" in path else "AP"
    what = "Lateral" if "lateral" in path else "Frontal"
    row = {"Path": f"CheXpert-v1.0-small/{path}", "Sex": "Female", "Age": 68, "Frontal/Lateral": what}
    return row | {"AP/PA": view} | {name: labels.get(name.replace(" ", "_"), NAN) for name in CHEXPERT}


def write_chexpert(folder: Path, table: str, rows: list[dict], images: bool = True) -> Path:
    """Write a table as CheXpert's are (floats, blanks) and its images."""
    pd.DataFrame(rows).to_csv(folder / table, index=False)
    for seed, row in enumerate(rows if images else []):
        write_image(folder / row["Path"].split("/", 1)[1], seed)
    return folder


P1 = "train/patient00001/study1/view1_frontal.jpg"


def test_a_chexpert_row(tmp_path: Path) -> None:
    labels = {"Cardiomegaly": 1.0, "Edema": 0.0, "Pneumonia": -1.0, "Pleural_Effusion": 1.0, "Fracture": 1.0}
    write_chexpert(tmp_path, "train.csv", [chexpert_row(P1, **labels)])
    (row,) = read(tmp_path)
    assert row["labels"].dtype == np.float32
    assert row["labels"].shape == (14,)
    assert named(row) == {"Cardiomegaly": 1, "Edema": 0, "Effusion": 1}
    assert (row["sample_id"], row["patient_id"], row["split"]) == (P1, "patient00001", "train")
    assert (row["sex"], row["age_years"], row["view"], row["projection"]) == ("F", 68.0, "AP", "frontal")
    assert Path(row["path"]) == tmp_path / P1
    assert row["origin"] == "train.csv row 2"
    assert row["follow_up"] == -1


@POLICIES
def test_uncertain_labels_follow_the_policy(tmp_path: Path, uncertain: str, value: float) -> None:
    write_chexpert(tmp_path, "train.csv", [chexpert_row(P1, Edema=-1.0, Pneumonia=1.0, Atelectasis=0.0)])
    (row,) = read(tmp_path, uncertain=uncertain)
    expected = {"Pneumonia": 1, "Atelectasis": 0} | ({} if np.isnan(value) else {"Edema": value})
    assert named(row) == expected


@POLICIES
def test_no_finding_makes_the_labellers_findings_absent(tmp_path: Path, uncertain: str, value: float) -> None:
    """… but Support Devices keep what the table says, and Hernia, which it does not know, stays unknown."""
    row = chexpert_row(P1, No_Finding=1.0, Support_Devices=-1.0)
    write_chexpert(tmp_path, "train.csv", [row])
    (row,) = read(tmp_path, uncertain=uncertain)
    assert named(row) == dict.fromkeys(SHARED, 0.0)
    ours = ("Support Devices", "Fracture", "Hernia")
    (row,) = read_radiographs(tmp_path, ours, 16, uncertain)
    np.testing.assert_array_equal(row["labels"], np.array([value, 0, NAN], np.float32))


def test_an_uncertain_no_finding_says_nothing(tmp_path: Path) -> None:
    write_chexpert(tmp_path, "train.csv", [chexpert_row(P1, No_Finding=-1.0, Edema=1.0)])
    assert [named(row) for row in read(tmp_path, uncertain="ones")] == [{"Edema": 1}]


def test_the_labels_are_those_of_pandas(tmp_path: Path) -> None:
    """The rule as torchxrayvision writes it, on whole columns of a random table."""
    rng = np.random.default_rng(0)
    rows = [
        chexpert_row(
            f"train/patient{i:05d}/study1/view1_frontal.jpg",
            **{n.replace(" ", "_"): rng.choice([NAN, -1, 0, 1]) for n in CHEXPERT[1:]},
            No_Finding=rng.choice([NAN, 1]),
        )
        for i in range(60)
    ]
    write_chexpert(tmp_path, "train.csv", rows)
    table = pd.read_csv(tmp_path / "train.csv")
    healthy = table["No Finding"] == 1
    for name in SHARED:
        theirs = table["Pleural Effusion" if name == "Effusion" else name].where(~healthy, 0.0)
        expected = theirs.replace(-1, NAN).to_numpy(np.float32)
        ours = np.array([row["labels"][LABELS.index(name)] for row in read(tmp_path)])
        np.testing.assert_array_equal(ours, expected)


def test_the_tables_are_the_splits(tmp_path: Path) -> None:
    for table, patient in [("train", 1), ("valid", 2), ("test", 3)]:
        path = f"{table}/patient{patient:05d}/study1/view1_frontal.jpg"
        write_chexpert(tmp_path, f"{table}.csv", [chexpert_row(path, Edema=1.0)])
    assert [(row["patient_id"][-1], row["split"]) for row in read(tmp_path)] == [
        ("1", "train"),
        ("2", "val"),
        ("3", "test"),
    ]


def test_a_chexpert_table_without_sex_age_and_view(tmp_path: Path) -> None:
    rows = [chexpert_row("test/patient64741/study1/view1_frontal.jpg", Edema=1.0)]
    rows.append(chexpert_row("test/patient64741/study1/view2_lateral.jpg", Edema=0.0))
    less = [{k: v for k, v in row.items() if k in ("Path", *CHEXPERT)} for row in rows]
    write_chexpert(tmp_path, "test.csv", less)
    frontal, lateral = read(tmp_path)
    assert (frontal["projection"], lateral["projection"]) == ("frontal", "lateral")
    assert (frontal["sex"], lateral["view"]) == ("", "LATERAL")
    assert np.isnan(frontal["age_years"])


@pytest.mark.parametrize("views", ["all", "frontal", "lateral"])
def test_views_are_chosen(tmp_path: Path, views: str) -> None:
    rows = [chexpert_row(P1), chexpert_row(P1.replace("1_frontal", "2_lateral"))]
    write_chexpert(tmp_path, "train.csv", rows)
    wanted = ["frontal", "lateral"] if views == "all" else [views]
    assert [row["projection"] for row in read(tmp_path, views=views)] == wanted
    if views == "lateral":
        pd.DataFrame(rows[:1]).to_csv(tmp_path / "train.csv", index=False)
        with pytest.raises(InputError, match=r"no image with views=lateral; set views=all"):
            read(tmp_path, views=views)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Path": "CheXpert-v1.0-small/train/patient00001/study1/view9_frontal.jpg"}, ["view9", "add it"]),
        (
            {"Path": "x/train/patient00001/study1/../../../../view1_frontal.jpg"},
            ["is not like train/patient"],
        ),
        ({"Path": "/etc/hostname"}, ["/etc/hostname", "is not like"]),
        ({"Edema": 2.0}, ["'Edema' is '2.0'", "-1 (uncertain)"]),
        ({"Edema": "yes"}, ["'Edema' is 'yes'"]),
        ({"Edema": "nan"}, ["'Edema' is 'nan'"]),
        ({"Age": "old"}, ["Age 'old'"]),
        ({"Frontal/Lateral": "Top"}, ["'Top' is neither Frontal nor Lateral"]),
    ],
)
def test_bad_chexpert_rows_say_why(tmp_path: Path, change: dict, words: list[str]) -> None:
    write_chexpert(tmp_path, "train.csv", [chexpert_row(P1)])
    write_chexpert(tmp_path, "train.csv", [chexpert_row(P1) | change], images=False)
    found = bad(tmp_path)
    assert found.origin == "train.csv row 2"
    assert all(word in found.reason for word in words), found.reason


def test_a_missing_label_column_is_named(tmp_path: Path) -> None:
    row = chexpert_row(P1)
    row["Edma"] = row.pop("Edema")
    write_chexpert(tmp_path, "train.csv", [row])
    with pytest.raises(InputError, match=r"column 'Edema' is missing; is 'Edma' meant\?"):
        read(tmp_path)


def test_a_patient_in_two_tables(tmp_path: Path) -> None:
    write_chexpert(tmp_path, "train.csv", [chexpert_row(P1)])
    write_chexpert(tmp_path, "valid.csv", [chexpert_row(P1.replace("train", "valid"))])
    with pytest.raises(InputError, match="patient 'patient00001' is in two splits"):
        read(tmp_path)


def test_links_out_of_the_chexpert_folder_are_refused(tmp_path: Path) -> None:
    outside = write_image(tmp_path / "outside" / "view1_frontal.jpg")
    raw = tmp_path / "raw"
    (raw / P1).parent.mkdir(parents=True)
    (raw / P1).symlink_to(outside)
    write_chexpert(raw, "train.csv", [chexpert_row(P1)], images=False)
    assert "is a link out of" in bad(raw).reason


# --- MIMIC-CXR-JPG


STUDY = {"subject_id": 10000032, "study_id": 50414267}
DICOM = "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"


def write_mimic(
    folder: Path, rows: list[tuple[dict, str, str, str, dict]], packed: bool = True, images: bool = True
) -> Path:
    """Write the three tables as PhysioNet's are. A row is (study, dicom id, split, view, labels)."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = {
        "split": [{"dicom_id": dicom, **study, "split": split} for study, dicom, split, _, _ in rows],
        "chexpert": [
            study | {name: labels.get(name, NAN) for name in CHEXPERT} for study, *_, labels in rows
        ],
        "metadata": [
            {"dicom_id": dicom, **study, "ViewPosition": view, "Rows": 3056, "StudyDate": 21800506}
            for study, dicom, _, view, _ in rows
        ],
    }
    for name, lines in frames.items():
        table = pd.DataFrame(lines).drop_duplicates(subset=list(STUDY) if name == "chexpert" else None)
        table.to_csv(folder / f"mimic-cxr-2.0.0-{name}.csv{'.gz' if packed else ''}", index=False)
    for seed, (study, dicom, *_) in enumerate(rows if images else []):
        write_image(folder / mimic_path(study, dicom), seed)
    return folder


def mimic_path(study: dict, dicom: str) -> str:
    subject = str(study["subject_id"])
    return f"files/p{subject[:2]}/p{subject}/s{study['study_id']}/{dicom}.jpg"


@pytest.mark.parametrize("packed", [False, True])
def test_a_mimic_row(tmp_path: Path, packed: bool) -> None:
    labels = {"Edema": 1.0, "Pneumonia": -1.0, "Pleural Effusion": 0.0, "Lung Lesion": 1.0}
    other = STUDY | {"subject_id": 10000764}
    rows = [
        (STUDY, DICOM, "train", "PA", labels),
        (STUDY, "174413ec", "train", "LATERAL", labels),
        (other, "aaaa", "validate", "", {"No Finding": 1.0}),
        (STUDY | {"subject_id": 10000935}, "bbbb", "test", "AP", {}),
    ]
    found = read(write_mimic(tmp_path, rows, packed))
    assert [named(row) for row in found[:2]] == [{"Edema": 1, "Effusion": 0}] * 2
    assert named(found[2]) == dict.fromkeys(SHARED, 0.0)
    assert [row["split"] for row in found] == ["train", "train", "val", "test"]
    assert [row["projection"] for row in found] == ["frontal", "lateral", "", "frontal"]
    assert (found[0]["sample_id"], found[0]["patient_id"]) == (DICOM, "10000032")
    assert Path(found[0]["path"]) == tmp_path / mimic_path(STUDY, DICOM)
    assert [row["projection"] for row in read(tmp_path, views="frontal")] == ["frontal", "frontal"]
    assert named(read(tmp_path, uncertain="ones")[0])["Pneumonia"] == 1


def test_a_mimic_study_without_labels_is_unknown(tmp_path: Path) -> None:
    write_mimic(tmp_path, [(STUDY, DICOM, "train", "PA", {"Edema": 1.0})], packed=False)
    header = (tmp_path / "mimic-cxr-2.0.0-chexpert.csv").read_text().splitlines()[0]
    (tmp_path / "mimic-cxr-2.0.0-chexpert.csv").write_text(header + "\n")
    (row,) = read(tmp_path)
    assert named(row) == {}


@pytest.mark.parametrize(
    ("study", "dicom", "split", "labels", "words"),
    [
        (STUDY, "../../../../x", "train", {}, ["dicom_id '../../../../x' is no identifier"]),
        (STUDY | {"subject_id": "1/../../.."}, DICOM, "train", {}, ["subject_id", "is no identifier"]),
        (STUDY, DICOM, "dev", {}, ["split 'dev'", "validate"]),
        (STUDY, DICOM, "train", {"Edema": 3}, ["mimic-cxr-2.0.0-chexpert.csv row 2: 'Edema' is '3"]),
        (STUDY, "gone", "train", {}, ["s50414267/gone.jpg' is not in"]),
    ],
)
def test_bad_mimic_rows_say_why(
    tmp_path: Path, study: dict, dicom: str, split: str, labels: dict, words: list[str]
) -> None:
    write_image(tmp_path / mimic_path(STUDY, DICOM))
    write_mimic(tmp_path, [(study, dicom, split, "PA", labels)], packed=False, images=False)
    found = bad(tmp_path)
    assert found.origin == "mimic-cxr-2.0.0-split.csv row 2"
    assert all(word in found.reason for word in words), found.reason


def test_a_missing_mimic_table_is_named(tmp_path: Path) -> None:
    write_mimic(tmp_path, [(STUDY, DICOM, "train", "PA", {})])
    (tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    (tmp_path / "mimic-cxr-2.0.0-split.csv").write_text("")
    with pytest.raises(InputError) as error:
        read(tmp_path)
    assert len(error.value.problems) == 2
    assert "exactly one mimic-cxr-*-split.csv, it holds 2 (mimic-cxr-2.0.0-split.csv, " in str(error.value)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"no gzip"])
def test_a_damaged_packed_table_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_mimic(tmp_path, [(STUDY, DICOM, "train", "PA", {})])
    path = tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz"
    path.write_bytes(damage(gzip.compress(os.urandom(3000).hex().encode())))
    with pytest.raises(InputError, match=r"chexpert\.csv\.gz after row .*download the table again"):
        read(tmp_path)


# --- labels.csv, unlabelled images, and which layout it is


def test_a_table_of_labels(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "Image": ["a.png", "b.png", "c.png"],
            "PatientId": [5, 5, 9],
            "Age": [54.0, NAN, 90.0],
            "View": ["AP Supine", "L", ""],
            "Pneumonia": [1.0, NAN, -1.0],
            "Hernia": [0, 0, 1],
            "COVID19": [1, 1, 1],
        }
    )
    table.to_csv(tmp_path / "labels.csv", index=False)
    for name in table["Image"]:
        write_image(tmp_path / "images" / name)
    rows = read(tmp_path)
    assert [named(row) for row in rows] == [{"Pneumonia": 1, "Hernia": 0}, {"Hernia": 0}, {"Hernia": 1}]
    assert [row["patient_id"] for row in rows] == ["5", "5", "9"]
    assert [row["projection"] for row in rows] == ["frontal", "lateral", ""]
    assert rows[0]["age_years"] == 54.0
    assert "split" not in rows[0]
    assert named(read(tmp_path, uncertain="zeros")[2])["Pneumonia"] == 0
    table.assign(Split=["train", "train", "dev"]).to_csv(tmp_path / "labels.csv", index=False)
    assert "Split 'dev' is none of train, val, test" in bad(tmp_path).reason
    table[["Image", "PatientId", "Age"]].to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(InputError, match="no column is called like a label"):
        read(tmp_path)


def test_images_alone_are_read_only_when_asked(tmp_path: Path) -> None:
    for name in ("00000003_001.png", "00000003_002.png", "00030805_000.png"):
        write_image(tmp_path / "images" / name)
    (tmp_path / "README.md").write_text("four images")
    with pytest.raises(InputError, match="set unlabelled=true"):
        read(tmp_path)
    rows = read(tmp_path, unlabelled=True)
    assert [(row["patient_id"], row["follow_up"]) for row in rows] == [("3", -1), ("3", -1), ("30805", -1)]
    assert not any(named(row) for row in rows)
    write_image(tmp_path / "scan.png")
    (row,) = [row for row in read(tmp_path, unlabelled=True) if isinstance(row, BadRow)]
    assert "'scan.png' is not named like 00000003_001.png" in row.reason


def test_the_layout_is_told_by_its_tables(tmp_path: Path) -> None:
    write_mimic(tmp_path / "raw", [(STUDY, DICOM, "train", "PA", {})])
    (tmp_path / "raw" / "train.csv").write_text("name,value\n")  # somebody's own table
    assert len(read(tmp_path / "raw")) == 1
    with pytest.raises(InputError, match=r"is '.*/raw' meant\?"):
        read(tmp_path)
    write_chexpert(tmp_path / "raw", "train.csv", [chexpert_row(P1)])
    with pytest.raises(InputError, match=r"CheXpert: train\.csv; MIMIC-CXR-JPG: mimic-cxr"):
        read(tmp_path / "raw")


def test_the_real_covid_set(shared_data: Path) -> None:
    folder = shared_data / "cxr" / "covid_cxr320"
    table = pd.read_csv(folder / "labels.csv")
    rows = read(folder, "auto")
    assert len(rows) == len(table) == 201
    assert not any(isinstance(row, BadRow) for row in rows)
    assert Counter(row["patient_id"] for row in rows) == Counter(table["PatientId"].astype(str))
    assert [named(row) for row in rows] == [{"Pneumonia": value} for value in table["Pneumonia"]]
    lateral = (table["View"] == "L").sum()
    assert len(read(folder, views="lateral")) == lateral
    assert len(read(folder, views="frontal")) == len(table) - lateral


def test_the_real_nih_sets_by_their_other_table(shared_data: Path, tmp_path: Path) -> None:
    """`labels.csv` beside the same images says what `Data_Entry` says, in 0/1 columns of another order."""
    folder = shared_data / "cxr" / "nih64"
    shutil.copytree(folder / "images", tmp_path / "images")
    shutil.copy(folder / "labels.csv", tmp_path)
    ours, nihs = read(tmp_path), read(folder)
    for mine, theirs in zip(sorted(ours, key=_name), sorted(nihs, key=_name), strict=True):
        np.testing.assert_array_equal(mine["labels"], theirs["labels"])
        assert mine["patient_id"] == theirs["patient_id"]
        assert mine["age_years"] == theirs["age_years"]


def test_the_real_images_without_a_table(shared_data: Path) -> None:
    known = {row["sample_id"]: row for row in read(shared_data / "cxr" / "nih320")}
    rows = read(shared_data / "cxr" / "nih_original_1024", "auto", unlabelled=True)
    assert len(rows) == 4
    for row in rows:
        assert row["image_size"] == 224
        assert row["patient_id"] == known[row["sample_id"]]["patient_id"]


def _name(row: dict) -> str:
    return row["sample_id"]
