import numpy as np
import pytest

from tests.phantoms import body, grid
from viscera.errors import ImageError
from viscera.io.validate import validated
from viscera.io.volume import Volume


def test_an_array_from_memory_passes_the_same_checks():
    volume = validated(Volume(body().astype(np.float64)[..., None], grid().astype(np.float32).tolist()))
    assert volume.array.dtype == np.int16 and volume.shape == (24, 20, 12)
    assert volume.affine.dtype == np.float64
    assert volume.provenance.notes == ("The shape (24, 20, 12, 1) was taken as (24, 20, 12).",)


def test_a_sound_volume_is_not_copied_and_validating_twice_changes_nothing():
    array = body()
    once = validated(Volume(array, grid()))
    assert once.array is array or np.shares_memory(once.array, array)
    array = np.where(array < -900, -2048, array).astype(np.float32) + np.float32(0.5)
    once = validated(Volume(array, grid()))
    twice = validated(once)
    assert twice.array is once.array or np.shares_memory(twice.array, once.array)
    assert twice.provenance == once.provenance and len(once.provenance.notes) == 1


def test_the_callers_array_is_never_changed():
    array = body().astype(np.float32)
    array[0, 0, 0], array[1, 0, 0] = np.nan, -3024
    before = array.copy()
    validated(Volume(array, grid()))
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (body()[0], grid(), "three axes"),
        (np.stack([body()] * 3, -1), grid(), "several volumes"),
        (np.zeros((0, 3, 3)), grid(), "at least one voxel"),
        (body() * 1j, grid(), "complex"),
        (np.array([[["a"]]]), grid(), "one real number a voxel"),
        (body(), np.zeros((4, 4)), "not 0 0 0 1|singular"),
        (body(), np.eye(3), "not a 4x4 matrix"),
        (body(), np.diag([1, 1, 1, 2]), "last row"),
        (body() > 0, grid(), "not Hounsfield units"),
    ],
)
def test_refused(array, affine, message):
    with pytest.raises(ImageError, match=message) as error:
        validated(Volume(array, affine))
    assert "<array>" in str(error.value)


@pytest.mark.parametrize(
    "affine",
    [
        grid(turn_degrees=(10, 20, 30)),
        grid(shear=0.5),
        np.diag([-1, 1, 1, 1]),  # left-handed
        np.array([[0, 0, 5, 1], [-1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1]]),
    ],
    ids=["oblique", "sheared", "left-handed", "permuted"],
)
def test_unusual_affines_are_fine(affine):
    np.testing.assert_array_equal(validated(Volume(body(), affine)).affine, affine)
