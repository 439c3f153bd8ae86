"""Files made to run code, to read outside their folder or never to end: each refused, none obeyed."""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.cluster.commands import name_of
from voxray.config.errors import InputError
from voxray.config.files import read_layers
from voxray.config.yaml import read_yaml
from voxray.core.experiment import load_experiment
from voxray.core.schema import TEXT, Column, Schema
from voxray.core.task import BadRow
from voxray.data.formats.flat.rows import flat_rows
from voxray.data.formats.folder import find_files
from voxray.data.formats.npy import decode_npy
from voxray.data.formats.safe_hdf5 import child_array, open_hdf5
from voxray.data.formats.webdataset import read_webdataset
from voxray.data.manifest import load_manifest
from voxray.testing.datasets import write_dataset
from voxray.train.checkpoints.weights import WeightsAt, read_weights
from voxray.train.run_folder import run_folder
from voxray.tune.space.constraints import read_constraints

SCHEMA = Schema(
    {"sample_id": Column(TEXT), "patient_id": Column(TEXT), "x": Column("float32")}, group="patient_id"
)
SECRET = "canary-f1a3"


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def pickle_in_pt(folder: Path, ran: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "hook": Payload(ran)}, folder / "weights.pt")
    read_weights(WeightsAt(folder / "weights.pt", ""))


def pickle_in_parquet(folder: Path, ran: Path) -> None:
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    stored = pa.array([pickle.dumps(Payload(ran))], pa.large_binary())
    column = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), stored)
    pq.write_table(pa.table({"sample_id": ["a"], "patient_id": ["p"], "x": column}), folder / "a.parquet")
    rows(flat_rows("parquet", folder, SCHEMA, {}))


def pickle_in_npy(folder: Path, ran: Path) -> None:
    np.save(folder / "a.npy", np.array([Payload(ran)]), allow_pickle=True)
    decode_npy((folder / "a.npy").read_bytes())


def external_hdf5_link(folder: Path, ran: Path) -> None:
    with h5py.File(folder.parent / "secret.h5", "w") as file:
        file["x"] = np.arange(3.0)
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = h5py.ExternalLink("../secret.h5", "x")
    with open_hdf5(folder / "a.h5") as file:
        child_array(file, "x", "f")


def external_hdf5_storage(folder: Path, ran: Path) -> None:
    (folder.parent / "secret.bin").write_bytes(bytes(80))
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", (10,), "f8", external=[("../secret.bin", 0, 80)])
    with open_hdf5(folder / "a.h5") as file:
        child_array(file, "x", "f")


def escaping_tar_member(folder: Path, ran: Path) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        member = tarfile.TarInfo(f"../../{ran.name}.npy")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"text"))
    rows(read_webdataset(folder, ["npy"]))


def linking_tar_member(folder: Path, ran: Path) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        member = tarfile.TarInfo("a.npy")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(member)
    rows(read_webdataset(folder, ["npy"]))


def yaml_alias_bomb(folder: Path, ran: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    (folder / "a.yaml").write_text("\n".join(lines))
    read_yaml(folder / "a.yaml", "a.yaml")


def yaml_tag(folder: Path, ran: Path) -> None:
    (folder / "a.yaml").write_text(f"task: cxr_memory\ndescription: !!python/object/apply:os.mkdir [{ran}]\n")
    load_experiment(str(folder / "a.yaml"))


def base_outside_the_project(folder: Path, ran: Path) -> None:
    (folder.parent / "outside.yaml").write_text(f"task: {SECRET}")
    (folder / "experiments").mkdir()
    (folder / "experiments/a.yaml").write_text("_base_: ../../outside.yaml\n")
    read_layers(folder / "experiments/a.yaml")


def link_out_of_a_raw_folder(folder: Path, ran: Path) -> None:
    (folder.parent / "secret.csv").write_text(SECRET)
    (folder / "a.csv").symlink_to(folder.parent / "secret.csv")
    find_files(folder, "*.csv")


def shard_outside_the_dataset(folder: Path, ran: Path) -> None:
    columns = {"sample_id": np.array(["a"]), "patient_id": np.array(["p"]), "x": np.zeros(1, np.float32)}
    write_dataset(folder / "dataset", SCHEMA, {"train": columns}, 1)
    manifest = json.loads((folder / "dataset/manifest.json").read_text())
    load_manifest(folder / "dataset")  # as it was written
    manifest["shards"][0]["file"] = "../../secret.arrow"
    (folder / "dataset/manifest.json").write_text(json.dumps(manifest))
    load_manifest(folder / "dataset")


def code_in_a_constraint(folder: Path, ran: Path) -> None:
    read_constraints([f"__import__('os').mkdir('{ran}') <= metric('x')"], lambda number: "a.yaml")


# Each with words of the refusal that is meant: another error would pass for it.
HOSTILE: dict[Callable[[Path, Path], None], str] = {
    pickle_in_pt: "could run code",
    pickle_in_parquet: "column 'x' has the type",
    pickle_in_npy: "pickled objects",
    external_hdf5_link: "links are refused",
    external_hdf5_storage: "keeps its values in other files",
    escaping_tar_member: "leads out of the folder",
    linking_tar_member: "is no file but a link",
    yaml_alias_bomb: "expands to more than",
    yaml_tag: "the tag '.*' is refused",
    base_outside_the_project: "lies outside the project",
    link_out_of_a_raw_folder: "leads out of the folder and is not followed",
    shard_outside_the_dataset: "'../../secret.arrow' is no name of a shard",
    code_in_a_constraint: "is no expression: it may call",
}


def rows(found) -> None:
    """Read to the end, and raise for a row that was refused, as `data prepare` does."""
    for row in found:
        if isinstance(row, BadRow):
            raise ValueError(row.reason)


@pytest.mark.parametrize("read", HOSTILE, ids=lambda read: read.__name__)
def test_a_hostile_file_is_refused_in_clear_words_and_nothing_of_it_runs(read, tmp_path: Path):
    folder, ran = tmp_path / "below" / "dataset", tmp_path / "ran"
    folder.mkdir(parents=True)
    with pytest.raises((InputError, ValueError), match=HOSTILE[read]) as raised:
        read(folder, ran)
    message = str(raised.value)
    assert len(message) > 20
    assert max(map(len, message.splitlines())) < 500
    assert "Traceback" not in message
    assert SECRET not in message
    assert not ran.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "below"
    ]  # no member was written above its folder


# Characters that paths, shells, YAML and terminals take for something, beside any other.
TRICKY = st.sampled_from(
    ["..", "/", "\\", "\0", "\n", "~", "$(x)", "`", ";", " ", ".", "-", "%2e%2e", "\u202e", "a", "Z9"]
)
NAMES = st.one_of(st.text(max_size=12), st.lists(TRICKY, max_size=6).map("".join))


@pytest.fixture(scope="module")
def config():
    return load_experiment("cxr_memory/dev_fast").config


@settings(max_examples=500, deadline=None)
@given(names=st.lists(NAMES, min_size=20, max_size=20))  # 10,000 names
def test_no_name_leads_out_of_its_folder(names: list[str], config):
    for name in names:
        try:
            run = type(config.run)(name=name)
        except ValueError:
            with pytest.raises(InputError):
                name_of(["train", f"run.name={name}"])
            continue
        folder = run_folder(config.model_copy(update={"run": run})).path
        path = Path(os.path.normpath(folder.absolute()))
        assert path.parent == (Path(config.storage.path) / "cxr_memory").absolute()
        assert path.name.isascii()
        assert not path.name.startswith(".")
        if name:
            assert name_of(["train", f"run.name={name}"]) == path.name == name
