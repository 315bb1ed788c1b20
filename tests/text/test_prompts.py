"""Prompts say what they should for every class."""

from __future__ import annotations

import pytest

from viscera.errors import SettingError
from viscera.taxonomy import read_table, taxonomy
from viscera.text.prompts import descriptions, prompt, prompts

TUMOR = taxonomy()["liver_tumor"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v1", "A photo of a liver tumor."),
        ("v2", "There is liver tumor in this computerized tomography."),
        ("v3", "A computerized tomography of a liver tumor"),
        ("names", "liver tumor"),
    ],
)
def test_the_prompts_of_the_paper(name, text):
    assert prompt(name).texts(TUMOR) == (text,)


def test_the_ensemble_is_the_three_of_the_paper():
    assert prompt("ensemble").texts(TUMOR) == tuple(prompt(v).texts(TUMOR)[0] for v in ("v1", "v2", "v3"))


@pytest.mark.parametrize("name", prompts())
def test_every_prompt_gives_every_class_texts_of_its_own_that_any_encoder_can_read(name):
    read = {structure.key: prompt(name).texts(structure) for structure in taxonomy()}
    assert len(set(read.values())) == len(taxonomy())
    for texts in read.values():
        assert len(set(texts)) == len(prompt(name).templates)
        # CLIP takes 77 tokens, two of them its own; no word of ours has more than 3.
        assert all("{" not in text and len(text.split()) <= 30 for text in texts)
    assert prompt(name).source


def test_every_class_is_described_and_every_source_named():
    table = read_table("descriptions.toml")
    sources = table.pop("sources")
    assert set(table) == set(taxonomy().keys) == set(descriptions())
    used = {source for row in table.values() for source in row["sources"]}
    assert used == set(sources)
    assert all(row["sources"] for row in table.values())
    assert "beside" in prompt("described").texts(taxonomy()["left_adrenal_gland"])[1]


def test_a_template_of_ones_own_is_a_prompt_named_by_itself():
    own = prompt("An MR of the {}: {ct}")
    assert own.name == "An MR of the {}: {ct}"
    assert own.texts(taxonomy()["spleen"]) == (
        "An MR of the spleen: even grey, slightly darker than the liver before contrast",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("v4", "no prompt 'v4'"),
        ("a {name}", "where the class's name goes"),
        ("{} {size}", "size"),
        ("{", "no template"),
        ("", "no prompt"),
    ],
)
def test_a_wrong_template_is_told(text, told):
    with pytest.raises(SettingError, match=told):
        prompt(text)
