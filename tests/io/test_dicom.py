import shutil
import zipfile

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from tests.io.dicom_phantom import dicom_series, enhanced_ct, lps_body
from tests.phantoms import GRIDS, ORDERS, body, stored_as
from viscera.errors import ImageError
from viscera.io.dicom.files import parsed
from viscera.io.dicom.pixels import stored_pixels
from viscera.io.orientation import to_ras
from viscera.io.read import list_series, read_volume

ARRAY, AFFINE = lps_body()


def assert_is_the_body(volume):
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


# what is read is right


def test_a_series(tmp_path):
    volume = read_volume(dicom_series(tmp_path / "ct"))
    assert_is_the_body(volume)
    assert volume.array.dtype == np.int16 and volume.array.flags.f_contiguous
    provenance = volume.provenance
    assert (provenance.format, provenance.modality, provenance.notes) == ("DICOM", "CT", ())


@pytest.mark.parametrize(("axes", "flips"), ORDERS[::3])
def test_any_orientation_holds_the_same_anatomy(tmp_path, axes, flips):
    stored, affine = stored_as(body(), GRIDS["oblique"], axes, flips)
    ras, ras_affine, _ = to_ras(read_volume(dicom_series(tmp_path / "ct", stored, affine)))
    np.testing.assert_array_equal(ras, body())
    np.testing.assert_allclose(ras_affine, GRIDS["oblique"], atol=1e-4)


def test_the_same_grid_as_itk(tmp_path):
    folder = dicom_series(tmp_path / "ct")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(reader.Execute(), tmp_path / "ct.nii")
    ours, theirs = read_volume(folder), read_volume(tmp_path / "ct.nii")
    np.testing.assert_array_equal(ours.array, theirs.array)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)


def test_the_digest_depends_on_the_slices_not_on_their_names(tmp_path):
    dicom_series(tmp_path / "a" / "sub")
    dicom_series(tmp_path / "b")
    for number, path in enumerate(sorted((tmp_path / "b").iterdir())):
        path.rename(path.with_name(f"{number}.dcm"))
    dicom_series(tmp_path / "c", edit=lambda dataset, z: dataset.update({"PatientName": "X"} if z == 3 else {}))
    a, b, c = (read_volume(tmp_path / name).provenance.sha256 for name in "abc")
    assert a == b != c and len(a) == 64


def test_other_files_in_the_folder_do_not_matter(tmp_path):
    folder = dicom_series(tmp_path / "ct")
    (folder / "README.txt").write_text("hello")
    (folder / ".DS_Store").write_bytes(bytes(128) + b"DICM" + b"no dicom at all")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "starts_like_one").write_bytes(b"\x08\x00\x05\x00 but is none")
    (folder / "empty").touch()
    assert_is_the_body(read_volume(folder))


def without_preamble(path, dataset):
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    path.write_bytes(path.read_bytes()[132:])


def without_any_meta(implicit, little):
    def save(path, dataset):
        del dataset.file_meta
        if not little:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little)

    return save


def deflated(path, dataset):
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def run_length(path, dataset):
    dataset.compress(RLELossless)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def jpeg(compressor):
    def save(path, dataset):
        """The pixels encoded by GDCM, put back under the header."""
        image = sitk.GetImageFromArray(dataset.pixel_array)
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.Execute(image)
        encoded = pydicom.dcmread(path)
        assert encoded.file_meta.TransferSyntaxUID.is_encapsulated
        dataset["PixelData"] = encoded["PixelData"]
        dataset.file_meta.TransferSyntaxUID = encoded.file_meta.TransferSyntaxUID
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)

    return save


@pytest.mark.parametrize(
    "save",
    [
        without_preamble,
        without_any_meta(True, True),
        without_any_meta(False, True),
        without_any_meta(False, False),
        deflated,
        run_length,
        jpeg("JPEG"),
        jpeg("JPEG2000"),
    ],
    ids=["no preamble", "implicit", "explicit", "big endian", "deflated", "RLE", "JPEG lossless", "JPEG 2000"],
)
def test_encodings(tmp_path, save):
    assert_is_the_body(read_volume(dicom_series(tmp_path / "ct", save=save)))


