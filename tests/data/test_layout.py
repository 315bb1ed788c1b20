from __future__ import annotations

import json

import pytest

from viscera.data.catalogue import dataset_table, parse_table
from viscera.data.layout import case_names, case_path, find_cases, matches
from viscera.errors import InputError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def table(image, label, **fields):
    return parse_table("mine", {"title": "t", "image": image, "label": label, "labels": {"1": "liver"}, **fields})


def names(found):
    return [case.name for case in found.cases]


def test_image_and_label_are_paired_by_the_case(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/b.nrrd", "labels/a.nii", "labels/b.mha", "images/notes.txt")
    found = find_cases(table("images/{case}{ext}", "labels/{case}{ext}"), tmp_path)
    assert names(found) == ["a", "b"] and not found.misplaced
    assert found.cases[1].image == tmp_path / "images/b.nrrd"
    assert found.cases[1].labels[""] == tmp_path / "labels/b.mha"
    assert found.cases[0].id == "mine/a"


def test_what_lacks_its_partner_is_named(tmp_path):
    touch(tmp_path, "images/a.nii", "images/b.nii", "labels/b.nii", "labels/c.nii")
    found = find_cases(table("images/{case}{ext}", "labels/{case}{ext}"), tmp_path)
    assert names(found) == ["b"]
    assert [(m.case, m.verdict.split(" (")[0]) for m in found.misplaced] == [
        ("a", "the image has no label"),
        ("c", "the label has no image"),
    ]


def test_a_second_copy_of_a_case_is_named_and_the_first_is_taken(tmp_path):
    touch(tmp_path, "x/images/a.nii", "y/images/a.nii", "labels/a.nii")
    found = find_cases(table("**/images/{case}{ext}", "labels/{case}{ext}"), tmp_path)
    assert found.cases[0].image == tmp_path / "x/images/a.nii"
    assert found.misplaced[0].file == tmp_path / "y/images/a.nii"


def test_the_hidden_twins_that_archives_from_a_mac_hold_are_passed_over(tmp_path):
    touch(tmp_path, "imagesTr/._liver_0.nii.gz", "imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz")
    found = find_cases(table("imagesTr/{case}{ext}", "labelsTr/{case}{ext}"), tmp_path)
    assert names(found) == ["liver_0"] and not found.misplaced


def test_one_mask_a_structure_and_a_pattern_that_begins_at_the_folder_itself(tmp_path):
    root = tmp_path / "segs" / "p1"
    touch(root, "ct.nii.gz", "segmentations/liver.nii.gz", "segmentations/spleen.nii.gz")
    masks = table("**/{case}/ct{ext}", "**/{case}/segmentations/{structure}{ext}", labels={"liver": "liver"})
    for folder in (root.parent, root):
        case = find_cases(masks, folder).cases[0]
        assert case.name == "p1" and sorted(case.labels) == ["liver", "spleen"]


def test_folders_are_images_where_the_pattern_ends_in_a_slash(tmp_path):
    touch(tmp_path, "CT/1/DICOM_anon/i1.dcm", "CT/1/Ground/l1.png")
    case = find_cases(dataset_table("chaos"), tmp_path).cases[0]
    assert case.image == tmp_path / "CT/1/DICOM_anon" and case.labels[""] == tmp_path / "CT/1/Ground"


def test_a_case_may_have_a_fixed_form(tmp_path):
    touch(tmp_path, *(f"{kind}Tr/amos_{n}.nii.gz" for kind in ("images", "labels") for n in ("0001", "0500", "0507")))
    assert names(find_cases(dataset_table("amos"), tmp_path)) == ["amos_0001", "amos_0500"], "0507 is MR"


def test_groups_that_share_images_do_not_report_each_others(tmp_path):
    touch(tmp_path, *(f"data/case_0000{n}/imaging.nii.gz" for n in (0, 1)))
    touch(tmp_path, "data/case_00000/aggregated_MAJ_seg.nii.gz", "data/case_00001/segmentation.nii.gz")
    found = find_cases(dataset_table("kits"), tmp_path)
    assert [(case.name, case.group.name) for case in found.cases] == [("00000", "kits21"), ("00001", "kits19")]
    assert not found.misplaced


def test_a_class_is_annotated_where_its_mask_is(tmp_path):
    touch(tmp_path, *(f"3Dircadb1.1/MASKS_DICOM/{name}/image_0" for name in ("liver", "leftkidney", "livertumors")))
    touch(tmp_path, "3Dircadb1.1/PATIENT_DICOM/image_0", "3Dircadb1.2/PATIENT_DICOM/image_0")
    touch(tmp_path, "3Dircadb1.2/MASKS_DICOM/liver/image_0")
    one, two = find_cases(dataset_table("ircadb"), tmp_path).cases
    assert one.annotated == ("left_kidney", "liver", "liver_tumor")
    assert two.annotated == ("liver", "liver_tumor"), "no tumour in this patient is a true negative"


def test_a_lesions_mask_does_not_stand_for_its_organ(tmp_path):
    touch(tmp_path, "s1/ct.nii.gz", "s1/segmentations/kidney_cyst_left.nii.gz")
    assert find_cases(dataset_table("totalsegmentator"), tmp_path).cases[0].annotated == ("kidney_cyst",)


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"(?s)No case of LiTS.*volume-\{case\}"):
        find_cases(dataset_table("lits"), tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        find_cases(dataset_table("lits"), tmp_path / "none")


V2 = {
    "channel_names": {"0": "PET", "1": "CT"},
    "labels": {"background": 0, "liver": [1, 2], "liver tumor": 2, "kidney": 3, "bone": 4, "ignore": 5},
    "name": "ours",
}
V1 = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "kidney tumour"}}


def test_an_nnunet_folder_explains_itself(tmp_path):
    touch(tmp_path, "imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz", "labelsTr/x.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps(V2))
    found = find_cases(dataset_table("nnunet"), tmp_path)
    case = found.cases[0]
    assert found.dataset.title == "ours" and case.image == tmp_path / "imagesTr/x_0001.nii.gz", "the CT channel"
    assert case.annotated == ("right_kidney", "left_kidney", "liver", "liver_tumor")
    assert case.group.value_of["2"].classes == ("liver", "liver_tumor")
    assert case.group.value_of["4"].classes == () and "5" not in case.group.value_of


def test_an_nnunet_folder_of_version_1(tmp_path):
    touch(tmp_path, "imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps(V1))
    assert find_cases(dataset_table("nnunet"), tmp_path).cases[0].annotated == ("liver", "kidney_tumor")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "is not an nnU-Net dataset.json"),
        (json.dumps({**V1, "modality": {"0": "MRI"}}), "no CT among its channels"),
        (json.dumps({"labels": {}}), "is not an nnU-Net dataset.json"),
    ],
)
def test_a_faulty_dataset_json_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=message):
        find_cases(dataset_table("nnunet"), tmp_path)


def test_paths_and_names_for_phantoms():
    assert case_path("**/Part*/{case:Organ_\\d+}_0000{ext}", "Organ_1") == "Part1/Organ_1_0000.nii.gz"
    generated = case_names("amos_0009")
    assert [next(generated), next(generated)] == ["amos_0009", "amos_0010"]


def test_a_source_may_name_many_files():
    assert matches("livertumo*", "livertumor03") and not matches("livertumo*", "liver") and not matches("rib", "rib1")
