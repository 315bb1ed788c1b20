import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.phantoms import GRIDS, ORDERS, body, grid, nifti_file, overwrite, stored_as
from viscera.errors import ImageError
from viscera.io.orientation import to_ras
from viscera.io.read import read_volume
from viscera.io.stream import sha256_of_file

TAILS = [".nii", ".nii.gz", ".img"]


# what is read is right


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", GRIDS)
def test_array_and_affine_are_those_of_nibabel(tmp_path, name, tail):
    path = nifti_file(tmp_path / f"ct{tail}", affine=GRIDS[name])
    volume = read_volume(path)
    reference = nib.load(path)
    np.testing.assert_array_equal(volume.array, reference.get_fdata())
    np.testing.assert_array_equal(volume.affine, reference.affine)
    assert volume.array.dtype == np.int16
    assert volume.provenance.format == "NIfTI" and volume.provenance.notes == ()


@pytest.mark.parametrize(("axes", "flips"), ORDERS)
def test_all_axis_orders_and_flips_hold_the_same_anatomy(tmp_path, axes, flips):
    stored, affine = stored_as(body(), GRIDS["oblique"], axes, flips)
    ras, ras_affine, _ = to_ras(read_volume(nifti_file(tmp_path / "ct.nii", stored, affine)))
    np.testing.assert_array_equal(ras, body())
    np.testing.assert_allclose(ras_affine, GRIDS["oblique"], atol=1e-3)  # the file keeps float32


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("dtype", ["i2", "i4", "u2", "f4", "f8"])
def test_versions_byte_orders_and_types(tmp_path, kind, endianness, dtype):
    array = body().clip(0) if dtype == "u2" else body()
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(np.dtype(dtype))
    nib.save(kind(array.astype(dtype), grid(), header), tmp_path / "ct.nii.gz")
    volume = read_volume(tmp_path / "ct.nii.gz", force=dtype == "u2")
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == np.int16


def test_scaled_voxels(tmp_path):
    path = nifti_file(tmp_path / "ct.nii", (body() + 1024).astype(np.uint16))
    overwrite(path, 112, np.float32([1, -1024]).tobytes())  # scl_slope, scl_inter
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, body())
    assert volume.array.dtype == np.int16


def test_header_extensions_are_skipped(tmp_path):
    image = nib.Nifti1Image(body(), grid())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100))
    nib.save(image, tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "ct.nii.gz").array, body())


def test_content_counts_not_the_name(tmp_path):
    packed = nifti_file(tmp_path / "ct.nii.gz")
    plain = nifti_file(tmp_path / "ct.nii")
    shutil.copy(packed, tmp_path / "packed.nii")  # gzip without .gz
    shutil.copy(plain, tmp_path / "plain.nii.gz")  # .gz without gzip
    shutil.copy(packed, tmp_path / "anything")
    for name in ("packed.nii", "plain.nii.gz", "anything"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, body())