@pytest.mark.parametrize(
    ("packed", "plain"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("rtdose_rle.dcm", "rtdose.dcm"),
    ],
)
def test_files_of_other_makers_decode_to_the_same_numbers(packed, plain):
    packed, plain = (get_testdata_file(name, download=False) for name in (packed, plain))
    with open(packed, "rb") as a, open(plain, "rb") as b:
        pixels = stored_pixels(a.read(), "packed").frames
        wanted = stored_pixels(b.read(), "plain").frames
    assert pixels.ndim == 3
    np.testing.assert_array_equal(pixels, wanted)


def test_a_ct_of_another_maker():
    volume = read_volume(get_testdata_file("CT_small.dcm", download=False))
    assert volume.shape == (128, 128, 1)
    np.testing.assert_allclose(volume.spacing_mm, (0.661468, 0.661468, 5), rtol=1e-6)
    assert volume.array.min() >= -1024 and volume.array.max() > 500


def test_lossy_compression_is_told(tmp_path):
    def mark(dataset, z):
        dataset.LossyImageCompression = "01"

    (note,) = read_volume(dicom_series(tmp_path / "ct", edit=mark)).provenance.notes
    assert note == "Files whose pixels were compressed with loss before viscera got them: 12."


@pytest.mark.parametrize("order", [list(range(12)), list(range(11, -1, -1))])
def test_enhanced_multi_frame(tmp_path, order):
    volume = read_volume(enhanced_ct(tmp_path / "ct.dcm", ARRAY, AFFINE, order))
    assert_is_the_body(volume)


def test_frames_that_are_not_described(tmp_path):
    path = enhanced_ct(tmp_path / "ct.dcm", ARRAY, AFFINE, list(range(12)))
    dataset = pydicom.dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence[-1]
    dataset.save_as(path)
    with pytest.raises(ImageError, match="holds 12 frames, but says of 11 where they lie"):
        read_volume(path)


def test_one_slice_file_stands_for_its_series(tmp_path):
    folder = dicom_series(tmp_path / "ct")
    dicom_series(tmp_path / "ct", series_uid="1.2.3.5")
    dicom_series(tmp_path / "ct" / "deeper", series_uid="1.2.3.4", skip=(0, 1))
    path = sorted(folder.glob("IM*_.4"))[3]
    volume = read_volume(path)
    assert_is_the_body(volume)
    assert volume.provenance.notes == (f"{path.name} is one slice of a series; all 12 slices in its folder were read.",)


def test_one_slice_alone(tmp_path):
    folder = dicom_series(tmp_path / "ct", skip=tuple(range(1, 12)))
    for path in (folder, *folder.iterdir()):
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, ARRAY[:, :, :1])
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
        assert volume.provenance.notes == ("A single slice; its thickness of 5 mm was taken as the spacing.",)


# intensities


def test_missing_rescale_is_noticed_by_the_numbers(tmp_path):
    def drop(dataset, z):
        del dataset.RescaleSlope, dataset.RescaleIntercept

    volume = read_volume(dicom_series(tmp_path / "ct", edit=drop))
    assert_is_the_body(volume)
    assert "1024 was subtracted" in volume.provenance.notes[0]


def test_only_the_slope_missing(tmp_path):
    assert_is_the_body(read_volume(dicom_series(tmp_path / "ct", edit=lambda d, z: d.pop("RescaleSlope"))))


def test_slices_of_different_scales(tmp_path):
    def halve(dataset, z):
        if z % 2:
            dataset.RescaleSlope, dataset.RescaleIntercept = 0.5, -512
            dataset.RescaleIntercept = -512

    volume = read_volume(dicom_series(tmp_path / "ct", edit=halve))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[:, :, 0], ARRAY[:, :, 0])
    np.testing.assert_array_equal(volume.array[:, :, 1], ARRAY[:, :, 1] // 2)


def test_an_unsigned_padding_value_is_air(tmp_path):
    def pad(dataset, z):
        pixels = np.frombuffer(dataset.PixelData, "<u2").copy()
        pixels[:5] = 63536  # -2000 read as unsigned
        dataset.PixelData, dataset.PixelPaddingValue = pixels.tobytes(), 63536

    volume = read_volume(dicom_series(tmp_path / "ct", edit=pad))
    assert (volume.array[:5, 0] == -1024).all() and volume.array.max() == 500 and volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[:, 1:], ARRAY[:, 1:])
    assert volume.provenance.notes[0].endswith("count as air: 60.")


