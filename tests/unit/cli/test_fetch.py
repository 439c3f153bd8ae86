"""`voxray fetch` against a hub on this machine: fetched once, verified always, bounded, never opened."""

import hashlib
import io
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hub_server import COMMIT, Hub, serving
from one_command import refused
from voxray.cli.main import main
from voxray.config.errors import InputError
from voxray.nn.fetch import PUBLISHED
from voxray.train.checkpoints.weights import WeightsAt, read_weights

VOXEL2CLIP = "clip_image_vitL_2stage_mixco_lotemp_125ep_subj01_best.pth"


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(monkeypatch) as served:
        yield served


def fetched(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Path, str]:
    """Run `voxray fetch`; return the path that it prints, and what it notes."""
    capsys.readouterr()
    main_without_exit(["fetch", *map(str, arguments)])
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    return Path(line), err


def main_without_exit(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def test_it_is_fetched_once_and_the_path_printed(hub: Hub, tmp_path: Path, capsys, monkeypatch) -> None:
    weights = {"lin0.0.weight": torch.randn(3, 4)}
    own = hub.put("jimgoo/fmri-diffusion-prior", VOXEL2CLIP, saved({"model_state_dict": weights}))
    path, noted = fetched(capsys, "voxel2clip")
    assert path.is_relative_to(tmp_path / "cache" / "voxray" / "fetched")
    assert (path.name, hub.asked["GET"]) == (VOXEL2CLIP, 1)
    assert f"at commit {COMMIT}" in noted
    assert f"{own} (as the hub states)" in noted
    told = subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=path.parent, check=False)
    assert told.returncode == 0
    assert torch.equal(read_weights(WeightsAt(path, ""))["lin0.0.weight"], weights["lin0.0.weight"])
    before = Counter(hub.asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetched(capsys, "voxel2clip", "--sha256", own) == (path, "")
    assert hub.asked == before


def test_the_prior_is_laions(hub: Hub, capsys) -> None:
    own = hub.put("nousr/conditioned-prior", "vit-l-14/aesthetic/best.pth", b"weights")
    assert PUBLISHED["prior"].repo == "nousr/conditioned-prior"
    path, noted = fetched(capsys, "prior", "--sha256", own.upper())
    assert path.read_bytes() == b"weights"
    assert "(as --sha256 says)" in noted


def test_another_repository_revision_and_folder_are_values(hub: Hub, tmp_path: Path, capsys) -> None:
    hub.put("lab/own", "a/b.safetensors", b"x", stated="an-etag-that-is-no-sha256")
    path, noted = fetched(
        capsys, "prior", "--repo", "lab/own", "--file", "a/b.safetensors",
        "--revision", "refs/pr/1", "--cache-dir", tmp_path / "mine",
    )  # fmt: skip
    assert path == tmp_path / "mine" / "lab--own" / "refs--pr--1" / "a" / "b.safetensors"
    assert "(trusted as it came)" in noted
    assert "name the file in it with --file" in refused(capsys, "fetch", "prior", "--repo", "lab/own")
    told = refused(capsys, "fetch", "prior", "--repo", "lab/own", "--file", "../b.pth")
    assert "leads out of the repository" in told


def test_a_file_that_is_not_what_the_hub_states_is_removed(hub: Hub, tmp_path: Path, capsys) -> None:
    hub.put("nousr/conditioned-prior", "vit-l-14/aesthetic/best.pth", b"evil", stated="0" * 64)
    told = refused(capsys, "fetch", "prior")
    assert f"came with the sha256 {hashlib.sha256(b'evil').hexdigest()}, it should be {'0' * 64}" in told
    assert not list((tmp_path / "cache").rglob("best.pth"))
    own = hub.put("nousr/conditioned-prior", "vit-l-14/aesthetic/best.pth", b"good")
    assert fetched(capsys, "prior")[0].read_bytes() == b"good"
    assert f"was fetched with the sha256 {own}, not {'1' * 64}" in refused(
        capsys, "fetch", "prior", "--sha256", "1" * 64
    )
    assert "is no sha256" in refused(capsys, "fetch", "prior", "--sha256", "abc")


def test_what_could_not_be_kept_is_not_downloaded(hub: Hub, capsys) -> None:
    own = hub.put("nousr/conditioned-prior", "vit-l-14/aesthetic/best.pth", bytes(30_000_000))
    told = refused(capsys, "fetch", "prior", "--max-gb", "0.01")
    assert "has 0.03 GB, and at most 0.01 GB are fetched; raise the limit (--max-gb)" in told
    told = refused(capsys, "fetch", "prior", "--sha256", "2" * 64)
    assert f"has the sha256 {own} in the hub, not {'2' * 64}" in told
    assert hub.asked["GET"] == 0


def test_a_flipped_bit_is_noticed_at_the_next_use(hub: Hub, capsys) -> None:
    hub.put("nousr/conditioned-prior", "vit-l-14/aesthetic/best.pth", b"weights")
    path, _ = fetched(capsys, "prior")
    path.write_bytes(b"weighus")
    assert "has changed since it was fetched" in refused(capsys, "fetch", "prior")
    path.unlink()
    assert fetched(capsys, "prior")[0].read_bytes() == b"weights"


class Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.trace), "w")


def test_no_pickle_is_loaded(hub: Hub, tmp_path: Path, capsys) -> None:
    trace = tmp_path / "it_ran"
    hub.put("nousr/conditioned-prior", "vit-l-14/aesthetic/best.pth", pickle.dumps(Payload(trace)))
    path, _ = fetched(capsys, "prior")
    with pytest.raises(InputError, match=r"could run code|cannot be read"):
        read_weights(WeightsAt(path, ""))
    assert not trace.exists()


def test_what_cannot_be_had_is_told_with_the_mend(hub: Hub, capsys, monkeypatch) -> None:
    assert "'nousr/conditioned-prior' is not in the hub, or private" in refused(capsys, "fetch", "prior")
    hub.put("nousr/conditioned-prior", "other.pth", b"")
    assert "lacks a file that such a network has" in refused(capsys, "fetch", "prior")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = refused(capsys, "fetch", "prior")
    assert (
        "HF_HUB_OFFLINE forbids to fetch it: unset that, or download vit-l-14/aesthetic/best.pth elsewhere"
        in told
    )
    assert len(told.splitlines()) == 1


def test_the_environment_names_the_hub(hub: Hub, tmp_path: Path) -> None:
    """The command as a user runs it: its stdout is the path alone; without a server one sentence."""
    hub.put("nousr/conditioned-prior", "vit-l-14/aesthetic/best.pth", b"weights")
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "XDG_CACHE_HOME": str(tmp_path / "c")}
    command = [sys.executable, "-m", "voxray", "fetch", "prior"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.removesuffix("\n")).read_bytes() == b"weights"
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "XDG_CACHE_HOME": str(tmp_path / "other")}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the hub cannot be reached: go online once, or download" in done.stderr
    assert "Traceback" not in done.stderr