def test_gzip_in_several_members(tmp_path):
    content = nifti_file(tmp_path / "ct.nii").read_bytes()
    (tmp_path / "two.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    np.testing.assert_array_equal(read_volume(tmp_path / "two.nii.gz").array, body())


def test_a_pair_is_read_by_either_name_and_packed(tmp_path):
    nifti_file(tmp_path / "ct.img")
    for name in ("ct.hdr", "ct.img"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    wanted = read_volume(tmp_path / "ct.hdr")
    for name in ("ct.img", "ct.hdr.gz", "ct.img.gz"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, wanted.array)
    shutil.copy(tmp_path / "ct.hdr", tmp_path / "ct.nii")
    with pytest.raises(ImageError, match=r"is the header of an \.hdr/\.img pair but is not called \.hdr"):
        read_volume(tmp_path / "ct.nii")
    (tmp_path / "ct.img").unlink()
    (tmp_path / "ct.img.gz").unlink()
    with pytest.raises(ImageError, match=r"half of an \.hdr/\.img pair; its other half ct\.img is not beside it"):
        read_volume(tmp_path / "ct.hdr")


def test_provenance_has_the_digest_of_the_stored_file(tmp_path):
    for name in ("ct.nii", "ct.nii.gz"):
        path = nifti_file(tmp_path / name)
        provenance = read_volume(path).provenance
        assert provenance.sha256 == sha256_of_file(path) and provenance.path == str(path)
    assert len(read_volume(nifti_file(tmp_path / "ct.img")).provenance.sha256) == 64


# geometry in the header


def test_without_codes_the_spacing_counts_and_the_side_is_said_to_be_unknown(tmp_path):
    path = overwrite(nifti_file(tmp_path / "ct.nii"), 252, bytes(4))  # qform_code, sform_code
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine, np.diag([-3, -3.5, 5, 1]))
    (note,) = volume.provenance.notes
    assert "left and right cannot be known" in note


def test_analyze_counts_as_without_codes(tmp_path):
    nib.save(nib.AnalyzeImage(body(), np.diag([-3, 3.5, 5, 1])), tmp_path / "ct.img")
    volume = read_volume(tmp_path / "ct.hdr")
    np.testing.assert_array_equal(volume.array, body())
    np.testing.assert_allclose(volume.spacing_mm, (3, 3.5, 5))
    assert volume.provenance.format == "Analyze"
    assert "left and right cannot be known" in volume.provenance.notes[0]


def test_qform_alone(tmp_path):
    image = nib.Nifti1Image(body(), None)
    image.set_qform(GRIDS["oblique"], code=1)
    nib.save(image, tmp_path / "ct.nii")
    volume = read_volume(tmp_path / "ct.nii")
    np.testing.assert_allclose(volume.affine, GRIDS["oblique"], atol=1e-4)
    assert volume.provenance.notes == ()
    overwrite(tmp_path / "ct.nii", 76, np.float32([0]).tobytes())  # qfac 0 means 1
    np.testing.assert_array_equal(read_volume(tmp_path / "ct.nii").affine, volume.affine)


def test_sform_and_qform_that_disagree_are_noted(tmp_path):
    image = nib.Nifti1Image(body(), grid())
    image.set_qform(grid(origin_mm=(-31, 12.5, 650.0)), code=1)
    nib.save(image, tmp_path / "ct.nii")
    volume = read_volume(tmp_path / "ct.nii")
    np.testing.assert_allclose(volume.affine, grid())
    assert volume.provenance.notes == ("The header's sform and qform lie up to 50 mm apart; the sform was used.",)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 0.001)])
def test_units_other_than_mm_are_converted(tmp_path, unit, factor):
    affine = np.diag([1, 1, 1, factor]) @ grid() / factor
    image = nib.Nifti1Image(body(), affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "ct.nii")
    volume = read_volume(tmp_path / "ct.nii")
    np.testing.assert_allclose(volume.affine, grid(), rtol=1e-5)
    assert unit in volume.provenance.notes[0]


def test_axes_of_length_one_behind_the_third_are_dropped(tmp_path):
    volume = read_volume(nifti_file(tmp_path / "ct.nii", body()[..., None]))
    np.testing.assert_array_equal(volume.array, body())
    assert volume.provenance.notes == ("The shape (24, 20, 12, 1) was taken as (24, 20, 12).",)


@pytest.mark.parametrize("slices", [1, 2, 3])
@pytest.mark.parametrize("thickness_mm", [0.3, 10.0])
def test_few_slices_thin_and_thick(tmp_path, slices, thickness_mm):
    volume = read_volume(nifti_file(tmp_path / "ct.nii", body()[..., :slices], grid((0.3, 0.3, thickness_mm))))
    np.testing.assert_array_equal(volume.array, body()[..., :slices])
    np.testing.assert_allclose(volume.spacing_mm, (0.3, 0.3, thickness_mm), rtol=1e-6)


def test_missing_numbers_are_told(tmp_path):
    array = body().astype(np.float32)
    array[0, 0, :7] = np.nan
    volume = read_volume(nifti_file(tmp_path / "ct.nii.gz", array))
    assert (volume.array[0, 0, :7] == -1024).all()
    assert volume.provenance.notes[0].startswith("7 voxels (0.12 %) were NaN or infinite")


# what cannot be read is refused, with the reason


