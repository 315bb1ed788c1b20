"""Whatever happens to the bytes of a header: the file is read, or refused in a sentence; nothing else comes out."""

import hypothesis.strategies as st
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings

from tests.io.dicom_phantom import dicom_series, enhanced_ct, lps_body
from tests.phantoms import body, grid, nifti_file
from viscera.errors import ImageError
from viscera.io.read import read_volume
from viscera.io.volume import Volume
from viscera.io.write import write_image


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One whole file of each kind: its bytes and how many of them are header."""
    folder = tmp_path_factory.mktemp("sound")
    nib.save(nib.Nifti2Image(body(), grid()), folder / "two.nii")
    for name in ("a.nrrd", "a.mha"):
        write_image(body(), Volume(body(), grid()), folder / name)
    (one_slice,) = dicom_series(folder / "ct", skip=tuple(range(1, 12))).iterdir()
    files = [
        (nifti_file(folder / "one.nii"), 352),
        (nifti_file(folder / "one.nii.gz"), 300),
        (folder / "two.nii", 544),
        (folder / "a.nrrd", 320),
        (folder / "a.mha", 320),
        (one_slice, 900),
        (enhanced_ct(folder / "enhanced.dcm", *lps_body(), list(range(12))), 2200),
    ]
    return [(path.read_bytes(), header) for path, header in files]


@given(data=st.data())
@settings(max_examples=400, deadline=None, derandomize=True)
def test_a_damaged_file_is_read_or_refused(sound, tmp_path_factory, data):
    content, header = data.draw(st.sampled_from(sound))
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: data.draw(st.none() | st.integers(0, len(content)))])
    try:
        volume = read_volume(path, force=data.draw(st.booleans()))
    except ImageError as error:
        assert str(path) in str(error)
    else:
        assert volume.array.dtype in (np.int16, np.float32) and volume.array.ndim == 3
        assert np.isfinite(volume.array).all() and np.isfinite(volume.affine).all()