# which series


def describe(text):
    return lambda dataset, z: setattr(dataset, "SeriesDescription", text)


@pytest.fixture
def two_series(tmp_path):
    dicom_series(tmp_path, edit=describe("Arterial 5.0"), series_uid="1.2.30")
    dicom_series(tmp_path / "more", edit=describe("Venous 5.0"), series_uid="1.2.31", skip=(11,))
    return tmp_path


def test_several_series_are_listed(two_series):
    arterial, venous = list_series(two_series)
    assert (arterial.number, arterial.uid, arterial.description, arterial.slices) == (1, "1.2.30", "Arterial 5.0", 12)
    assert (venous.modality, venous.slices, venous.spacing_mm, venous.thickness_mm) == ("CT", 11, (3.5, 3.0), 5.0)
    with pytest.raises(ImageError) as error:
        read_volume(two_series)
    message = str(error.value)
    assert "holds 2 DICOM series; choose one with --series" in message
    assert "1  CT  Arterial 5.0  12 slices of 3.5 x 3 mm, 5 mm thick  1.2.30" in message
    assert "2  CT  Venous 5.0  11 slices" in message


@pytest.mark.parametrize("wanted", ["2", "1.2.31", "venous", "Venous 5.0"])
def test_a_series_by_number_uid_or_description(two_series, wanted):
    assert read_volume(two_series, series=wanted).shape == (24, 20, 11)


@pytest.mark.parametrize(("wanted", "fits"), [("5.0", "2 series"), ("delayed", "no series"), ("3", "no series")])
def test_a_choice_that_is_not_clear(two_series, wanted, fits):
    with pytest.raises(ImageError, match=f"--series '{wanted}' fits {fits} of") as error:
        read_volume(two_series, series=wanted)
    assert "1.2.30" in str(error.value) and "1.2.31" in str(error.value)


def test_series_without_uids_are_told_apart_by_their_descriptions(tmp_path):
    dicom_series(tmp_path / "a", edit=describe("Arterial"), series_uid="")
    dicom_series(tmp_path / "b", edit=describe("Venous"), series_uid="")
    assert [one.description for one in list_series(tmp_path)] == ["Arterial", "Venous"]
    assert_is_the_body(read_volume(tmp_path, series="venous"))


def test_localizers_and_secondary_captures_are_left_out(tmp_path):
    def localizer(dataset, z):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    def capture(dataset, z):
        dataset.SOPClassUID = SecondaryCaptureImageStorage

    def report(dataset, z):
        del dataset.Rows, dataset.Columns, dataset.PixelData
        dataset.Modality = "SR"

    dicom_series(tmp_path / "a")
    only_one = tuple(range(1, 12))
    dicom_series(tmp_path / "b", edit=localizer, series_uid="1.2.3.5", skip=only_one)
    dicom_series(tmp_path / "c", edit=capture, series_uid="1.2.3.6", skip=only_one)
    dicom_series(tmp_path / "d", edit=report, series_uid="1.2.3.7", skip=only_one)
    volume = read_volume(tmp_path)
    assert_is_the_body(volume)
    assert volume.provenance.notes == ("Left out: 1 x localizer, 1 x object without an image, 1 x secondary capture.",)
    with pytest.raises(ImageError, match="holds no images of a DICOM scan: 1 x localizer"):
        read_volume(tmp_path / "b")


def test_a_localizer_under_the_same_uid(tmp_path):
    def localizer(dataset, z):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    dicom_series(tmp_path)
    dicom_series(tmp_path / "b", edit=localizer, skip=tuple(range(1, 12)))
    assert_is_the_body(read_volume(tmp_path))


