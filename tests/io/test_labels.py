import numpy as np
import pytest

from tests.phantoms import grid, nifti_file, overwrite
from viscera.errors import ImageError
from viscera.io.labels import read_labels, read_numbers
from viscera.io.volume import Volume
from viscera.io.write import write_image


@pytest.mark.parametrize(
    ("highest", "stored", "wanted"),
    [(1, np.float64, np.uint8), (255, np.int16, np.uint8), (256, np.int16, np.uint16), (70000, np.int32, np.uint32)],
)
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_the_smallest_type_that_holds_the_labels(tmp_path, highest, stored, wanted, ending):
    array = np.zeros((4, 5, 6), stored)
    array[1, 2, 3] = highest
    write_image(array, Volume(array, grid()), tmp_path / f"labels{ending}")
    volume = read_labels(tmp_path / f"labels{ending}")
    assert volume.array.dtype == wanted
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, grid(), atol=1e-5)


@pytest.mark.parametrize(
    ("value", "message"), [(0.5, "holds fractions"), (-1, "negative"), (np.nan, "negative or missing")]
)
def test_what_is_no_label_map(tmp_path, value, message):
    with pytest.raises(ImageError, match=message):
        read_labels(nifti_file(tmp_path / "labels.nii", np.full((3, 3, 3), value, np.float32)))


def test_numbers_are_left_as_they_are(tmp_path):
    probabilities = np.linspace(0, 1, 27, dtype=np.float32).reshape(3, 3, 3)
    volume = read_numbers(nifti_file(tmp_path / "p.nii", probabilities))
    np.testing.assert_array_equal(volume.array, probabilities)


def test_what_is_no_image_file(tmp_path):
    (tmp_path / "x.txt").write_text("text")
    (tmp_path / "empty.nii").touch()
    for name, message in (
        ("x.txt", "is no NIfTI"),
        ("missing.nii", "is no NIfTI"),
        ("", "is no NIfTI"),
        ("empty.nii", "empty"),
    ):
        with pytest.raises(ImageError, match=message):
            read_numbers(tmp_path / name)
    flat = overwrite(nifti_file(tmp_path / "flat.nii", np.zeros((3, 3, 3), np.uint8)), 312, bytes(16))  # srow_z
    with pytest.raises(ImageError, match="singular"):
        read_labels(flat)
