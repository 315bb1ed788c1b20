"""Small data sets for the tests of viscera.data."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from viscera.data.cache import CachedCase, CacheSettings, cache_cases, open_cached
from viscera.data.catalogue import dataset_table
from viscera.data.layout import find_cases
from viscera.data.phantom import PhantomSettings, write_dataset

SPACING_MM = (6.0, 6.0, 7.0)


def write_nifti(path: Path, array: np.ndarray, spacing_mm=(2.0, 2.0, 2.0), affine: np.ndarray | None = None) -> None:
    """`array` at `path`, RAS unless an affine is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing_mm, 1.0]) if affine is None else affine), path)


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory) -> Path:
    """Two phantom sets: amos (15 organs) and kits (both kidneys under one label, tumours, cysts)."""
    root = tmp_path_factory.mktemp("hospitals")
    for key in ("amos", "kits"):
        write_dataset(dataset_table(key), root / key, 2, 0, PhantomSettings(spacing_mm=SPACING_MM, lesions=(2, 2)))
    return root


@pytest.fixture(scope="session")
def entries(hospitals, tmp_path_factory) -> list[CachedCase]:
    """The cached cases of `hospitals`."""
    cache, settings = tmp_path_factory.mktemp("cache"), CacheSettings(spacing_mm=(6.0, 6.0, 6.0))
    cases = [case for key in ("amos", "kits") for case in find_cases(dataset_table(key), hospitals / key).cases]
    cache_cases(cases, cache, settings)
    found, missing = open_cached(cases, cache, settings)
    assert not missing
    return found
