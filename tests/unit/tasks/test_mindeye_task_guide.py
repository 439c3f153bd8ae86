"""The MindEye guide's commands mean what the guide says; its Python configs are never read."""

from pathlib import Path
from typing import Any

import pytest

from voxray.config.errors import InputError
from voxray.config.overrides import read_arguments
from voxray.core.experiment import load_experiment

CHECKPOINT = "checkpoints/clip_image_vitL_2stage_mixco_lotemp_125ep_subj01_best.pth"
FROZEN = f"config/1D_combo.py --combine_models=False --voxel2clip_path={CHECKPOINT}"


def loaded(command: str) -> dict[str, Any]:
    arguments = read_arguments(command.split())
    (reference,) = arguments.words
    return load_experiment(reference, arguments.overrides).config.model_dump()


def test_the_combined_model_is_combo_1d() -> None:
    """The guide: loss = alpha * loss_mse + loss_nce with alpha = 0.01, models combined."""
    config = loaded("config/1D_combo.py")
    assert config["experiment_name"] == "combo_1d"
    assert (config["objective"]["alpha"], config["objective"]["nce_weight"]) == (0.01, 1.0)
    assert config["objective"]["combine_losses"]
    assert config["model"]["combine_models"]
    assert config == loaded("mindeye/combo_1d")


def test_a_frozen_voxel2clip_comes_from_its_file() -> None:
    config = loaded(FROZEN)
    assert not config["model"]["combine_models"]
    assert config["training"]["parts"] == {"voxel2clip": CHECKPOINT}
    both = loaded(f"config/1D_combo.py --voxel2clip_path={CHECKPOINT}")
    assert both["model"]["combine_models"]
    assert both["training"]["parts"] == {"voxel2clip": CHECKPOINT}


def test_without_its_weights_a_frozen_voxel2clip_is_missing() -> None:
    config = load_experiment("mindeye/combo_frozen_voxel2clip").config
    assert "--voxel2clip_path" in config.missing()[0]
    assert load_experiment("config/1D_combo.py", FROZEN.replace("--", "").split()[1:]).config.missing() == []


def test_the_priors_loss_alone() -> None:
    assert not loaded("config/1D_combo.py --combine_losses=False")["objective"]["combine_losses"]


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("alpha=0.05", "objective.alpha", 0.05),
        ("mixup_pct=0.2", "objective.mixco_fraction", 0.2),
        ("hidden=True", "model.target", "hidden"),
        ("norm_type=ln", "model.voxel2clip.norm", "layer"),
        ("h=2048", "model.voxel2clip.hidden_dim", 2048),
        ("cond_drop_prob=0.1", "model.prior.condition_dropout", 0.1),
        ("recons_per_sample=16", "generation.num_images", 16),
        ("use_image_aug=False", "data.augmented_views", False),
    ],
)
def test_a_spelling(given: str, key: str, value: object) -> None:
    found: Any = loaded(f"config/1D_combo.py --{given}")
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_another_python_file_is_refused_unread(tmp_path: Path) -> None:
    trace = tmp_path / "it_ran"
    file = tmp_path / "mine.py"
    file.write_text(f"open({str(trace)!r}, 'w')")
    with pytest.raises(InputError, match="reading a config must not run code"):
        load_experiment(str(file))
    assert not trace.exists()


def test_remote_data_is_subject_1_from_the_hub() -> None:
    """The guide downloads the tars from the hub; upstream's URLs are subject 1's, its target is CLIP L/14."""
    data = loaded("config/1D_combo.py --remote_data=True --wds_cache_dir=/big --data.cache_gb=90")["data"]
    assert data["path"] == "raw:hf://datasets/pscotti/naturalscenesdataset/webdataset_avg_split"
    assert (data["cache_dir"], data["cache_gb"]) == ("/big", 90)
    prepare = data["prepare"]
    assert (list(prepare["subjects"]), prepare["clip"][0]["model"]) == (["subj01"], "vit_l14")
    other = loaded("config/1D_combo.py --remote_data=True --data.prepare.subjects=[subj02]")["data"]
    assert list(other["prepare"]["subjects"]) == ["subj02"]
    assert loaded("config/1D_combo.py --remote_data=False") == loaded("config/1D_combo.py")


def test_a_commit_of_the_data_is_part_of_the_url() -> None:
    with pytest.raises(InputError, match=r"naturalscenesdataset@COMMIT/webdataset_avg_split"):
        loaded("config/1D_combo.py --data_commit=9947586")