def test_planes_of_another_shape_under_the_same_uid_are_a_series_of_their_own(tmp_path):
    dicom_series(tmp_path / "a")
    dicom_series(tmp_path / "b", ARRAY[:, :10], AFFINE)
    with pytest.raises(ImageError, match="holds 2 DICOM series"):
        read_volume(tmp_path)
    assert_is_the_body(read_volume(tmp_path, series="1"))


def test_planes_of_another_direction_under_the_same_uid_are_a_series_of_their_own(tmp_path):
    def scout(dataset, z):
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    dicom_series(tmp_path / "a")
    dicom_series(tmp_path / "b", edit=scout, skip=tuple(range(1, 12)))
    assert [one.slices for one in list_series(tmp_path)] == [12, 1]


def set_modality(modality):
    return lambda dataset, z: setattr(dataset, "Modality", modality)


def test_other_modalities_are_refused_unless_forced(tmp_path):
    folder = dicom_series(tmp_path / "ct", edit=set_modality("MR"))
    with pytest.raises(ImageError, match="is not a CT: its modality is MR"):
        read_volume(folder)
    volume = read_volume(folder, force=True)
    assert_is_the_body(volume)
    assert volume.provenance.modality == "MR" and "because of --force" in volume.provenance.notes[0]


def test_the_only_ct_among_other_modalities_is_taken(tmp_path):
    dicom_series(tmp_path / "a", edit=set_modality("PT"), series_uid="1.2.3.5")
    dicom_series(tmp_path / "b")
    volume = read_volume(tmp_path)
    assert_is_the_body(volume)
    assert volume.provenance.notes == ("1 other series without CT images left out (PT).",)


# geometry


def test_missing_slices_are_refused_with_their_places(tmp_path):
    folder = dicom_series(tmp_path / "ct", skip=(3, 7, 8))
    with pytest.raises(ImageError, match="3 slices missing") as error:
        read_volume(folder)
    # slices lie 5 mm apart from 700 mm upwards
    assert "between 710.00 and 720.00 mm, between 730.00 and 745.00 mm" in str(error.value)
    assert "--force" in str(error.value)


def test_missing_slices_are_interpolated_by_force_and_the_grid_stays_true(tmp_path):
    volume = read_volume(dicom_series(tmp_path / "ct", skip=(3, 7, 8)), force=True)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    present = [0, 1, 2, 4, 5, 6, 9, 10, 11]
    np.testing.assert_array_equal(volume.array[:, :, present], ARRAY[:, :, present])
    wide = ARRAY.astype(float)
    np.testing.assert_array_equal(volume.array[:, :, 3], np.rint((wide[:, :, 2] + wide[:, :, 4]) / 2))
    np.testing.assert_array_equal(volume.array[:, :, 7], np.rint(wide[:, :, 6] * 2 / 3 + wide[:, :, 9] / 3))
    assert volume.array.dtype == np.int16
    assert "3 of 12 slices were interpolated because of --force" in volume.provenance.notes[0]


def test_more_missing_than_there_is_is_never_filled(tmp_path):
    folder = dicom_series(tmp_path / "ct", skip=(2, 3, 4, 5, 6, 7, 8, 9))
    with pytest.raises(ImageError, match=r"8 slices missing between .* More is missing than there is"):
        read_volume(folder, force=True)


def test_slices_that_are_there_stay_as_they_are_beside_interpolated_ones(tmp_path):
    shifts = {4: 0.04, 5: -0.04, 9: 0.3}
    volume = read_volume(dicom_series(tmp_path / "ct", skip=(3,), edit=move(shifts)), force=True)
    np.testing.assert_array_equal(np.delete(volume.array, 3, axis=2), np.delete(ARRAY, 3, axis=2))


def move(shift_mm):
    """Slices moved along z by ``shift_mm[z]``."""

    def edit(dataset, z):
        x, y, old = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, old + shift_mm.get(z, 0)]

    return edit


