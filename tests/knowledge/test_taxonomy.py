"""The table of classes keeps its promises."""

from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from viscera.errors import KnowledgeError
from viscera.taxonomy import Structure, Taxonomy, taxonomy

# Codes that pydicom's copy of the DICOM context groups does not hold, with where each comes from instead.
NOT_IN_PYDICOM: dict[str, str] = {}


def pydicom_meanings() -> dict[str, set[str]]:
    """SNOMED CT code -> every meaning that pydicom knows for it."""
    meanings: dict[str, set[str]] = {}
    for keyword in codes.SCT.dir():
        code = getattr(codes.SCT, keyword)
        meanings.setdefault(code.value, set()).add(code.meaning)
    return meanings


def test_the_32_classes_stand_in_the_checkpoints_order():
    assert len(taxonomy()) == 32
    assert [s.id for s in taxonomy()] == list(range(1, 33))
    # arXiv 2301.00785, supplementary table of classes: a few places that pin the order.
    places = {
        1: "spleen",
        2: "right_kidney",
        6: "liver",
        9: "postcava",
        13: "left_adrenal_gland",
        23: "left_femur_head",
    }
    places |= {25: "celiac_trunk", 26: "kidney_tumor", 27: "liver_tumor", 31: "colon_tumor", 32: "kidney_cyst"}
    assert {id: taxonomy()[id].key for id in places} == places


def test_every_snomed_code_is_one_that_dicom_lists_with_that_meaning():
    known = pydicom_meanings()
    for structure in taxonomy():
        code = structure.snomed
        assert code is not None, structure.key
        if code.code not in NOT_IN_PYDICOM:
            assert code.meaning in known[code.code], structure.key


def test_a_pair_has_one_code_and_its_sides_differ():
    for structure in taxonomy():
        if structure.pair:
            other = taxonomy()[structure.pair]
            assert other.snomed == structure.snomed
            assert {other.side, structure.side} == {"left", "right"}


def test_lesions_lie_in_an_organ_and_colours_tell_classes_apart():
    for structure in taxonomy():
        assert bool(structure.inside) or not structure.is_lesion
    assert len({s.colour for s in taxonomy()}) == len(taxonomy())
    assert all(0 <= value <= 255 for s in taxonomy() for value in s.colour)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([Structure(2, "a", "a", "organ", (0, 0, 0))], "place"),
        ([Structure(1, "a", "a", "organ", (0, 0, 0)), Structure(2, "a", "a", "organ", (0, 0, 0))], "share a key"),
        ([Structure(1, "a", "a", "organ", (0, 0, 0), side="left")], "pair"),
        ([Structure(1, "a", "a", "tumor", (0, 0, 0), inside=("b",))], "no class"),
    ],
)
def test_a_broken_table_is_refused(rows, fault):
    with pytest.raises(KnowledgeError, match=fault):
        Taxonomy(rows, {})
