import numpy as np
import pytest

from tests.phantoms import body
from viscera.errors import ImageError
from viscera.io.hounsfield import calibrated, compact, require_real


def noisy_body():
    """The body with image noise, so that no value is constant."""
    return (body((40, 36, 20)) + np.random.default_rng(0).normal(0, 12, (40, 36, 20))).astype(np.int16)


# compact


def test_int16_passes_through_untouched():
    array = body()
    assert compact(array)[0] is array


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "dtype"),
    [
        (np.uint16([0, 1024, 4095]), 1, -1024, np.int16),
        (np.int32([-1000, 0, 3000]), 1, 0, np.int16),
        (np.float64([-1000, 0, 3000]), 1, 0, np.int16),
        (np.int16([-100, 0, 300]), 10, 0, np.int16),
        (np.dtype(">i2").type([-1000, 0, 300]).astype(">i2"), 1, 0, np.int16),
        (np.uint16([0, 1024, 65535]), 1, 0, np.float32),  # beyond int16
        (np.float32([-1000, 0.5, 3000]), 1, 0, np.float32),
        (np.int16([-100, 1, 300]), 0.5, 0, np.float32),
        (np.float16([-1000, 0.5, 3000]), 1, 0, np.float32),
        (np.array([True, False, True]), 1, 0, np.int16),
    ],
)
def test_the_smallest_exact_type(stored, slope, intercept, dtype):
    stored = np.asarray(stored).reshape(1, 1, -1)
    array, notes = compact(stored, slope, intercept)
    assert array.dtype == dtype and array.dtype.isnative and notes == ()
    np.testing.assert_array_equal(array, stored.astype(np.float64) * slope + intercept)


def test_a_late_fraction_turns_the_whole_into_float(monkeypatch):
    monkeypatch.setattr("viscera.io.hounsfield._SLAB_VOXELS", 4)
    stored = np.arange(2 * 2 * 5, dtype=np.float64).reshape(2, 2, 5)
    stored[1, 1, 4] = 0.25
    array, _ = compact(stored)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, stored)


def test_missing_numbers_are_counted_and_become_air():
    stored = np.zeros((5, 5, 4), np.float32)
    stored[0, 0, 0], stored[1, 0, 0], stored[2, 0, 0] = np.nan, np.inf, -np.inf
    array, (note,) = compact(stored)
    assert array.dtype == np.int16
    assert array[:3, 0, 0].tolist() == [-1024] * 3 and np.count_nonzero(array) == 3
    assert note == "3 voxels (3 %) were NaN or infinite; they count as air."


def test_numbers_too_large_for_float32_count_as_infinite():
    array, (note,) = compact(np.full((1, 1, 2), 1e300))
    assert array.tolist() == [[[-1024, -1024]]] and note.startswith("2 voxels")


def test_float32_that_must_stay_is_not_copied():
    stored = np.float32([[[0.5, -1000]]])
    assert compact(stored)[0] is stored


def test_memory_order_is_kept():
    assert compact(np.zeros((3, 4, 5), np.uint16, order="F"))[0].flags.f_contiguous


@pytest.mark.parametrize(
    ("dtype", "what"), [(np.complex64, "complex"), ([("R", "u1"), ("G", "u1"), ("B", "u1")], "colours"), ("U3", "<U3")]
)
def test_voxels_that_are_no_real_numbers_are_refused(dtype, what):
    with pytest.raises(ImageError, match=rf"Each voxel of scan\.nii holds {what}"):
        require_real(np.dtype(dtype), "scan.nii")


# calibrated: a CT passes, faults are mended


def test_a_ct_passes_unchanged():
    array = noisy_body().clip(-1024)
    out, notes = calibrated(array, "ct")
    assert out is array and notes == ()


