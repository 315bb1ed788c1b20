from __future__ import annotations

import pytest

from viscera.data.catalogue import dataset_table, host_organs, parse_table, read_dataset_table, table_for
from viscera.errors import InputError, KnowledgeError

OWN = """
title = "Our liver study"
image = "images/{case}{ext}"
label = "labels/{case}{ext}"
[labels]
1 = "liver"
2 = "liver_tumor"
3 = "kidneys"
4 = { union = ["stomach", "duodenum"] }
5 = { name = "bones" }
"""


def table(labels, **fields):
    return parse_table("mine", {"title": "t", "image": "i/{case}", "label": "l/{case}", "labels": labels, **fields})


def test_a_set_of_ones_own_in_ten_lines(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(OWN)
    group = read_dataset_table(path).groups[0]
    assert group.annotated == ("right_kidney", "left_kidney", "liver", "liver_tumor")
    assert group.unions == (("stomach", "duodenum"),)
    tumor, kidneys, bones = (group.value_of[value] for value in "235")
    assert tumor.right == tumor.left == ("liver", "liver_tumor"), "a tumour voxel is liver too"
    assert (kidneys.right, kidneys.left) == (("right_kidney",), ("left_kidney",)) and kidneys.is_split
    assert bones.classes == () and bones.name == "bones"
    assert table_for(str(path)).key == "study"


def test_a_lesion_counts_as_its_organ_only_where_that_is_drawn():
    assert table({"1": "lung_tumor"}).annotated == ("lung_tumor",)
    source = table({"1": "right_kidney", "2": "left_kidney", "3": "kidney_tumor"}).groups[0].value_of["3"]
    assert source.right == ("right_kidney", "kidney_tumor") and source.left == ("left_kidney", "kidney_tumor")


def test_a_lesion_of_a_named_side_stays_on_it():
    labels = {"1": "right_kidney", "2": "left_kidney", "3": ["kidney_cyst", "right_kidney"]}
    source = table(labels).groups[0].value_of["3"]
    assert source.right == source.left == ("right_kidney", "kidney_cyst")


def test_a_tumour_along_the_hepatic_vessels_is_liver_but_no_vessel():
    assert host_organs("hepatic_vessel_tumor") == ("liver",)
    assert dataset_table("msd_hepatic_vessel").groups[0].value_of["2"].classes == ("hepatic_vessel_tumor",)


def test_a_class_that_is_drawn_alone_and_within_a_union_is_not_annotated():
    group = table({"1": "duodenum", "2": {"union": ["stomach", "duodenum"]}, "3": "liver"}).groups[0]
    assert group.annotated == ("liver",)


def test_groups_share_what_stands_above_them():
    made = parse_table(
        "mine",
        {
            "title": "t",
            "image": "i/{case}",
            "labels": {"1": "liver"},
            "group": [
                {"name": "a", "label": "a/{case}"},
                {"name": "b", "label": "b/{case}", "labels": {"1": "spleen"}},
            ],
        },
    )
    assert [group.annotated for group in made.groups] == [("liver",), ("spleen",)]
    assert made.annotated == ("spleen", "liver"), "in id order"


def test_kits19_does_not_know_cysts():
    annotated = {group.name: group.annotated for group in dataset_table("kits").groups}
    assert "kidney_cyst" in annotated["kits23"] and "kidney_cyst" not in annotated["kits19"]


@pytest.mark.parametrize(
    ("labels", "fields", "message"),
    [
        ({"1": "livre"}, {}, "'livre' is neither a class nor a group"),
        ({"1": "lungs"}, {"not_annotated": ["lung"]}, "'lung' is no class"),
        ({"1": "organs"}, {}, "'organs' is neither"),
        ({"0": "liver"}, {}, "'0' must be a whole number above 0"),
        ({"one": "liver"}, {}, "'one' must be a whole number"),
        ({"1": {"union": ["stomach"]}}, {}, "two or more"),
        ({"1": {"union": ["stomach", "colon"], "classes": "liver"}}, {}, "excludes `classes`"),
        ({"1": {}}, {}, "at least a name"),
        ({"1": {"klass": "liver"}}, {}, "unknown field 'klass'"),
        ({"1": "liver"}, {"imge": "x"}, "unknown field 'imge'"),
        ({"1": "liver"}, {"label": "labels/*.nii.gz"}, "must hold {case}"),
        ({"1": "liver"}, {"per_case": True}, "per_case needs one mask per structure"),
        ({"1": "liver"}, {"label_format": "jpg"}, "label_format is 'jpg'"),
        ("labels.json", {}, "must be a table"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused_by_name(labels, fields, message):
    with pytest.raises(KnowledgeError, match=message.replace("{", r"\{")) as error:
        table(labels, **fields)
    assert "mine" in str(error.value)


def test_ones_own_faulty_table_is_an_input_error_with_its_path(tmp_path):
    path = tmp_path / "study.toml"
    for text in ('title = "t"', "title = ", OWN.replace('"liver"', '"livre"')):
        path.write_text(text)
        with pytest.raises(InputError, match=r"study\.toml"):
            read_dataset_table(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_dataset_table(tmp_path / "none.toml")


def test_an_unknown_key_lists_the_known_ones():
    with pytest.raises(InputError, match=r"btcv.*lits.*ten lines"):
        dataset_table("litts")
