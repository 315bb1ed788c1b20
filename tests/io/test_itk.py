import numpy as np
import pytest
import SimpleITK as sitk

from tests.phantoms import GRIDS, ORDERS, body, grid, stored_as
from viscera.errors import ImageError
from viscera.io.itk import write_itk
from viscera.io.orientation import to_ras
from viscera.io.read import read_volume
from viscera.io.stream import sha256_of_file
from viscera.io.volume import Volume

ENDINGS = ["nrrd", "nhdr", "mha", "mhd"]
FORMATS = {"nrrd": "NRRD", "nhdr": "NRRD", "mha": "MetaImage", "mhd": "MetaImage"}


def saved(path, array=None, affine=None, packed=False):
    """A file written by SimpleITK itself; the geometry is put into LPS here, by hand."""
    affine = grid() if affine is None else affine
    image = sitk.GetImageFromArray((body() if array is None else array).T, isVector=False)
    if image.GetDimension() == 3:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        flip = np.array([-1, -1, 1])
        image.SetSpacing(spacing)
        image.SetDirection((flip[:, None] * affine[:3, :3] / spacing).ravel())
        image.SetOrigin(flip * affine[:3, 3])
    sitk.WriteImage(image, path, packed)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", GRIDS)
def test_lps_files_come_out_in_ras(tmp_path, ending, name):
    volume = read_volume(saved(tmp_path / f"ct.{ending}", affine=GRIDS[name]))
    np.testing.assert_array_equal(volume.array, body())
    np.testing.assert_allclose(volume.affine, GRIDS[name], atol=1e-6)
    assert volume.provenance.format == FORMATS[ending] and volume.provenance.notes == ()
    assert volume.array.dtype == np.int16


@pytest.mark.parametrize(("axes", "flips"), ORDERS[::5])
def test_axis_orders_and_flips(tmp_path, axes, flips):
    stored, affine = stored_as(body(), GRIDS["oblique"], axes, flips)
    ras, ras_affine, _ = to_ras(read_volume(saved(tmp_path / "ct.nrrd", stored, affine)))
    np.testing.assert_array_equal(ras, body())
    np.testing.assert_allclose(ras_affine, GRIDS["oblique"], atol=1e-6)


def test_a_nrrd_in_its_own_ras_space(tmp_path):
    header = (
        "NRRD0005\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 24 20 12\n"
        "space directions: (3,0,0) (0,3.5,0) (0,1.5,5)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        "space origin: (-31,12.5,700)\n\n"
    )
    (tmp_path / "ct.nrrd").write_bytes(header.encode() + body().tobytes(order="F"))
    volume = read_volume(tmp_path / "ct.nrrd")
    np.testing.assert_array_equal(volume.array, body())
    np.testing.assert_allclose(volume.affine, [[3, 0, 0, -31], [0, 3.5, 1.5, 12.5], [0, 0, 5, 700], [0, 0, 0, 1]])


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_content_counts_not_the_name(tmp_path, ending):
    saved(tmp_path / f"ct.{ending}", packed=True).rename(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii.gz").array, body())


def test_a_file_without_orientation_is_read_and_told(tmp_path):
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 24 20 12\nspacings: 3 3.5 5\nendian: little\nencoding: raw\n\n"
    )
    (tmp_path / "ct.nrrd").write_bytes(header.encode() + body().tobytes(order="F"))
    header = (
        "NDims = 3\nDimSize = 24 20 12\nElementSpacing = 3 3.5 5\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "ct.mha").write_bytes(header.encode() + body().tobytes(order="F"))
    for name in ("ct.nrrd", "ct.mha"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_allclose(volume.affine, np.diag([-3, -3.5, 5, 1]))
        assert "left and right cannot be known" in volume.provenance.notes[0]


def test_the_digest_covers_a_data_file(tmp_path):
    one = read_volume(saved(tmp_path / "ct.mha"))
    assert one.provenance.sha256 == sha256_of_file(tmp_path / "ct.mha")
    for header in ("ct.mhd", "ct.nhdr"):
        path = saved(tmp_path / header)
        before = read_volume(path).provenance.sha256
        data = tmp_path / "ct.raw"
        content = bytearray(data.read_bytes())
        content[0] ^= 1
        data.write_bytes(content)
        assert read_volume(path).provenance.sha256 != before


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_squeezed_4d(tmp_path, ending):
    volume = read_volume(saved(tmp_path / f"ct.{ending}", body()[..., None]))
    np.testing.assert_array_equal(volume.array, body())
    assert volume.provenance.notes[0] == "The shape (24, 20, 12, 1) was taken as (24, 20, 12)."


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (sitk.GetImageFromArray(body()[:, :, 0].T), r"shape \(24, 20\); a CT volume has three axes"),
        (sitk.GetImageFromArray(np.stack([body()] * 2, -1).T, isVector=False), r"\(24, 20, 12, 2\): several volumes"),
        (sitk.Image((4, 4, 4), sitk.sitkVectorUInt8, 3), "holds 3 values"),
    ],
    ids=["2-D", "4-D", "RGB"],
)
def test_what_is_not_one_volume_of_numbers(tmp_path, ending, image, message):
    sitk.WriteImage(image, tmp_path / f"ct.{ending}")
    with pytest.raises(ImageError, match=message):
        read_volume(tmp_path / f"ct.{ending}")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_truncated(tmp_path, ending, packed, capfd):
    path = saved(tmp_path / f"ct.{ending}", packed=packed)
    data = path if ending in ("nrrd", "mha") else next(f for f in tmp_path.iterdir() if f != path)
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_volume(path)


def test_a_missing_data_file(tmp_path):
    path = saved(tmp_path / "ct.mhd")
    (tmp_path / "ct.raw").unlink()
    with pytest.raises(ImageError, match="its data file is missing"):
        read_volume(path)


@pytest.mark.parametrize("axes", ["73", "0", "-3", "many", "99999999999"])
def test_a_metaimage_whose_number_of_axes_would_crash_itk(tmp_path, axes):
    path = saved(tmp_path / "ct.mha")
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", b"NDims = " + axes.encode()))
    with pytest.raises(ImageError, match=f"NDims is '{axes}', not a number from 1 to 10"):
        read_volume(path)


def test_impossible_geometry(tmp_path):
    header = (
        "NRRD0005\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 24 20 12\n"
        "space directions: (3,0,0) (3,0,0) (0,0,5)\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    (tmp_path / "ct.nrrd").write_bytes(header.encode() + body().tobytes(order="F"))
    with pytest.raises(ImageError):
        read_volume(tmp_path / "ct.nrrd", force=True)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize("name", GRIDS)
def test_writing_and_reading_back(tmp_path, ending, name):
    write_itk(body(), Volume(body(), GRIDS[name]), tmp_path / f"ct.{ending}")
    volume = read_volume(tmp_path / f"ct.{ending}")
    np.testing.assert_array_equal(volume.array, body())
    np.testing.assert_allclose(volume.affine, GRIDS[name], atol=1e-9)
