"""Fixtures of the report's tests: folders as the trainer and the search write them."""

from pathlib import Path

import pytest
from report_folders import make_dataset, make_run, make_study


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "dataset")


@pytest.fixture
def run(tmp_path: Path, dataset: Path) -> Path:
    return make_run(tmp_path / "runs" / "cxr_memory" / "dev_fast", dataset)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "runs" / "cxr_memory" / "studies" / "quick")
