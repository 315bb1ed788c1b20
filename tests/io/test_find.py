import zipfile

import pytest

from viscera.errors import ImageError
from viscera.io.find import case_name, case_names, scan_files

DICOM = bytes(128) + b"DICM"


def test_scans_of_all_kinds(tmp_path):
    for name in ("b.nii.gz", "a.nii", "sub/c.NRRD", "d.mha", "e.hdr", "f.mhd", "g.nhdr"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content does not matter here")
    for name in (".hidden.nii", "e.img", "f.raw", "g.raw.gz", "notes.txt", "findings.json"):
        (tmp_path / name).write_bytes(b"\x08\x00 voxels may look like anything, also like DICOM"[2:])
    (tmp_path / "e.img").write_bytes(b"\x08\x00\x00\x00" * 10)  # voxels that look like DICOM
    (tmp_path / "f.raw").write_bytes(b"\x08\x00\x00\x00" * 10)
    for name in ("patient/series 1/IM0001", "patient/series 2/x.dcm", ".trash/IM0001", "__MACOSX/x.dcm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(DICOM)
    zipfile.ZipFile(tmp_path / "z.zip", "w").close()

    found = [str(path.relative_to(tmp_path)) for path in scan_files(tmp_path)]

    assert found == [
        "a.nii", "b.nii.gz", "d.mha", "e.hdr", "f.mhd", "g.nhdr", "patient/series 1", "patient/series 2",
        "sub/c.NRRD", "z.zip",
    ]  # fmt: skip


def test_a_dicom_folder_is_one_scan_itself(tmp_path):
    (tmp_path / "IM1").write_bytes(DICOM)
    assert scan_files(tmp_path) == [tmp_path]


def test_nothing_found_is_an_error_not_a_silent_zero(tmp_path):
    with pytest.raises(ImageError, match="holds no scans"):
        scan_files(tmp_path)
    with pytest.raises(ImageError, match="is not a folder"):
        scan_files(tmp_path / "missing")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/ct.nii.gz", "ct"),
        ("ct.1.nii", "ct.1"),
        ("CT.NRRD", "CT"),
        ("series.zip", "series"),
        ("slice.dcm", "slice"),
        ("pair.img.gz", "pair"),
        ("patients/one", "one"),
        ("patients/v1.2", "v1.2"),
        (".nii", ".nii"),
    ],
)
def test_case_name(path, name):
    assert case_name(path) == name


def test_case_name_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert case_name(".") == tmp_path.name


def test_case_names_are_unique_and_stay_short_where_they_can():
    paths = ["d/p1/ct.nii.gz", "d/p2/ct.nii.gz", "d/p2/x/ct.nii.gz", "d/p3/liver.nii", "d/a.nii", "d/a.nii.gz"]
    assert case_names(paths) == ["p1_ct", "p2_ct", "p2_x_ct", "liver", "a", "a_2"]
    assert case_names(["ct.nii"]) == ["ct"]
    assert case_names([]) == []
