"""Real scans beside the repository (skipped without them)."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tests.phantoms import ORDERS, nifti_file, stored_as
from viscera.io.orientation import to_ras
from viscera.io.read import list_series, read_volume
from viscera.io.write import write_label_map

NIFTI = [
    "abdomen_pelvis_3mm/ct.nii.gz", "spl_abdomen/ct.nii.gz", "aorta_crop/ct.nii.gz", "pulmonary_crop/ct.nii.gz",
    "unlabelled/crlm_1004/ct.nii.gz",
]  # fmt: skip


@pytest.mark.parametrize("name", NIFTI)
def test_a_scan_is_read_as_it_is_and_its_labels_lie_exactly_over_it(shared_dir, tmp_path, name):
    path = shared_dir / "data" / name
    volume, reference = read_volume(path), nib.load(path)
    np.testing.assert_array_equal(volume.array, np.maximum(np.asarray(reference.dataobj), -1024))
    np.testing.assert_array_equal(volume.affine, reference.affine)

    write_label_map((volume.array > 200).astype(np.uint8), volume, tmp_path / "seg.nii.gz")

    written = nib.load(tmp_path / "seg.nii.gz")
    np.testing.assert_array_equal(written.affine, reference.affine)
    for code in ("sform_code", "qform_code"):
        assert written.header[code] == reference.header[code]
    assert sitk.ReadImage(tmp_path / "seg.nii.gz").IsSameImageGeometryAs(sitk.ReadImage(path), 0, 0)


def test_a_scan_without_its_intercept_is_mended(shared_dir, tmp_path):
    image = nib.load(shared_dir / "data" / NIFTI[1])
    true = np.asarray(image.dataobj).clip(-1024)
    nib.save(nib.Nifti1Image((true + 1024).astype(np.uint16), image.affine), tmp_path / "ct.nii")
    volume = read_volume(tmp_path / "ct.nii")
    np.testing.assert_array_equal(volume.array, true)
    assert "1024 was subtracted" in volume.provenance.notes[0]


@pytest.mark.parametrize(("axes", "flips"), [ORDERS[7], ORDERS[22], ORDERS[41]])
def test_a_scan_in_other_axis_orders(shared_dir, tmp_path, axes, flips):
    volume = read_volume(shared_dir / "data" / NIFTI[0])
    ras, ras_affine, _ = to_ras(volume)
    path = nifti_file(tmp_path / "ct.nii", *stored_as(ras, ras_affine, axes, flips))
    again, again_affine, _ = to_ras(read_volume(path))
    np.testing.assert_array_equal(again, ras)
    np.testing.assert_allclose(again_affine, ras_affine, atol=1e-4)


def test_a_dicom_series_and_its_conversions_hold_the_same_anatomy(shared_dir, tmp_path):
    """JPEG 2000, without series UID: as a folder, and as ITK converts it."""
    folder = shared_dir / "data" / "dicom_series_20"
    volume = read_volume(folder)
    assert volume.shape == (512, 512, 20) and volume.provenance.notes == ()
    np.testing.assert_allclose(volume.spacing_mm, (0.9765625, 0.9765625, 2))
    (info,) = list_series(folder)
    assert (info.modality, info.description, info.slices) == ("CT", "CT Body 3.0", 20)

    paths = sorted(folder.iterdir(), reverse=True)  # the names fall from head to foot: now upwards, as ITK sorts
    image = sitk.ReadImage([str(path) for path in paths])
    for ending in ("nii.gz", "nrrd", "mha"):
        sitk.WriteImage(image, tmp_path / f"ct.{ending}")
        converted = read_volume(tmp_path / f"ct.{ending}")
        np.testing.assert_array_equal(converted.array, volume.array)
        np.testing.assert_allclose(converted.affine, volume.affine, atol=1e-5)
    by_one_slice = read_volume(paths[3])
    np.testing.assert_array_equal(by_one_slice.array, volume.array)
    assert by_one_slice.provenance.sha256 == volume.provenance.sha256


def test_a_nrrd(shared_dir):
    volume = read_volume(shared_dir / "data" / "lung_tumor" / "lung1_image.nrrd")
    assert volume.shape == (512, 512, 48)
    np.testing.assert_allclose(
        volume.affine, [[-0.5703125, 0, 0, 146], [0, -0.5703125, 0, 325], [0, 0, 5, -777.5], [0, 0, 0, 1]]
    )
