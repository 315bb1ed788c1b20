import errno
import os
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tests.phantoms import GRIDS, ORDERS, body, grid, nifti_file, overwrite, stored_as
from viscera.errors import OutputError
from viscera.io.atomic import whole_file
from viscera.io.labels import read_numbers
from viscera.io.read import read_volume
from viscera.io.volume import Volume
from viscera.io.write import write_image, write_label_map, write_probabilities

ENDINGS = [".nii.gz", ".nii", ".nrrd", ".mha"]
GEOMETRY_FIELDS = [
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units"),
]


def labels(shape=(24, 20, 12)):
    return np.random.default_rng(0).integers(0, 33, shape).astype(np.uint8)


# over a NIfTI source: geometry bit for bit


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (2, 1), (4, 3), (0, 0)])
@pytest.mark.parametrize("name", GRIDS)
def test_a_nifti_header_keeps_its_geometry_to_the_bit(tmp_path, ending, kind, codes, name):
    image = kind(body(), None)
    image.header.set_sform(GRIDS[name], code=codes[0])
    image.header.set_qform(grid(), code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4:] = 0, 2.5, 0, 0
    (tmp_path / "ct.nii").write_bytes(kind(body(), None, image.header).to_bytes())
    source = nib.load(tmp_path / "ct.nii")

    write_label_map(labels(), read_volume(tmp_path / "ct.nii"), tmp_path / f"seg{ending}")

    written = nib.load(tmp_path / f"seg{ending}")
    assert type(written) is kind and written.get_data_dtype() == np.uint8
    for field in GEOMETRY_FIELDS:
        assert written.header[field].tobytes() == source.header[field].tobytes(), field
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels())
    assert written.header.get_slope_inter() in ((1.0, 0.0), (None, None))


def test_a_scaled_big_endian_source_gives_unscaled_labels(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">u2"))
    nib.save(nib.Nifti1Image((body() + 1024).astype(">u2"), grid(), header), tmp_path / "ct.nii")
    overwrite(tmp_path / "ct.nii", 112, np.array([1, -1024], ">f4").tobytes())
    volume = read_volume(tmp_path / "ct.nii")
    np.testing.assert_array_equal(volume.array, body())
    for array in (labels(), labels().astype(np.uint16) * 300, body()):
        write_image(array, volume, tmp_path / "out.nii.gz")
        np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").get_fdata(), array)


def test_a_pair_and_a_squeezed_source_become_single_3d_files(tmp_path):
    for source in (nifti_file(tmp_path / "a.img"), nifti_file(tmp_path / "b.nii", body()[..., None])):
        write_label_map(labels(), read_volume(source), tmp_path / "seg.nii.gz")
        written = nib.load(tmp_path / "seg.nii.gz")
        assert written.shape == (24, 20, 12)
        np.testing.assert_array_equal(written.affine, nib.load(source).affine)


def test_a_header_that_no_longer_fits_is_not_used(tmp_path):
    volume = read_volume(nifti_file(tmp_path / "ct.nii"))
    moved = replace(volume, affine=GRIDS["oblique"])
    cut = replace(volume, array=volume.array[:5])
    for number, like in enumerate((moved, cut)):
        write_image(like.array, like, tmp_path / f"{number}.nii")
        again = read_volume(tmp_path / f"{number}.nii")
        np.testing.assert_array_equal(again.array, like.array)
        np.testing.assert_allclose(again.affine, like.affine, atol=1e-4)


def test_probabilities_are_read_as_numbers_from_0_to_1(tmp_path):
    volume = read_volume(nifti_file(tmp_path / "ct.nii"))
    levels = np.arange(volume.array.size, dtype=np.uint32).astype(np.uint8).reshape(volume.shape)
    write_probabilities(levels, volume, tmp_path / "p.nii.gz")
    written = nib.load(tmp_path / "p.nii.gz")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.get_fdata(), levels / 256)
    np.testing.assert_array_equal(read_numbers(tmp_path / "p.nii.gz").array, levels / 256)
    with pytest.raises(ValueError, match="uint8"):
        write_probabilities(levels.astype(np.float32), volume, tmp_path / "q.nii.gz")


