"""Shared fixtures: where the reference numbers and data sets of the project lie, if they are there at all."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CCT_SHARED", ROOT.parent / "shared"))


def _shared_folder(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{name} of the shared folder is not here (set CCT_SHARED)")
    return folder


@pytest.fixture
def fixtures():
    """The folder of numbers computed in float64 with the official models."""
    return _shared_folder("fixtures")


@pytest.fixture
def shared_data():
    """The folder of real data sets."""
    return _shared_folder("data")


@pytest.fixture
def design():
    """The folder of the paper's tables."""
    return _shared_folder("design")
