"""What people type means the right classes, or is refused with a sensible suggestion; never a guess."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viscera.errors import ClassNameError
from viscera.names import as_written, resolve, suggestions
from viscera.taxonomy import Structure, Taxonomy, taxonomy

HERE = Path(__file__).parent


def table(name: str) -> list[tuple[str, str]]:
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    rows = [line.split(" -> ") for line in lines if line and not line.startswith("#")]
    return [(typed, meant) for typed, meant in rows]


TYPED = table("typed_names.txt")
REFUSED = table("refused_names.txt")


def keys(*args, **kwargs) -> list[str]:
    return [structure.key for structure in resolve(*args, **kwargs)]


def test_the_tables_are_as_long_as_promised_and_cover_every_class():
    assert len({typed for typed, _ in TYPED}) == len(TYPED) >= 200
    assert len({typed for typed, _ in REFUSED}) == len(REFUSED) >= 50
    assert {key for _, meant in TYPED for key in meant.split()} == set(taxonomy().keys)


@pytest.mark.parametrize(("typed", "meant"), TYPED, ids=[typed for typed, _ in TYPED])
def test_typed_names_mean_their_class(typed, meant):
    assert keys(typed) == sorted(meant.split(), key=taxonomy().keys.index)


@pytest.mark.parametrize(("typed", "first"), REFUSED, ids=[typed for typed, _ in REFUSED])
def test_near_misses_are_refused_with_a_sensible_first_suggestion(typed, first):
    with pytest.raises(ClassNameError) as error:
        resolve(typed)
    assert repr(typed) in str(error.value)
    assert suggestions(typed)[0] == first
    assert first in str(error.value)


@pytest.mark.parametrize("structure", taxonomy(), ids=lambda s: s.key)
def test_every_name_in_the_taxonomy_means_its_own_class(structure):
    for name in (structure.key, structure.name, *structure.synonyms, structure.id, str(structure.id)):
        assert resolve(name) == (structure,)


@pytest.mark.parametrize("group", taxonomy().groups)
def test_every_group_means_its_members(group):
    assert set(keys(group)) == set(taxonomy().groups[group])
    assert keys(group.replace("_", " ").title()) == keys(group)


def test_a_list_is_answered_in_id_order_without_duplicates():
    assert keys("lungs, liver, ivc, IVC; left lung\nspleen") == [
        "spleen",
        "liver",
        "postcava",
        "right_lung",
        "left_lung",
    ]
    assert keys(["liver", 1, "27", "kidney, left"]) == ["spleen", "left_kidney", "liver", "liver_tumor"]
    assert keys(6) == ["liver"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("liver, kidney, left, spleen", ["spleen", "left_kidney", "liver"]),
        ("kidney, left, kidney, right", ["right_kidney", "left_kidney"]),
        ("kidney, left, right", ["right_kidney", "left_kidney"]),
        ("left kidney, right lung", ["left_kidney", "right_lung"]),
        ("adrenal, left and right, liver", ["liver", "right_adrenal_gland", "left_adrenal_gland"]),
        ("liver, spleen, and pancreas", ["spleen", "liver", "pancreas"]),
        ("liver and spleen", ["spleen", "liver"]),
        (" liver,, spleen, ", ["spleen", "liver"]),
    ],
)
def test_commas_separate_names_but_a_part_that_means_nothing_alone_belongs_to_the_name_before(typed, meant):
    assert keys(typed) == meant


@pytest.mark.parametrize(
    ("typed", "could_be"),
    [
        ("kidney", ["right_kidney", "left_kidney", "kidneys"]),
        ("adrenal gland", ["right_adrenal_gland", "left_adrenal_gland", "adrenal_glands"]),
        ("femoral head", ["left_femur_head", "right_femur_head", "femur_heads"]),
        ("renal lesion", ["kidney_tumor", "kidney_cyst"]),
        ("tumor", ["kidney_tumor", "liver_tumor", "colon_tumor", "tumors"]),
    ],
)
def test_an_ambiguous_name_is_refused_and_every_candidate_named(typed, could_be):
    with pytest.raises(ClassNameError, match="may mean") as error:
        resolve(typed)
    assert all(name in str(error.value) for name in could_be)


@pytest.mark.parametrize(
    "typed",
    [
        "left kidney and right kidney tumor",  # the bag of words alone would say: kidney tumour
        "liver and kidney tumor",
        "liver tumor kidney",
        "kidney kidney tumor",
        "liver without tumor",
        "liver and tumor",  # the liver and its tumour, or every tumour?
        "left liver tumor",
        "right LK",
        "left",
        "left, liver",
        "of the",
        "heart",
        "0",
        "33",
        "-1",
        "1.5",
        "livertumor",
        "lesion, liver",
        "liver, tumor",  # the liver and which tumour, or the tumour of the liver?
    ],
)
def test_nothing_is_guessed(typed):
    with pytest.raises(ClassNameError):
        resolve(typed)


def test_every_unknown_name_of_a_list_is_told_at_once_and_how_to_list_the_classes():
    with pytest.raises(ClassNameError) as error:
        resolve("livver, spleen, kidnei, 40")
    text = str(error.value)
    assert "'livver'" in text and "'kidnei'" in text and "40" in text and "'spleen'" not in text
    assert "viscera classes" in text


@pytest.mark.parametrize("nothing", ["", " , ", []])
def test_naming_no_class_is_an_error(nothing):
    with pytest.raises(ClassNameError, match="No class was named"):
        resolve(nothing)


def test_the_reason_is_told_where_we_know_it():
    with pytest.raises(ClassNameError, match="superior mesenteric vein drains into the portal vein"):
        resolve("SMV")


def test_suggestions_by_meaning_are_asked_for_unknown_names_only_and_never_taken():
    asked = []

    def suggest(phrase):
        asked.append(phrase)
        return ["gallbladder", "liver"]

    assert keys("liver", suggest=suggest) == ["liver"]
    assert asked == []
    with pytest.raises(ClassNameError, match=r"Nearest in meaning: gallbladder or liver\."):
        resolve("liver, bile store", suggest=suggest)
    assert asked == ["bile store"]


@pytest.mark.parametrize("explained", ["kidney", "livver", "SMV", "heart", "33", "left renal mass", "left"])
def test_no_suggestion_by_meaning_is_asked_for_where_words_and_spelling_say_enough(explained):
    with pytest.raises(ClassNameError):
        resolve(explained, suggest=lambda phrase: pytest.fail(f"asked about {phrase}"))


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("Left renal masses", "left kidney tumor"),
        ("tumour of the oesophagus", "tumor of the esophagus"),
        ("hepatic_lesion", "liver lesion"),
        ("bile store", "bile store"),
    ],
)
def test_a_phrase_in_the_words_of_the_taxonomy(typed, written):
    assert as_written(typed) == written


def test_another_taxonomy_has_its_own_names():
    other = Taxonomy(
        [Structure(1, "liver", "liver", "organ", (1, 2, 3)), Structure(2, "heart", "heart", "organ", (1, 2, 3))], {}
    )
    assert keys("heart", other) == ["heart"]
    assert keys("organs", other) == ["liver", "heart"]
    with pytest.raises(ClassNameError):
        resolve("spleen", other)
    assert "portal_splenic_vein" not in suggestions("SMV", other)


@given(st.text(max_size=40))
def test_any_text_is_answered_or_refused(text):
    try:
        found = resolve(text)
    except ClassNameError as error:
        assert "viscera classes" in str(error)
    else:
        assert list(found) == sorted(set(found), key=lambda s: s.id)


@given(st.sampled_from([typed for typed, _ in TYPED if "," not in typed]), st.randoms())
def test_word_order_spacing_and_case_do_not_matter(typed, random):
    # camelCase and "and" lists are about order, so they are left out.
    words = typed.lower().replace("_", " ").split()
    if typed != typed.lower() or "and" in words:
        return
    random.shuffle(words)
    assert keys("  ".join(words).upper()) == keys(typed)