def test_a_rounding_of_positions_is_taken_silently_a_little_more_is_told(tmp_path):
    volume = read_volume(dicom_series(tmp_path / "a", edit=move({4: 0.04, 5: -0.04})))
    assert_is_the_body(volume)
    assert volume.provenance.notes == ()
    volume = read_volume(dicom_series(tmp_path / "b", edit=move({4: 0.3})))
    assert_is_the_body(volume)
    assert volume.provenance.notes == (
        "The slices are not quite evenly spaced (up to 6.0% of 5 mm off); taken as even.",
    )


def test_uneven_spacing_is_refused(tmp_path):
    folder = dicom_series(tmp_path / "ct", edit=move({z: -2 * (z - 6) for z in range(7, 12)}))  # 5 mm, then 3 mm
    with pytest.raises(ImageError, match=r"unevenly spaced \(3 to 5 mm apart\)"):
        read_volume(folder)
    volume = read_volume(folder, force=True)
    # 6 steps of 5 mm and 5 of 3 mm make 45 mm: 9 steps of 5 mm
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.shape == (24, 20, 10)
    np.testing.assert_array_equal(volume.array[:, :, :7], ARRAY[:, :, :7])
    between = ARRAY[:, :, 7] / 3 + ARRAY[:, :, 8] * 2 / 3  # 735 mm lies 2/3 of the way from 733 to 736
    np.testing.assert_array_equal(volume.array[:, :, 7], np.rint(between))


def test_slices_given_twice(tmp_path):
    dicom_series(tmp_path)
    dicom_series(tmp_path / "again", skip=tuple(range(2, 12)))
    volume = read_volume(tmp_path)
    assert_is_the_body(volume)
    assert volume.provenance.notes == ("Slices given twice with equal pixels, counted once: 2.",)


def test_two_phases_in_one_series_are_refused(tmp_path):
    dicom_series(tmp_path)
    dicom_series(tmp_path / "again", ARRAY + 5, AFFINE, skip=tuple(range(2, 12)))
    with pytest.raises(ImageError, match=r"different slices at the same place .* several phases"):
        read_volume(tmp_path)


def test_gantry_tilt_keeps_the_grid_sheared(tmp_path):
    array, affine = lps_body(GRIDS["sheared"])
    volume = read_volume(dicom_series(tmp_path / "ct", array, affine))
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    # the slices lean by 0.3: atan(0.3) = 16.7 degrees
    assert "The gantry was tilted: slices lie 16.7 degrees off their normal" in volume.provenance.notes[0]


@pytest.mark.parametrize("force", [False, True])
def test_slices_shifted_sideways_are_no_volume(tmp_path, force):
    def shift(dataset, z):
        if z == 5:
            dataset.ImagePositionPatient[0] += 2

    with pytest.raises(ImageError, match=r"do not lie on one line: the one at 725\.00 mm is 2\.00 mm off"):
        read_volume(dicom_series(tmp_path / "ct", edit=shift), force=force)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_slices_that_do_not_say_where_they_lie(tmp_path, keyword, how, force):
    def drop(dataset, z):
        if how == "absent":
            del dataset[keyword]
        else:
            setattr(dataset, keyword, None)

    with pytest.raises(ImageError, match=f"has no usable {keyword}"):
        read_volume(dicom_series(tmp_path / "ct", edit=drop), force=force)


def test_an_orientation_that_is_none(tmp_path):
    def flatten(dataset, z):
        dataset.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]

    with pytest.raises(ImageError, match="no pair of unit vectors"):
        read_volume(dicom_series(tmp_path / "ct", edit=flatten))


# damage


def test_a_truncated_slice(tmp_path):
    folder = dicom_series(tmp_path / "ct")
    victim = sorted(folder.iterdir())[4]
    victim.write_bytes(victim.read_bytes()[:-200])
    with pytest.raises(ImageError, match="truncated or damaged") as error:
        read_volume(folder)
    assert victim.name in str(error.value)


def test_a_slice_cut_before_its_pixels(tmp_path):
    folder = dicom_series(tmp_path / "ct")
    victim = sorted(folder.iterdir())[4]
    pixels = pydicom.dcmread(victim).PixelData
    victim.write_bytes(victim.read_bytes()[: -len(pixels) - 12])
    with pytest.raises(ImageError, match="holds no pixels"):
        read_volume(folder)