@pytest.mark.parametrize("padding", [-2000, -2048, -3024, -32768])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_padding_becomes_air(padding, dtype):
    array = noisy_body().clip(-1024).astype(dtype)
    array[:4] = padding
    before = array.copy()
    out, (note,) = calibrated(array, "ct")
    assert out.dtype == dtype
    assert (out[:4] == -1024).all()
    np.testing.assert_array_equal(out[4:], array[4:])
    np.testing.assert_array_equal(array, before)  # the caller's array is not touched
    assert note == f"10 % of the voxels lay below -1024 HU (down to {padding}); they count as air."


@pytest.mark.parametrize("padding", [None, -2000])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_missing_intercept_is_found_and_mended(padding, dtype):
    true = noisy_body().clip(-1024)
    stored = (true + 1024).astype(dtype)
    if padding is not None:  # as some scanners pad before the intercept is applied
        stored[:4], true[:4] = padding, -1024
    out, (note,) = calibrated(stored, "ct")
    np.testing.assert_array_equal(out, true)
    assert out.dtype == dtype and "1024 was subtracted" in note and "--force" in note


def test_force_keeps_the_numbers_as_they_are():
    stored = noisy_body().clip(-1024) + 1024
    out, notes = calibrated(stored, "ct", force=True)
    assert out is stored and notes == ()


# calibrated: what cannot be HU


def scaled(low, high):
    """The body linearly mapped from [-1000, 500] to [low, high]."""
    return ((noisy_body().clip(-1000, 500) + 1000) / 1500 * (high - low) + low).astype(np.float32)


NOT_HU = {
    "constant": (np.zeros((5, 5, 5), np.int16), "shows nothing: every voxel is 0"),
    "padding only": (
        np.where(np.eye(6)[:, :, None] > 0, -2000, -3024).astype(np.int16),
        "shows nothing: all is padding",
    ),
    "[0, 1]": (scaled(0, 1), r"run from 0 to 1: they were normalised .* \(upper - lower\) \+ lower"),
    "[-1, 1]": (scaled(-1, 1), "they were normalised"),
    "z-score": (scaled(-0.8, 3.9), "they were normalised"),
    "[0, 255]": (scaled(0, 255).astype(np.int16), r"run from 0 to 255: this is a grey-value picture in \[0, 255\]"),
    "label map": ((body() > 0) * np.int16(117), "label map"),
    "[0, 65535]": (scaled(0, 65535), "neither air .* nor fat"),
    "an MR": (np.abs(np.random.default_rng(1).normal(300, 250, (30, 30, 30))).astype(np.int16), "Is it MR or PET"),
}


@pytest.mark.parametrize("name", NOT_HU)
def test_what_cannot_be_hu_is_refused_unless_forced(name):
    array, message = NOT_HU[name]
    with pytest.raises(ImageError, match=message) as error:
        calibrated(array, "scan.nii")
    assert "scan.nii" in str(error.value) and "--force" in str(error.value)
    out, _ = calibrated(array, "scan.nii", force=True)
    np.testing.assert_array_equal(out, np.maximum(array, -1024))


def test_an_mr_with_dark_background_and_bright_tissue_is_not_taken_for_a_ct_without_intercept():
    generator = np.random.default_rng(2)
    mr = np.abs(generator.normal(15, 10, (40, 40, 40)))
    mr[8:32, 8:32, 8:32] = generator.normal(900, 350, (24, 24, 24)).clip(1)
    with pytest.raises(ImageError, match="Is it MR"):
        calibrated(mr.astype(np.int16), "mr.nii")


def test_a_soft_tissue_crop_with_some_fat_is_a_ct():
    crop = np.random.default_rng(3).normal(60, 20, (20, 20, 20))
    crop[:2] -= 150
    array = crop.astype(np.int16)
    assert calibrated(array, "crop")[0] is array


def test_a_windowed_ct_that_still_is_in_hu_passes():
    array = noisy_body().clip(-160, 240)
    assert calibrated(array, "windowed")[0] is array
