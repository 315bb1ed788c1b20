"""recipes/starter/add_labels.py: lungs by density and an aorta along points, on a phantom of a chest."""

import importlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from viscera.data.catalogue import read_dataset_table
from viscera.data.layout import find_cases
from viscera.data.verify import verify_sets

RECIPE = Path(__file__).parents[2] / "recipes" / "starter"
SHAPE = (110, 80, 60)


@pytest.fixture(scope="module")
def recipe():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPE)
        return importlib.import_module("add_labels")


@pytest.fixture
def chest():
    """HU at 3 mm, RAS axes, and its parts: a trunk on a table, two lungs, a windpipe, gas in the stomach, the aorta."""
    x, y, z = np.indices(SHAPE)
    parts = {
        "right": ((x - 75) / 17) ** 2 + ((y - 42) / 20) ** 2 + ((z - 35) / 22) ** 2 < 1,
        "left": ((x - 35) / 17) ** 2 + ((y - 42) / 20) ** 2 + ((z - 35) / 22) ** 2 < 1,
        "windpipe": (np.hypot(x - 55, y - 45) < 3) & (z > 40),
        "gas": np.hypot(np.hypot(x - 35, y - 55), z - 6) < 7,
        "aorta": np.hypot(x - 52, y - 28) < 5,
        "spine": np.hypot(x - 55, y - 14) < 6,
    }
    hu = np.full(SHAPE, -1000.0, np.float32)
    hu[np.hypot((x - 55) / 48, (y - 42) / 34) < 1] = 40
    hu[(y < 4) & (x > 5)] = 200  # the table
    for name, value in dict(right=-850, left=-860, windpipe=-1000, gas=-990, aorta=300, spine=350).items():
        hu[parts[name]] = value
    return hu, parts


def overlap(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_lungs_are_found_on_their_sides_without_windpipe_and_gas(recipe, chest):
    hu, parts = chest
    right, left = recipe.lungs(hu)
    assert overlap(right, parts["right"]) > 0.97
    assert overlap(left, parts["left"]) > 0.97
    assert not ((right | left) & (parts["windpipe"] | parts["gas"])).any()


@pytest.mark.parametrize("enhanced", [True, False])
def test_the_aorta_follows_points_and_density(recipe, chest, enhanced):
    hu, parts = chest
    if not enhanced:
        hu[parts["aorta"]] = 45
    affine = np.diag([3.0, 3, 3, 1])
    off = 1.0 if enhanced else 0.0  # points are set by hand: a voxel beside the middle, and density mends it
    points = [[3 * (52 + off), 3 * 28, 0, 15], [3 * (52 + off), 3 * 28, 3 * 59, 15]]
    found = recipe.aorta(hu, affine, points, enhanced)
    assert overlap(found, parts["aorta"]) > 0.9
    assert not found[parts["spine"]].any()


def test_a_tube_of_two_points_holds_spheres_along_the_line(recipe):
    mask = recipe.tube(np.array([[5.0, 5, 5, 2], [5, 5, 15, 2]]), (11, 11, 21), 1.0)
    assert mask[5, 5, 3:18].all() and not mask[5, 5, 2] and not mask[5, 5, 18]
    assert mask[:, :, 10].sum() == 13  # of a disc of radius 2


def test_what_it_writes_fits_the_tables(recipe, chest, tmp_path, monkeypatch):
    hu, _ = chest
    source = tmp_path / "unlabelled/colon_cmb"
    source.mkdir(parents=True)
    nib.save(nib.Nifti1Image(hu.astype(np.int16), np.diag([3.0, 3, 3, 1])), source / "ct.nii.gz")
    scans = {
        "colon_cmb": {
            "folder": "unlabelled/colon_cmb", "image": "ct.nii.gz", "enhanced": True, "chest_above_mm": 60.0,
            "aorta": [[156, 84, 0, 15], [156, 84, 177, 15]],
        }
    }  # fmt: skip
    monkeypatch.setattr(recipe.tomllib, "loads", lambda text: scans)
    monkeypatch.setattr("sys.argv", ["add_labels.py", str(tmp_path)])
    recipe.main()
    whole = nib.load(tmp_path / "trunk/colon_cmb/labels.nii.gz")
    part = nib.load(tmp_path / "chest/colon_cmb/labels.nii.gz")
    assert part.shape == (*SHAPE[:2], 40)
    assert part.affine[2, 3] == pytest.approx(60)
    np.testing.assert_array_equal(part.get_fdata(), whole.get_fdata()[:, :, 20:])
    monkeypatch.undo()
    for table in ("public_scans", "chests"):
        verification = verify_sets([find_cases(read_dataset_table(RECIPE / f"{table}.toml"), tmp_path)])
        assert not verification.errors, verification.faults


def test_at_3_mm_everything_lies_where_it_lay(recipe, tmp_path):
    values = np.zeros((40, 40, 20), np.int16)
    values[10, 12, 6] = 1  # a voxel whose centre is one of the grid's, too
    affine = np.array([[1.5, 0, 0, -30], [0, 1.5, 0, 20], [0, 0, 2.5, 5], [0, 0, 0, 1]])
    for name, array in (("ct", np.where(values > 0, 300, -1000)), ("labels", values)):
        nib.save(nib.Nifti1Image(array.astype(np.int16), affine), tmp_path / f"{name}.nii.gz")
    hu, found, wider = recipe.at_3_mm(tmp_path, "ct.nii.gz", "labels.nii.gz")
    (place,) = np.argwhere(found)
    where, wanted = wider @ [*place, 1], affine @ [10, 12, 6, 1]
    np.testing.assert_allclose(where, wanted)
    assert tuple(place) == np.unravel_index(hu.argmax(), hu.shape)