def test_a_compression_nobody_decodes_is_named(tmp_path):
    def save(path, dataset):
        jpeg("JPEG2000")(path, dataset)
        dataset.file_meta.TransferSyntaxUID = MPEG2MPML
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)

    with pytest.raises(ImageError, match=r"\(1\.2\.840\.10008\.1\.2\.4\.100\), cannot be decoded") as error:
        read_volume(dicom_series(tmp_path / "ct", save=save))
    assert "gdcmconv --raw" in str(error.value)


def test_a_damaged_compressed_slice(tmp_path, capfd):
    def save(path, dataset):
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PixelData = pydicom.encaps.encapsulate([b"no jpeg at all!!"])
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)

    with pytest.raises(ImageError, match="cannot be decoded"):
        read_volume(dicom_series(tmp_path / "ct", save=save))


def test_what_pydicom_raises_is_told_as_damage(tmp_path):
    class Broken:
        def read(self, *_):
            raise ZeroDivisionError("deep inside")

    with pytest.raises(ImageError, match="x is a damaged DICOM file"):
        parsed(Broken(), "x")


# zip archives


def zipped(path, folder, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, prefix + file.name)
    return path


def test_a_zip_with_clutter(tmp_path):
    path = zipped(tmp_path / "ct.bin", dicom_series(tmp_path / "ct"), "study/series/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/study/series/._IM0000_.4", bytes(128) + b"DICM" + b"resource fork")
        archive.writestr("__MACOSX/IM0000", bytes(128) + b"DICM" + b"resource fork")
        archive.writestr("study/series/.DS_Store", b"x")
        archive.writestr("study/empty/", b"")
        archive.writestr("README.txt", b"x")
    shutil.rmtree(tmp_path / "ct")
    volume = read_volume(path)
    assert_is_the_body(volume)
    assert volume.provenance.path == str(path) and volume.provenance.notes == ()
    assert [one.slices for one in list_series(path)] == [12]


def test_the_digest_of_a_zip_is_that_of_its_slices(tmp_path):
    folder = dicom_series(tmp_path / "ct")
    assert read_volume(zipped(tmp_path / "ct.zip", folder)).provenance.sha256 == read_volume(folder).provenance.sha256


def test_members_that_point_outside_are_read_in_memory_only(tmp_path):
    (tmp_path / "in").mkdir()
    path = zipped(tmp_path / "in" / "ct.zip", dicom_series(tmp_path / "ct"), "../outside/")
    shutil.rmtree(tmp_path / "ct")
    before = sorted(tmp_path.rglob("*"))
    assert_is_the_body(read_volume(path))
    assert sorted(tmp_path.rglob("*")) == before and not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("limit", "value"), [("_ZIP_MAX_MEMBERS", 11), ("_ZIP_MAX_BYTES", 10_000), ("_ZIP_MAX_MEMBER_BYTES", 500)]
)
def test_zip_bombs(tmp_path, monkeypatch, limit, value):
    monkeypatch.setattr(f"viscera.io.dicom.files.{limit}", value)
    with pytest.raises(ImageError, match="more than a CT series can need"):
        read_volume(zipped(tmp_path / "ct.zip", dicom_series(tmp_path / "ct")))


def test_a_damaged_zip(tmp_path):
    path = zipped(tmp_path / "ct.zip", dicom_series(tmp_path / "ct"))
    content = bytearray(path.read_bytes())
    content[200:230] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(ImageError, match="damaged"):
        read_volume(path)


def test_a_protected_zip(tmp_path):
    path = zipped(tmp_path / "ct.zip", dicom_series(tmp_path / "ct", skip=tuple(range(1, 12))))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag "encrypted" in the central directory
    path.write_bytes(content)
    with pytest.raises(ImageError, match="password"):
        read_volume(path)


def test_a_zip_without_dicom(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(ImageError, match="holds no images of a DICOM scan"):
        read_volume(tmp_path / "x.zip")