# over every other source


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(("axes", "flips"), [ORDERS[0], ORDERS[13], ORDERS[38]])
def test_any_grid_goes_out_and_comes_back(tmp_path, ending, name, axes, flips):
    stored, affine = stored_as(body(), GRIDS[name], axes, flips)
    write_image(stored, Volume(stored, affine), tmp_path / f"ct{ending}")
    volume = read_volume(tmp_path / f"ct{ending}")
    np.testing.assert_array_equal(volume.array, stored)
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "oblique"])
def test_itk_sees_the_same_grid_in_all_endings(tmp_path, name):
    volume = Volume(body(), GRIDS[name])
    for ending in ENDINGS:
        write_label_map(labels(), volume, tmp_path / f"seg{ending}")
    first, *others = [sitk.ReadImage(tmp_path / f"seg{ending}") for ending in ENDINGS]
    for other in others:
        np.testing.assert_allclose(other.GetOrigin(), first.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(other.GetDirection(), first.GetDirection(), atol=1e-5)
        np.testing.assert_allclose(other.GetSpacing(), first.GetSpacing(), atol=1e-5)
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(other), labels().T)


def test_a_sheared_grid_is_said_by_the_sform_alone(tmp_path):
    write_label_map(labels(), Volume(body(), GRIDS["sheared"]), tmp_path / "seg.nii.gz")
    header = nib.load(tmp_path / "seg.nii.gz").header
    assert header["sform_code"] == 1 and header["qform_code"] == 0
    write_label_map(labels(), Volume(body(), GRIDS["oblique"]), tmp_path / "seg.nii.gz")
    header = nib.load(tmp_path / "seg.nii.gz").header
    assert header["sform_code"] == 1 and header["qform_code"] == 1
    np.testing.assert_allclose(header.get_qform(), GRIDS["oblique"], atol=1e-4)


def test_equal_labels_give_equal_files(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label_map(labels(), Volume(body(), grid()), tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_views_in_any_memory_order_are_written_right(tmp_path, monkeypatch):
    monkeypatch.setattr("viscera.io.nifti._SLAB", 5)  # several slabs, the last one thinner
    flipped = np.ascontiguousarray(labels()[:, ::-1, ::-1])[:, ::-1, ::-1]
    write_label_map(flipped, Volume(body(), grid()), tmp_path / "seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "seg.nii.gz").dataobj), labels())


def test_wrong_calls():
    volume = Volume(body(), grid())
    with pytest.raises(ValueError, match="the array has shape"):
        write_label_map(labels((2, 2, 2)), volume, "seg.nii.gz")
    with pytest.raises(ValueError, match="uint8 or uint16, not int16"):
        write_label_map(body(), volume, "seg.nii.gz")
    with pytest.raises(OutputError, match=r"use \.nii\.gz, \.nii, \.nrrd or \.mha"):
        write_label_map(labels(), volume, "seg.png")


# whole or not there


def test_the_file_appears_at_the_end_with_ordinary_rights(tmp_path):
    target = tmp_path / "new" / "folder" / "report.txt"
    with whole_file(target) as temporary:
        temporary.write_text("done")
        assert not target.exists() and temporary.parent == target.parent
    assert target.read_text() == "done"
    assert os.listdir(target.parent) == ["report.txt"]
    plain = tmp_path / "plain.txt"
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError, MemoryError])
def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, fault):
    target = tmp_path / "seg.nii.gz"
    target.write_text("old")
    with pytest.raises(fault), whole_file(target) as temporary:
        temporary.write_text("half")
        raise fault
    assert os.listdir(tmp_path) == ["seg.nii.gz"] and target.read_text() == "old"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk(tmp_path, ending, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_label_map(labels(), Volume(body(), grid()), tmp_path / f"seg{ending}")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a Linux device that is always full")
def test_a_disk_that_fills_up_while_writing(tmp_path):
    with pytest.raises(OutputError, match="No space left"), whole_file(tmp_path / "seg.nii.gz") as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(bytes(100))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_folder_that_is_a_file(tmp_path, ending):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        write_label_map(labels(), Volume(body(), grid()), tmp_path / "out" / f"seg{ending}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            write_label_map(labels(), Volume(body(), grid()), tmp_path / "seg.nii.gz")
    finally:
        tmp_path.chmod(0o700)
