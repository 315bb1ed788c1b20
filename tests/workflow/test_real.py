"""Real scans (skipped without them) through the whole path, with a network whose answer is known.

The bands of the network are tissues here, not organs: what it calls liver is whatever has the liver's density. What
counts is that the answer lies on the scan, voxel for voxel, however the scan is stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from tests.phantoms import nifti_file, stored_as
from viscera.infer.predict import InferenceSettings
from viscera.io.orientation import to_ras
from viscera.io.read import read_volume
from viscera.taxonomy import taxonomy
from viscera.workflow.scan import Result, SaveSettings, SegmentSettings, segment_scan

from .conftest import BANDS, BandNetwork

EXACT = InferenceSettings(precision="fp32", device="cpu")
RAW = SegmentSettings(post=False, inference=EXACT)
FULL = SegmentSettings(inference=EXACT)
SOME_ORDERS = [
    ((0, 1, 2), (True, True, False)),  # as scanners store axial slices
    ((1, 2, 0), (False, True, True)),  # sagittal slices
    ((0, 2, 1), (True, False, True)),  # coronal slices
    ((2, 1, 0), (True, True, True)),  # everything turned round
]


@pytest.fixture(scope="module")
def scan(shared_dir: Path) -> Path:
    """A trunk from the lung bases to the hips at 3 mm, which is the closed-form network's own spacing."""
    path = shared_dir / "data" / "abdomen_pelvis_3mm" / "ct.nii.gz"
    if not path.is_file():
        pytest.skip(f"needs the real scan {path}, which is not part of the repository")
    return path


@pytest.fixture(scope="module")
def series(shared_dir: Path) -> Path:
    """20 slices of an upper abdomen, JPEG 2000."""
    folder = shared_dir / "data" / "dicom_series_20"
    if not folder.is_dir():
        pytest.skip(f"needs the real DICOM series {folder}, which is not part of the repository")
    return folder


@pytest.fixture(scope="module")
def in_ras(scan: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    hu, affine, _ = to_ras(read_volume(scan))
    return hu, affine


@pytest.fixture(scope="module")
def straight(in_ras: Any, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The scan stored in RAS order, segmented with all rules."""
    return segment_scan(nifti_file(tmp_path_factory.mktemp("ras") / "ct.nii", *in_ras), BandNetwork(), FULL)


def bands_of(hu: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The answer by hand: the tumour's band is painted last; a voxel on the end of a band may go either way."""
    labels = np.zeros(hu.shape, np.uint8)
    for key, (low, high) in BANDS.items():
        labels[(hu > low) & (hu < high)] = taxonomy()[key].id
    return labels


def on_an_end(hu: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.isin(hu, [end for band in BANDS.values() for end in band])


@pytest.mark.parametrize(("mode", "crop"), [("whole", False), ("window", True)])
def test_every_voxel_of_a_real_scan_is_what_its_density_says(scan, mode, crop):
    hu = np.asarray(nib.load(scan).dataobj)
    settings = SegmentSettings(post=False, crop=crop, inference=EXACT)
    result = segment_scan(scan, BandNetwork(mode, patch=(64, 64, 64)), settings)
    sure = ~on_an_end(hu)
    expected = bands_of(hu)
    if crop:  # outside the body there is no organ, and so no answer
        inside = result.label_map > 0
        assert (expected[sure & inside] == result.label_map[sure & inside]).all()
        assert (result.label_map[sure] == expected[sure]).mean() > 0.9999
    else:
        assert np.array_equal(result.label_map[sure], expected[sure])
    assert (expected > 0).sum() > 10_000


@pytest.mark.parametrize(("axes", "flips"), SOME_ORDERS)
def test_the_anatomy_is_the_same_in_every_axis_order(in_ras, straight, tmp_path, axes, flips):
    array, affine = stored_as(*in_ras, axes, flips)
    path = nifti_file(tmp_path / "ct.nii", np.ascontiguousarray(array), affine)
    result = segment_scan(path, BandNetwork(), FULL)
    assert result.label_map.shape == array.shape
    expected, _ = stored_as(straight.label_map, straight.volume.affine, axes, flips)
    np.testing.assert_array_equal(result.label_map, expected)
    for key in ("left_kidney", "liver"):  # of the right one only specks have its density: the rules take them
        assert straight.mask(key).any()
        mask, _ = stored_as(straight.mask(key), straight.volume.affine, axes, flips)
        np.testing.assert_array_equal(result.mask(key), mask)
    for one, other in zip(result.findings, straight.findings, strict=True):
        assert (one.volume_ml, one.components) == (pytest.approx(other.volume_ml), other.components)
        assert one.mean_hu == pytest.approx(other.mean_hu, nan_ok=True)
        assert one.centre_mm == (other.centre_mm and pytest.approx(other.centre_mm, abs=1e-3))


def test_the_written_masks_lie_exactly_over_the_scan(scan, tmp_path):
    out = segment_scan(scan, BandNetwork(), RAW).save(tmp_path / "out", SaveSettings(masks=True))
    image = nib.load(scan)
    hu = np.asarray(image.dataobj)
    for file in [out / "segmentation.nii.gz", *(out / "masks" / f"{key}.nii.gz" for key in BANDS)]:
        written = nib.load(file)
        np.testing.assert_array_equal(written.affine, image.affine)
        assert written.shape == image.shape
    for key, (low, high) in BANDS.items():
        mask = np.asarray(nib.load(out / "masks" / f"{key}.nii.gz").dataobj) == 1
        assert mask.any() and hu[mask].min() >= low and hu[mask].max() <= high


def test_a_dicom_series_and_its_nifti_give_the_same_masks(series, tmp_path):
    """From the folder a scanner wrote, and from a NIfTI of the same voxels: the same files come out.

    The grids are 0.98 x 0.98 x 2 mm, so the masks come back from the network's 3 mm by interpolation.
    """
    volume = read_volume(series)
    converted = nifti_file(tmp_path / "ct.nii.gz", volume.array, volume.affine)
    outs = {
        name: segment_scan(path, BandNetwork(), FULL).save(tmp_path / name, SaveSettings(masks=True, picture=False))
        for name, path in {"dicom": series, "nifti": converted}.items()
    }
    for file in ["segmentation.nii.gz", *(f"masks/{key}.nii.gz" for key in BANDS)]:
        one, other = (nib.load(out / file) for out in outs.values())
        np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
        np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
    assert np.asarray(nib.load(outs["dicom"] / "segmentation.nii.gz").dataobj).any()


def test_a_series_turned_by_hand_gives_the_same_anatomy(series, tmp_path):
    """The same 20 slices stored as a NIfTI in RAS order: the masks agree after turning them back."""
    volume = read_volume(series)
    hu, affine, reorientation = to_ras(volume)
    assert not reorientation.is_identity, "a scanner stores axial slices to the left and to the back"
    path = nifti_file(tmp_path / "ct.nii", np.ascontiguousarray(hu), affine)
    settings = SegmentSettings(classes="liver", inference=EXACT)
    from_series, from_nifti = (segment_scan(x, BandNetwork(), settings).label_map for x in (series, path))
    np.testing.assert_array_equal(from_series[::-1, ::-1], from_nifti)
    assert from_nifti.any()