def sform(path, affine):
    return overwrite(path, 280, np.float32(affine)[:3].tobytes())


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.zeros((4, 4)), r"singular: .* \(spacing 0 x 0 x 0 mm\)"),
        (np.diag([1, 1, 0, 1]), "singular"),
        (np.array([[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]), "singular"),
        (np.full((4, 4), np.nan), "not a 4x4 matrix of finite numbers"),
        (np.diag([60, 1, 1, 1]), "measure 60 x 1 x 1 mm; each side must lie between 0.01 and 50.0 mm"),
        (np.diag([0.001, 0.001, 0.001, 1]), "measure 0.001"),
    ],
    ids=["zero", "flat", "parallel", "nan", "huge", "tiny"],
)
@pytest.mark.parametrize("force", [False, True])
def test_impossible_affines(tmp_path, affine, message, force):
    path = sform(nifti_file(tmp_path / "ct.nii"), affine)
    with pytest.raises(ImageError, match=message):
        read_volume(path, force=force)


def test_zero_spacing_without_codes(tmp_path):
    path = overwrite(nifti_file(tmp_path / "ct.nii"), 252, bytes(4))  # qform_code, sform_code
    overwrite(path, 80, np.float32([0, 0, 0]).tobytes())  # pixdim
    with pytest.raises(ImageError, match="singular"):
        read_volume(path)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (body()[:, :, 0], r"shape \(24, 20\); a CT volume has three axes"),
        (np.stack([body(), body()], axis=-1), r"shape \(24, 20, 12, 2\): several volumes in one"),
        (body().astype(np.complex64), "complex numbers"),
        (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours"),
    ],
    ids=["2-D", "4-D", "complex", "RGB"],
)
def test_what_is_not_one_volume_of_numbers(tmp_path, array, message, force):
    with pytest.raises(ImageError, match=message):
        read_volume(nifti_file(tmp_path / "ct.nii", array), force=force)


@pytest.mark.parametrize("tail", [".nii", ".nii.gz", ".img"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_truncated(tmp_path, tail, part):
    path = nifti_file(tmp_path / f"ct{tail}", np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20), np.int16))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ImageError, match="truncated") as error:
        read_volume(path)
    assert str(path) in str(error.value)


def test_a_header_that_announces_more_than_a_file_can_hold_allocates_nothing(tmp_path):
    path = nifti_file(tmp_path / "ct.nii")
    overwrite(path, 42, np.int16([32767, 32767, 32767]).tobytes())  # 70 TB
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("ct.nii", "ct.nii.gz"):
        with pytest.raises(ImageError, match="truncated"):
            read_volume(tmp_path / name)


def test_damaged_gzip(tmp_path):
    path = nifti_file(tmp_path / "ct.nii.gz", np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20), np.int16))
    content = bytearray(path.read_bytes())
    content[5000:5100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(ImageError, match="damaged"):
        read_volume(path)


def test_damaged_header(tmp_path):
    path = overwrite(nifti_file(tmp_path / "ct.nii"), 70, np.int16([9999]).tobytes())  # datatype
    with pytest.raises(ImageError, match="damaged header"):
        read_volume(path)


def test_no_image_at_all(tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "text.nii").write_text("Dear radiologist, please find the scan attached.\n" * 40)
    (tmp_path / "packed.nii.gz").write_bytes(gzip.compress(b"nothing of interest" * 40))
    (tmp_path / "folder").mkdir()
    for name, message in [
        ("missing.nii.gz", "does not exist"),
        ("empty.nii.gz", "is empty"),
        ("text.nii", "is no image viscera knows. It reads NIfTI"),
        ("packed.nii.gz", "is no image viscera knows"),
        ("folder", "holds no images of a DICOM scan"),
    ]:
        with pytest.raises(ImageError, match=message) as error:
            read_volume(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


def test_an_unreadable_file(tmp_path):
    path = nifti_file(tmp_path / "ct.nii")
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(ImageError, match="cannot be read: Permission denied"):
            read_volume(path)
    else:
        pytest.skip("this user may read everything")


def test_implausible_numbers_are_refused_at_the_door_unless_forced(tmp_path):
    path = nifti_file(tmp_path / "ct.nii", (body() + 1000).clip(0, 255).astype(np.uint8))
    with pytest.raises(ImageError, match="grey-value picture"):
        read_volume(path)
    assert read_volume(path, force=True).array.max() == 255
